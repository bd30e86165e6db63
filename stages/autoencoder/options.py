"""Options of stage 1 that need no data to be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from difftumor.errors import ConfigError
from stages.run.module import adam_betas
from stages.run.settings import Settings, check_not_negative, check_positive, check_switch, check_whole, construct

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
        check_whole(1, training__accumulate=self.accumulate, training__nonfinite_limit=self.nonfinite_limit)
        check_switch(training__compile=self.compile, training__gradient_checkpointing=self.gradient_checkpointing)


def step_options(settings: Settings) -> StepOptions:
    """Check the options of stage 1 that data have no say in, and return how steps are taken.

    Raises:
        ConfigError: Names the option.
    """
    training, codebook, critics = settings.training, settings.codebook, settings.discriminators
    if critics.loss not in ("hinge", "vanilla"):
        raise ConfigError(f"discriminators.loss is {critics.loss!r}: choose hinge or vanilla.")
    check_whole(1, discriminators__base_channels=critics.base_channels)
    check_whole(0, discriminators__start_step=critics.start_step)
    if codebook.update not in ("ema", "gradient"):
        raise ConfigError(f"codebook.update is {codebook.update!r}: choose ema or gradient.")
    check_not_negative(codebook__decay=codebook.decay, codebook__restart_below=codebook.restart_below)
    check_not_negative(**{f"loss_weights__{name}": settings.loss_weights[name] for name in WEIGHTED})
    check_not_negative(perceptual__weight=settings.perceptual.weight)
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
