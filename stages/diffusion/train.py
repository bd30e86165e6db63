"""Stage 2: the diffusion model of one organ and tumor stage, from its config.

``python -m stages.diffusion organ=liver tumor_stage=early data.root=PATH``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from difftumor.datasets.cases import Case
from difftumor.datasets.tumor_cases import AnnotatedTumor, choose_tumors
from difftumor.errors import CaseListError, ConfigError
from difftumor.models.artifact import Parent, load_artifact
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.denoiser import Denoiser
from difftumor.models.ema import ExponentialMovingAverage
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule, SamplerConfig
from difftumor.scans.lesions import SIZE_GROUPS
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import Organ
from difftumor.synthesis.generators.diffusion import DiffusionTexture
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.diffusion.data import LesionRules, TumorCrops, TumorReader, describe, describe_choice
from stages.diffusion.hosts import HeldOut
from stages.diffusion.latent_cache import LatentCache
from stages.diffusion.latents import CachedTumorCrops, LatentOptions
from stages.diffusion.module import DiffusionModule, MakeHosts, network_channels
from stages.diffusion.pictures import PictureOptions
from stages.diffusion.validation import MONITOR, HostValidation, ValidationOptions
from stages.run.case_lists import read_root, sort_and_say, stated_validation
from stages.run.data import Caching, check_same_preprocessing, check_sizes, check_steps, window_of
from stages.run.entry import command_line
from stages.run.run import Stage, say
from stages.run.settings import Settings, check_positive, check_switch, check_whole, construct

# What a resumed run may change: what is learned depends neither on how long it will be nor on when and what is drawn.
NEUTRAL = ("training.steps", "validation.synthesize_every_n_epochs", "pictures.hosts")


@dataclass(frozen=True)
class _Crops:
    data: TumorCrops
    cases: dict[str, Any]  # what is trained on, for the artifact
    held_out: HeldOut


def held_out(settings: Settings) -> HeldOut:
    """Return the held-out tumors and the hosts that a training with this config is judged by; no artifact is needed.

    Raises:
        DiffTumorError: As ``build``, but for the networks.
    """
    return _crops(settings, construct(Organ, settings.organ)).held_out


def build(settings: Settings) -> Stage:
    """Make module and data of stage 2 from its config.

    Raises:
        DiffTumorError: An option is wrong, the autoencoder is missing, or there are no tumors to learn.
    """
    epochs = check_steps(settings)
    check_switch(training__compile=settings.training.compile)
    organ = construct(Organ, settings.organ)
    codec, autoencoder = _codec(settings)
    construct(ExponentialMovingAverage, settings.ema, network=nn.Identity())  # refuses what the real one would
    pictures = construct(PictureOptions, settings.pictures)
    crops = _crops(settings, organ)
    hosts = _hosts(settings, organ, codec, crops.held_out, pictures)
    return Stage(
        module=_module(settings, organ, codec, autoencoder, crops.cases, hosts),
        data=crops.data,
        epochs=epochs,
        monitor=MONITOR if crops.data.validation else None,
        # Without a cache there is no pool.
        neutral=(*NEUTRAL, *([] if settings.latents.cache else ["latents.crops"])),
        only_whether=("latents.cache",),
    )


def _codec(settings: Settings) -> tuple[LatentCodec, Parent]:
    """Load the frozen autoencoder, and check that crops suit it and the denoiser."""
    data = settings.data
    artifact = load_artifact(
        settings.autoencoder.artifact, kind="autoencoder", allow_incomplete=settings.autoencoder.allow_incomplete
    )
    check_same_preprocessing(data, artifact.path)
    assert isinstance(artifact.network, Autoencoder)
    codec = LatentCodec(artifact.network)
    check_sizes(data, multiple=codec.downsampling)
    divisor = codec.downsampling * construct(Denoiser, settings.network, **network_channels(codec)).in_slice_divisor
    if data.crop[0] % divisor or data.crop[1] % divisor:
        raise ConfigError(f"data.crop is {list(data.crop)}: give multiples of {divisor} along X and Y.")
    return codec, artifact.as_parent


def _crops(settings: Settings, organ: Organ) -> _Crops:
    data = settings.data
    # Label maps may take long to read; options are checked before.
    latents, options = construct(LatentOptions, settings.latents), construct(ValidationOptions, settings.validation)
    rules = _rules(settings)
    _check_most(data.max_tumors)
    cases = read_root(data.root, data.labels)
    reader = TumorReader(
        cases=cases, organ=organ, rules=rules, crop=tuple(data.crop), spacing_mm=tuple(data.spacing_mm)
    )
    train, validation, healthy, found = _sorted(settings, reader)
    reader, tumors = _chosen(settings, reader, [tumor for case in train for tumor in found[case.id]])
    counts = Counter(tumor.case for tumor in tumors)
    hosts = (*validation, *healthy)
    # Seeded as the folds are: alike in all runs with the same data, whatever is random in their training.
    held_out = HeldOut(
        reader=reader,
        window=window_of(data),
        tumor_cases=tuple(case for case in validation if found[case.id]),
        learned_cases=tuple(case for case in train if found[case.id]),
        host_cases=hosts,
        tumors=options.crops,
        count=options.hosts if hosts else 0,
        seed=settings.folds.seed,
    )
    crops = _data(
        latents,
        validation_tumors={case.id: [tumor.index for tumor in found[case.id]] for case in validation},
        reader=reader,
        foreground_ratio=data.foreground_ratio,
        train=tuple(case for case in train if counts[case.id]),
        validation=held_out.tumor_cases,
        hosts=held_out.count if options.synthesize_every_n_epochs else 0,
        seed=settings.seed,
        batch_size=data.batch_size,
        steps_per_epoch=settings.training.steps_per_epoch,
        validation_crops=options.crops,
        num_workers=data.num_workers,
        caching=Caching.of(data),
        overfit=data.overfit,
    )
    return _Crops(crops, _provenance(crops, tumors), held_out)


def _rules(settings: Settings) -> LesionRules:
    rules = construct(LesionRules, settings.lesions)
    if rules.stage not in SIZE_GROUPS:
        raise ConfigError(f"lesions.stage is {rules.stage!r}: choose early or late, as tumor_stage=early does.")
    check_positive(lesions__early_radius_mm=rules.early_radius_mm)
    check_whole(1, lesions__minimum_voxels=rules.minimum_voxels)
    return rules


def _sorted(
    settings: Settings, reader: TumorReader
) -> tuple[Sequence[Case], Sequence[Case], Sequence[Case], Mapping[str, Sequence[AnnotatedTumor]]]:
    """Return the cases to learn, those held out, the healthy ones, and the tumors of the stage by case."""
    cases, folds = reader.cases, settings.folds
    stated = stated_validation(cases, fold=settings.fold)
    found: dict[str, tuple[AnnotatedTumor, ...]] = {}

    def note(case: Case, labels: Volume) -> None:
        found[case.id] = reader.tumors(case, labels)

    split = sort_and_say(cases, reader.organ, workers=settings.data.num_workers, look=note)
    train, validation = split.split(fold=settings.fold, count=folds.count, seed=folds.seed, stated=stated)
    counts = {case.id: len(found[case.id]) for case in (*train.tumor, *validation)}
    say(describe(counts, reader.rules, cases.source))
    return train.tumor, validation, split.healthy, found


def _provenance(crops: TumorCrops, tumors: Sequence[AnnotatedTumor]) -> dict[str, Any]:
    """What is trained on, for the artifact."""
    counts = Counter(tumor.case for tumor in tumors)
    provenance: dict[str, Any] = {
        "training": {case.id: counts[case.id] for case in crops.train},
        "validation": [case.id for case in crops.validation],
    }
    if crops.reader.only:  # otherwise the cases and the rules say which tumors
        provenance["tumors"] = [{"case": t.case, "center_mm": t.center_mm, "radius_mm": t.radius_mm} for t in tumors]
    return provenance


def _data(latents: LatentOptions, *, validation_tumors: Mapping[str, Sequence[int]], **options: Any) -> TumorCrops:
    """Crops that are encoded in every step, or once."""
    if latents.cache is None:
        return TumorCrops(**options)
    cache = LatentCache(Path(latents.cache))
    return CachedTumorCrops(cache=cache, crops=latents.crops, validation_tumors=validation_tumors, **options)


def _check_most(value: Any) -> None:
    if value != "all" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ConfigError(f"data.max_tumors is {value!r}: give a whole number from 1 up, or all.")


def _chosen(
    settings: Settings, reader: TumorReader, tumors: Sequence[AnnotatedTumor]
) -> tuple[TumorReader, Sequence[AnnotatedTumor]]:
    """Choose the tumors to learn, and make the reader take the others for organ."""
    most, source = settings.data.max_tumors, reader.cases.source
    kind = f"{reader.rules.stage} {reader.organ.name} tumor"
    if not tumors:
        raise CaseListError(
            f"{source} has no {kind} to train on: give other data, another organ, or another tumor_stage."
        )
    if most == "all":
        return reader, tumors
    if most > len(tumors):
        raise ConfigError(
            f"data.max_tumors is {most}, but of the {kind}s of {source} {len(tumors)} can be trained on: "
            "give no more than that, or all."
        )
    chosen = choose_tumors(tumors, most, seed=settings.seed)
    say(describe_choice(chosen, len(tumors), reader.rules))
    only: dict[str, set[int]] = {}
    for tumor in chosen:
        only.setdefault(tumor.case, set()).add(tumor.index)
    return replace(reader, only=only), chosen


def _module(
    settings: Settings,
    organ: Organ,
    codec: LatentCodec,
    autoencoder: Parent,
    cases: Mapping[str, Any],
    hosts: MakeHosts,
) -> DiffusionModule:
    return DiffusionModule(
        seed=settings.seed,
        network=dict(settings.network),
        codec=codec,
        autoencoder=autoencoder,
        tumor_stage=settings.lesions.stage,
        timesteps=settings.diffusion.timesteps,
        sampler=construct(SamplerConfig, settings.diffusion.sampler),
        masked=settings.diffusion.masked,
        loss=settings.diffusion.loss,
        ema=dict(settings.ema),
        lr=settings.optimizer.lr,
        betas=settings.optimizer.betas,
        organ=organ.name,
        window=window_of(settings.data),
        spacing_mm=settings.data.spacing_mm,
        crop=settings.data.crop,
        cases=cases,
        hosts=hosts,
        compiled=settings.training.compile,
    )


def _hosts(
    settings: Settings, organ: Organ, codec: LatentCodec, held_out: HeldOut, pictures: PictureOptions
) -> MakeHosts:
    """Return what makes the validation by synthetic tumors, given the networks of the training."""

    def make(denoiser: Denoiser, schedule: NoiseSchedule) -> HostValidation:
        texture = DiffusionTexture(
            codec=codec,
            denoiser=denoiser,
            schedule=schedule,
            sampler=construct(SamplerConfig, settings.diffusion.sampler),
            window=window_of(settings.data),
            patch=settings.data.crop,
            masked=settings.diffusion.masked,
        )
        synthesizer = TumorSynthesizer(organ=organ, diffusion=texture, spacing_mm=settings.data.spacing_mm)
        every = settings.validation.synthesize_every_n_epochs
        return HostValidation(held_out, synthesizer, every_n_epochs=every, pictures=pictures.hosts)

    return make


def main() -> None:
    """Run the command line."""
    command_line("diffusion", build)
