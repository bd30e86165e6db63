"""What a run's tumors are made with: diffusion models, their autoencoders, and real tumors to copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from difftumor.errors import ArtifactError, ConfigError
from difftumor.models.artifact import Parent
from difftumor.models.artifact_config import CONFIG_FILE, read_config
from difftumor.scans.lesions import SizeGroup
from difftumor.synthesis.generators.copy_paste import SourceTumors
from difftumor.synthesis.scan.loading import load_synthesizer
from difftumor.synthesis.scan.sources import read_sources
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.ranks import say
from stages.run.case_lists import Ancestor, autoencoder_of, same_split
from stages.run.data import check_same_preprocessing
from stages.segmentation.cases import ChosenCases
from stages.segmentation.options import SegmentationOptions
from stages.segmentation.tumor_mix import TumorMix
from stages.segmentation.tumors import TumorsOnTheFly


def makes_tumors(options: SegmentationOptions) -> bool:
    """Whether tumors are made during training: not if they are real or made before, or if no crop is to get any."""
    synthesis = options.synthesis
    return options.tumors != "real" and synthesis.offline is None and synthesis.probability > 0


def needed_models(options: SegmentationOptions) -> dict[SizeGroup, Path]:
    """Return the diffusion artifacts that are given and needed, by size group; none is loaded.

    Raises:
        ConfigError: The mix of tumors is wrong, or a model is missing.
    """
    mix = TumorMix.of(options)
    if not makes_tumors(options) or not mix.uses("diffusion"):
        return {}
    given: dict[SizeGroup, Path | None] = {"early": options.synthesis.early_model, "late": options.synthesis.late_model}
    models = {group: path for group, path in given.items() if path is not None and group in mix.groups}
    if not models:
        raise ConfigError(
            f"tumors={options.tumors} needs a diffusion model for its sizes: give synthesis.early_model=PATH, "
            "or do without: tumors=handcrafted, tumors=copy_paste, tumors=real."
        )
    for group, path in models.items():
        if not path.is_dir():
            raise ConfigError(
                f"synthesis.{group}_model is {path}, where no artifact is: train it with "
                f"{_training_of(group, options)}, or do without it: synthesis.{group}_model=null."
            )
    return models


def _training_of(group: str, options: SegmentationOptions) -> str:
    """Return the command that trains a diffusion model which sees nothing that a run holds out."""
    split = same_split(options.data, options.organ, options.fold, options.folds)
    return f"python -m stages.diffusion {split} tumor_stage={group}"


def tumors_of(
    options: SegmentationOptions, models: Mapping[SizeGroup, Path], chosen: ChosenCases
) -> tuple[TumorsOnTheFly | None, dict[str, Parent]]:
    """Load what makes the tumors of a run.

    Args:
        options: Of the run.
        models: As ``needed_models`` returned them.
        chosen: Its cases; tumors of the training patients are those that are copied.

    Returns:
        It, or None if no tumors are made; and the diffusion models by role, as they were when they were loaded.

    Raises:
        ConfigError: No size is left to be made.
        ArtifactError: A model cannot be used, or was replaced while it was loaded.
        DiffTumorError: A case whose tumors are to be copied cannot be read.
    """
    if not makes_tumors(options):
        return None, {}
    mix = TumorMix.of(options)
    if models:
        mix = replace(mix, models=frozenset(models))
    if missing := mix.left_out("diffusion"):
        say(f"No tumors of size {', '.join(missing)} are made, because their diffusion model is not given.")
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
    if mix.uses("copy_paste"):
        synthesizer.sources = _tumors_to_copy(options, synthesizer, chosen)
        mix = replace(mix, copied=synthesizer.sources.sizes)
        if missing := mix.left_out("copy_paste"):
            say(f"No tumors of size {', '.join(missing)} are copied, because no training patient has one.")
    if options.synthesis.center > 0 and options.organ.blend == "decoded" and mix.uses("diffusion"):
        raise ConfigError(
            f"synthesis.center is {options.synthesis.center:g}, but crops of the {options.organ.name} become what the "
            "diffusion model decodes, whole (organ.blend=decoded): give organ.blend=blurred, or synthesis.center=0."
        )
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
    moves = options.synthesis.center > 0 and makes_tumors(options)
    return tuple(size // 2 if moves else 0 for size in options.data.crop)


def _tumors_to_copy(options: SegmentationOptions, synthesizer: TumorSynthesizer, chosen: ChosenCases) -> SourceTumors:
    """Read the tumors of the training patients, and none of the validation patients."""
    listed = chosen.origins[chosen.patients[0]].source
    say(f"Reading the tumors of {len(chosen.patients)} training cases, to copy them.")
    sources, _ = read_sources(
        listed,
        options.organ,
        spacing_mm=synthesizer.spacing_mm,
        only=chosen.patients,
        accept_hu=options.data.accept_hu,
        workers=options.data.num_workers,
    )
    for note in sources.notes:
        say(note)
    return sources


def ancestors(
    options: SegmentationOptions, models: Iterable[tuple[str, Path]]
) -> tuple[Sequence[Ancestor], Sequence[Ancestor]]:
    """Return diffusion models (size group, folder) and their autoencoders, with how to train ones that saw less."""
    split = same_split(options.data, options.organ, options.fold, options.folds)
    refuse = options.synthesis.on_overlap == "refuse"
    accept = ", or accept it with synthesis.on_overlap=warn" if refuse else ""
    diffusion, autoencoders = [], {}
    for group, model in models:
        remedy = f"to keep them unseen, train it with {_training_of(group, options)}{accept}"
        diffusion.append(Ancestor(path=model, refuse=refuse, remedy=remedy))
        for parent in read_config(model).parents.values() if (model / CONFIG_FILE).is_file() else ():
            path = (model / parent.path).resolve()
            autoencoders[path] = autoencoder_of(path, options.autoencoder.on_overlap, split)
    return diffusion, list(autoencoders.values())
