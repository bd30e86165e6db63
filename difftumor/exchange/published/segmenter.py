"""The published segmenters: networks of MONAI in checkpoints ``{epoch, best_acc, state_dict}``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from difftumor.errors import ConfigError, PublishedFileError
from difftumor.exchange.published.entries import load_entries
from difftumor.exchange.published.reading import read_published
from difftumor.exchange.published.saving import Imported, fresh_network, save_imported
from difftumor.models.artifact import ARTIFACT_FOLDER
from difftumor.models.segmenters import SWIN_FEATURE_SIZES
from difftumor.scans.organs import get_organ

# Wrappers around a network in training, one inside of the other.
WRAPPERS = re.compile(r"(?:module\.|backbone\.)+")
# Of a normalization whose result the network does not use.
UNUSED = ("swinViT.norm.weight", "swinViT.norm.bias")


def import_segmenter(architecture: str, file: Path | str, out: Path | str, *, organ: str) -> Imported:
    """Make an artifact of a published segmenter.

    Args:
        architecture: ``unet``, ``nnunet`` or ``swinunetr``.
        file: The checkpoint.
        out: Folder of the artifact; an older artifact there is replaced.
        organ: Organ whose tumors it finds, which the file does not say.

    Raises:
        PublishedFileError: The file is missing, damaged, refused, or of another network.
        ConfigError: The architecture is unknown, or ``out`` holds the file, or something that is
            not an artifact.
        OrganError: The organ is unknown.
    """
    if architecture not in _ARCHITECTURES:
        raise ConfigError(f"Segmenter {architecture!r} is unknown: choose one of {', '.join(_ARCHITECTURES)}.")
    name = get_organ(organ).name
    ARTIFACT_FOLDER.check(Path(out), option="OUT", inputs=(Path(file),))
    read = read_published(file, tables=("state_dict",), numbers=("epoch", "best_acc"))
    entries = _unwrapped(read.tables["state_dict"], read.path)
    described = {"name": architecture, **_ARCHITECTURES[architecture](entries, read.path)}
    network = fresh_network(described)
    fitting = {entry: value for entry, value in entries.items() if entry not in UNUSED}
    used = load_entries(network, fitting, source=read.path)
    return save_imported(
        Path(out), read, kind="segmenter", architecture=described, network=network, used=used, names=entries, organ=name
    )


def _unwrapped(table: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Return the entries under the names that MONAI gives them today."""
    entries: dict[str, Tensor] = {}
    for written, value in table.items():
        name = WRAPPERS.sub("", written, count=1) if WRAPPERS.match(written) else written
        name = name.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")
        if name in entries:
            raise PublishedFileError(f"{source} holds {name} twice ({written}): download the published file again.")
        entries[name] = value
    return entries


def _unet(_: Mapping[str, Tensor], __: Path) -> dict[str, Any]:
    return {"channels": (16, 32, 64, 128, 256), "residual_units": 2}


def _nnunet(entries: Mapping[str, Tensor], _: Path) -> dict[str, Any]:
    affine = "input_block.norm1.weight" in entries
    return {"channels": (32, 64, 128, 256, 320), "strides": (1, 2, 2, 2, 2), "affine_norm": affine}


def _swinunetr(entries: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    embedding = entries.get("swinViT.patch_embed.proj.weight")
    width = 0 if embedding is None or not embedding.ndim else len(embedding)
    sizes = {features: size for size, features in SWIN_FEATURE_SIZES.items()}
    if width not in sizes:
        raise PublishedFileError(
            f"{source} is not a published Swin UNETR (swinViT.patch_embed.proj.weight has {width or 'no'} channels, "
            f"not {', '.join(map(str, sizes))}): give another file, or its architecture."
        )
    return {"size": sizes[width], "depths": (2, 2, 2, 2), "heads": (3, 6, 12, 24)}


_ARCHITECTURES: Mapping[str, Callable[[Mapping[str, Tensor], Path], dict[str, Any]]] = MappingProxyType(
    {"unet": _unet, "nnunet": _nnunet, "swinunetr": _swinunetr}
)
