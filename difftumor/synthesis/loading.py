"""Loading a tumor synthesizer from the artifacts of a diffusion model and its autoencoder."""

from pathlib import Path

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


def load_synthesizer(
    diffusion_artifact: Path | str,
    *,
    organ: Organ | str,
    device: torch.device | str = "cpu",
    sampler: SamplerConfig | None = None,
    autoencoder: Path | str | None = None,
    allow_incomplete: bool = False,
) -> TumorSynthesizer:
    """Load a diffusion model with the autoencoder it was trained with.

    Args:
        diffusion_artifact: Folder of the diffusion model.
        organ: Where tumors are to grow; may differ from the organ that the model was trained on.
        device: Where to put the networks.
        sampler: How to sample; by default as the artifact says.
        autoencoder: Where the autoencoder is now; by default where it was in training.
        allow_incomplete: Also take a model whose training has not finished.

    Raises:
        ArtifactError: An artifact is missing, damaged, of another kind, or lacks settings.
        OrganError: The organ is unknown.
    """
    artifact = load_artifact(diffusion_artifact, kind="diffusion", device=device, allow_incomplete=allow_incomplete)
    parent = artifact.parent("autoencoder", path=None if autoencoder is None else Path(autoencoder), device=device)
    settings, preprocessing = artifact.config.settings, artifact.config.preprocessing
    try:
        schedule = NoiseSchedule(int(settings["timesteps"])).to(device)
        chosen = sampler or SamplerConfig(**settings.get("sampler", {}))
        window = IntensityWindow(*(float(limit) for limit in preprocessing["window_hu"]))
        spacing_mm = [float(step) for step in preprocessing["spacing_mm"]]
        patch = [int(size) for size in preprocessing["crop"]]
        chosen.time_steps(schedule.timesteps)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(
            f"{artifact.path} lacks or misstates a setting for synthesis ({error}): make it again with its stage."
        ) from error
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
