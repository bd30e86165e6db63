"""Stage 2: the diffusion model of an organ's early or late tumors, from its config.

``python -m stages.diffusion organ=liver tumor_stage=early fold=0 data.root=PATH``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from difftumor.datasets.cases import Case, CaseList
from difftumor.datasets.tumor_cases import choose_tumors
from difftumor.errors import CaseListError, ConfigError
from difftumor.models.artifact import Parent, load_artifact
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.denoiser import Denoiser
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import Organ
from difftumor.synthesis.generators.diffusion import DiffusionTexture
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.diffusion.data import (
    SeenTumor,
    SeveralReaders,
    TumorCrops,
    TumorReader,
    describe,
    describe_choice,
    describe_unseen,
)
from stages.diffusion.hosts import HeldOut, HeldOutOrgans, in_turn
from stages.diffusion.latent_cache import LatentCache
from stages.diffusion.latents import CachedTumorCrops
from stages.diffusion.module import DiffusionModule, MakeHosts, network_arguments
from stages.diffusion.options import DiffusionOptions, LatentOptions
from stages.diffusion.validation import MONITOR, HostValidation
from stages.ranks import say
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
from stages.run.run import Stage

# What a resumed run may change: what is learned depends neither on its length nor on pictures.
NEUTRAL = ("training.steps", "validation.synthesize_every_n_epochs", "pictures.hosts")


@dataclass(frozen=True)
class _Part:
    """The cases of one organ.

    Attributes:
        reader: Reads them.
        train: With tumors, of any size.
        validation: Held out, with tumors.
        unseen: All that is held out, with tumors or none.
        healthy: Free of tumors.
        found: The tumors of the size group, by case.
        tumors: Those to learn.
    """

    reader: TumorReader
    train: Sequence[Case]
    validation: Sequence[Case]
    unseen: Sequence[Case]
    healthy: Sequence[Case]
    found: Mapping[str, Sequence[SeenTumor]]
    tumors: Sequence[SeenTumor] = ()

    @property
    def learned(self) -> list[Case]:
        """The cases with tumors to learn."""
        counts = Counter(tumor.case for tumor in self.tumors)
        return [case for case in self.train if counts[case.id]]

    def patient(self, case: Case) -> tuple[Path, str]:
        """Return whose scan it is; names of patients mean something within their list alone."""
        return self.reader.cases.source.resolve(), case.patient


@dataclass(frozen=True)
class _Crops:
    data: TumorCrops
    cases: dict[str, Any]  # what is trained on, for the artifact
    held_out: HeldOut | HeldOutOrgans
    unseen: Sequence[Case]


def held_out(options: DiffusionOptions) -> HeldOut:
    """Return the held-out tumors and the hosts that a training with these options is judged by; needs no artifact.

    Raises:
        ConfigError: There are several organs.
        DiffTumorError: Data are missing or malformed, or there are no tumors to learn.
    """
    if options.more_organs:
        raise ConfigError("more_organs is set, but models are compared in one organ at a time: leave it out.")
    (part,) = _parts(options, downsampling=4)
    return _held_out(options, part, share=0, of=1)


def build(options: DiffusionOptions) -> Stage:
    """Make module and data of stage 2 from its options.

    Raises:
        DiffTumorError: Options do not go together, the autoencoder is missing, or there are no tumors to learn.
    """
    codec, autoencoder = _codec(options)
    crops = _crops(options, codec.downsampling)
    if (patience := options.training.patience) is not None and not crops.data.validation:
        raise ConfigError(
            f"training.patience is {patience}, but no tumor is held out to tell whether the loss still falls: give a "
            "fold, or training.patience=null."
        )
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
        patience=patience,
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


def _crops(options: DiffusionOptions, downsampling: int) -> _Crops:
    data, judged = options.data, options.validation
    parts = _parts(options, downsampling)
    several = len(parts) > 1
    judges = [_held_out(options, part, share=place, of=len(parts)) for place, part in enumerate(parts)]
    held_out = HeldOutOrgans(tuple(judges)) if several else judges[0]
    starts = list(accumulate((len(part.learned) for part in parts), initial=0))
    crops = _data(
        options.latents,
        validation_tumors={
            case.id: [tumor.index for tumor in part.found[case.id]] for part in parts for case in part.validation
        },
        reader=SeveralReaders(tuple(part.reader for part in parts), data.crop) if several else parts[0].reader,
        even=[range(*ends) for ends in pairwise(starts)] if several else (),
        foreground_ratio=data.foreground_ratio,
        rotation_probability=options.augmentation.rotation_probability,
        train=tuple(case for part in parts for case in part.learned),
        # In turn, so that a limit is one for each organ alike.
        validation=tuple(in_turn([each.tumor_cases for each in judges])),
        hosts=held_out.count if judged.synthesize_every_n_epochs else 0,
        seed=options.seed,
        batch_size=data.batch_size,
        steps_per_epoch=options.training.steps_per_epoch * options.training.accumulate,
        validation_crops=judged.crops,
        num_workers=data.num_workers,
        caching=Caching.of(data),
        overfit=data.overfit,
    )
    return _Crops(crops, _provenance(crops, parts), held_out, tuple(case for part in parts for case in part.unseen))


def _held_out(options: DiffusionOptions, part: _Part, *, share: int, of: int) -> HeldOut:
    """Return what judges an organ, which is one of several that share hosts and real tumors."""
    judged = options.validation
    hosts = (*part.validation, *part.healthy)
    # Seeded as the folds are: alike in all runs with the same data, whatever is random in their training.
    return HeldOut(
        reader=part.reader,
        window=options.data.window,
        tumor_cases=tuple(case for case in part.validation if part.found[case.id]),
        learned_cases=tuple(case for case in part.train if part.found[case.id]),
        host_cases=hosts,
        tumors=len(range(share, judged.crops, of)),
        count=len(range(share, judged.hosts, of)) if hosts else 0,
        seed=options.folds.seed,
    )


def _parts(options: DiffusionOptions, downsampling: int) -> list[_Part]:
    """Read the cases of each organ, and choose the tumors to learn; none of a patient that another organ holds out."""
    sources = [(options.organ, options.data.root, options.data.labels, "data.labels")]
    sources += [(more.organ, more.root, more.labels, "more_organs.labels") for more in options.more_organs]
    parts = []
    for organ, root, labels, option in sources:
        cases = read_root(root, labels, option=option, accept_hu=options.data.accept_hu)
        parts.append(_part(options, organ, _named_after(organ, cases) if len(sources) > 1 else cases, downsampling))
    apart = {part.patient(case) for part in parts for case in part.unseen}
    parts = [replace(part, train=[c for c in part.train if part.patient(c) not in apart]) for part in parts]
    parts = [_chosen(options, part) for part in parts]
    if unseen := describe_unseen([tumor for part in parts for tumor in part.tumors], options.lesions):
        say(unseen)
    learned = {case.image for part in parts for case in part.train}
    return [replace(part, healthy=[case for case in part.healthy if case.image not in learned]) for part in parts]


def _part(options: DiffusionOptions, organ: Organ, cases: CaseList, downsampling: int) -> _Part:
    data, folds = options.data, options.folds
    reader = TumorReader(
        cases=cases,
        organ=organ,
        rules=options.lesions,
        crop=data.crop,
        spacing_mm=data.spacing_mm,
        downsampling=downsampling,
        accept_hu=data.accept_hu,
    )
    stated = stated_validation(cases, fold=options.fold)
    found: dict[str, tuple[SeenTumor, ...]] = {}

    def note(case: Case, labels: Volume) -> None:
        found[case.id] = reader.tumors(case, labels)

    split = sort_and_say(cases, organ, workers=data.num_workers, look=note)
    train, validation = split.split(fold=options.fold, count=folds.count, seed=folds.seed, stated=stated)
    say(describe({case.id: len(found[case.id]) for case in (*train.tumor, *validation)}, reader.rules, cases.source))
    return _Part(
        reader=reader,
        train=train.tumor,
        validation=validation,
        unseen=tuple(dict.fromkeys((*validation, *stated))),
        healthy=split.healthy,
        found=found,
    )


def _named_after(organ: Organ, cases: CaseList) -> CaseList:
    """Return a list whose ids begin with the organ, so that no other list has them."""
    named = tuple(replace(case, id=f"{organ.name}_{case.id}") for case in cases.cases)
    return replace(cases, cases=named, validation_ids=tuple(f"{organ.name}_{each}" for each in cases.validation_ids))


def _provenance(crops: TumorCrops, parts: Sequence[_Part]) -> dict[str, Any]:
    """Return what is trained on, for the artifact."""
    tumors = [tumor for part in parts for tumor in part.tumors]
    counts = Counter(tumor.case for tumor in tumors)
    provenance: dict[str, Any] = {
        "training": {case.id: counts[case.id] for case in crops.train},
        "validation": [case.id for case in crops.validation],
    }
    if any(part.reader.only for part in parts):  # otherwise the cases and the rules say which tumors
        provenance["tumors"] = [{"case": t.case, "center_mm": t.center_mm, "radius_mm": t.radius_mm} for t in tumors]
    return provenance


def _data(latents: LatentOptions, *, validation_tumors: Mapping[str, Sequence[int]], **common: Any) -> TumorCrops:
    """Return crops that are encoded in every step, or once."""
    if latents.cache is None:
        return TumorCrops(**common)
    cache = LatentCache(latents.cache)
    return CachedTumorCrops(cache=cache, crops=latents.crops, validation_tumors=validation_tumors, **common)


def _chosen(options: DiffusionOptions, part: _Part) -> _Part:
    """Choose the tumors to learn, and make the reader take the others for organ."""
    most, reader, source = options.data.max_tumors, part.reader, part.reader.cases.source
    tumors = [tumor for case in part.train for tumor in part.found[case.id]]
    kind = f"{reader.rules.stage} {reader.organ.name} tumor"
    if not tumors:
        raise CaseListError(
            f"{source} has no {kind} to train on: give other data, another organ, or another tumor_stage."
        )
    if most == "all":
        return replace(part, tumors=tumors)
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
    return replace(part, reader=replace(reader, only=only), tumors=chosen)


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
        organ=options.organs,
        window=options.data.window,
        spacing_mm=options.data.spacing_mm,
        crop=options.data.crop,
        cases=cases,
        hosts=hosts,
        compiled=options.training.compile,
    )


def _hosts(options: DiffusionOptions, codec: LatentCodec, held_out: HeldOut | HeldOutOrgans) -> MakeHosts:
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
