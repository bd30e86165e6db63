"""The options of stage 3; ``configs/segmentation.yaml`` holds their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from difftumor.errors import ConfigError
from difftumor.scans.intensity import Normalization, NormalizationKind
from difftumor.scans.organs import Organ
from difftumor.synthesis.distributions import Distribution
from difftumor.synthesis.spec import PlacementRule
from stages.config.options import DataOptions, FoldOptions, OnOverlap, RunOptions, check_whole
from stages.config.reading import (
    Count,
    Hint,
    NotNegative,
    NumberRange,
    Positive,
    ReadBy,
    Share,
    ShareBelowOne,
    WholeNumber,
)

# Which tumors are trained on: annotated ones, ones made in healthy scans by one generator, or annotated and made ones.
Tumors = Literal["real", "diffusion", "handcrafted", "copy_paste", "mixed"]


@dataclass(frozen=True, kw_only=True)
class UNetOptions:
    """The group ``backbone``: MONAI's residual U-Net."""

    name: Literal["unet"]
    channels: tuple[int, ...]
    residual_units: int


@dataclass(frozen=True, kw_only=True)
class NnUNetOptions:
    """The group ``backbone``: MONAI's DynUNet as nnU-Net plans it."""

    name: Literal["nnunet"]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    affine_norm: bool


@dataclass(frozen=True, kw_only=True)
class SwinUNETROptions:
    """The group ``backbone``: MONAI's Swin UNETR."""

    name: Literal["swinunetr"]
    size: Literal["tiny", "small", "base"]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    gradient_checkpointing: bool


@dataclass(frozen=True, kw_only=True)
class ResEncOptions:
    """The group ``backbone``: nnU-Net's residual encoder U-Net."""

    name: Literal["resenc"]
    size: Literal["M", "L"]
    width: Count


@dataclass(frozen=True, kw_only=True)
class MedNeXtOptions:
    """The group ``backbone``: MONAI's MedNeXt."""

    name: Literal["mednext"]
    size: Literal["S", "B", "M", "L"]
    kernel: Literal[3, 5]


BackboneOptions = UNetOptions | NnUNetOptions | SwinUNETROptions | ResEncOptions | MedNeXtOptions


@dataclass(frozen=True, kw_only=True)
class GeneratorWeights:
    """The section ``synthesis.generators``: weights of what makes tumors."""

    diffusion: NotNegative = 0.0
    handcrafted: NotNegative = 0.0
    copy_paste: NotNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class SizeWeights:
    """The section ``synthesis.sizes``: weights of size classes and groups, whose order decides what is drawn."""

    early: NotNegative = 0.0
    medium: NotNegative = 0.0
    large: NotNegative = 0.0
    tiny: NotNegative = 0.0
    small: NotNegative = 0.0
    mix: NotNegative = 0.0
    late: NotNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class TumorOptions:
    """The section ``synthesis``: which tumors are made, and where they come from.

    Args:
        generators: Weights of the generators with ``tumors=mixed``.
        early_model: Diffusion model of early tumors; None leaves their sizes out.
        late_model: Likewise of late ones.
        allow_incomplete: Whether models whose training is unfinished are accepted.
        on_overlap: What happens if a model was trained on held-out scans.
        probability: Chance that a healthy crop gets tumors; 0 leaves healthy scans as they are, and needs no models.
        center: Share of the healthy crops whose tumors are made in a crop twice as large, of which then a crop is cut
            that is centered on a voxel of a tumor.
        sizes: Weights by which the size of a crop's tumors is drawn.
        irregularity: Factor on the elastic deformation; a number, or how to draw one.
        blur_mm: σ of the Gaussian that softens rims, likewise; None leaves it to the generator.
        blur_share: Instead of ``blur_mm``: σ as a share of the tumor's radius, likewise.
        scale_texture: Whether hand-crafted texture is scaled to the standard deviation of the organ's tissue.
        host_noise_mm: σ of a Gaussian, likewise; what it takes from the CT stays under hand-crafted tumors. None
            replaces it.
        minimum_change_hu: A tumor that changes the mean HU inside its label by less is left out; None keeps all.
        most_early: Early diffusion tumors come one to so many at once.
        placement: How places in the organ are chosen.
        prefetch: Whether the next batch's tumors are made while this one is trained on.
        offline: Folder of scans with tumors made before; None makes tumors during training.
    """

    generators: GeneratorWeights
    early_model: Path | None
    late_model: Path | None
    allow_incomplete: bool
    probability: Share
    sizes: SizeWeights
    center: Share
    irregularity: Annotated[Distribution, ReadBy(Distribution.of)]
    blur_mm: Annotated[Distribution, ReadBy(Distribution.of)] | None
    blur_share: Annotated[Distribution, ReadBy(Distribution.of)] | None = None
    scale_texture: bool = False
    host_noise_mm: Annotated[Distribution, ReadBy(Distribution.of)] | None = None
    minimum_change_hu: Positive | None = None
    most_early: Count
    placement: PlacementRule
    prefetch: bool
    offline: Path | None
    on_overlap: OnOverlap = "refuse"


