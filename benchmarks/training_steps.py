"""Time and memory of training steps, with Lightning around them."""

import time
from argparse import Namespace
from collections.abc import Callable
from statistics import fmean
from typing import Any, cast

import pytorch_lightning as pl
import torch
from measuring import PeakMemory, summary, wait
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader, Dataset

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class _StepTimes(Callback):
    """Notes the wall time of each training step, the wait for its batch included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def on_train_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        wait(self.device)
        now = time.perf_counter()
        self.seconds.append(now - self._start)
        self._start = now


def measure_steps(
    module: pl.LightningModule,
    batch_of: Callable[[int], dict[str, Any]],
    options: Namespace,
    *,
    wrap: Callable[[DataLoader[Any]], Any] = lambda loader: loader,
) -> dict[str, Any]:
    """Measure whole steps.

    Args:
        module: What is trained.
        batch_of: Returns the batch of a step.
        options: The command line.
        wrap: Makes what is trained on of a loader.
    """
    device = torch.device(options.device)
    steps = _StepTimes(device)
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, max_epochs=1, callbacks=[steps],
        precision=PRECISIONS[options.precision], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module.to(device)  # so that growth is what comes on top of it
    memory = PeakMemory(device)
    batches = [batch_of(step) for step in range(options.warmups + options.repeats)]
    trainer.fit(module, wrap(DataLoader(cast(Dataset[Any], batches), batch_size=None)))
    counted = steps.seconds[options.warmups :]
    return {"mean_s": fmean(counted)} | summary(counted) | memory.figures()
