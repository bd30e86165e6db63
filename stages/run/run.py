"""Running a stage: resuming, refusing, finishing. What a stage computes is its module's business."""

from __future__ import annotations

import copy
import re
import signal
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from difftumor.errors import ConfigError, DiffTumorError, TrainingError
from difftumor.files.lock import FolderLock, locked
from difftumor.files.processes import Terminated
from difftumor.models.artifact import load_artifact
from difftumor.models.artifact_config import read_config
from stages.config.compose import OptionsT
from stages.config.given import Given, describe, with_stored
from stages.config.options import PlaceOptions
from stages.config.reading import read_options, to_plain
from stages.ranks import is_rank_zero, say
from stages.run.callbacks import KeepLastAndBest, KeepLock, StopWhenNoBetter, progress, progress_display
from stages.run.checkpoint import checkpoint_to_resume
from stages.run.folder import Ownership, RunFolder, Start
from stages.run.loading import lost_loading_process
from stages.run.module import StageModule
from stages.run.stopping import SaveWhenStopped, StoppedBySignal
from stages.run.trainer import check_device, lost_process, make_trainer, number_format

T = TypeVar("T")
_ANOTHER = "give this run another name=… or runs_dir=…"


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
        only_whether: Options of which all values but null give the same results.
        accumulate: Batches per step of the optimizer, if the module leaves that to Lightning.
        patience: Validations without a better ``monitor`` after which the run ends early; None for never.
        check: ``check_leaks`` of its scans, called after all that takes less time; returns more for the artifact.
    """

    module: StageModule
    data: pl.LightningDataModule
    epochs: int
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    neutral: tuple[str, ...] = ()
    only_whether: tuple[str, ...] = ()
    accumulate: int = 1
    patience: int | None = None
    check: Callable[[], Mapping[str, Any]] = dict


@dataclass(frozen=True, kw_only=True)
class _Run(Generic[OptionsT]):
    """One call: what was asked for, as values for the record and as options, where it goes, and what is there.

    ``choices`` are those of its command, if that is known; ``kept`` says which values it has from an earlier call.
    """

    values: Mapping[str, Any]
    options: OptionsT
    folder: RunFolder
    choices: Mapping[str, str] | None
    job: str | None
    finished: bool
    resuming: bool
    kept: str

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        if self.finished:
            self.folder.check_parents()
        return self.finished and not self.folder.changed(self.values)

    def say_finished(self) -> Path:
        say(f"{self.folder.path} has finished: its artifact is {self.artifact} (fresh=true trains again).")
        if self.kept:
            say(f"It was trained{self.kept}.")
        return self.artifact

    @property
    def artifact(self) -> Path:
        return self.options.artifact

    @property
    def best(self) -> Path:
        return _best(self.artifact)

    @property
    def ownership(self) -> Ownership:
        return Ownership(stage=self.options.stage, run=self.folder.path.name)

    @property
    def provenance(self) -> dict[str, Any]:
        options = self.options
        return {
            "stage": options.stage, "run": self.folder.path.name, "seed": options.seed, "config": dict(self.values),
        }  # fmt: skip


def run_stage(
    config: DictConfig,
    kind: type[OptionsT],
    build: Callable[[OptionsT], Stage],
    *,
    given: Given | None = None,
    job: str | None = None,
) -> Path:
    """Train a stage, or resume its training, and write its artifact.

    The run lives in ``runs/<stage>/<name>/``: the resolved config, TensorBoard logs, ``last.ckpt``. Calling again with
    the same config resumes from there; a finished run is left as it is.

    Args:
        config: Composed config.
        kind: The stage's options, which the config is read as.
        build: Makes module and data from them; it checks what can be checked before data are loaded.
        given: Which options the command gives; a run that goes on keeps its own values of all others, and says so.
            None takes all of ``config`` for given.
        job: Identifies what a scheduler may start again: with ``fresh=true`` it starts over once only.

    Returns:
        Folder of the artifact.

    Raises:
        DiffTumorError: An option is unknown or wrong, the device is missing, or the run may not be resumed.
    """
    call = _Call(config, kind, given, job)
    run = call.look()
    if run.is_finished:  # without the lock, since many may ask at once
        return run.say_finished()
    with ExitStack() as stack:
        # srun and torchrun start all ranks at once; only the first handles the folder.
        writes = locked(run.folder.path, remedy=_ANOTHER, by_job=True)
        lock = stack.enter_context(writes) if is_rank_zero() else None
        run = call.look()  # once more: who held the lock may have ended or saved meanwhile
        if run.is_finished:
            return run.say_finished()
        _train(run, build, lock)
    return run.artifact


@dataclass(frozen=True)
class _Call(Generic[OptionsT]):
    """What ``run_stage`` was called with."""

    config: DictConfig
    kind: type[OptionsT]
    given: Given | None
    job: str | None

    def look(self) -> _Run[OptionsT]:
        """Return the run as its folder is now."""
        place = _place(to_plain(self.config))  # the rest may have to be as the run was started, and is read after that
        check_device(place.trainer)
        config = copy.deepcopy(self.config)  # with the number format that "auto" stands for, as the run's record has it
        OmegaConf.update(config, "trainer.precision", number_format(place.trainer))
        folder = RunFolder.of(runs_dir=place.runs_dir, stage=place.stage, name=str(place.name))
        fresh = place.fresh and not folder.is_of(self.job)
        OmegaConf.update(config, "fresh", fresh)
        finished = not fresh and folder.is_finished(place.artifact, max_epochs=place.trainer.max_epochs)
        resuming = not fresh and _has_saved(folder, place)
        kept = ""
        if self.given is not None and (finished or resuming) and folder.path.exists():
            folder.check_usable()
            config, differing = with_stored(config, folder.stored(), folder.choices(), self.given)
            kept = describe(differing)
        values = to_plain(config)
        choices = None if self.given is None else self.given.choices
        return _Run(
            values=values, options=read_options(self.kind, values), folder=folder, choices=choices, job=self.job,
            finished=finished, resuming=resuming, kept=kept,
        )  # fmt: skip


def _has_saved(folder: RunFolder, place: PlaceOptions) -> bool:
    """Whether there is a run to go on with, even if its checkpoint is gone; see ``RunFolder.has_saved``."""
    saved = folder.has_saved()
    owner = Ownership(stage=place.stage, run=folder.path.name)
    return owner.has(_best(place.artifact)) if saved is None else saved


def _best(artifact: Path) -> Path:
    return artifact.with_name(f"{artifact.name}_best")


def _train(run: _Run[OptionsT], build: Callable[[OptionsT], Stage], lock: FolderLock | None) -> None:
    folder = run.folder
    checkpoint, note = None, ""
    if lock is not None:
        folder.check_usable()
    if run.resuming:
        checkpoint, note = checkpoint_to_resume(folder.path, on_damage=run.options.trainer.on_damage)
    built = build(run.options)
    trainer, keep = _trainer(run, built, lock)
    start = Start(built.module.parents, trainer.num_nodes * trainer.num_devices, job=run.job, saved=run.resuming)
    if lock is not None:
        _check_folder(run, built, start)
    keep.training |= built.check()
    if lock is not None:
        _open_folder(run, start, checkpoint)
    if note:
        say(note)
    say(f"Resuming {folder.path}{run.kept}" if run.resuming else f"Starting {folder.path}")
    _fit(run, built, trainer, keep, checkpoint)
    if lock is not None:
        lock.check()
        _export(run, built, trainer, keep)
    trainer.strategy.barrier("artifact")


def _place(values: Mapping[str, Any]) -> PlaceOptions:
    names = [field.name for field in fields(PlaceOptions)]
    return read_options(PlaceOptions, {name: values[name] for name in names if name in values})


def _trainer(run: _Run[Any], built: Stage, lock: FolderLock | None) -> tuple[pl.Trainer, KeepLastAndBest]:
    options = run.options.trainer
    keep = KeepLastAndBest(
        run.folder,
        every_n_epochs=options.checkpoint_every_n_epochs,
        best=run.best,
        monitor=built.monitor,
        mode=built.mode,
        training=run.provenance,
    )
    epochs = options.max_epochs or built.epochs
    callbacks: list[Callback] = [keep, SaveWhenStopped(keep), *progress_display(options.progress_bar)]
    if lock is not None:
        callbacks.append(KeepLock(lock))
    if built.patience is not None and built.monitor is not None:
        callbacks.append(StopWhenNoBetter(built.monitor, mode=built.mode, patience=built.patience, strict=False))
    trainer = make_trainer(
        options, folder=run.folder.path, epochs=epochs, callbacks=callbacks, accumulate=built.accumulate
    )
    return trainer, keep


def _check_folder(run: _Run[Any], built: Stage, start: Start) -> None:
    """Check that the run may resume, or start in its folder."""
    if not run.options.fresh:
        for artifact in (run.artifact, run.best):
            run.ownership.check(artifact)
    if run.resuming:
        run.folder.check_resumable(run.values, built.neutral, built.only_whether)
        run.folder.check_start(start)


def _open_folder(run: _Run[Any], start: Start, checkpoint: Path | None) -> None:
    """Make the run's folder ready; nothing is touched before all checks have passed, nor removed unless asked."""
    choices = run.choices
    run.folder.remove_partial_files()
    if checkpoint is not None:
        choices = run.folder.choices()
        run.folder.take_for_last(checkpoint)
    else:
        if run.options.fresh:
            run.folder.remove()
        run.ownership.remove(run.best)  # of a run that never saved, or as fresh=true asks
    run.folder.write_config(run.values)
    run.folder.write_start(replace(start, choices=choices))


