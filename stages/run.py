"""Running a stage: trainer, resuming, artifact. What a stage computes is its module's business."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from difftumor.artifacts import load_artifact, read_config
from difftumor.errors import ConfigError, DeviceError, TrainingError
from stages.callbacks import KeepLastAndBest, progress, progress_display, validation_metrics
from stages.folder import RunFolder
from stages.module import StageModule
from stages.settings import Settings, check_positive, construct, to_plain


@dataclass(frozen=True)
class Stage:
    """What a stage's ``build`` returns.

    Args:
        module: The LightningModule.
        data: Its data.
        epochs: How many epochs the run has.
        monitor: Validation metric by which the best network is kept, or None.
        mode: Whether less or more of it is better.
        neutral: Options, besides the common ones, that a resumed run may change.
    """

    module: StageModule
    data: pl.LightningDataModule
    epochs: int
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    neutral: tuple[str, ...] = ()


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
        if self.profiler not in (None, "simple", "advanced"):
            raise ConfigError(f"trainer.profiler is {self.profiler!r}: choose null, simple or advanced.")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One call: where things go and what was asked for."""

    stage: str
    values: Mapping[str, Any]
    folder: RunFolder
    artifact: Path
    fresh: bool
    seed: int
    trainer: TrainerOptions

    @property
    def best(self) -> Path:
        return self.artifact.with_name(f"{self.artifact.name}_best")

    @property
    def provenance(self) -> dict[str, Any]:
        return {"stage": self.stage, "run": self.folder.path.name, "seed": self.seed, "config": dict(self.values)}


def run_stage(*, stage: str, config: DictConfig, build: Callable[[Settings], Stage]) -> Path:
    """Train a stage, or go on with it, and write its artifact.

    The run lives in ``runs/<stage>/<name>/``: the resolved config, TensorBoard logs, ``last.ckpt``. Calling again with
    the same config resumes from there; a finished run is left as it is.

    Args:
        stage: Name of the stage.
        config: Composed config.
        build: Makes module and data from the settings; it checks what can be checked before data are loaded.

    Returns:
        Folder of the artifact.

    Raises:
        DiffTumorError: An option is unknown or wrong, the device is missing, or the run may not be resumed.
    """
    values = to_plain(config)
    settings = Settings(values)
    run = _prepare(stage, values, settings)
    if not run.fresh and run.folder.is_finished(run.artifact) and not run.folder.changed(values):
        say(f"{run.folder.path} has finished: its artifact is {run.artifact} (fresh=true trains again).")
        return run.artifact
    built = build(settings)
    settings.check_all_read()
    run.folder.check_usable()
    resuming = not run.fresh and run.folder.last.is_file()
    if resuming:
        run.folder.check_resumable(values, built.neutral)
    trainer = _trainer(run, built)
    if _is_rank_zero():
        if not resuming:
            run.folder.remove()
        run.folder.write_config(values)
    say(f"{'Going on with' if resuming else 'Starting'} {run.folder.path}")
    _fit(run, built, trainer, run.folder.last if resuming else None)
    if trainer.is_global_zero:
        _export(run, built, trainer)
    trainer.strategy.barrier("artifact")
    return run.artifact


def _prepare(stage: str, values: Mapping[str, Any], settings: Settings) -> _Run:
    if not isinstance(settings.seed, int) or not isinstance(settings.fresh, bool):
        raise ConfigError("seed must be an integer and fresh must be true or false: correct that option.")
    _ = settings.checkpoints_dir  # read by interpolation, in `artifact` and in the paths of parent artifacts
    return _Run(
        stage=stage,
        values=values,
        folder=RunFolder.of(runs_dir=settings.runs_dir, stage=stage, name=settings.name),
        artifact=Path(settings.artifact),
        fresh=settings.fresh,
        seed=settings.seed,
        trainer=construct(TrainerOptions, settings.trainer),
    )


def _trainer(run: _Run, built: Stage) -> pl.Trainer:
    options = run.trainer
    keep = KeepLastAndBest(
        run.folder.path,
        every_n_epochs=options.checkpoint_every_n_epochs,
        best=run.best,
        monitor=built.monitor,
        mode=built.mode,
        training=run.provenance,
    )
    try:
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            precision=options.precision,
            max_epochs=options.max_epochs or built.epochs,
            limit_train_batches=options.limit_train_batches,
            limit_val_batches=options.limit_val_batches,
            check_val_every_n_epoch=options.validate_every_n_epochs,
            log_every_n_steps=options.log_every_n_steps,
            profiler=_profiler(options.profiler, run.folder.path),
            logger=TensorBoardLogger(run.folder.path, name="", version="tensorboard"),
            callbacks=[keep, *progress_display(options.progress_bar)],
            enable_progress_bar=options.progress_bar and sys.stdout.isatty(),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # SeededSampler knows rank and world size itself
            default_root_dir=run.folder.path,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = str(error).splitlines()[0].strip().rstrip(".")
        raise ConfigError(f"The options under 'trainer' do not work: {reason}.") from error


def _profiler(kind: str | None, folder: Path) -> pl.profilers.Profiler | None:
    if kind is None:
        return None
    profiler = pl.profilers.SimpleProfiler if kind == "simple" else pl.profilers.AdvancedProfiler
    return profiler(dirpath=folder, filename="profile")


def _fit(run: _Run, built: Stage, trainer: pl.Trainer, checkpoint: Path | None) -> None:
    try:
        trainer.fit(built.module, built.data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:
        # Lightning ends with 0 on SIGTERM, which a scheduler would take for success.
        last = run.folder.last
        kept = f"rerun the same command to go on from {last}" if last.is_file() else "no checkpoint was written yet"
        say(f"Interrupted at step {built.module.steps_done}: {kept}.")
        raise SystemExit(143 if isinstance(stop, SIGTERMException) else 130) from stop
    except MisconfigurationException as error:
        reason = str(error).splitlines()[0].strip().rstrip(".")
        raise ConfigError(
            f"{run.folder.path} cannot be trained so ({reason}): correct that or set fresh=true."
        ) from error
    except (RuntimeError, EOFError, KeyError) as error:
        if checkpoint is not None and built.module.steps_done == 0:
            raise TrainingError(
                f"{checkpoint} cannot be resumed ({str(error).splitlines()[0]}): set fresh=true to start over."
            ) from error
        raise


def _export(run: _Run, built: Stage, trainer: pl.Trainer) -> None:
    module = built.module
    training = {**run.provenance, **progress(trainer, module)}
    module.export(run.artifact, complete=True, training=training, metrics=validation_metrics(trainer))
    if built.monitor is not None and run.best.is_dir() and not (config := read_config(run.best)).complete:
        module.network.load_state_dict(load_artifact(run.best, allow_incomplete=True).network.state_dict())
        module.export(run.best, complete=True, training=config.training, metrics=config.metrics)
    run.folder.mark_finished(run.artifact)
    say(f"Finished: {run.artifact}")


@rank_zero_only
def say(sentence: str) -> None:
    """Print a sentence, once for all ranks."""
    print(sentence, flush=True)


def _is_rank_zero() -> bool:
    # Lightning sets the rank on the function from the launcher's environment, before any process group exists.
    return getattr(rank_zero_only, "rank", 0) == 0
