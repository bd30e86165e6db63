"""Loading a tumor synthesizer from the artifacts of diffusion models and their autoencoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from difftumor.errors import ArtifactError, ConfigError
from difftumor.models.artifact import load_artifact
from difftumor.models.artifact_config import read_config
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule, SamplerConfig
from difftumor.scans.appearance import AppearanceRanges
from difftumor.scans.grid import Vector
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.lesions import SizeGroup
from difftumor.scans.organs import Organ, get_organ
from difftumor.synthesis.generators.diffusion import DiffusionTexture, Precision
from difftumor.synthesis.scan.record import ModelRecord, ScanRecord
from difftumor.synthesis.synthesizer import TumorSynthesizer


@dataclass(frozen=True)
class LoadedTexture:
    """A diffusion model, ready for synthesis.

    Args:
        texture: It.
        spacing_mm: Voxel size that it was trained at.
        path: Folder of its artifact.
    """

    texture: DiffusionTexture
    spacing_mm: Vector
    path: Path


def load_texture(
    diffusion_artifact: Path | str,
    *,
    device: torch.device | str = "cpu",
    sampler: SamplerConfig | Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    autoencoder: Path | str | None = None,
    allow_incomplete: bool = False,
) -> LoadedTexture:
    """Load a diffusion model with the autoencoder it was trained with; arguments and errors as `load_synthesizer`."""
    artifact = load_artifact(diffusion_artifact, kind="diffusion", device=device, allow_incomplete=allow_incomplete)
    parent = artifact.parent("autoencoder", path=None if autoencoder is None else Path(autoencoder), device=device)
    settings, preprocessing = artifact.config.settings, artifact.config.preprocessing
    try:
        schedule = NoiseSchedule(int(settings["timesteps"])).to(device)
        usual = SamplerConfig(**settings.get("sampler", {}))
        usual.time_steps(schedule.timesteps)
        window = IntensityWindow(*(float(limit) for limit in preprocessing["window_hu"]))
        x, y, z = (float(step) for step in preprocessing["spacing_mm"])
        patch = [int(size) for size in preprocessing["crop"]]
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(
            f"{artifact.path} lacks or misstates a setting for synthesis ({error}): make it again with its stage."
        ) from error
    chosen = sampler if isinstance(sampler, SamplerConfig) else usual.changed(**sampler or {})
    chosen.time_steps(schedule.timesteps)
    texture = DiffusionTexture(
        codec=LatentCodec(parent.network),  # type: ignore[arg-type]
        denoiser=artifact.network,  # type: ignore[arg-type]
        schedule=schedule,
        sampler=chosen,
        window=window,
        patch=patch,
        masked=settings.get("masked", "image"),
        precision=precision,
    )
    return LoadedTexture(texture, (x, y, z), artifact.path)


def load_synthesizer(
    models: Path | str | Mapping[SizeGroup, Path] | None,
    *,
    organ: Organ | str,
    device: torch.device | str = "cpu",
    sampler: SamplerConfig | Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    autoencoder: Path | str | None = None,
    allow_incomplete: bool = False,
) -> TumorSynthesizer:
    """Load diffusion models, each with the autoencoder it was trained with.

    Args:
        models: Folder of the diffusion model, or folders by stage, ``"early"`` and ``"late"``; None for hand-crafted
            tumors alone.
        organ: Where tumors are to grow; may differ from the organ that a model was trained on.
        device: Where to put the networks.
        sampler: How to sample; by default as the artifact says. A mapping holds what is to differ from that, as
            arguments of `SamplerConfig.changed`.
        precision: What the networks compute in, "fp32" or "bf16".
        autoencoder: Where the autoencoder is now; by default where it was in training.
        allow_incomplete: Also take a model whose training has not finished.

    Raises:
        ArtifactError: An artifact is missing, damaged, of another kind, or lacks settings; or the models of both stages
            were trained at different voxel sizes.
        ConfigError: The sampler does not fit the model, or the precision is unknown.
        OrganError: The organ is unknown.
    """
    host = get_organ(organ) if isinstance(organ, str) else organ
    if models is None:
        return TumorSynthesizer(organ=host).to(device)
    paths: dict[str, Path] = dict(models.items()) if isinstance(models, Mapping) else {"": Path(models)}
    loaded = {
        path: load_texture(
            path,
            device=device,
            sampler=sampler,
            precision=precision,
            autoencoder=autoencoder,
            allow_incomplete=allow_incomplete,
        )
        for path in dict.fromkeys(paths.values())
    }
    spacings = {model.spacing_mm for model in loaded.values()}
    if len(spacings) > 1:
        listed = " and ".join(str(path) for path in loaded)
        raise ArtifactError(f"{listed} were trained at different voxel sizes: give models of one size.")
    textures = {stage: loaded[path].texture for stage, path in paths.items()}
    return TumorSynthesizer(organ=host, diffusion=textures.get("", textures), spacing_mm=spacings.pop())


def find_models(
    model: Path | str | None, stages: Collection[SizeGroup], *, organ: Organ | str, folder: Path | str = "checkpoints"
) -> dict[SizeGroup, Path]:
    """Return the folders of the diffusion models to use, by stage.

    Args:
        model: Where the user says it is, for all stages; None for the usual places.
        stages: Of the tumors that are wanted.
        organ: Where tumors are to grow.
        folder: See `find_artifact`.

    Raises:
        ArtifactError: There is nothing in a usual place.
        OrganError: The organ is unknown.
    """
    return {stage: find_artifact(model, organ=organ, stage=stage, folder=folder) for stage in sorted(stages)}


def find_artifact(
    path: Path | str | None, *, organ: Organ | str, stage: SizeGroup, folder: Path | str = "checkpoints"
) -> Path:
    """Return the folder of the diffusion model to use.

    Args:
        path: Where the user says it is; None for the usual place, ``<folder>/diffusion_<organ>_<early or late>``.
        organ: Where tumors are to grow.
        stage: Of the tumors, ``"early"`` or ``"late"``.
        folder: Where the stages put their artifacts.

    Raises:
        ArtifactError: There is nothing in the usual place.
        OrganError: The organ is unknown.
    """
    name = (get_organ(organ) if isinstance(organ, str) else organ).name
    if path is not None:
        return Path(path)
    usual = Path(folder) / f"diffusion_{name}_{stage}"
    if not usual.is_dir():
        raise ArtifactError(
            f"There is no diffusion model at {usual}: make one with python -m stages.diffusion organ={name} "
            f"tumor_stage={stage}, give the folder of one with --model, or do without: --generator handcrafted."
        )
    return usual


def model_records(paths: Mapping[SizeGroup, Path], synthesizer: TumorSynthesizer) -> dict[str, ModelRecord]:
    """Return what a record keeps of the models behind a synthesizer, by stage."""
    return {
        stage: ModelRecord(path, artifact_identities(path), synthesizer.diffusion[stage].sampling)
        for stage, path in paths.items()
    }


def load_recorded(
    record: ScanRecord, *, model: Path | None = None, device: torch.device | str = "cpu"
) -> TumorSynthesizer:
    """Load the synthesizer that made a record.

    Args:
        record: What was made.
        model: Where a diffusion model of it is now; by default all are where they were then.
        device: Where to put the networks.

    Raises:
        ArtifactError: A model is missing, or is another than the one that made the record.
        OrganError: The organ is unknown.
    """
    given = {} if model is None else artifact_identities(model)
    if model is not None and given not in [dict(recorded.identities) for recorded in record.models.values()]:
        raise ArtifactError(f"{model} is no model that made {record.path}: give one that did, or none.")
    textures, spacing_mm = {}, record.tumors[0].spacing_mm if record.tumors else (1.0, 1.0, 1.0)
    for stage, recorded in record.models.items():
        path = model if model is not None and given == dict(recorded.identities) else recorded.path
        if artifact_identities(path) != dict(recorded.identities):
            raise ArtifactError(
                f"{path} is not the model that made {record.path} any more: give that one with --model."
            )
        textures[stage] = load_texture(path, device=device, **recorded.options).texture
    return TumorSynthesizer(organ=get_organ(record.organ), diffusion=textures, spacing_mm=spacing_mm).to(device)


def real_tumors(paths: Mapping[SizeGroup, Path]) -> dict[SizeGroup, AppearanceRanges]:
    """Return how the real tumors look that diffusion models have learned, by stage, where their artifacts say so.

    Raises:
        ArtifactError: An artifact is missing, or says it in a way that is not understood.
    """
    found: dict[SizeGroup, AppearanceRanges] = {}
    for stage, path in paths.items():
        ranges = read_config(path).appearance_ranges(path)
        if ranges is not None:
            found[stage] = ranges
    return found


def artifact_identities(diffusion_artifact: Path | str) -> dict[str, str]:
    """Return the identities (SHA-256) of a diffusion model and the artifacts it was trained with, for provenance."""
    config = read_config(diffusion_artifact)
    return {"diffusion": config.identity, **{role: parent.identity for role, parent in config.parents.items()}}
