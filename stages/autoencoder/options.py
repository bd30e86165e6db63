"""The options of stage 1; ``configs/autoencoder.yaml`` holds their defaults."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from difftumor.errors import ConfigError
from difftumor.scans.organs import Organ
from stages.config.options import AdamOptions, DataOptions, FoldOptions, RotationOptions, RunOptions, StepOptions
from stages.config.reading import Count, Hint, NotNegative, NumberRange, Positive, ShareBelowOne, WholeNumber

Adversarial = Literal["hinge", "vanilla"]
Backbone = Literal["vgg", "alex", "squeeze"]
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderDataOptions(DataOptions):
    """The group ``data``, with more than all stages have.

    Args:
        foreground_ratio: Crops centered on labeled voxels per crop centered elsewhere.
        validation_share: Share of the patients that is held out, if the list states no validation cases.
    """

    foreground_ratio: Positive
    validation_share: Annotated[float, NumberRange(most=0.5)]


@dataclass(frozen=True, kw_only=True)
class AutoencoderNetworkOptions:
    """The section ``network``: arguments of ``Autoencoder`` that the artifact records."""

    base_channels: int
    levels: int
    latent_channels: int
    codes: int
    norm_groups: int


@dataclass(frozen=True, kw_only=True)
class CodebookOptions:
    """The section ``codebook``: how its codes learn.

    Args:
        update: By moving averages, or by the gradient of eq. 1.
        decay: Of the moving averages, and of the counts that restarts go by.
        restart_below: A code with fewer vectors per update on average restarts; 0 for never.
        updates_per_step: How often a step updates the averages.
    """

    update: Literal["ema", "gradient"]
    decay: ShareBelowOne
    restart_below: NotNegative
    updates_per_step: Count


@dataclass(frozen=True, kw_only=True)
class DiscriminatorOptions:
    """The section ``discriminators``.

    Args:
        base_channels: Width of both.
        start_step: Step at which they join.
        loss: Their loss.
    """

    base_channels: Count
    start_step: WholeNumber
    loss: Adversarial


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The section ``loss_weights``: what eqs. 1 and 2 weigh, but for the perceptual loss."""

    l1: NotNegative
    codebook: NotNegative
    commitment: NotNegative
    slice_adversarial: NotNegative
    volume_adversarial: NotNegative
    feature_matching: NotNegative


@dataclass(frozen=True, kw_only=True)
class PerceptualOptions:
    """The section ``perceptual``.

    Args:
        weight: Weight of LPIPS; 0 trains without it.
        reduction: Of the three planes.
        backbone: Network whose features are compared.
        weights: File of the backbone's weights; None for torchvision's.
    """

    weight: NotNegative
    reduction: Reduction
    backbone: Backbone
    weights: Path | None


@dataclass(frozen=True, kw_only=True)
class ClippedAdamOptions(AdamOptions):
    """The section ``optimizer``.

    Args:
        clip_norm: Norm that each optimizer's gradients are scaled down to; None leaves them.
        milestones: Steps from which on the learning rate is another ``gamma`` times as high.
        gamma: The factor.

    Raises:
        ConfigError: The milestones are not in rising order.
    """

    clip_norm: Positive | None
    milestones: tuple[Count, ...]
    gamma: Positive

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError(f"optimizer.milestones is {list(self.milestones)}: give steps in rising order, or [].")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.lr * self.gamma ** bisect_right(self.milestones, step)


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainingOptions(StepOptions):
    """The section ``training``.

    Args:
        accumulate: Batches per step.
        nonfinite_limit: Skipped steps in a row that stop the run.
        gradient_checkpointing: Whether activations are computed again for the backward pass.
    """

    accumulate: Count
    nonfinite_limit: Count
    gradient_checkpointing: bool


@dataclass(frozen=True, kw_only=True)
class ScanValidationOptions:
    """The section ``validation``.

    Args:
        scans: How many of the held-out scans are validated on; None for all.
        overlap: Share of a window that its neighbor shares.
    """

    scans: Annotated[
        Count | None,
        Hint("a whole number, 1 or more, null for all held-out scans, or data.validation_share=0 to hold none out"),
    ]
    overlap: ShareBelowOne


@dataclass(frozen=True, kw_only=True)
class ScanPictureOptions:
    """The section ``pictures``.

    Args:
        every_n_epochs: In the first validation after so many epochs, and in the last; 0 for never.
        scans: How many of the scans validated on are pictured.
    """

    every_n_epochs: WholeNumber
    scans: WholeNumber


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions(RunOptions):
    """All options of stage 1, one field per section.

    Args:
        organ: Whose tumors decide which patients are in which fold, as in stages 2 and 3; of effect with ``fold``.
        fold: Held out, from 0; None holds out ``data.validation_share``, or what the list states.

    Raises:
        ConfigError: The trainer's precision or strategy is not one that stage 1 can take, crops cannot be rotated, or a
            fold has no organ.
    """

    stage: Annotated[Literal["autoencoder"], Hint("leave it at 'autoencoder', or call python -m stages.<stage>")]
    data: AutoencoderDataOptions
    organ: Organ | None = None
    fold: int | None
    folds: FoldOptions
    augmentation: RotationOptions
    network: AutoencoderNetworkOptions
    codebook: CodebookOptions
    discriminators: DiscriminatorOptions
    loss_weights: LossWeights
    perceptual: PerceptualOptions
    optimizer: ClippedAdamOptions
    training: AutoencoderTrainingOptions
    validation: ScanValidationOptions
    pictures: ScanPictureOptions

    def __post_init__(self) -> None:
        self.data.check_rotation(self.augmentation.rotation_probability)
        if self.fold is not None and self.organ is None:
            raise ConfigError(
                f"fold is {self.fold}: give organ=NAME as well, since the folds are of the patients with its tumors."
            )
        if str(self.trainer.precision) in ("16-true", "bf16-true"):
            raise ConfigError(f"trainer.precision is {self.trainer.precision!r}: choose bf16-mixed or 16-mixed.")
        if not self.trainer.strategy.startswith(("auto", "ddp", "single_device")):
            raise ConfigError(f"trainer.strategy is {self.trainer.strategy!r}: stage 1 knows auto and ddp.")
