"""Stage 3: the segmenter of an organ and its tumors, from its config.

``python -m stages.segmentation organ=liver backbone=unet fold=0 data.root=PATH``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from difftumor.datasets.crops import SegmentationCrop
from difftumor.errors import ConfigError
from difftumor.models.artifact import Parent
from difftumor.scans.intensity import Normalization
from difftumor.scans.organs import Organ
from stages.run.data import Caching, check_sizes, window_of
from stages.run.entry import command_line
from stages.run.run import Stage
from stages.run.settings import Settings, check_not_negative, check_positive, check_switch, check_whole, construct
from stages.segmentation.cases import choose_cases
from stages.segmentation.data import SegmentationData, SegmentationReader
from stages.segmentation.module import SegmentationModule
from stages.segmentation.stopwatch import Stopwatch
from stages.segmentation.tumors import TumorsOnTheFly, finished, tumors_of, warn_of_leaks
from stages.segmentation.tumors_ahead import TumorsAhead


def build(settings: Settings) -> Stage:
    """Make module and data of stage 3 from its config.

    Raises:
        DiffTumorError: An option is wrong, an artifact is missing, or there are no cases to train on.
    """
    _check(settings)
    training = settings.training
    organ = construct(Organ, settings.organ)
    tumors, parents = tumors_of(settings, organ)
    waited = Stopwatch() if settings.synthesis.prefetch and tumors is not None else None
    ahead = None if waited is None else partial(TumorsAhead, finish=partial(finished, tumors=tumors), waited=waited)
    crops = _data(settings, organ, ahead)
    warn_of_leaks(settings, parents, crops.validation)
    if training.patience is not None and not crops.validation:
        raise ConfigError(
            f"training.patience is {training.patience}, but no scan is held out to tell whether anything gets better: "
            "give a fold and scans with tumors, or training.patience=null."
        )
    return Stage(
        module=_module(settings, organ, tumors, parents, crops, waited),
        data=crops,
        epochs=training.epochs,
        monitor="validation/tumor_dsc" if crops.validation else None,
        mode="max",
        neutral=("validation.windows_per_batch", "synthesis.prefetch"),
        accumulate=training.accumulate,
        patience=training.patience,
    )


def _check(settings: Settings) -> None:
    """Check what can be checked before anything is read.

    Raises:
        ConfigError: Names the option.
    """
    data, training, augmentation = settings.data, settings.training, settings.augmentation
    check_whole(
        1,
        training__epochs=training.epochs,
        training__accumulate=training.accumulate,
        data__batch_size=data.batch_size,
        validation__windows_per_batch=settings.validation.windows_per_batch,
    )
    check_positive(optimizer__lr=settings.optimizer.lr)
    check_not_negative(
        optimizer__weight_decay=settings.optimizer.weight_decay,
        validation__overlap=settings.validation.overlap,
        augmentation__rotation_probability=augmentation.rotation_probability,
        augmentation__shift=augmentation.shift,
        augmentation__shift_probability=augmentation.shift_probability,
    )
    check_switch(synthesis__prefetch=settings.synthesis.prefetch, data__overfit=data.overfit)
    if not isinstance(training.warmup_epochs, int) or not 0 <= training.warmup_epochs <= training.epochs:
        raise ConfigError(f"training.warmup_epochs is {training.warmup_epochs!r}: give 0 to training.epochs.")
    if training.patience is not None:
        check_whole(1, training__patience=training.patience)
    if data.made_share is not None:
        check_positive(data__made_share=data.made_share)
        if not data.made_share < 1:
            raise ConfigError(f"data.made_share is {data.made_share!r}: give a share between 0 and 1, or null.")
    if not settings.validation.overlap < 1:
        raise ConfigError(f"validation.overlap is {settings.validation.overlap!r}: give a number from 0, below 1.")
    check_sizes(data, multiple=4)


def _data(settings: Settings, organ: Organ, ahead: Callable[..., TumorsAhead] | None) -> SegmentationData:
    data, augmentation = settings.data, settings.augmentation
    transform = SegmentationCrop(
        data.crop,
        spacing_mm=data.spacing_mm,
        class_ratios=data.class_ratios,
        minimum_organ_mm3=organ.minimum_volume_mm3,
        healthy_background=data.healthy_background,
        rotation_probability=augmentation.rotation_probability,
        shift=augmentation.shift,
        shift_probability=augmentation.shift_probability,
    )
    chosen = choose_cases(settings, organ)
    return SegmentationData(
        reader=SegmentationReader(
            origins=chosen.origins,
            organ=organ,
            crop=tuple(data.crop),
            spacing_mm=tuple(data.spacing_mm),
            normalization=normalization_of(data),
        ),
        crops=transform,
        train=chosen.train,
        validation=chosen.validation,
        made_share=data.made_share,
        accumulate=settings.training.accumulate,
        ahead=ahead,
        seed=settings.seed,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        caching=Caching.of(data),
        overfit=data.overfit,
    )


def normalization_of(data: Settings) -> Normalization:
    """Return how ``data`` says that scans are to be scaled.

    Raises:
        ConfigError: An option is wrong.
    """
    try:
        return Normalization(window_of(data), data.normalization)
    except ValueError as error:
        raise ConfigError(f"data.normalization: {error}.") from error


def _module(
    settings: Settings,
    organ: Organ,
    tumors: TumorsOnTheFly | None,
    parents: Mapping[str, Parent],
    crops: SegmentationData,
    waited: Stopwatch | None,
) -> SegmentationModule:
    return SegmentationModule(
        seed=settings.seed,
        backbone=dict(settings.backbone),
        tumors=tumors,
        lr=settings.optimizer.lr,
        weight_decay=settings.optimizer.weight_decay,
        warmup_epochs=settings.training.warmup_epochs,
        epochs=settings.training.epochs,
        overlap=settings.validation.overlap,
        windows_per_batch=settings.validation.windows_per_batch,
        organ=organ.name,
        normalization=crops.reader.normalization,
        spacing_mm=settings.data.spacing_mm,
        crop=settings.data.crop,
        waited=waited,
        parents=parents,
        cases={
            "training": [case.id for case in crops.train],
            "validation": [case.id for case in crops.validation],
        },
    )


def main() -> None:
    """Run the command line."""
    command_line("segmentation", build)
