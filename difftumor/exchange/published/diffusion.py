"""The published diffusion models, such as ``liver_early.pt``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from difftumor.errors import PublishedFileError
from difftumor.exchange.published.entries import check_copy, load_entries
from difftumor.exchange.published.reading import read_published
from difftumor.exchange.published.saving import Imported, fresh_network, save_imported
from difftumor.models.artifact import ARTIFACT_FOLDER, load_artifact
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.models.sampling import NoiseSchedule
from difftumor.scans.lesions import SizeGroup
from difftumor.scans.organs import get_organ

ARCHITECTURE: Mapping[str, Any] = {
    "name": "factorized_unet",
    "latent_channels": 8,
    "condition_channels": 9,
    "width": 24,
    "multipliers": (1, 2, 4, 8),
    "heads": 8,
    "head_dim": 32,
    "norm_groups": 8,
}
# The number of timesteps tells the two published settings apart.
STAGES: Mapping[int, tuple[SizeGroup, SamplerConfig]] = MappingProxyType(
    {4: ("early", SamplerConfig(kind="ddpm")), 200: ("late", SamplerConfig(kind="ddim", steps=50))}
)
# The average of the weights, which samples best; the file also holds the last weights.
WEIGHTS = "ema"
DENOISER, AUTOENCODER = "denoise_fn.", "vqgan."


def import_diffusion(
    file: Path | str, out: Path | str, *, autoencoder: Path | str, organ: str | None = None
) -> Imported:
    """Make an artifact of a published diffusion model.

    Whether it is the one for early or for larger tumors follows from its noise schedule.

    Args:
        file: For instance ``liver_early.pt``.
        out: Folder of the artifact; an older artifact there is replaced.
        autoencoder: Artifact of the autoencoder that was published with it.
        organ: Organ whose tumors it was trained on, which the file does not say.

    Raises:
        PublishedFileError: The file is missing, damaged, refused, of another network, or was trained with another
            autoencoder.
        ArtifactError: There is no autoencoder.
        ConfigError: ``out`` holds an input, or something that is not an artifact.
        OrganError: The organ is unknown.
    """
    ARTIFACT_FOLDER.check(Path(out), option="OUT", inputs=(Path(file), Path(autoencoder)))
    name = None if organ is None else get_organ(organ).name
    parent = load_artifact(autoencoder, kind="autoencoder")
    read = read_published(file, tables=(WEIGHTS,), numbers=("step",))
    entries = read.tables[WEIGHTS]
    network = fresh_network(ARCHITECTURE)
    used = load_entries(network, entries, source=read.path, prefix=DENOISER)
    timesteps, tables = _check_schedule(entries, read.path)
    used |= tables
    used |= check_copy(entries, parent.network, source=read.path, prefix=AUTOENCODER, of=parent.path)
    stage, sampler = STAGES[timesteps]
    return save_imported(
        Path(out),
        read,
        kind="diffusion",
        architecture=ARCHITECTURE,
        network=network,
        used=used,
        names=entries,
        organ=name,
        parents={"autoencoder": parent.as_parent},
        settings={"timesteps": timesteps, "sampler": asdict(sampler), "masked": "image", "tumor_stage": stage},
    )


def _check_schedule(entries: Mapping[str, Tensor], source: Path) -> tuple[int, set[str]]:
    """Return the number of timesteps, and the names of the tables, which must be those of our schedule."""
    betas = entries.get("betas")
    timesteps = len(betas) if betas is not None and betas.ndim == 1 else 0
    if timesteps not in STAGES:
        raise PublishedFileError(
            f"{source} holds a noise schedule (betas) of {timesteps or 'no'} timesteps, and the published ones have "
            f"{' or '.join(map(str, STAGES))}: give a published diffusion model."
        )
    expected = _tables(NoiseSchedule(timesteps))
    for name, table in expected.items():
        found_table = entries.get(name)
        if found_table is None or found_table.shape != table.shape:
            raise PublishedFileError(f"{source} lacks the table {name} of its noise schedule: download it again.")
        if not torch.allclose(found_table.double(), table.double(), rtol=1e-4, atol=1e-7):
            raise PublishedFileError(
                f"{source} was trained with another noise schedule ({name} is not that of the cosine schedule): "
                "give a published diffusion model."
            )
    return timesteps, set(expected)


def _tables(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """Return the schedule's tables under their published names, with three that follow from the others."""
    return {
        **dict(schedule.named_buffers()),
        "alphas_cumprod_prev": torch.cat((torch.ones(1), schedule.alphas_cumprod[:-1])),
        "log_one_minus_alphas_cumprod": 2 * schedule.sqrt_one_minus_alphas_cumprod.log(),
        "posterior_variance": schedule.posterior_log_variance_clipped.exp(),
    }
