"""Checkpoint, best artifact so far, and a line per epoch for logs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint, EarlyStopping, ProgressBar, RichProgressBar

from difftumor.files.lock import FolderLock
from stages.run.folder import RunFolder
from stages.run.module import StageModule


class KeepLastAndBest(Checkpoint):
    """At the end of epochs, write ``last.ckpt`` whole or not at all, and export the best network so far.

    Args:
        folder: The run's folder.
        every_n_epochs: How often ``last.ckpt`` is written; the last epoch always is.
        best: Folder of the best artifact.
        monitor: Validation metric that decides, or None.
        mode: Whether lower or higher is better.
        training: Provenance recorded in the best artifact.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        every_n_epochs: int,
        best: Path,
        monitor: str | None,
        mode: Literal["min", "max"],
        training: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.every_n_epochs = every_n_epochs
        self.best = best
        self.monitor = monitor
        self.mode = mode
        self.training = dict(training)
        self.best_score: float | None = None
        self.metrics: dict[str, float] = {}  # of the latest validation, perhaps in an earlier process
        self.metrics_epoch: int | None = None
        self._just_validated = False
        self._seconds_before = 0.0  # of training in earlier processes
        self._started: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether training has, so that all there was to restore is restored."""
        return self._started is not None

    @property
    def seconds(self) -> float:
        """How long the run has trained and validated, earlier processes included up to their last checkpoint."""
        return self._seconds_before + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def measured(self) -> dict[str, int]:
        """When the metrics were measured and how long the run has taken, for the provenance of artifacts."""
        epoch = {} if self.metrics_epoch is None else {"validation_epoch": self.metrics_epoch}
        return {**epoch, "seconds": round(self.seconds)}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and do what the start of an epoch does, which is not called for one resumed inside."""
        self._started = time.monotonic()
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the last epoch, even if it is not a multiple of ``trainer.validate_every_n_epochs``."""
        self._just_validated = False
        if trainer.max_epochs is not None and trainer.current_epoch == trainer.max_epochs - 1:
            trainer.check_val_every_n_epoch = 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the previous validation's metrics: not every validation measures all of them."""
        for name in validation_metrics(trainer):
            del trainer.callback_metrics[name]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch's metrics are its own."""
        self._just_validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what this epoch has reached; validation has run before."""
        assert isinstance(pl_module, StageModule)
        if self._just_validated:
            self.metrics, self.metrics_epoch = validation_metrics(trainer), trainer.current_epoch + 1
            self._keep_best(trainer, pl_module)
        epoch = pl_module.epochs_done = trainer.current_epoch + 1
        pl_module.batches_done = 0
        over = epoch == trainer.max_epochs or trainer.should_stop or trainer.received_sigterm
        if epoch % self.every_n_epochs == 0 or over:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write ``last.ckpt``, on all ranks at the same point."""
        trainer.save_checkpoint(self.folder.last, weights_only=False)  # optimizers and loops too
        if trainer.is_global_zero:
            self.folder.mark_saved()
        trainer.strategy.barrier("last.ckpt")

    def _keep_best(self, trainer: pl.Trainer, module: StageModule) -> None:
        if self.monitor is None or self.monitor not in self.metrics:
            return
        score = self.metrics[self.monitor]
        if math.isnan(score):  # nothing would ever be better than it
            return
        better = self.best_score is None or (score < self.best_score if self.mode == "min" else score > self.best_score)
        if not better:
            return
        self.best_score = score
        if trainer.is_global_zero:
            training = {**self.training, **progress(trainer, module), **self.measured}
            module.export(self.best, complete=False, training=training, metrics=self.metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and the latest metrics, so that a resumed run knows them."""
        return {
            "best_score": self.best_score, "metrics": self.metrics, "metrics_epoch": self.metrics_epoch,
            "seconds": self.seconds,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.best_score = state_dict["best_score"]
        self.metrics = dict(state_dict.get("metrics", {}))
        self.metrics_epoch = state_dict.get("metrics_epoch")
        self._seconds_before = state_dict.get("seconds", 0.0)


class StopWhenNoBetter(EarlyStopping):
    """Lightning's ``EarlyStopping``, which on its own would train an ended run further when it is resumed."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the run before its first step, if it had ended before."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class KeepLock(Callback):
    """Before anything is written, make sure that the run's folder still is this process's.

    Args:
        lock: Of the folder.
    """

    def __init__(self, lock: FolderLock) -> None:
        self.lock = lock

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        """Check before a step."""
        self.lock.check()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check before the best network is kept."""
        self.lock.check()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        """Check before the checkpoint is written."""
        self.lock.check()


class EpochLine(Callback):
    """Print one line per epoch, for logs in which a progress bar is unreadable."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch and the metrics of the progress bar."""
        assert isinstance(pl_module, StageModule)
        shown = {k: v for k, v in trainer.progress_bar_metrics.items() if isinstance(v, float)}
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if trainer.is_global_zero:
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {pl_module.steps_done}  {metrics}")


class TrainingBar(RichProgressBar):
    """The progress bar without Lightning's version number, which our runs do not have."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the metrics to show."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def progress_display(shown: bool) -> list[Callback]:
    """Return a rich progress bar on a terminal, and one line per epoch elsewhere."""
    if not shown:
        return []
    bar: ProgressBar = TrainingBar(leave=True)
    return [bar] if sys.stdout.isatty() else [EpochLine()]


def progress(trainer: pl.Trainer, module: StageModule) -> dict[str, int]:
    """How far the run is, for the provenance of artifacts."""
    return {"steps": module.steps_done, "world_size": trainer.world_size}


def validation_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Return the metrics of the latest validation."""
    return {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("validation/")}
