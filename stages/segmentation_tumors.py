"""The makers of tumors of stage 3, from its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from difftumor.artifact_config import read_config
from difftumor.artifacts import Parent
from difftumor.datasets.cases import Case
from difftumor.errors import ArtifactError, ConfigError
from difftumor.organs import Organ
from difftumor.synthesis.loading import load_synthesizer
from difftumor.synthesis.sizes import Stage
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.data import check_same_preprocessing
from stages.run import say
from stages.settings import Settings
from stages.tumors_on_the_fly import TumorMix, TumorsOnTheFly


def tumors_of(settings: Settings, organ: Organ) -> tuple[TumorsOnTheFly | None, dict[str, Parent]]:
    """Load what makes the tumors of a run.

    Returns:
        It, or None where tumors are real or made before; and the diffusion models by role, as they were when they were
        loaded.

    Raises:
        ConfigError: An option is wrong, or a model is missing.
        ArtifactError: A model cannot be used, or was replaced while it was loaded.
    """
    options = settings.synthesis
    given: dict[Stage, Path | None] = {"early": _path(options.early_model), "late": _path(options.late_model)}
    generators = dict(options.generators)
    if settings.tumors in ("diffusion", "handcrafted"):
        generators = {settings.tumors: 1.0}
    mix = TumorMix(
        probability=options.probability,
        generators=generators,
        sizes=dict(options.sizes),
        most_early=options.most_early,
        placement=options.placement,
        irregularity=options.irregularity,
        blur_mm=options.blur_mm,
    )
    allow_incomplete = options.allow_incomplete
    if settings.tumors == "real" or options.offline is not None:
        return None, {}
    models = _models(given, mix, settings)
    if models:
        mix = TumorMix(**{**vars(mix), "models": frozenset(models)})
    if mix.left_out:
        say(f"No tumors of size {', '.join(mix.left_out)} are made, because their diffusion model is not given.")
    parents = {f"diffusion_{stage}": Parent.at(path) for stage, path in models.items()}
    for path in models.values():
        check_same_preprocessing(settings.data, path, names=("spacing_mm",))
    if models:
        synthesizer = load_synthesizer(models, organ=organ, allow_incomplete=allow_incomplete)
    else:
        synthesizer = TumorSynthesizer(organ=organ, spacing_mm=settings.data.spacing_mm)
    _check_unchanged(parents)
    return TumorsOnTheFly(synthesizer=synthesizer, mix=mix), parents


def warn_of_leaks(settings: Settings, models: Mapping[str, Parent], validation: Sequence[Case]) -> None:
    """Say where a diffusion model has seen scans that are to judge the segmenter, and how to train it without."""
    for role, model in models.items():
        seen = set(read_config(model.path).training.get("cases", {}).get("training", ()))
        shared = [case.id for case in validation if case.id in seen]
        if shared:
            fold = "" if settings.fold is None else f" fold={settings.fold}"
            stage = role.removeprefix("diffusion_")
            say(
                f"Note: {model.path} was trained on {len(shared)} of the {len(validation)} validation cases; to keep "
                f"them unseen, train it with python -m stages.diffusion organ={settings.organ.name} "
                f"tumor_stage={stage} data.root={settings.data.root}{fold} folds.count={settings.folds.count} "
                f"folds.seed={settings.folds.seed}."
            )


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _models(given: Mapping[Stage, Path | None], mix: TumorMix, settings: Settings) -> dict[Stage, Path]:
    """Return the diffusion artifacts that are given and needed."""
    if not mix.uses("diffusion"):
        return {}
    models = {stage: path for stage, path in given.items() if path is not None and stage in mix.stages}
    if not models:
        raise ConfigError(
            f"tumors={settings.tumors} needs a diffusion model for its sizes: give synthesis.early_model=PATH, "
            "or do without: tumors=handcrafted, tumors=real."
        )
    for stage, path in models.items():
        if not path.is_dir():
            raise ConfigError(
                f"synthesis.{stage}_model is {path}, where no artifact is: train it with python -m stages.diffusion "
                f"organ={settings.organ.name} tumor_stage={stage}, or do without it: synthesis.{stage}_model=null."
            )
    return models


def _check_unchanged(parents: Mapping[str, Parent]) -> None:
    """Refuse models that were replaced between reading their descriptions and loading them."""
    for parent in parents.values():
        if Parent.at(parent.path) != parent:
            raise ArtifactError(f"{parent.path} was replaced while it was being loaded: rerun the same command.")
