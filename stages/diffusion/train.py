"""Stage 2: the diffusion model of an organ's early or late tumors, from its config.

``python -m stages.diffusion organ=liver tumor_stage=early fold=0 data.root=PATH``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from difftumor.datasets.cases import Case
from difftumor.datasets.tumor_cases import AnnotatedTumor, choose_tumors
from difftumor.errors import CaseListError, ConfigError
from difftumor.models.artifact import Parent, load_artifact
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.denoiser import Denoiser
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule
from difftumor.scans.nifti import Volume
from difftumor.synthesis.generators.diffusion import DiffusionTexture
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.diffusion.data import SeenTumor, TumorCrops, TumorReader, describe, describe_choice, describe_unseen
from stages.diffusion.hosts import HeldOut
from stages.diffusion.latent_cache import LatentCache
from stages.diffusion.latents import CachedTumorCrops
from stages.diffusion.module import DiffusionModule, MakeHosts, network_arguments
from stages.diffusion.options import DiffusionOptions, LatentOptions
from stages.diffusion.validation import MONITOR, HostValidation
from stages.run.case_lists import (
    autoencoder_of,
    check_leaks,
    read_root,
    same_split,
    sort_and_say,
    stated_validation,
)
from stages.run.data import Caching, check_same_preprocessing
from stages.run.entry import command_line
from stages.run.run import Stage, say

# What a resumed run may change: what is learned depends neither on its length nor on pictures.
NEUTRAL = ("training.steps", "validation.synthesize_every_n_epochs", "pictures.hosts")


@dataclass(frozen=True)
class _Crops:
    data: TumorCrops
    cases: dict[str, Any]  # what is trained on, for the artifact
    held_out: HeldOut
    unseen: Sequence[Case]  # held out, with tumors of any size or none


def held_out(options: DiffusionOptions) -> HeldOut:
    """Return the held-out tumors and the hosts that a training with these options is judged by; needs no artifact.

    Raises:
        DiffTumorError: Data are missing or malformed, or there are no tumors to learn.
    """
    return _crops(options).held_out


def build(options: DiffusionOptions) -> Stage:
    """Make module and data of stage 2 from its options.

    Raises:
        DiffTumorError: Options do not go together, the autoencoder is missing, or there are no tumors to learn.
    """
    codec, autoencoder = _codec(options)
    crops = _crops(options, codec.downsampling)
    split = same_split(options.data, options.organ, options.fold, options.folds)
    parent = autoencoder_of(autoencoder.path, options.autoencoder.on_overlap, split)
    return Stage(
        module=_module(options, codec, autoencoder, crops.cases, _hosts(options, codec, crops.held_out)),
        data=crops.data,
        epochs=options.training.epochs,
        monitor=MONITOR if crops.data.validation else None,
        # Without a cache there is no pool.
        neutral=(*NEUTRAL, *([] if options.latents.cache else ["latents.crops"])),
        only_whether=("latents.cache",),
        accumulate=options.training.accumulate,
        check=partial(check_leaks, options.data, train=crops.data.train, judged=crops.unseen, autoencoders=[parent]),
    )


def _codec(options: DiffusionOptions) -> tuple[LatentCodec, Parent]:
    """Load the frozen autoencoder, and check that crops suit it and the denoiser."""
    data, parent = options.data, options.autoencoder
    artifact = load_artifact(parent.artifact, kind="autoencoder", allow_incomplete=parent.allow_incomplete)
    check_same_preprocessing(data, artifact.path)
    assert isinstance(artifact.network, Autoencoder)
    codec = LatentCodec(artifact.network)
    data.check_crop(codec.downsampling)
    denoiser = Denoiser(**network_arguments(options.network, codec))
    divisor = codec.downsampling * denoiser.in_slice_divisor
    if data.crop[0] % divisor or data.crop[1] % divisor:
        raise ConfigError(f"data.crop is {list(data.crop)}: give multiples of {divisor} along X and Y.")
    return codec, artifact.as_parent


def _crops(options: DiffusionOptions, downsampling: int = 4) -> _Crops:
    data, judged = options.data, options.validation
    cases = read_root(data.root, data.labels)
    reader = TumorReader(
        cases=cases,
        organ=options.organ,
        rules=options.lesions,
        crop=data.crop,
        spacing_mm=data.spacing_mm,
        downsampling=downsampling,
    )
    stated = stated_validation(cases, fold=options.fold)
    train, validation, healthy, found = _sorted(options, reader, stated)
    reader, tumors = _chosen(options, reader, [tumor for case in train for tumor in found[case.id]])
    if unseen := describe_unseen(tumors, reader.rules):
        say(unseen)
    counts = Counter(tumor.case for tumor in tumors)
    hosts = (*validation, *healthy)
    # Seeded as the folds are: alike in all runs with the same data, whatever is random in their training.
    held_out = HeldOut(
        reader=reader,
        window=data.window,
        tumor_cases=tuple(case for case in validation if found[case.id]),
        learned_cases=tuple(case for case in train if found[case.id]),
        host_cases=hosts,
        tumors=judged.crops,
        count=judged.hosts if hosts else 0,
        seed=options.folds.seed,
    )
    crops = _data(
        options.latents,
        validation_tumors={case.id: [tumor.index for tumor in found[case.id]] for case in validation},
        reader=reader,
        foreground_ratio=data.foreground_ratio,
        rotation_probability=options.augmentation.rotation_probability,
        train=tuple(case for case in train if counts[case.id]),
        validation=held_out.tumor_cases,
        hosts=held_out.count if judged.synthesize_every_n_epochs else 0,
        seed=options.seed,
        batch_size=data.batch_size,
        steps_per_epoch=options.training.steps_per_epoch * options.training.accumulate,
        validation_crops=judged.crops,
        num_workers=data.num_workers,
        caching=Caching.of(data),
        overfit=data.overfit,
    )
    return _Crops(crops, _provenance(crops, tumors), held_out, tuple(dict.fromkeys((*validation, *stated))))


def _sorted(
    options: DiffusionOptions, reader: TumorReader, stated: Sequence[Case]
) -> tuple[Sequence[Case], Sequence[Case], Sequence[Case], Mapping[str, Sequence[SeenTumor]]]:
    """Return the cases to learn, those held out, the healthy ones, and the tumors of the size group by case."""
    cases, folds = reader.cases, options.folds
    found: dict[str, tuple[SeenTumor, ...]] = {}

    def note(case: Case, labels: Volume) -> None:
        found[case.id] = reader.tumors(case, labels)

    split = sort_and_say(cases, reader.organ, workers=options.data.num_workers, look=note)
    train, validation = split.split(fold=options.fold, count=folds.count, seed=folds.seed, stated=stated)
    counts = {case.id: len(found[case.id]) for case in (*train.tumor, *validation)}
    say(describe(counts, reader.rules, cases.source))
    return train.tumor, validation, split.healthy, found


def _provenance(crops: TumorCrops, tumors: Sequence[AnnotatedTumor]) -> dict[str, Any]:
    """Return what is trained on, for the artifact."""
    counts = Counter(tumor.case for tumor in tumors)
    provenance: dict[str, Any] = {
        "training": {case.id: counts[case.id] for case in crops.train},
        "validation": [case.id for case in crops.validation],
    }
    if crops.reader.only:  # otherwise the cases and the rules say which tumors
        provenance["tumors"] = [{"case": t.case, "center_mm": t.center_mm, "radius_mm": t.radius_mm} for t in tumors]
    return provenance


def _data(latents: LatentOptions, *, validation_tumors: Mapping[str, Sequence[int]], **common: Any) -> TumorCrops:
    """Return crops that are encoded in every step, or once."""
    if latents.cache is None:
        return TumorCrops(**common)
    cache = LatentCache(latents.cache)
    return CachedTumorCrops(cache=cache, crops=latents.crops, validation_tumors=validation_tumors, **common)


def _chosen(
    options: DiffusionOptions, reader: TumorReader, tumors: Sequence[SeenTumor]
) -> tuple[TumorReader, Sequence[SeenTumor]]:
    """Choose the tumors to learn, and make the reader take the others for organ."""
    most, source = options.data.max_tumors, reader.cases.source
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
    chosen = choose_tumors(tumors, most, seed=options.seed)
    say(describe_choice(chosen, len(tumors), reader.rules))
    only: dict[str, set[int]] = {}
    for tumor in chosen:
        only.setdefault(tumor.case, set()).add(tumor.index)
    return replace(reader, only=only), chosen


def _module(
    options: DiffusionOptions, codec: LatentCodec, autoencoder: Parent, cases: Mapping[str, Any], hosts: MakeHosts
) -> DiffusionModule:
    return DiffusionModule(
        seed=options.seed,
        network=options.network,
        codec=codec,
        autoencoder=autoencoder,
        size_group=options.lesions.stage,
        diffusion=options.diffusion,
        ema=options.ema,
        optimizer=options.optimizer,
        organ=options.organ.name,
        window=options.data.window,
        spacing_mm=options.data.spacing_mm,
        crop=options.data.crop,
        cases=cases,
        hosts=hosts,
        compiled=options.training.compile,
    )


def _hosts(options: DiffusionOptions, codec: LatentCodec, held_out: HeldOut) -> MakeHosts:
    """Return what makes the validation by synthetic tumors, given the networks of the training."""
    data, diffusion = options.data, options.diffusion

    def make(denoiser: Denoiser, schedule: NoiseSchedule) -> HostValidation:
        texture = DiffusionTexture(
            codec=codec,
            denoiser=denoiser,
            schedule=schedule,
            sampler=diffusion.sampler,
            window=data.window,
            patch=data.crop,
            masked=diffusion.masked,
        )
        synthesizer = TumorSynthesizer(organ=options.organ, diffusion=texture, spacing_mm=data.spacing_mm)
        every = options.validation.synthesize_every_n_epochs
        return HostValidation(held_out, synthesizer, every_n_epochs=every, pictures=options.pictures.hosts)

    return make


def main(words: Sequence[str] | None = None, job: str | None = None) -> None:
    """Run the command line; see ``command_line``."""
    command_line("diffusion", DiffusionOptions, build, words=words, job=job)
