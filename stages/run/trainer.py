"""The trainer of a stage, from the options under ``trainer``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import Strategy, StrategyRegistry
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from difftumor.errors import ConfigError, DeviceError
from stages.config.options import TrainerOptions
from stages.run.checkpoint import DurableCheckpoints


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
            devices=list(options.devices) if isinstance(options.devices, tuple) else options.devices,
            num_nodes=options.num_nodes,
            strategy=_strategy(options),
            precision=number_format(options),
            max_epochs=epochs,
            limit_train_batches=options.limit_train_batches,
            limit_val_batches=options.limit_val_batches,
            check_val_every_n_epoch=options.validate_every_n_epochs,
            log_every_n_steps=options.log_every_n_steps,
            accumulate_grad_batches=accumulate,
            profiler=_profiler(options.profiler, folder),
            logger=TensorBoardLogger(folder, name="", version="tensorboard"),
            callbacks=list(callbacks),
            plugins=[DurableCheckpoints(), *_plugins()],
            enable_progress_bar=options.progress_bar and sys.stdout.isatty(),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # SeededSampler knows rank and world size itself
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = str(error).splitlines()[0].strip().rstrip(".")
        raise ConfigError(f"The options under 'trainer' do not work: {reason}.") from error


def number_format(options: TrainerOptions) -> Any:
    """Return the precision: with ``"auto"``, 16-mixed on a GPU and 32-true elsewhere."""
    if options.precision != "auto":
        return options.precision
    return "16-mixed" if _on_gpu(options) else "32-true"


def check_device(options: TrainerOptions) -> None:
    """Refuse options that need a GPU where there is none.

    Raises:
        ConfigError: The precision needs one.
        DeviceError: One is asked for.
    """
    if options.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise DeviceError("trainer.accelerator=gpu asks for a GPU and none is there: set trainer.accelerator=cpu.")
    # Lightning would take bfloat16 and warn.
    if str(options.precision) in ("16", "16-mixed") and not _on_gpu(options):
        raise ConfigError("trainer.precision=16-mixed needs a GPU: choose bf16-mixed or 32-true on a CPU.")


def lost_process(error: BaseException) -> str | None:
    """Return what is wrong, if an error says that another process of the run is gone or does not answer; else None."""
    reason = str(error).splitlines()[0].strip() if str(error) else ""
    # Gloo has no class of errors of its own, but names the file of its source in brackets.
    if not (isinstance(error, torch.distributed.DistError) or re.match(r"\[\S*gloo/", reason)):
        return None
    return re.sub(r"^\[\S+\] ", "", reason).partition(". ")[0].rstrip(".")


def _on_gpu(options: TrainerOptions) -> bool:
    return options.accelerator != "cpu" and torch.cuda.is_available()


def _strategy(options: TrainerOptions) -> str | Strategy:
    """Return how several devices train together, with the time after which a process that does not answer is lost."""
    # A step may leave weights out, which plain DDP refuses; stage 1 averages its gradients itself.
    several = options.num_nodes > 1 or _devices(options) > 1
    name = "ddp_find_unused_parameters_true" if options.strategy == "auto" and several else options.strategy
    if not name.startswith("ddp") or name not in StrategyRegistry:
        return name
    entry = StrategyRegistry[name]
    made: Strategy = entry["strategy"](**entry["init_params"], timeout=timedelta(minutes=options.timeout_minutes))
    return made


def _devices(options: TrainerOptions) -> int:
    """Return how many devices of this machine are used."""
    if isinstance(options.devices, tuple):
        return len(options.devices)
    accelerator = CUDAAccelerator if _on_gpu(options) else CPUAccelerator
    if options.devices == "auto":
        return accelerator.auto_device_count()
    devices = accelerator.parse_devices(options.devices)
    return len(devices) if isinstance(devices, list) else int(devices or 0)


def _plugins() -> list[Any]:
    # Whoever submitted the job requeues it; Lightning would do so a second time. Under torchrun, also inside a SLURM
    # job, Lightning's own choice is right.
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        try:
            return [SLURMEnvironment(auto_requeue=False)]
        except RuntimeError as error:  # tasks in all, from which nobody knows how many are on each node
            raise ConfigError("The job was started with --ntasks: give srun or sbatch --ntasks-per-node.") from error
    return []


def _profiler(kind: str | None, folder: Path) -> pl.profilers.Profiler | None:
    if kind is None:
        return None
    profiler = pl.profilers.SimpleProfiler if kind == "simple" else pl.profilers.AdvancedProfiler
    return profiler(dirpath=folder, filename="profile")
