"""Options of stage 1 that need no data to be checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from difftumor.errors import ConfigError
from stages.module import adam_betas
from stages.settings import Settings, check_positive, construct

# What eq. 2 weighs besides the perceptual loss.
WEIGHTED = ("l1", "codebook", "commitment", "slice_adversarial", "volume_adversarial", "feature_matching")


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How steps are taken; ``configs/autoencoder.yaml`` says what each option does."""

    lr: float
    betas: Sequence[float]
    clip_norm: float | None = None
    accumulate: int = 1
    nonfinite_limit: int = 20
    compile: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_positive(optimizer__lr=self.lr)
        adam_betas(self.betas)
        if self.clip_norm is not None:
            check_positive(optimizer__clip_norm=self.clip_norm)
        for name in ("accumulate", "nonfinite_limit"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"training.{name} is {value!r}: give a whole number above 0.")
        for name in ("compile", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"training.{name} is {getattr(self, name)!r}: choose true or false.")


def step_options(settings: Settings) -> StepOptions:
    """Check the options of stage 1 that data have no say in, and return how steps are taken.

    Raises:
        ConfigError: Names the option.
    """
    training, critics = settings.training, settings.discriminators
    if critics.loss not in ("hinge", "vanilla"):
        raise ConfigError(f"discriminators.loss is {critics.loss!r}: choose hinge or vanilla.")
    if settings.codebook.update not in ("ema", "gradient"):
        raise ConfigError(f"codebook.update is {settings.codebook.update!r}: choose ema or gradient.")
    for name in WEIGHTED:
        weight = settings.loss_weights[name]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ConfigError(f"loss_weights.{name} is {weight!r}: give a number from 0.")
    if str(settings.trainer.precision) in ("16-true", "bf16-true"):
        raise ConfigError(f"trainer.precision is {settings.trainer.precision!r}: choose bf16-mixed or 16-mixed.")
    if not str(settings.trainer.strategy).startswith(("auto", "ddp", "single_device")):
        raise ConfigError(f"trainer.strategy is {settings.trainer.strategy!r}: stage 1 knows auto and ddp.")
    return construct(
        StepOptions,
        settings.optimizer,
        accumulate=training.accumulate,
        nonfinite_limit=training.nonfinite_limit,
        compile=training.compile,
        gradient_checkpointing=training.gradient_checkpointing,
    )
