"""Weights of feature networks, read from the files of their authors without running any code in them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from difftumor.errors import PublishedFileError, naming
from difftumor.files.archives import archive_damage
from difftumor.files.checksums import sha256_of

# Checkpoints of a training hold the weights under this name.
_TABLE = "state_dict"
# Training on several GPUs puts this before every name.
_PREFIX = "module."


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """Weights of a file.

    Attributes:
        path: The file.
        sha256: SHA-256 of its bytes.
        tensors: By name, without the prefix ``module.``.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]


@naming
def read_weights(path: Path) -> WeightsFile:
    """Read a state dict: a file of ``torch.save``, old format or new, or a safetensors file.

    Raises:
        PublishedFileError: The file is missing, damaged, would run code, or holds no weights.
    """
    if not path.is_file():
        raise PublishedFileError(f"There is no file {path}: give --features a file with the weights of the network.")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (PublishedFileError, MemoryError):
        raise
    except Exception as error:  # the bytes of a damaged file can raise anything
        # Not PyTorch's own message, which advises to load the file unsafely.
        raise PublishedFileError(
            f"{path} holds no weights that can be read safely ({type(error).__name__}): get the file as published "
            "again, or save its state dict."
        ) from error
    table = content.get(_TABLE, content) if isinstance(content, Mapping) else None
    if not isinstance(table, Mapping) or not table or not all(isinstance(value, Tensor) for value in table.values()):
        raise PublishedFileError(f"{path} holds no state dict: save that of the network, a table of tensors.")
    tensors = {str(name).removeprefix(_PREFIX): value for name, value in table.items()}
    return WeightsFile(path, sha256_of(path), tensors)


def _check_archive(path: Path) -> None:
    """Refuse a damaged archive, of which PyTorch would take what is there."""
    if not zipfile.is_zipfile(path):  # the old format has none
        return
    if damage := archive_damage(path):
        raise PublishedFileError(f"{path} is damaged ({damage}): get the file as published again.")


def load_weights(network: nn.Module, weights: WeightsFile, *, ignored: Sequence[str] = ()) -> None:
    """Load weights into a network; they must match exactly.

    Args:
        network: The network.
        weights: Weights with the same names.
        ignored: Prefixes of names that may be missing or present: heads, which features do not use.

    Raises:
        PublishedFileError: Weights are missing, unexpected, of another shape or not finite; the message names the
            first ones.
    """
    wanted = network.state_dict()
    given = {name: value for name, value in weights.tensors.items() if not name.startswith(tuple(ignored))}
    # Old versions of PyTorch did not save this counter, which inference does not use.
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    found = {
        "lacks": missing,
        "has, unexpected,": [name for name in given if name not in wanted],
        "has in another shape": [
            f"{name} {tuple(value.shape)}"
            for name, value in given.items()
            if name in wanted and value.shape != wanted[name].shape
        ],
    }
    wrong = " and ".join(f"{what} {_listed(names)}" for what, names in found.items() if names)
    if wrong:
        raise PublishedFileError(
            f"{weights.path} does not fit the feature network {type(network).__name__} (it {wrong}): give its "
            "weights, or name the network they belong to."
        )
    if broken := [name for name, value in given.items() if not torch.isfinite(value).all()]:
        raise PublishedFileError(
            f"{weights.path} holds weights that are not finite ({_listed(broken)}): get the file as published again."
        )
    network.load_state_dict({**wanted, **given})


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
