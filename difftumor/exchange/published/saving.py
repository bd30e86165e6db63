"""Writing what was imported as an artifact that says where it comes from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difftumor.exchange.published.entries import ignored_entries
from difftumor.exchange.published.reading import PublishedFile
from difftumor.models.artifact import Parent, build_network, save_artifact
from difftumor.models.artifact_config import Kind

# CT as every published network reads it.
PREPROCESSING: Mapping[str, Any] = {
    "spacing_mm": (1.0, 1.0, 1.0),
    "window_hu": (-175.0, 250.0),
    "crop": (96, 96, 96),
}


@dataclass(frozen=True)
class Imported:
    """What an import made.

    Attributes:
        path: The artifact's folder.
        source: The file's name, SHA-256, and the numbers it holds about its training.
        ignored: Names of entries that were not used, and how many each covers.
        unread: What else the file holds beside its weights.
    """

    path: Path
    source: Mapping[str, Any]
    ignored: Mapping[str, int]
    unread: tuple[str, ...]


def fresh_network(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the network that entries are loaded into; the caller's random numbers do not notice."""
    with torch.random.fork_rng(devices=[]):
        return build_network(architecture).eval().requires_grad_(False)


def save_imported(
    out: Path,
    file: PublishedFile,
    *,
    kind: Kind,
    architecture: Mapping[str, Any],
    network: nn.Module,
    used: Collection[str],
    names: Collection[str],
    organ: str | None = None,
    parents: Mapping[str, Parent] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Imported:
    """Write the artifact.

    Args:
        out: Its folder; an older artifact there is replaced.
        file: Where the weights come from.
        kind: What the network is for.
        architecture: From which ``network`` was built.
        network: With the weights of the file.
        used: Names of the entries that were loaded, checked or compared.
        names: Names of all entries.
        organ: Organ it was trained on.
        parents: Artifacts it needs.
        settings: What the network is used with.

    Raises:
        ConfigError: ``out`` holds something that is not an artifact.
    """
    source = {"file": file.path.name, "sha256": file.sha256, **file.numbers}
    ignored = ignored_entries(names, used)
    save_artifact(
        out,
        kind=kind,
        architecture=architecture,
        network=network,
        preprocessing=PREPROCESSING,
        organ=organ,
        parents=parents,
        settings=settings,
        training={"imported_from": source, "ignored": ignored, "unread": list(file.unread)},
    )
    return Imported(path=out, source=source, ignored=ignored, unread=file.unread)
