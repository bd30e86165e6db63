"""Stage 3: the segmenter of an organ and its tumors, from its config.

``python -m stages.segmentation organ=liver backbone=unet fold=0 data.root=PATH``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from difftumor.artifact_config import read_config
from difftumor.artifacts import Parent
from difftumor.datasets.cases import Case
from difftumor.datasets.crops import SegmentationCrop
from difftumor.datasets.tumor_cases import LeftOut
from difftumor.errors import ArtifactError, CaseListError, ConfigError
from difftumor.organs import Organ
from difftumor.synthesis.loading import load_synthesizer
from stages.case_lists import read_root, say_left_out, sort_and_say, stated_validation
from stages.data import check_same_preprocessing, check_sizes, window_of
from stages.entry import command_line
from stages.run import Stage, say
from stages.segmentation_data import Origin, SegmentationData, SegmentationReader
from stages.segmentation_module import SegmentationModule
from stages.settings import Settings, check_positive, construct
from stages.tumors_on_the_fly import TumorMix, TumorsOnTheFly

# Which tumors are trained on: annotated ones, made ones in healthy scans, or both.
Tumors = Literal["real", "diffusion", "mixed"]


def build(settings: Settings) -> Stage:
    """Make module and data of stage 3 from its config.

    Raises:
        DiffTumorError: An option is wrong, an artifact is missing, or there are no cases to train on.
    """
    data, training = settings.data, settings.training
    check_positive(
        training__epochs=training.epochs,
        data__batch_size=data.batch_size,
        optimizer__lr=settings.optimizer.lr,
        validation__windows_per_batch=settings.validation.windows_per_batch,
    )
    if settings.tumors not in get_args(Tumors):
        raise ConfigError(f"tumors is {settings.tumors!r}: choose {', '.join(get_args(Tumors))}.")
    if not isinstance(training.warmup_epochs, int) or not 0 <= training.warmup_epochs <= training.epochs:
        raise ConfigError(f"training.warmup_epochs is {training.warmup_epochs!r}: give 0 to training.epochs.")
    if not 0 <= settings.validation.overlap < 1:
        raise ConfigError(f"validation.overlap is {settings.validation.overlap!r}: give a number from 0, below 1.")
    check_sizes(data, multiple=4)
    organ = construct(Organ, settings.organ)
    mix = _mix(settings)
    models = _models(settings, mix)
    parents = {f"diffusion_{name}": Parent.at(path) for name, path in models.items()}
    tumors = _tumors(settings, organ, mix, models)
    _check_unchanged(parents)
    crops = _data(settings, organ)
    _warn_of_leaks(settings, models, crops.validation)
    return Stage(
        module=_module(settings, organ, tumors, parents, crops),
        data=crops,
        epochs=training.epochs,
        monitor="validation/tumor_dsc" if crops.validation else None,
        mode="max",
        neutral=("validation.windows_per_batch",),
    )


def _mix(settings: Settings) -> TumorMix:
    options = settings.synthesis
    return TumorMix(probability=options.probability, sizes=dict(options.sizes), most_early=options.most_early)


def _models(settings: Settings, mix: TumorMix) -> dict[str, Path]:
    """Return the diffusion artifacts that are given and needed."""
    given = {"early": settings.synthesis.early_model, "late": settings.synthesis.late_model}
    if settings.tumors == "real":
        return {}
    models = {name: Path(path) for name, path in given.items() if path is not None and name in mix.models}
    if not models:
        raise ConfigError(
            f"tumors={settings.tumors} needs a diffusion model for its sizes: give synthesis.early_model=PATH, "
            "or tumors=real."
        )
    for name, path in models.items():
        if not path.is_dir():
            raise ConfigError(
                f"synthesis.{name}_model is {path}, where no artifact is: train it with python -m stages.diffusion "
                f"organ={settings.organ.name} tumor_stage={name}, or do without it: synthesis.{name}_model=null."
            )
    return models


def _tumors(settings: Settings, organ: Organ, mix: TumorMix, models: dict[str, Path]) -> TumorsOnTheFly | None:
    allow_incomplete = settings.synthesis.allow_incomplete
    if not models:
        return None
    mix, gone = mix.only(tuple(models))
    if gone:
        say(f"No tumors of size {', '.join(gone)} are made, because their diffusion model is not given.")
    synthesizers = {}
    for name, path in models.items():
        check_same_preprocessing(settings.data, path)
        synthesizers[name] = load_synthesizer(path, organ=organ, allow_incomplete=allow_incomplete)
    return TumorsOnTheFly(synthesizers=synthesizers, mix=mix)


def _check_unchanged(parents: Mapping[str, Parent]) -> None:
    """Refuse models that were replaced between reading their descriptions and loading them."""
    for parent in parents.values():
        if Parent.at(parent.path) != parent:
            raise ArtifactError(f"{parent.path} was replaced while it was being loaded: rerun the same command.")


def _data(settings: Settings, organ: Organ) -> SegmentationData:
    data, augmentation = settings.data, settings.augmentation
    transform = SegmentationCrop(
        data.crop,
        spacing_mm=data.spacing_mm,
        class_ratios=data.class_ratios,
        minimum_organ_mm3=organ.minimum_volume_mm3,
        rotation_probability=augmentation.rotation_probability,
        shift=augmentation.shift,
        shift_probability=augmentation.shift_probability,
    )
    origins, train, validation = _cases(settings, organ)
    return SegmentationData(
        reader=SegmentationReader(
            origins=origins, organ=organ, crop=tuple(data.crop), spacing_mm=tuple(data.spacing_mm)
        ),
        crops=transform,
        train=train,
        validation=validation,
        seed=settings.seed,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        cache_rate=data.cache_rate,
        overfit=data.overfit,
    )


def _cases(settings: Settings, organ: Organ) -> tuple[dict[Case, Origin], tuple[Case, ...], tuple[Case, ...]]:
    """Return the origin of every case, the training cases, and the validation cases."""
    data, tumors = settings.data, settings.tumors
    healthy_labels = data.healthy_labels  # read in any case, as every key must be
    listed = read_root(data.root, data.labels)
    stated = stated_validation(listed, fold=settings.fold)
    found = sort_and_say(listed, organ, workers=data.num_workers)
    origins = {case: Origin(listed, healthy=False) for case in found.tumor}
    origins |= {case: Origin(listed, healthy=True) for case in found.healthy}
    if data.healthy_root is not None:
        healthy = read_root(data.healthy_root, healthy_labels, option="data.healthy_labels")
        held_out = stated_validation(healthy)
        more = sort_and_say(healthy, organ, assume_healthy=True, workers=data.num_workers)
        say_left_out([LeftOut(case, f"has {organ.name} tumors, yet is listed as healthy") for case in more.tumor])
        fit = tuple(case for case in more.healthy if case not in held_out)
        origins |= {case: Origin(healthy, healthy=True) for case in fit}
        found = replace(found, healthy=found.healthy + fit)
    # Without annotated tumors there is nothing to validate on.
    fold = settings.fold if found.tumor or tumors != "diffusion" else None
    train, validation = found.split(fold=fold, count=settings.folds.count, seed=settings.folds.seed, stated=stated)
    real = train.tumor if tumors != "diffusion" else ()
    healthy_cases = train.healthy if tumors != "real" else ()
    say(
        f"Training on {len(real)} cases with tumors and {len(healthy_cases)} healthy ones, "
        f"validating on {len(validation)}."
    )
    if tumors != "diffusion" and not real:
        raise CaseListError(f"{listed.source} has no case with a {organ.name} tumor: give other data or organ.")
    if tumors != "real" and not healthy_cases:
        raise CaseListError(
            f"There is no scan with a healthy {organ.name} to make tumors in: give data.healthy_root=PATH, "
            "or tumors=real."
        )
    return origins, (*real, *healthy_cases), validation


def _warn_of_leaks(settings: Settings, models: dict[str, Path], validation: tuple[Case, ...]) -> None:
    """Say where a diffusion model has seen scans that are to judge the segmenter, and how to train it without."""
    for name, path in models.items():
        seen = set(read_config(path).training.get("cases", {}).get("training", ()))
        shared = [case.id for case in validation if case.id in seen]
        if shared:
            fold = "" if settings.fold is None else f" fold={settings.fold}"
            say(
                f"Note: {path} was trained on {len(shared)} of the {len(validation)} validation cases; to keep them "
                f"unseen, train it with python -m stages.diffusion organ={settings.organ.name} tumor_stage={name} "
                f"data.root={settings.data.root}{fold} folds.count={settings.folds.count} "
                f"folds.seed={settings.folds.seed}."
            )


def _module(
    settings: Settings,
    organ: Organ,
    tumors: TumorsOnTheFly | None,
    parents: Mapping[str, Parent],
    crops: SegmentationData,
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
        window=window_of(settings.data),
        spacing_mm=settings.data.spacing_mm,
        crop=settings.data.crop,
        parents=parents,
        cases={
            "training": [case.id for case in crops.train],
            "validation": [case.id for case in crops.validation],
        },
    )


def main() -> None:
    """Run the command line."""
    command_line("segmentation", build)


if __name__ == "__main__":
    main()
