"""The options that all stages have; their defaults are in ``configs/base.yaml``, ``data`` and ``trainer``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from difftumor.errors import ConfigError
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.organs import Organ
from stages.config.reading import Count, Hint, Positive, Share, ShareBelowOne, WholeNumber


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """The group ``trainer``.

    Args:
        accelerator: Device; ``"auto"`` takes a GPU if there is one.
        devices: How many GPUs of each machine, or -1 for all.
        num_nodes: Machines.
        strategy: Lightning's name for how several devices train together.
        timeout_minutes: How long the processes of a run wait for each other before it ends with an error.
        precision: Lightning's name for the number format; ``"auto"`` is 16-mixed on a GPU and 32-true elsewhere.
        max_epochs: Cuts a run short; None for as many epochs as the stage's training section says.
        limit_train_batches: Number (int) or share (float) of an epoch's batches; None for all.
        limit_val_batches: Likewise of the validation's.
        validate_every_n_epochs: Epochs from one validation to the next.
        checkpoint_every_n_epochs: Epochs from one ``last.ckpt`` to the next.
        on_damage: What a rerun does if ``last.ckpt`` is missing or damaged: refuse, or go on from the one before it.
        log_every_n_steps: Steps from one entry in the logs to the next.
        profiler: What writes ``profile.txt`` into the run's folder; None for nothing.
        progress_bar: Whether progress is shown.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda"]
    devices: int | str | tuple[int, ...]
    num_nodes: Count
    strategy: str
    timeout_minutes: Positive
    precision: Any
    max_epochs: Count | None
    limit_train_batches: int | float | None
    limit_val_batches: int | float | None
    validate_every_n_epochs: Count
    checkpoint_every_n_epochs: Count
    on_damage: Literal["refuse", "previous"]
    log_every_n_steps: Count
    profiler: Literal["simple", "advanced"] | None
    progress_bar: bool


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The group ``data``.

    Args:
        root: Folder of NIfTI, ``dataset.json`` or list.
        labels: One of ``organs.CONVENTIONS``, or None for what the source says.
        spacing_mm: Voxel size of model space.
        window_hu: HU that the networks see, from low to high.
        crop: Voxels along X, Y, Z.
        num_workers: Processes that load; 0 loads in the training process.
        cache_rate: Share of the cases kept in memory; ``"auto"`` for as many as half of the free memory holds.
        cache_dir: Where preprocessed cases are kept on disk; None for nowhere.
        overfit: Whether the crops of the first epoch are repeated.
        accept_hu: Whether CTs that cannot be in Hounsfield units are used.
        batch_size: Crops that go through the networks together, per GPU.

    Raises:
        ConfigError: The window's values are not in rising order.
    """

    root: Path | None
    labels: str | None
    spacing_mm: Annotated[tuple[Positive, Positive, Positive], Hint("three numbers of millimeters above 0")]
    window_hu: Annotated[tuple[float, float], Hint("two HU values, the lower one first")]
    crop: Annotated[tuple[Count, Count, Count], Hint("three whole numbers, 1 or more")]
    num_workers: WholeNumber
    cache_rate: Annotated[Share | Literal["auto"], Hint("auto, or a share from 0 to 1")]
    cache_dir: Path | None
    overfit: bool
    accept_hu: bool
    batch_size: Count

    def __post_init__(self) -> None:
        try:
            _ = self.window
        except ValueError as error:
            raise ConfigError(
                f"data.window_hu is {list(self.window_hu)}: give two HU values, the lower one first."
            ) from error

    @property
    def window(self) -> IntensityWindow:
        """The window of ``window_hu``."""
        low_hu, high_hu = self.window_hu
        return IntensityWindow(float(low_hu), float(high_hu))

    def check_crop(self, multiple: int) -> None:
        """Refuse crops whose sizes are not multiples of what the networks need.

        Raises:
            ConfigError: Names the option.
        """
        if any(size % multiple for size in self.crop):
            raise ConfigError(f"data.crop is {list(self.crop)}: give three multiples of {multiple}.")

    def check_rotation(self, probability: float) -> None:
        """Refuse rotations in the axial plane of crops that are not alike along X and Y.

        Raises:
            ConfigError: Names the options.
        """
        if probability and (self.crop[0] != self.crop[1] or self.spacing_mm[0] != self.spacing_mm[1]):
            raise ConfigError(
                f"Rotation in the axial plane needs crops and spacing alike along X and Y, not {list(self.crop)} and "
                f"{list(self.spacing_mm)}: change data.crop, or set augmentation.rotation_probability=0."
            )


@dataclass(frozen=True, kw_only=True)
class RotationOptions:
    """The section ``augmentation`` of stages 1 and 2.

    Args:
        rotation_probability: Chance that a crop is rotated by 90, 180 or 270 degrees in the axial plane.
    """

    rotation_probability: Share


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """What is known of a run before the values that it was started with.

    Args:
        stage: Name of the stage.
        name: Name of the run, whose folder is ``runs_dir/stage/name``.
        fresh: Start over instead of resuming.
        runs_dir: Parent of all runs' folders.
        artifact: Folder of the run's artifact.
        trainer: The group ``trainer``.
    """

    stage: str
    name: str | int | float
    fresh: bool
    runs_dir: Path
    artifact: Path
    trainer: TrainerOptions


@dataclass(frozen=True, kw_only=True)
class RunOptions(PlaceOptions):
    """What every stage's config has at the top.

    Args:
        seed: Everything random follows from it.
        checkpoints_dir: Parent of the artifacts; other options refer to it.
        data: The group ``data``.
    """

    seed: int
    checkpoints_dir: Path
    data: DataOptions


@dataclass(frozen=True, kw_only=True)
class AdamOptions:
    """The section ``optimizer`` of stages that train with Adam.

    Args:
        lr: Learning rate.
        betas: Momentum coefficients.
    """

    lr: Positive
    betas: Annotated[tuple[ShareBelowOne, ShareBelowOne], Hint("two numbers from 0, below 1")]


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """The section ``training`` of stages whose length is counted in steps.

    Args:
        steps: Length of the run.
        steps_per_epoch: Length of an epoch, after which there may be a validation and a checkpoint.
        compile: Whether ``torch.compile`` compiles the networks.

    Raises:
        ConfigError: The run has no whole number of epochs.
    """

    steps: Count
    steps_per_epoch: Count
    compile: bool

    def __post_init__(self) -> None:
        if self.steps % self.steps_per_epoch:
            raise ConfigError(
                f"training.steps is {self.steps}: give a multiple of training.steps_per_epoch, "
                f"which is {self.steps_per_epoch}."
            )

    @property
    def epochs(self) -> int:
        """Length of the run in epochs."""
        return self.steps // self.steps_per_epoch


# What happens if a model that a run uses was trained on scans that judge the run.
OnOverlap = Literal["warn", "refuse"]


@dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """The section ``folds``, to be the same in all stages.

    Args:
        count: Number of folds.
        seed: Decides which patient is in which fold.
    """

    count: int
    seed: int


def check_whole(organ: Organ) -> None:
    """Refuse an organ in whose wall alone tumors grow: the stages take organs as label maps mark them.

    Raises:
        ConfigError: It is one.
    """
    if organ.wall_mm > 0:
        raise ConfigError(
            f"organ.wall_mm is {organ.wall_mm:g}, which is for difftumor synthesize: give label maps of the wall "
            "itself and organ.wall_mm=0."
        )
