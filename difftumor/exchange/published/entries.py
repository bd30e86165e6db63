"""Fitting the entries of a published checkpoint into a network: each is used, or named as ignored, or an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from difftumor.errors import PublishedFileError

# The published copy of the autoencoder is an average of equal numbers, which rounding moves by about 1e-7; weights
# that are one step of training apart differ by more than 1e-3.
SAME = 1e-5


def load_entries(network: nn.Module, entries: Mapping[str, Tensor], *, source: Path, prefix: str = "") -> set[str]:
    """Load the entries that belong to a network into it.

    Args:
        network: What is loaded, in place.
        entries: Those of the file.
        source: The file, for messages.
        prefix: What the file puts before the network's own names.

    Returns:
        The names of the entries used, as the file has them.

    Raises:
        PublishedFileError: An entry is missing or misshaped, holds what cannot be, or is unknown to its part of the
            network.
    """
    wanted = {prefix + name: value for name, value in network.state_dict().items()}
    for name, value in wanted.items():
        _check(entries, name, value, source)
    parts = {_part(name) for name in wanted}
    unknown = [name for name in entries if name not in wanted and _part(name) in parts]
    if unknown:
        raise PublishedFileError(
            f"{source} holds {unknown[0]}, which the published network does not have: "
            "give a file of the published architecture."
        )
    network.load_state_dict({name.removeprefix(prefix): entries[name] for name in wanted}, strict=True)
    for name, value in network.state_dict().items():
        # A module that is listed under two names takes the value of the later one.
        if not torch.equal(value, entries[prefix + name]):
            raise PublishedFileError(
                f"{source} holds a {prefix}{name} that differs from another entry for the same weights: "
                "download the published file again."
            )
    return set(wanted)


def check_copy(entries: Mapping[str, Tensor], original: nn.Module, *, source: Path, prefix: str, of: Path) -> set[str]:
    """Compare a copy of a network inside a file with the network itself, entry by entry.

    Args:
        entries: Those of the file.
        original: What the copy must equal.
        source: The file, for messages.
        prefix: What the file puts before the network's own names.
        of: Where the original comes from, for messages.

    Returns:
        The names of the entries compared, as the file has them.

    Raises:
        PublishedFileError: An entry is missing, misshaped or different.
    """
    compared = set()
    for name, ours in original.state_dict().items():
        _check(entries, prefix + name, ours, source)
        difference = entries[prefix + name].double() - ours.double()
        if not difference.norm() <= SAME * ours.double().norm():
            raise PublishedFileError(
                f"{source} was trained with another autoencoder than {of} ({prefix}{name} differs): "
                "import the autoencoder that was published with it and give that."
            )
        compared.add(prefix + name)
    return compared


def ignored_entries(names: Iterable[str], used: Collection[str]) -> dict[str, int]:
    """Name the entries that are not used by the shortest beginning that no used entry shares.

    Returns:
        For instance ``{"image_discriminator.*": 23, "swinViT.norm.*": 2}``: names, and how many entries each covers.
    """
    beginnings = {beginning for name in used for beginning in _beginnings(name)}
    counts: Counter[str] = Counter()
    for name in names:
        if name not in used:
            own = [beginning for beginning in _beginnings(name) if beginning not in beginnings]
            counts[f"{own[0]}.*" if own else name] += 1
    return dict(counts)


def _check(entries: Mapping[str, Tensor], name: str, wanted: Tensor, source: Path) -> None:
    """Refuse an entry that is missing, of another shape or type, or not what the network computes by itself."""
    value = entries.get(name)
    if value is None:
        raise PublishedFileError(
            f"{source} lacks {name}, which the published network has: give a file of the published architecture."
        )
    if value.shape != wanted.shape or value.dtype != wanted.dtype:
        described = [f"{tuple(it.shape)} {str(it.dtype).removeprefix('torch.')}" for it in (value, wanted)]
        raise PublishedFileError(
            f"{source} holds {name} as {described[0]}, and the published network has it as {described[1]}: "
            "give a file of the published architecture."
        )
    # Whole numbers are not weights but indices that follow from the architecture.
    sound = value.isfinite().all() if value.is_floating_point() else torch.equal(value, wanted)
    if not sound:
        raise PublishedFileError(f"{source} holds {name} with impossible values: download the published file again.")


def _part(name: str) -> str:
    return name.partition(".")[0]


def _beginnings(name: str) -> list[str]:
    """Return ``["a", "a.b"]`` of ``"a.b.c"``, the shortest first."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(1, len(words))]
