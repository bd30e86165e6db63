"""Loading a tumor synthesizer from the artifacts of a diffusion model and its autoencoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from difftumor.artifact_config import read_config
from difftumor.artifacts import load_artifact
from difftumor.diffusion.latent import LatentCodec
from difftumor.diffusion.samplers import SamplerConfig
from difftumor.diffusion.schedule import NoiseSchedule
from difftumor.errors import ArtifactError, ConfigError
from difftumor.intensity import IntensityWindow
from difftumor.organs import Organ, get_organ
from difftumor.synthesis.records import stage_of_size
from difftumor.synthesis.synthesizer import TumorSynthesizer
from difftumor.synthesis.texture import Precision


def load_synthesizer(
    diffusion_artifact: Path | str,
    *,
    organ: Organ | str,
    device: torch.device | str = "cpu",
    sampler: SamplerConfig | Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    autoencoder: Path | str | None = None,
    allow_incomplete: bool = False,
) -> TumorSynthesizer:
    """Load a diffusion model with the autoencoder it was trained with.

    Args:
        diffusion_artifact: Folder of the diffusion model.
        organ: Where tumors are to grow; may differ from the organ that the model was trained on.
        device: Where to put the networks.
        sampler: How to sample; by default as the artifact says. A mapping holds what is to differ from that, as
            arguments of `SamplerConfig.changed`.
        precision: What the networks compute in, "fp32" or "bf16".
        autoencoder: Where the autoencoder is now; by default where it was in training.
        allow_incomplete: Also take a model whose training has not finished.

    Raises:
        ArtifactError: An artifact is missing, damaged, of another kind, or lacks settings.
        ConfigError: The sampler does not fit the model, or the precision is unknown.
        OrganError: The organ is unknown.
    """
    artifact = load_artifact(diffusion_artifact, kind="diffusion", device=device, allow_incomplete=allow_incomplete)
    parent = artifact.parent("autoencoder", path=None if autoencoder is None else Path(autoencoder), device=device)
    settings, preprocessing = artifact.config.settings, artifact.config.preprocessing
    try:
        schedule = NoiseSchedule(int(settings["timesteps"])).to(device)
        usual = SamplerConfig(**settings.get("sampler", {}))
        usual.time_steps(schedule.timesteps)
        window = IntensityWindow(*(float(limit) for limit in preprocessing["window_hu"]))
        spacing_mm = [float(step) for step in preprocessing["spacing_mm"]]
        patch = [int(size) for size in preprocessing["crop"]]
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(
            f"{artifact.path} lacks or misstates a setting for synthesis ({error}): make it again with its stage."
        ) from error
    chosen = sampler if isinstance(sampler, SamplerConfig) else usual.changed(**sampler or {})
    chosen.time_steps(schedule.timesteps)
    return TumorSynthesizer(
        organ=get_organ(organ) if isinstance(organ, str) else organ,
        codec=LatentCodec(parent.network),  # type: ignore[arg-type]
        denoiser=artifact.network,  # type: ignore[arg-type]
        schedule=schedule,
        sampler=chosen,
        window=window,
        patch=patch,
        spacing_mm=spacing_mm,
        masked=settings.get("masked", "image"),
        precision=precision,
    )


def find_artifact(
    path: Path | str | None, *, organ: Organ | str, size: str, folder: Path | str = "checkpoints"
) -> Path:
    """Return the folder of the diffusion model to use.

    Args:
        path: Where the user says it is; None for the usual place, ``<folder>/diffusion_<organ>_<early or late>``.
        organ: Where tumors are to grow.
        size: Size class or group; tiny and small tumors are early ones.
        folder: Where the stages put their artifacts.

    Raises:
        ArtifactError: There is nothing in the usual place.
        OrganError: The organ is unknown.
        ConfigError: The size is unknown.
    """
    name = (get_organ(organ) if isinstance(organ, str) else organ).name
    stage = stage_of_size(size)
    if path is not None:
        return Path(path)
    usual = Path(folder) / f"diffusion_{name}_{stage}"
    if not usual.is_dir():
        raise ArtifactError(
            f"There is no diffusion model at {usual}: make one with python -m stages.diffusion organ={name} "
            f"tumor_stage={stage}, or give the folder of one with --model."
        )
    return usual


def artifact_identities(diffusion_artifact: Path | str) -> dict[str, str]:
    """Return the identities (SHA-256) of a diffusion model and the artifacts it was trained with, for provenance."""
    config = read_config(diffusion_artifact)
    return {"diffusion": config.identity, **{role: parent.identity for role, parent in config.parents.items()}}
