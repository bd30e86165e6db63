"""Stage 1: the autoencoder, from its config.

``python -m stages.autoencoder data.root=PATH``
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difftumor.datasets.cases import Case, CaseList, folds
from difftumor.errors import ConfigError
from difftumor.models.autoencoder import Autoencoder
from stages.autoencoder.data import AutoencoderData, AutoencoderReader, evenly_spaced
from stages.autoencoder.losses import PerceptualLoss
from stages.autoencoder.module import AutoencoderModule
from stages.autoencoder.options import WEIGHTED, StepOptions, step_options
from stages.autoencoder.pictures import PictureOptions, Pictures
from stages.autoencoder.validation import MONITOR, ScanValidation, ValidationOptions
from stages.run.case_lists import read_root, stated_validation
from stages.run.data import Caching, check_sizes, check_steps, window_of
from stages.run.entry import command_line
from stages.run.module import initial_weights
from stages.run.run import Stage
from stages.run.settings import Settings, construct

# What a resumed run may change: nothing depends on how long it will be or may fail, nor on pictures and memory.
NEUTRAL = (
    "training.steps", "training.nonfinite_limit", "training.gradient_checkpointing",
    "pictures.every_n_epochs", "pictures.scans",
)  # fmt: skip


def build(settings: Settings) -> Stage:
    """Make module and data of stage 1 from its config.

    Raises:
        DiffTumorError: An option is wrong, data are missing, or the perceptual loss has no weights.
    """
    epochs = check_steps(settings)
    options = step_options(settings)
    with initial_weights(settings.seed):
        check_sizes(settings.data, multiple=construct(Autoencoder, settings.network).downsampling)
    validation = construct(ValidationOptions, settings.validation)
    pictures = construct(PictureOptions, settings.pictures)
    data = _data(settings, validation)  # before the module, whose perceptual loss may download
    return Stage(
        module=_module(settings, options, _validation(settings, validation, pictures, data)),
        data=data,
        epochs=epochs,
        monitor=MONITOR if data.validation else None,
        mode="max",
        neutral=NEUTRAL,
    )


def _module(settings: Settings, options: StepOptions, validation: ScanValidation) -> AutoencoderModule:
    perceptual, critics = settings.perceptual, settings.discriminators
    weight, backbone, weights = perceptual.weight, perceptual.backbone, perceptual.weights
    return AutoencoderModule(
        seed=settings.seed,
        network=dict(settings.network),
        codebook={name: settings.codebook[name] for name in ("update", "decay", "restart_below")},
        discriminator_channels=critics.base_channels,
        start_step=critics.start_step,
        adversarial=critics.loss,
        weights={name: settings.loss_weights[name] for name in WEIGHTED},
        perceptual=PerceptualLoss(backbone=backbone, weights=Path(weights) if weights else None) if weight else None,
        perceptual_weight=weight,
        options=options,
        window=window_of(settings.data),
        spacing_mm=settings.data.spacing_mm,
        crop=settings.data.crop,
        validation=validation,
    )


def _data(settings: Settings, validation: ValidationOptions) -> AutoencoderData:
    data = settings.data
    cases = read_root(data.root, data.labels)
    train, held_out = split(cases, share=data.validation_share, seed=settings.seed)
    return AutoencoderData(
        reader=AutoencoderReader(label_names=cases.label_names, crop=data.crop, spacing_mm=data.spacing_mm),
        foreground_ratio=data.foreground_ratio,
        train=train,
        validation=evenly_spaced(held_out, validation.scans),
        seed=settings.seed,
        batch_size=data.batch_size * settings.training.accumulate,
        steps_per_epoch=settings.training.steps_per_epoch,
        num_workers=data.num_workers,
        caching=Caching.of(data),
        overfit=data.overfit,
    )


def _validation(
    settings: Settings, options: ValidationOptions, pictures: PictureOptions, data: AutoencoderData
) -> ScanValidation:
    window, crop = window_of(settings.data), settings.data.crop
    return ScanValidation(
        options,
        codes=settings.network.codes,
        window=window,
        crop=crop,
        windows_per_batch=settings.data.batch_size,
        pictures=Pictures(
            pictures,
            cases=[case.id for case in evenly_spaced(data.validation, pictures.scans)],
            window=window,
            crop=crop,
            spacing_mm=settings.data.spacing_mm,
        ),
    )


def split(cases: CaseList, *, share: float, seed: int) -> tuple[Sequence[Case], Sequence[Case]]:
    """Hold out the validation cases that the list states, else a share of the patients.

    Raises:
        ConfigError: The share is out of range.
        CaseListError: The stated validation cases leave no case to train on, or share a patient with the others.
    """
    if not 0 <= share <= 0.5:
        raise ConfigError(f"data.validation_share is {share!r}: give a share from 0 to 0.5.")
    if validation := stated_validation(cases, data__validation_share=share):
        return tuple(case for case in cases.cases if case not in validation), validation
    patients = len({case.patient for case in cases.cases})
    if not share or patients < 2:
        return cases.cases, ()
    return folds(cases.cases, count=min(patients, round(1 / share)), fold=0, seed=seed)


def main() -> None:
    """Run the command line."""
    command_line("autoencoder", build)
