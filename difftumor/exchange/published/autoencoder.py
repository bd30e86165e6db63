"""The published autoencoder, ``AutoencoderModel.ckpt``: a checkpoint of Lightning 1.6."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftumor.exchange.published.entries import load_entries
from difftumor.exchange.published.reading import read_published
from difftumor.exchange.published.saving import Imported, fresh_network, save_imported
from difftumor.models.artifact import ARTIFACT_FOLDER

ARCHITECTURE: Mapping[str, Any] = {
    "name": "vqgan3d",
    "base_channels": 16,
    "levels": 2,
    "latent_channels": 8,
    "codes": 16384,
    "norm_groups": 32,
}


def import_autoencoder(file: Path | str, out: Path | str) -> Imported:
    """Make an artifact of a published autoencoder; its discriminators and perceptual network are ignored.

    Args:
        file: ``AutoencoderModel.ckpt``.
        out: Folder of the artifact; an older artifact there is replaced.

    Raises:
        PublishedFileError: The file is missing, damaged, refused, or of another network.
        ConfigError: ``out`` holds the file, or something that is not an artifact.
    """
    ARTIFACT_FOLDER.check(Path(out), option="OUT", inputs=(Path(file),))
    read = read_published(file, tables=("state_dict",), numbers=("epoch", "global_step"))
    entries = read.tables["state_dict"]
    network = fresh_network(ARCHITECTURE)
    used = load_entries(network, entries, source=read.path)
    return save_imported(
        Path(out), read, kind="autoencoder", architecture=ARCHITECTURE, network=network, used=used, names=entries
    )
