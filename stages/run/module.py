"""What the LightningModules of all stages share: a count of steps, noise that resuming repeats, a check for NaN."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from difftumor.errors import TrainingError
from difftumor.models.artifact import Parent
from difftumor.scans.intensity import IntensityWindow
from difftumor.seeding import Key, derive_seed, torch_generator


class StageModule(pl.LightningModule, ABC):
    """Base of the stages.

    Subclasses that override ``on_train_batch_end``, ``on_save_checkpoint`` or ``on_load_checkpoint`` call ``super()``.

    Args:
        seed: Everything random in the run derives from it.
    """

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        self.seed = seed
        # Artifacts that this one is trained with, by role, as they were when they were loaded.
        self.parents: dict[str, Parent] = {}
        # Lightning's global_step counts optimizers, not steps, under manual optimization; this one counts batches.
        self.steps_done = 0
        # Kept by KeepLastAndBest: while a run is being restored, Lightning's current_epoch still is one behind.
        self.epochs_done = 0
        # Of the epoch that a run was stopped in, which goes on with the next one.
        self.batches_done = 0

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The module whose weights the artifact holds."""

    @abstractmethod
    def export(self, path: Path, *, complete: bool, training: Mapping[str, Any], metrics: Mapping[str, float]) -> Path:
        """Write the artifact.

        Args:
            path: Folder of the artifact.
            complete: False for the best so far of an unfinished run.
            training: Provenance to record.
            metrics: Validation metrics to record.
        """

    def step_generator(self, *keys: Key) -> torch.Generator:
        """Return a CPU generator for this step, of the same state on all ranks: it depends on (seed, step, keys)."""
        return torch_generator(self.seed, "step", self.steps_done, *keys)

    def check_finite(self, losses: Mapping[str, Tensor]) -> None:
        """Stop the run before the optimizer takes a step on NaN or infinity.

        Raises:
            TrainingError: Names the loss, the step and the checkpoint that is still good.
        """
        for name, value in losses.items():
            if not torch.isfinite(value).all():
                raise TrainingError(
                    f"{name} is {value.detach().float().mean().item()} at step {self.steps_done}: start over with "
                    "fresh=true and a lower optimizer.lr, or rerun the same command to try again from "
                    f"{Path(self.trainer.default_root_dir) / 'last.ckpt'}."
                )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step."""
        self.steps_done += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the counts."""
        checkpoint["steps_done"] = self.steps_done
        checkpoint["epochs_done"] = self.epochs_done
        if self.batches_done:
            checkpoint["batches_done"] = self.batches_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counts."""
        self.steps_done = int(checkpoint["steps_done"])
        self.epochs_done = int(checkpoint["epochs_done"])
        self.batches_done = int(checkpoint.get("batches_done", 0))


def preprocessing(*, window: IntensityWindow, spacing_mm: Sequence[float], crop: Sequence[int]) -> dict[str, Any]:
    """Return what an artifact records about the CT that its network expects."""
    return {
        "spacing_mm": tuple(spacing_mm),
        "window_hu": (window.low_hu, window.high_hu),
        "crop": tuple(crop),
    }


@contextmanager
def initial_weights(seed: int, *keys: Key) -> Iterator[None]:
    """Let modules that are built inside draw their weights from (seed, keys), and leave the global state as it was."""
    with torch.random.fork_rng(devices=[]):
        # Modules are built on the CPU. torch.manual_seed would also seed the GPUs, which nothing would restore.
        torch.default_generator.manual_seed(derive_seed(seed, "weights", *keys))
        yield
