"""Stage 2: the diffusion model of one organ and tumor stage, from its config.

``python -m stages.diffusion organ=liver tumor_stage=early data.root=PATH``
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from difftumor.artifacts import Parent, load_artifact
from difftumor.datasets.cases import Case
from difftumor.datasets.tumor_stages import TUMOR_STAGES
from difftumor.diffusion.ema import ExponentialMovingAverage
from difftumor.diffusion.latent import LatentCodec
from difftumor.diffusion.samplers import SamplerConfig
from difftumor.errors import CaseListError, ConfigError
from difftumor.networks.autoencoder import Autoencoder
from difftumor.networks.denoiser import Denoiser
from difftumor.organs import Organ
from difftumor.volume import Volume
from stages.case_lists import read_root, sort_and_say, stated_validation
from stages.data import check_same_preprocessing, check_sizes, check_steps, window_of
from stages.diffusion_data import LesionRules, TumorCrops, TumorReader, describe
from stages.diffusion_module import DiffusionModule
from stages.entry import command_line
from stages.run import Stage, say
from stages.settings import Settings, construct


@dataclass(frozen=True)
class _Crops:
    data: TumorCrops
    lesions: dict[str, int]  # of every training case


def build(settings: Settings) -> Stage:
    """Make module and data of stage 2 from its config.

    Raises:
        DiffTumorError: An option is wrong, the autoencoder is missing, or there are no tumors to learn.
    """
    epochs = check_steps(settings)
    organ = construct(Organ, settings.organ)
    codec, autoencoder = _codec(settings)
    construct(ExponentialMovingAverage, settings.ema, network=nn.Identity())  # refuses what the real one would
    crops = _crops(settings, organ)
    return Stage(
        module=_module(settings, organ, codec, autoencoder, crops),
        data=crops.data,
        epochs=epochs,
        monitor="validation/loss" if crops.data.validation else None,
        neutral=("training.steps",),  # nothing depends on how long the run will be
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
    channels = {"latent_channels": codec.latent_channels, "condition_channels": codec.latent_channels + 1}
    divisor = codec.downsampling * construct(Denoiser, settings.network, **channels).in_slice_divisor
    if data.crop[0] % divisor or data.crop[1] % divisor:
        raise ConfigError(f"data.crop is {list(data.crop)}: give multiples of {divisor} along X and Y.")
    return codec, artifact.as_parent


def _crops(settings: Settings, organ: Organ) -> _Crops:
    data = settings.data
    rules = construct(LesionRules, settings.lesions)
    if rules.stage not in TUMOR_STAGES:
        raise ConfigError(f"lesions.stage is {rules.stage!r}: choose early or late, as tumor_stage=early does.")
    cases = read_root(data.root, data.labels)
    stated = stated_validation(cases, fold=settings.fold)
    reader = TumorReader(
        cases=cases, organ=organ, rules=rules, crop=tuple(data.crop), spacing_mm=tuple(data.spacing_mm)
    )
    found: dict[str, int] = {}

    def count(case: Case, labels: Volume) -> None:
        found[case.id] = len(reader.lesions(labels))

    sorted_cases = sort_and_say(cases, organ, workers=data.num_workers, look=count)
    folds = settings.folds
    train, validation = sorted_cases.split(fold=settings.fold, count=folds.count, seed=folds.seed, stated=stated)
    counts = {case.id: found[case.id] for case in (*train.tumor, *validation)}
    say(describe(counts, rules, cases.source))
    chosen = tuple(case for case in train.tumor if counts[case.id])
    if not chosen:
        raise CaseListError(
            f"{cases.source} has no {rules.stage} {organ.name} tumor to train on: give other data, another organ, "
            "or another tumor_stage."
        )
    crops = TumorCrops(
        reader=reader,
        foreground_ratio=data.foreground_ratio,
        train=chosen,
        validation=tuple(case for case in validation if counts[case.id]),
        seed=settings.seed,
        batch_size=data.batch_size,
        steps_per_epoch=settings.training.steps_per_epoch,
        validation_crops=data.validation_crops,
        num_workers=data.num_workers,
        cache_rate=data.cache_rate,
        overfit=data.overfit,
    )
    return _Crops(crops, {case.id: counts[case.id] for case in chosen})


def _module(
    settings: Settings, organ: Organ, codec: LatentCodec, autoencoder: Parent, crops: _Crops
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
        cases={
            "training": crops.lesions,
            "validation": [case.id for case in crops.data.validation],
        },
    )


def main() -> None:
    """Run the command line."""
    command_line("diffusion", build)


if __name__ == "__main__":
    main()