def _fit(run: _Run[Any], built: Stage, trainer: pl.Trainer, keep: KeepLastAndBest, checkpoint: Path | None) -> None:
    try:
        with warnings.catch_warnings():
            # Loaders are resumable by StageModule.batches_done, which Lightning does not know.
            warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
            trainer.fit(built.module, built.data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:
        # Lightning ends with 0 on SIGTERM, which a scheduler would take for success.
        last = run.folder.last
        kept = f"rerun the same command to resume from {last}" if last.is_file() else "no checkpoint was written yet"
        say(f"Interrupted at step {built.module.steps_done}: {kept}.")
        signum = stop.signum if isinstance(stop, StoppedBySignal) else signal.SIGTERM
        by_signal = isinstance(stop, SIGTERMException | Terminated)
        raise SystemExit(128 + (signum if by_signal else signal.SIGINT)) from stop
    except DiffTumorError as error:
        if (original := _of_loading_process(error)) is None:
            raise
        raise original from error
    except MisconfigurationException as error:
        reason = str(error).splitlines()[0].strip().rstrip(".")
        raise ConfigError(
            f"{run.folder.path} cannot be trained like this ({reason}): correct that or set fresh=true."
        ) from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        if (lost := _lost(error, run.folder.path, built.module.steps_done)) is not None:
            raise lost from error
        if checkpoint is not None and not keep.has_begun:
            raise TrainingError(
                f"{checkpoint} cannot be resumed ({_first_reason(error)}): bring back the checkpoint of this run, or "
                "set fresh=true to start over."
            ) from error
        raise


def _lost(error: Exception, folder: Path, steps: int) -> TrainingError | None:
    """Return what is to be said if another process of the run, which loads or trains, is gone; else None."""
    if (lost := lost_loading_process(error)) is not None:
        return TrainingError(
            f"{folder} stopped at step {steps}, since {lost}: give more memory or fewer data.num_workers, and rerun "
            "the same command to go on from the last checkpoint."
        )
    if (lost := lost_process(error)) is not None:
        return TrainingError(
            f"Another process of {folder} was lost at step {steps} ({lost}): see its log, and rerun the same command "
            "to go on from the last checkpoint."
        )
    return None


def _first_reason(error: Exception) -> str:
    """The first line that says something; torch begins with "Error(s) in loading state_dict for …:"."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if not line.rstrip().endswith(":")]
    return lines[0] if lines else type(error).__name__


def _of_loading_process(error: DiffTumorError) -> DiffTumorError | None:
    """The error as a loading process raised it: torch writes that process's traceback into the message."""
    text = str(error)
    if not re.match(r"Caught \w+ in DataLoader worker process", text):
        return None
    _, _, message = text.rpartition(f".{type(error).__name__}: ")
    return type(error)(message.strip())


def _export(run: _Run[Any], built: Stage, trainer: pl.Trainer, keep: KeepLastAndBest) -> None:
    module = built.module
    training = {**keep.training, **progress(trainer, module), **keep.measured}
    module.export(run.artifact, complete=True, training=training, metrics=keep.metrics)
    if keep.best_score is not None and run.ownership.has(run.best) and not (config := read_config(run.best)).complete:
        module.network.load_state_dict(load_artifact(run.best, allow_incomplete=True).network.state_dict())
        module.export(run.best, complete=True, training=config.training, metrics=config.metrics)
    run.folder.mark_finished(run.artifact, max_epochs=run.options.trainer.max_epochs)
    say(f"Finished: {run.artifact}")
