"""Stopping a training that a scheduler is about to end: it saves where it is, inside an epoch or a validation."""

from __future__ import annotations

import signal
import threading
from collections.abc import MutableMapping
from types import FrameType
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from stages.run.callbacks import KeepLastAndBest
from stages.run.module import StageModule

_VALIDATION = "epoch_loop.val_loop.batch_progress"
_NONE_YET = {"ready": 0, "started": 0, "processed": 0, "completed": 0}


class StoppedBySignal(SIGTERMException):
    """The training has saved and stopped, as a signal asked.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


class SaveWhenStopped(Callback):
    """On SIGTERM, save before the next batch and stop; on SIGUSR2 too if a scheduler's library waits for it.

    Lightning's own handler would not save, and broadcasts in the middle of whatever the ranks are exchanging. Here all
    ranks stop before the same batch.

    Args:
        keep: Writes the checkpoint.
    """

    def __init__(self, keep: KeepLastAndBest) -> None:
        self.keep = keep
        self._signum: int | None = None
        self._saving: Literal["training", "validation"] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle the signals, until Lightning restores the handlers that were there before."""
        if threading.current_thread() is not threading.main_thread():
            return

        def ask(signum: int, frame: FrameType | None) -> None:
            first, self._signum = self._signum is None, self._signum or signum
            if first and trainer.strategy.launcher is not None:  # processes that Lightning itself has started
                trainer.strategy.launcher.kill(signum)

        signal.signal(signal.SIGTERM, ask)
        if signal.getsignal(signal.SIGUSR2) not in (None, signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGUSR2, ask)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop before this batch, once all gradients of earlier ones have gone into a step."""
        asked = self._signum is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked and batch_idx % trainer.accumulate_grad_batches == 0:
            self._save(trainer, pl_module, "training", batches=batch_idx)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop before this batch; the validation will start over."""
        # Ranks may validate different numbers of batches, and cannot agree here.
        if self._signum is not None and trainer.world_size == 1:
            self._save(trainer, pl_module, "validation", batches=int(trainer.num_training_batches))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the loops as a run that resumes here needs them."""
        loops: MutableMapping[str, Any] = checkpoint["loops"]["fit_loop"]
        if self._saving == "validation":
            # Lightning would take the validation for done unless a batch of it has begun.
            begun = {**_NONE_YET, "ready": 1, "started": 1}
            loops[_VALIDATION] = {"total": begun, "current": dict(_NONE_YET), "is_last_batch": False}
        elif self._saving == "training":
            # Lightning counts this step for its loggers when it restarts.
            state = dict(loops["epoch_loop.state_dict"])
            loops["epoch_loop.state_dict"] = {**state, "_batches_that_stepped": state["_batches_that_stepped"] - 1}

    def _save(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        during: Literal["training", "validation"],
        *,
        batches: int,
    ) -> None:
        assert isinstance(module, StageModule)
        self._saving = during
        module.batches_done = batches
        self.keep.save(trainer)
        raise StoppedBySignal(self._signum or signal.SIGTERM)
