"""The trainer of a stage, from the options under ``trainer``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from difftumor.errors import ConfigError, DeviceError
from stages.run.settings import check_positive


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """The group ``trainer`` of the config; ``configs/trainer/auto.yaml`` says what each option does."""

    accelerator: str
    devices: int
    num_nodes: int
    strategy: str
    precision: Any
    max_epochs: int | None
    limit_train_batches: int | float | None
    limit_val_batches: int | float | None
    validate_every_n_epochs: int
    checkpoint_every_n_epochs: int
    log_every_n_steps: int
    profiler: str | None
    progress_bar: bool

    def __post_init__(self) -> None:
        check_positive(
            trainer__num_nodes=self.num_nodes,
            trainer__validate_every_n_epochs=self.validate_every_n_epochs,
            trainer__checkpoint_every_n_epochs=self.checkpoint_every_n_epochs,
            trainer__log_every_n_steps=self.log_every_n_steps,
        )
        if self.max_epochs is not None:
            check_positive(trainer__max_epochs=self.max_epochs)
        if self.accelerator not in ("auto", "cpu", "gpu", "cuda"):
            raise ConfigError(f"trainer.accelerator is {self.accelerator!r}: choose auto, cpu or gpu.")
        if self.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise DeviceError("trainer.accelerator=gpu asks for a GPU and none is there: set trainer.accelerator=cpu.")
        on_gpu = self.accelerator != "cpu" and torch.cuda.is_available()
        if str(self.precision) in ("16", "16-mixed") and not on_gpu:  # Lightning would take bfloat16 after a warning
            raise ConfigError("trainer.precision=16-mixed needs a GPU: choose bf16-mixed or 32-true on a CPU.")
        if self.profiler not in (None, "simple", "advanced"):
            raise ConfigError(f"trainer.profiler is {self.profiler!r}: choose null, simple or advanced.")


def make_trainer(
    options: TrainerOptions, *, folder: Path, epochs: int, callbacks: Sequence[Callback], accumulate: int = 1
) -> pl.Trainer:
    """Make the trainer of a run.

    Args:
        options: What the user asked for.
        folder: The run's folder.
        epochs: How long the run is.
        callbacks: What watches it.
        accumulate: Batches per step of the optimizer, under automatic optimization.

    Raises:
        ConfigError: The options do not go together.
    """
    try:
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            precision=options.precision,
            max_epochs=epochs,
            limit_train_batches=options.limit_train_batches,
            limit_val_batches=options.limit_val_batches,
            check_val_every_n_epoch=options.validate_every_n_epochs,
            log_every_n_steps=options.log_every_n_steps,
            accumulate_grad_batches=accumulate,
            profiler=_profiler(options.profiler, folder),
            logger=TensorBoardLogger(folder, name="", version="tensorboard"),
            callbacks=list(callbacks),
            plugins=_plugins(),
            enable_progress_bar=options.progress_bar and sys.stdout.isatty(),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # SeededSampler knows rank and world size itself
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = str(error).splitlines()[0].strip().rstrip(".")
        raise ConfigError(f"The options under 'trainer' do not work: {reason}.") from error


def _plugins() -> list[Any]:
    # Whoever submitted the job requeues it; Lightning would do so a second time. Under torchrun, also inside a SLURM
    # job, Lightning's own choice is right.
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    return []


def _profiler(kind: str | None, folder: Path) -> pl.profilers.Profiler | None:
    if kind is None:
        return None
    profiler = pl.profilers.SimpleProfiler if kind == "simple" else pl.profilers.AdvancedProfiler
    return profiler(dirpath=folder, filename="profile")
