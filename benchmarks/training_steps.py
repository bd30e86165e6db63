"""Time and memory of training steps, with Lightning around them."""

import time
from argparse import Namespace
from typing import Any, cast

import pytorch_lightning as pl
import torch
from measuring import PeakMemory, summary, wait
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader, Dataset

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class _StepTimes(Callback):
    """Notes the wall time of each training step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        wait(self.device)
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        wait(self.device)
        self.seconds.append(time.perf_counter() - self._start)


def measure_steps(module: pl.LightningModule, batch: dict[str, Any], options: Namespace) -> dict[str, Any]:
    """Measure whole steps on a batch."""
    device = torch.device(options.device)
    steps = _StepTimes(device)
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, max_epochs=1, callbacks=[steps],
        precision=PRECISIONS[options.precision], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module.to(device)  # so that growth is what comes on top of it
    memory = PeakMemory(device)
    batches = [batch] * (options.warmups + options.repeats)
    trainer.fit(module, DataLoader(cast(Dataset[Any], batches), batch_size=None))
    return summary(steps.seconds[options.warmups :]) | memory.figures()
