"""The options of stage 2; ``configs/diffusion.yaml`` holds their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from difftumor.errors import ConfigError, OrganError
from difftumor.files.results import check_folder
from difftumor.models.diffusion_config import Masked, SamplerConfig
from difftumor.scans.lesions import SizeGroup, SizeRule
from difftumor.scans.organs import Organ, get_organ
from stages.config.options import (
    AdamOptions,
    DataOptions,
    FoldOptions,
    OnOverlap,
    RotationOptions,
    RunOptions,
    StepOptions,
    check_whole,
)
from stages.config.reading import Count, Hint, Positive, ReadBy, ShareBelowOne, WholeNumber, read_options

NoiseLoss = Literal["l1", "l2"]


@dataclass(frozen=True, kw_only=True)
class DiffusionDataOptions(DataOptions):
    """The group ``data``, with more than all stages have.

    Args:
        max_tumors: How many of the training cases' tumors are learned, chosen by seed; the others count as organ.
        foreground_ratio: Crops centered on tumor voxels per crop centered on the organ.
    """

    max_tumors: Annotated[Count | Literal["all"], Hint("a whole number, 1 or more, or all")]
    foreground_ratio: Positive


@dataclass(frozen=True, kw_only=True)
class ParentOptions:
    """The section ``autoencoder``.

    Args:
        artifact: Folder of the autoencoder.
        allow_incomplete: Whether one whose training is unfinished is accepted.
        on_overlap: What happens if it was trained on held-out scans.
    """

    artifact: Path
    allow_incomplete: bool
    on_overlap: OnOverlap = "warn"


@dataclass(frozen=True, kw_only=True)
class LesionRules(SizeRule):
    """The section ``lesions``: which tumors the model learns.

    Args:
        stage: Their size group.
        early_radius_mm: Limit between early and late tumors.
        early_includes_limit: Whether tumors of exactly this radius are early, as in the published models.
        minimum_voxels: Smaller components count as organ.
    """

    stage: Annotated[SizeGroup, Hint("choose early or late, as tumor_stage=early does")]
    early_radius_mm: Positive
    early_includes_limit: bool
    minimum_voxels: Count


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """The section ``latents``.

    Args:
        cache: Folder of the latents; None encodes random crops in every step.
        crops: Crops per case to draw from.

    Raises:
        ConfigError: The folder cannot be one.
    """

    cache: Annotated[Path | None, Hint("a folder, or null to encode in every step")]
    crops: Count

    def __post_init__(self) -> None:
        if self.cache is not None and not self.cache.is_dir():  # an existing one may be full, and is then only read
            check_folder(self.cache, option="latents.cache")


@dataclass(frozen=True, kw_only=True)
class DenoiserOptions:
    """The section ``network``: arguments of ``Denoiser`` that do not follow from the autoencoder."""

    width: int
    multipliers: tuple[int, ...]
    heads: int
    head_dim: int
    norm_groups: int


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """The section ``diffusion``.

    Args:
        timesteps: T of the noise schedule.
        sampler: How the model is sampled.
        masked: What the tumor is removed from for the condition: the CT, or its latent.
        loss: Distance between noise and prediction.
    """

    timesteps: Count
    sampler: SamplerConfig
    masked: Masked
    loss: NoiseLoss


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """The section ``ema``: the moving average of the weights.

    Args:
        decay: Weight of the old average.
        start: Before this step the average is a plain copy.
        every: Steps from one update to the next.
    """

    decay: ShareBelowOne
    start: WholeNumber
    every: Count


@dataclass(frozen=True, kw_only=True)
class DiffusionTrainingOptions(StepOptions):
    """The section ``training``.

    Args:
        accumulate: Batches per step.
        patience: Validations without a lower held-out loss after which training ends; None for never.
    """

    accumulate: Count
    patience: Count | None


@dataclass(frozen=True, kw_only=True)
class HostValidationOptions:
    """The section ``validation``.

    Args:
        crops: Held-out tumors whose loss is measured, at most.
        hosts: Healthy crops in which tumors are made.
        synthesize_every_n_epochs: In the first validation after so many epochs, and in the last; 0 for never.
    """

    crops: Count
    hosts: WholeNumber
    synthesize_every_n_epochs: WholeNumber


@dataclass(frozen=True, kw_only=True)
class HostPictureOptions:
    """The section ``pictures``.

    Args:
        hosts: How many of ``validation.hosts`` are pictured.
    """

    hosts: WholeNumber


def _organ(value: Any, *, field: str) -> Organ:
    """Read an organ: a registered name, or a mapping as in ``configs/organ/``."""
    if isinstance(value, Mapping):
        return read_options(Organ, value, field)
    try:
        return get_organ(str(value))
    except OrganError as error:
        raise ConfigError(f"{field} is {value!r}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class OrganSource:
    """One of ``more_organs``: tumors of another organ, to be learned as well.

    Args:
        organ: Name of a registered organ, or its values as in ``configs/organ/``.
        root: Its data, as ``data.root``.
        labels: What the label maps' numbers mean, as ``data.labels``.
    """

    organ: Annotated[Organ, ReadBy(_organ)]
    root: Path
    labels: str | None = None


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(RunOptions):
    """All options of stage 2, one field per section.

    Args:
        organ: The organ with the tumors.
        more_organs: Other organs with their data; one model learns the tumors of all.
        fold: Whose tumors are held out, from 0; None trains on all but the validation cases that the list states.

    Raises:
        ConfigError: The sampler's steps do not suit the timesteps, crops cannot be rotated, or an organ comes twice.
    """

    stage: Annotated[Literal["diffusion"], Hint("leave it at 'diffusion', or call python -m stages.<stage>")]
    data: DiffusionDataOptions
    augmentation: RotationOptions
    organ: Organ
    autoencoder: ParentOptions
    fold: int | None
    folds: FoldOptions
    lesions: LesionRules
    latents: LatentOptions
    network: DenoiserOptions
    diffusion: NoiseOptions
    ema: AverageOptions
    optimizer: AdamOptions
    training: DiffusionTrainingOptions
    validation: HostValidationOptions
    pictures: HostPictureOptions
    more_organs: Annotated[tuple[OrganSource, ...], Hint("a list such as [{organ: pancreas, root: PATH}]")] = ()

    @property
    def organs(self) -> str:
        """The names of all organs, joined by +."""
        return "+".join([self.organ.name, *(each.organ.name for each in self.more_organs)])

    def __post_init__(self) -> None:
        self.data.check_rotation(self.augmentation.rotation_probability)
        self.diffusion.sampler.time_steps(self.diffusion.timesteps)  # refuses steps that do not fit
        for organ in (self.organ, *(each.organ for each in self.more_organs)):
            check_whole(organ)
        names = self.organs.split("+")
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"more_organs names {repeated[0]}, which is there already: give each organ once.")
