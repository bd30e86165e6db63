"""The diffusion models that make a run's tumors: which are needed, loading them, and which scans they have seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from difftumor.datasets.cases import Case
from difftumor.errors import ArtifactError, ConfigError
from difftumor.models.artifact import Parent
from difftumor.models.artifact_config import read_config
from difftumor.scans.lesions import SizeGroup
from difftumor.synthesis.scan.loading import load_synthesizer
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.run.data import check_same_preprocessing
from stages.run.run import say
from stages.segmentation.options import SegmentationOptions
from stages.segmentation.tumor_mix import TumorMix
from stages.segmentation.tumors import TumorsOnTheFly


def tumors_of(options: SegmentationOptions) -> tuple[TumorsOnTheFly | None, dict[str, Parent]]:
    """Load what makes the tumors of a run.

    Returns:
        It, or None if tumors are real or made before; and the diffusion models by role, as they were when they were
        loaded.

    Raises:
        ConfigError: No size is left to be made, or a model is missing.
        ArtifactError: A model cannot be used, or was replaced while it was loaded.
    """
    mix = TumorMix.of(options)
    if options.tumors == "real" or options.synthesis.offline is not None:
        return None, {}
    models = _models(mix, options)
    if models:
        mix = replace(mix, models=frozenset(models))
    if mix.left_out:
        say(f"No tumors of size {', '.join(mix.left_out)} are made, because their diffusion model is not given.")
    parents = {f"diffusion_{group}": Parent.at(path) for group, path in models.items()}
    for path in models.values():
        check_same_preprocessing(options.data, path, names=("spacing_mm",))
    if models:
        allow_incomplete = options.synthesis.allow_incomplete
        synthesizer = load_synthesizer(models, organ=options.organ, allow_incomplete=allow_incomplete)
    else:
        synthesizer = TumorSynthesizer(organ=options.organ, spacing_mm=options.data.spacing_mm)
    for parent in parents.values():
        if Parent.at(parent.path) != parent:
            raise ArtifactError(f"{parent.path} was replaced while it was being loaded: rerun the same command.")
    tumors = TumorsOnTheFly(
        synthesizer=synthesizer,
        mix=mix,
        minimum_change_hu=options.synthesis.minimum_change_hu,
        center=options.synthesis.center,
        margin=margin_of(options),
    )
    return tumors, parents


def margin_of(options: SegmentationOptions) -> tuple[int, ...]:
    """Return the voxels around each crop that come with it, so that it can move to the tumors it gets."""
    moves = options.synthesis.center > 0 and options.tumors != "real" and options.synthesis.offline is None
    return tuple(size // 2 if moves else 0 for size in options.data.crop)


def warn_of_leaks(options: SegmentationOptions, models: Mapping[str, Parent], validation: Sequence[Case]) -> None:
    """Say if a diffusion model has seen scans that are to judge the segmenter, and how to train one that has not."""
    for role, model in models.items():
        seen = set(read_config(model.path).training.get("cases", {}).get("training", ()))
        shared = [case.id for case in validation if case.id in seen]
        if shared:
            fold = "" if options.fold is None else f" fold={options.fold}"
            say(
                f"Note: {model.path} was trained on {len(shared)} of the {len(validation)} validation cases; to keep "
                f"them unseen, train it with python -m stages.diffusion organ={options.organ.name} "
                f"tumor_stage={role.removeprefix('diffusion_')} data.root={options.data.root}{fold} "
                f"folds.count={options.folds.count} folds.seed={options.folds.seed}."
            )


def _models(mix: TumorMix, options: SegmentationOptions) -> dict[SizeGroup, Path]:
    """Return the diffusion artifacts that are given and needed, by size group."""
    if not mix.uses("diffusion"):
        return {}
    given: dict[SizeGroup, Path | None] = {"early": options.synthesis.early_model, "late": options.synthesis.late_model}
    models = {group: path for group, path in given.items() if path is not None and group in mix.groups}
    if not models:
        raise ConfigError(
            f"tumors={options.tumors} needs a diffusion model for its sizes: give synthesis.early_model=PATH, "
            "or do without: tumors=handcrafted, tumors=real."
        )
    for group, path in models.items():
        if not path.is_dir():
            raise ConfigError(
                f"synthesis.{group}_model is {path}, where no artifact is: train it with python -m stages.diffusion "
                f"organ={options.organ.name} tumor_stage={group}, or do without it: synthesis.{group}_model=null."
            )
    return models