@dataclass(frozen=True, kw_only=True)
class AutoencoderOverlap:
    """The section ``autoencoder``.

    Args:
        on_overlap: What happens if that of a diffusion model was trained on held-out scans.
    """

    on_overlap: OnOverlap = "warn"


@dataclass(frozen=True, kw_only=True)
class SegmentationDataOptions(DataOptions):
    """The group ``data``, with more than all stages have.

    Args:
        healthy_root: More healthy scans.
        healthy_labels: What their labels' numbers mean, as in ``labels``.
        normalization: How scans are scaled.
        made_share: Share of the crops from scans without real tumors; None takes every scan equally often.
        class_ratios: Crops centered on background, organ and tumor, in scans with tumors.
        positive_share: Instead of ``class_ratios``: share of the crops of all scans centered on organ or tumor; the
            others are centered on background. None for ``class_ratios``.
        healthy_background: Share of the crops of healthy scans centered on background.
    """

    healthy_root: Path | None
    healthy_labels: str | None
    normalization: NormalizationKind
    made_share: Annotated[
        Annotated[float, NumberRange(below=1, zero=False)] | None, Hint("a share between 0 and 1, or null")
    ]
    class_ratios: Annotated[tuple[NotNegative, NotNegative, NotNegative], Hint("three numbers from 0, not all 0")]
    healthy_background: Share
    positive_share: Share | None

    @property
    def scaling(self) -> Normalization:
        """How scans are scaled, with the window."""
        return Normalization(self.window, self.normalization)


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions:
    """The section ``augmentation``.

    Args:
        rotation_probability: Chance of a rotation by 90, 180 or 270 degrees in the axial plane.
        shift: Largest shift of the intensity, as a share of the window.
        shift_probability: Chance of a shift.
        scale: Largest relative change of the intensity above the window's lower end.
        scale_probability: Chance of such a change.
        flip_probability: Chance of a flip, for each axis.
    """

    rotation_probability: Share
    shift: NotNegative
    shift_probability: Share
    scale: NotNegative
    scale_probability: Share
    flip_probability: Share


@dataclass(frozen=True, kw_only=True)
class DiceCEOptions:
    """The section ``loss``: Dice of squared predictions and cross-entropy.

    Args:
        smooth_nr: Added to the numerator of the Dice. Above 0, a crop without tumor pushes the tumor's logit down.
        smooth_dr: Added to its denominator.
    """

    smooth_nr: NotNegative
    smooth_dr: Positive


@dataclass(frozen=True, kw_only=True)
class AdamWOptions:
    """The section ``optimizer``.

    Args:
        lr: Learning rate after the warm-up.
        weight_decay: Decoupled weight decay.
    """

    lr: Positive
    weight_decay: NotNegative


@dataclass(frozen=True, kw_only=True)
class EpochOptions:
    """The section ``training``.

    Args:
        epochs: Length of the run; each sees one crop of every scan.
        warmup_epochs: Epochs in which the learning rate rises.
        accumulate: Batches per step of the optimizer.
        patience: Validations without a better tumor DSC after which training ends; None for never.

    Raises:
        ConfigError: The warm-up is longer than the run.
    """

    epochs: Count
    warmup_epochs: WholeNumber
    accumulate: Count
    patience: Count | None

    def __post_init__(self) -> None:
        if self.warmup_epochs > self.epochs:
            raise ConfigError(f"training.warmup_epochs is {self.warmup_epochs}: give 0 to training.epochs.")


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """The section ``validation``.

    Args:
        overlap: Share of a window that its neighbor shares.
        windows_per_batch: Windows that go through the network together.
    """

    overlap: ShareBelowOne
    windows_per_batch: Count


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions(RunOptions):
    """All options of stage 3, one field per section.

    Args:
        organ: What is segmented, with its tumors.
        tumors: Which tumors are trained on.
        fold: Held out for validation, from 0; None trains on all but the validation cases that the list states.

    Raises:
        ConfigError: Tumors are to grow in a wall.
    """

    stage: Annotated[Literal["segmentation"], Hint("leave it at 'segmentation', or call python -m stages.<stage>")]
    data: SegmentationDataOptions
    organ: Organ
    backbone: BackboneOptions
    tumors: Tumors
    fold: int | None
    folds: FoldOptions
    autoencoder: AutoencoderOverlap
    synthesis: TumorOptions
    augmentation: AugmentationOptions
    loss: DiceCEOptions
    optimizer: AdamWOptions
    training: EpochOptions
    validation: WindowOptions

    def __post_init__(self) -> None:
        check_whole(self.organ)
