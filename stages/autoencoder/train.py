"""Stage 1: the autoencoder, from its config.

``python -m stages.autoencoder data.root=PATH``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from difftumor.datasets.cases import Case, CaseList, folds
from difftumor.models.autoencoder import Autoencoder
from difftumor.scans.organs import Organ
from stages.autoencoder.data import AutoencoderData, AutoencoderReader, evenly_spaced
from stages.autoencoder.losses import PerceptualLoss
from stages.autoencoder.module import AutoencoderModule
from stages.autoencoder.options import AutoencoderOptions
from stages.autoencoder.pictures import ScanPictures
from stages.autoencoder.validation import MONITOR, ScanValidation
from stages.ranks import say
from stages.run.case_lists import check_leaks, read_root, sort_and_say, stated_validation
from stages.run.data import Caching
from stages.run.entry import command_line
from stages.run.module import initial_weights
from stages.run.run import Stage

# What a resumed run may change: nothing depends on how long it will be or may fail, nor on pictures and memory.
NEUTRAL = (
    "training.steps", "training.nonfinite_limit", "training.gradient_checkpointing",
    "pictures.every_n_epochs", "pictures.scans",
)  # fmt: skip


def build(options: AutoencoderOptions) -> Stage:
    """Make module and data of stage 1 from its options.

    Raises:
        DiffTumorError: Options do not go together, data are missing, or the perceptual loss has no weights.
    """
    with initial_weights(options.seed):
        options.data.check_crop(Autoencoder(**asdict(options.network)).downsampling)
    data, held_out = _data(options)  # before the module, whose perceptual loss may download
    return Stage(
        module=_module(options, _validation(options, data)),
        data=data,
        epochs=options.training.epochs,
        monitor=MONITOR if data.validation else None,
        mode="max",
        neutral=NEUTRAL,
        check=partial(check_leaks, options.data, train=data.train, judged=held_out, refuse=False),
    )


def _module(options: AutoencoderOptions, validation: ScanValidation) -> AutoencoderModule:
    perceptual = options.perceptual
    loss = None
    if perceptual.weight:
        loss = PerceptualLoss(backbone=perceptual.backbone, weights=perceptual.weights, reduction=perceptual.reduction)
    return AutoencoderModule(
        seed=options.seed,
        network=options.network,
        codebook=options.codebook,
        discriminators=options.discriminators,
        weights=options.loss_weights,
        perceptual=loss,
        perceptual_weight=perceptual.weight,
        optimizer=options.optimizer,
        training=options.training,
        window=options.data.window,
        spacing_mm=options.data.spacing_mm,
        crop=options.data.crop,
        validation=validation,
    )


def _data(options: AutoencoderOptions) -> tuple[AutoencoderData, Sequence[Case]]:
    """Return crops to train on, with the scans to validate on, and all that is held out."""
    data = options.data
    cases = read_root(data.root, data.labels, accept_hu=data.accept_hu)
    if options.fold is None or options.organ is None:
        train, held_out = split(cases, share=data.validation_share, seed=options.seed)
    else:
        train, held_out = split_as_later_stages(cases, options.organ, options)
    crops = AutoencoderData(
        reader=AutoencoderReader(
            label_names=cases.label_names, crop=data.crop, spacing_mm=data.spacing_mm, accept_hu=data.accept_hu
        ),
        foreground_ratio=data.foreground_ratio,
        rotation_probability=options.augmentation.rotation_probability,
        train=train,
        validation=evenly_spaced(held_out, options.validation.scans),
        seed=options.seed,
        batch_size=data.batch_size * options.training.accumulate,
        steps_per_epoch=options.training.steps_per_epoch,
        num_workers=data.num_workers,
        caching=Caching.of(data),
        overfit=data.overfit,
    )
    return crops, held_out


def _validation(options: AutoencoderOptions, data: AutoencoderData) -> ScanValidation:
    window, crop, pictures = options.data.window, options.data.crop, options.pictures
    return ScanValidation(
        overlap=options.validation.overlap,
        codes=options.network.codes,
        window=window,
        crop=crop,
        windows_per_batch=options.data.batch_size,
        pictures=ScanPictures(
            [case.id for case in evenly_spaced(data.validation, pictures.scans)],
            every_n_epochs=pictures.every_n_epochs,
            window=window,
            crop=crop,
            spacing_mm=options.data.spacing_mm,
        ),
    )


def split(cases: CaseList, *, share: float, seed: int) -> tuple[Sequence[Case], Sequence[Case]]:
    """Hold out the validation cases that the list states, else a share of the patients.

    Raises:
        CaseListError: The stated validation cases leave no case to train on, or share a patient with the others.
    """
    if validation := stated_validation(cases, data__validation_share=share):
        return tuple(case for case in cases.cases if case not in validation), validation
    patients = len({case.patient for case in cases.cases})
    if not share or patients < 2:
        return cases.cases, ()
    return folds(cases.cases, count=min(patients, round(1 / share)), fold=0, seed=seed)


def split_as_later_stages(
    cases: CaseList, organ: Organ, options: AutoencoderOptions
) -> tuple[Sequence[Case], Sequence[Case]]:
    """Hold out the scans of the patients whom stages 2 and 3 hold out with the same ``organ``, ``fold`` and ``folds``.

    Raises:
        ConfigError: The fold does not exist, or the list states its validation cases.
        DiffTumorError: Label maps do not hold the organ or cannot be read, or there are fewer patients than folds.
    """
    if stated := stated_validation(cases, fold=options.fold):
        held_out = {case.patient for case in stated}
    else:
        found = sort_and_say(cases, organ, workers=options.data.num_workers, leaves_out=False)
        _, unseen = found.split(fold=options.fold, count=options.folds.count, seed=options.folds.seed)
        held_out = {case.patient for case in unseen}
    train = tuple(case for case in cases.cases if case.patient not in held_out)
    say(f"Training on {len(train)} scans, holding out {len(cases.cases) - len(train)}.")
    return train, tuple(case for case in cases.cases if case.patient in held_out)


def main(words: Sequence[str] | None = None, job: str | None = None) -> None:
    """Run the command line; see ``command_line``."""
    command_line("autoencoder", AutoencoderOptions, build, words=words, job=job)
