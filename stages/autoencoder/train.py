"""Stage 1: the autoencoder, from its config.

``python -m stages.autoencoder data.root=PATH``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from difftumor.datasets.cases import Case, CaseList, folds
from difftumor.models.autoencoder import Autoencoder
from stages.autoencoder.data import AutoencoderData, AutoencoderReader, evenly_spaced
from stages.autoencoder.losses import PerceptualLoss
from stages.autoencoder.module import AutoencoderModule
from stages.autoencoder.options import AutoencoderOptions
from stages.autoencoder.pictures import ScanPictures
from stages.autoencoder.validation import MONITOR, ScanValidation
from stages.run.case_lists import read_root, stated_validation
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
    data = _data(options)  # before the module, whose perceptual loss may download
    return Stage(
        module=_module(options, _validation(options, data)),
        data=data,
        epochs=options.training.epochs,
        monitor=MONITOR if data.validation else None,
        mode="max",
        neutral=NEUTRAL,
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


def _data(options: AutoencoderOptions) -> AutoencoderData:
    data = options.data
    cases = read_root(data.root, data.labels)
    train, held_out = split(cases, share=data.validation_share, seed=options.seed)
    return AutoencoderData(
        reader=AutoencoderReader(label_names=cases.label_names, crop=data.crop, spacing_mm=data.spacing_mm),
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


def main() -> None:
    """Run the command line."""
    command_line("autoencoder", AutoencoderOptions, build)
