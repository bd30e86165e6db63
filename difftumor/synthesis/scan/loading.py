"""Loading a tumor synthesizer from the artifacts of diffusion models and their autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from difftumor.errors import ArtifactError, ConfigError
from difftumor.models.artifact import load_artifact, pick_device
from difftumor.models.artifact_config import ArtifactConfig, read_config
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule
from difftumor.scans.appearance import AppearanceRanges
from difftumor.scans.grid import Grid, Vector
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.lesions import SizeGroup
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import Organ, get_organ
from difftumor.synthesis.generators.diffusion import DiffusionTexture, Precision
from difftumor.synthesis.scan.gate import Segment
from difftumor.synthesis.scan.record import ModelRecord, ScanRecord
from difftumor.synthesis.scan.sources import read_recorded_sources
from difftumor.synthesis.synthesizer import TumorSynthesizer


@dataclass(frozen=True)
class LoadedTexture:
    """A diffusion model, ready for synthesis.

    Args:
        texture: Makes the texture of tumors.
        spacing_mm: Voxel size that it was trained at.
        path: Folder of its artifact.
        config: Description of the artifact.
    """

    texture: DiffusionTexture
    spacing_mm: Vector
    path: Path
    config: ArtifactConfig

    @property
    def record(self) -> ModelRecord:
        """What ``record.json`` says of it."""
        return ModelRecord(self.path, identities_of(self.config), self.texture.sampling, self.config.organ)


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
            f"{artifact.path} lacks or misstates a setting for synthesis ({error}): train it again."
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
    return LoadedTexture(texture, (x, y, z), artifact.path, artifact.config)


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
        models: Folder of the diffusion model, or folders by size group, ``"early"`` and ``"late"``; None for
            hand-crafted tumors only.
        organ: Where tumors are to grow; may differ from the organ that a model was trained on.
        device: Where to put the networks.
        sampler: How to sample; by default as the artifact says. A mapping overrides that in part, with arguments of
            `SamplerConfig.changed`.
        precision: What the networks compute in, "fp32" or "bf16".
        autoencoder: Where the autoencoder is now; by default where it was in training.
        allow_incomplete: Also take a model whose training has not finished.

    Raises:
        ArtifactError: An artifact is missing, damaged, of another kind or lacks settings; or the models were trained
            at different voxel sizes.
        ConfigError: The sampler does not fit the model, or the precision is unknown.
        OrganError: The organ is unknown.
    """
    host = get_organ(organ)
    if models is None:
        return synthesizer_of({}, organ=host, device=device)
    options: dict[str, Any] = {
        "device": device,
        "sampler": sampler,
        "precision": precision,
        "autoencoder": autoencoder,
        "allow_incomplete": allow_incomplete,
    }
    if isinstance(models, Mapping):
        return synthesizer_of(load_textures(models, **options), organ=host)
    loaded = load_texture(models, **options)
    return TumorSynthesizer(organ=host, diffusion=loaded.texture, spacing_mm=loaded.spacing_mm)


def load_textures(paths: Mapping[SizeGroup, Path], **options: Any) -> dict[SizeGroup, LoadedTexture]:
    """Load diffusion models by size group, each folder once; options and errors as ``load_texture``."""
    loaded = {path: load_texture(path, **options) for path in dict.fromkeys(paths.values())}
    return {group: loaded[path] for group, path in paths.items()}


def synthesizer_of(
    models: Mapping[SizeGroup, LoadedTexture], *, organ: Organ, device: torch.device | str = "cpu"
) -> TumorSynthesizer:
    """Return a synthesizer with loaded models; without any it makes hand-crafted tumors, on ``device``.

    Raises:
        ArtifactError: The models were trained at different voxel sizes.
    """
    if not models:
        return TumorSynthesizer(organ=organ).to(device)
    spacings = {model.spacing_mm for model in models.values()}
    if len(spacings) > 1:
        listed = " and ".join(dict.fromkeys(str(model.path) for model in models.values()))
        raise ArtifactError(f"{listed} were trained at different voxel sizes: give models of one size.")
    textures: dict[str, DiffusionTexture] = {group: model.texture for group, model in models.items()}
    return TumorSynthesizer(organ=organ, diffusion=textures, spacing_mm=spacings.pop())


def load_recorded(
    record: ScanRecord, *, model: Path | None = None, source: Path | None = None, device: torch.device | str = "cpu"
) -> TumorSynthesizer:
    """Load the synthesizer that made a record.

    Args:
        record: What was made.
        model: Where one of its diffusion models is now; by default all are where they were.
        source: Where the cases are now whose tumors were copied, likewise.
        device: Where to put the networks.

    Raises:
        ArtifactError: A model is missing, or is not the one that made the record.
        SynthesisError: A case whose tumors were copied is missing, or has other files.
        OrganError: The organ is unknown.
    """
    given = {} if model is None else artifact_identities(model)
    if model is not None and given not in [dict(recorded.identities) for recorded in record.models.values()]:
        raise ArtifactError(f"{model} did not make {record.path}: give a model that did, or none.")
    textures, spacing_mm = {}, record.tumors[0].spacing_mm if record.tumors else (1.0, 1.0, 1.0)
    for group, recorded in record.models.items():
        path = model if model is not None and given == dict(recorded.identities) else recorded.path
        if artifact_identities(path) != dict(recorded.identities):
            raise ArtifactError(
                f"{path} is no longer the model that made {record.path}: give that one as model (--model)."
            )
        textures[group] = load_texture(path, device=device, **recorded.options).texture
    organ = record.rules
    sources = read_recorded_sources(record, organ, cases=source, spacing_mm=spacing_mm)
    return TumorSynthesizer(organ=organ, diffusion=textures, spacing_mm=spacing_mm, sources=sources).to(device)


def real_tumors(models: Mapping[SizeGroup, LoadedTexture]) -> dict[SizeGroup, AppearanceRanges]:
    """Return how the real tumors look that diffusion models learned from, by size group, if their artifacts say so.

    Raises:
        ArtifactError: An artifact describes them in a way that cannot be read.
    """
    found = {group: model.config.appearance_ranges(model.path) for group, model in models.items()}
    return {group: ranges for group, ranges in found.items() if ranges is not None}


def artifact_identities(diffusion_artifact: Path | str) -> dict[str, str]:
    """Return the identities (SHA-256) of a diffusion model and the artifacts it was trained with, for provenance."""
    return identities_of(read_config(diffusion_artifact))


def identities_of(config: ArtifactConfig) -> dict[str, str]:
    """Return the identities of a diffusion model and its parents by role."""
    return {"diffusion": config.identity, **{role: parent.identity for role, parent in config.parents.items()}}


def load_gate_segmenter(artifact: Path, device: str) -> tuple[Segment, str]:
    """Return a segmenter for the gate as a function of CT and voxel size, and its identity."""
    # MONAI comes with these; most gates have no segmenter.
    from difftumor.segmentation.inference import predict_volume
    from difftumor.segmentation.options import PredictionOptions

    loaded = load_artifact(artifact, kind="segmenter", device=pick_device(device))

    def segment(ct_hu: Any, spacing_mm: Any) -> Any:
        # A tumor must be found, not outlined: half the usual overlap is enough.
        grid = Grid(ct_hu.shape, np.diag([*spacing_mm, 1.0]))
        volume = Volume(ct_hu, grid, artifact, nib.Nifti1Header())
        return predict_volume(volume, [loaded], PredictionOptions(overlap=0.5)).labels

    return segment, loaded.config.identity
