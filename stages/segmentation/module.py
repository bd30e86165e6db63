"""What stage 3 computes: a segmenter of organ and tumor, on real tumors and on tumors made on the fly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchmetrics import MeanMetric

from difftumor.datasets.transforms import Item
from difftumor.evaluation.metrics.overlap import dice
from difftumor.models.artifact import Parent, save_artifact
from difftumor.models.segmenters import build_segmenter
from difftumor.scans.intensity import Normalization, Scale
from difftumor.scans.organs import BACKGROUND, TUMOR
from difftumor.segmentation.inference import predict_probabilities
from stages.run.module import StageModule, initial_weights, preprocessing
from stages.segmentation.options import AdamWOptions, BackboneOptions, DiceCEOptions, EpochOptions, WindowOptions
from stages.segmentation.tumors import Stopwatch, TumorsOnTheFly, finished


class SegmentationModule(StageModule):
    """Train a segmenter with Dice and cross-entropy.

    Args:
        seed: Everything random derives from it.
        backbone: Name and options of the segmenter.
        tumors: Makes tumors in healthy crops; None trains on real tumors alone. Neither trained nor saved here.
        loss: Smoothing of the Dice.
        optimizer: AdamW's options.
        training: Length of the run, and of the linear warm-up that comes before the cosine.
        windows: How validation segments whole scans.
        organ: Recorded in the artifact.
        normalization: How the network's scans are scaled, recorded in the artifact.
        spacing_mm: Voxel size, recorded in the artifact.
        crop: Voxels along X, Y, Z; the size of the windows.
        waited: Adds up how long training waits for a loader that makes tumors ahead; None if the training step makes
            them.
        parents: Diffusion artifacts by role, recorded in the artifact.
        cases: What is trained on, recorded in the artifact.

    Raises:
        ConfigError: An option of the backbone is out of range.
    """

    def __init__(
        self,
        *,
        seed: int,
        backbone: BackboneOptions,
        tumors: TumorsOnTheFly | None,
        loss: DiceCEOptions,
        optimizer: AdamWOptions,
        training: EpochOptions,
        windows: WindowOptions,
        organ: str,
        normalization: Normalization,
        spacing_mm: Sequence[float],
        crop: Sequence[int],
        waited: Stopwatch | None = None,
        parents: Mapping[str, Parent] | None = None,
        cases: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(seed=seed)
        self.architecture = asdict(backbone)
        with initial_weights(seed, "segmenter"):
            self.segmenter = build_segmenter(**self.architecture)
        # Its networks are no submodules: frozen, and not in checkpoints.
        self.tumors = tumors
        # Means over all ranks; Lightning's own would be wrong if ranks differ in their number of scans.
        self.tumor_dsc, self.organ_dsc = MeanMetric(), MeanMetric()
        self.criterion = DiceCELoss(
            softmax=True,
            to_onehot_y=True,
            squared_pred=True,
            smooth_nr=float(loss.smooth_nr),
            smooth_dr=float(loss.smooth_dr),
        )
        self.optimizer = optimizer
        self.training_options = training
        self.windows = windows
        self.organ = organ
        self.normalization = normalization
        self.preprocessing = {
            **preprocessing(window=normalization.window, spacing_mm=spacing_mm, crop=crop),
            "normalization": normalization.kind,
        }
        self.crop = tuple(crop)
        self.parents = dict(parents or {})
        self.cases = {"training": (), "validation": (), **(cases or {})}
        self._for_tumors = waited or Stopwatch()
        self._for_steps = Stopwatch()
        self._ahead = waited is not None

    @property
    def network(self) -> nn.Module:
        """The segmenter."""
        return self.segmenter

    def configure_optimizers(self) -> Optimizer:
        """AdamW on the segmenter alone."""
        return AdamW(self.segmenter.parameters(), lr=self.optimizer.lr, weight_decay=self.optimizer.weight_decay)

    def on_fit_start(self) -> None:
        """Move what is not a submodule to the device."""
        if self.tumors is not None:
            self.tumors.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Set the learning rate, from the epoch alone."""
        warmup, total = self.training_options.warmup_epochs, self.training_options.epochs
        lr = self.optimizer.lr * learning_rate_factor(self.current_epoch, warmup=warmup, total=total)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        for group in optimizer.param_groups:
            group["lr"] = lr
        self.log("training/lr", lr, sync_dist=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Start the step's clock."""
        self._for_steps.start(self.device)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the step's clock, and count the step."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        self._for_steps.stop()

    def on_train_epoch_end(self) -> None:
        """Log which share of the epoch's steps went into tumors."""
        tumors, steps = self._for_tumors.take(), self._for_steps.take()
        if self.tumors is not None and steps:
            self.log("training/synthesis_share", tumors / (steps + tumors * self._ahead), sync_dist=True)

    def training_step(self, batch: Item, batch_idx: int) -> Tensor:
        """Make tumors in healthy crops, unless that was done ahead, then segment the batch."""
        if not self._ahead:
            with self._for_tumors.running(self.device):
                batch = finished(batch, self.tumors)
        logits = self.segmenter(self.scaled(batch))
        loss = self.criterion(logits.float(), batch["labels"].long())
        self.check_finite({"loss": loss})
        self.log("training/loss", loss.detach(), prog_bar=True)
        names = {"synthetic_crops": "synthetic", "rejected_crops": "rejected", "faint_tumors": "faint"}
        counts = {f"training/{name}": batch[key] for name, key in names.items()}
        self.log_dict(
            {k: float(v) for k, v in counts.items()}, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True
        )
        return loss

    def scaled(self, batch: Item) -> Tensor:
        """Return the CT of a batch as the network takes it, scaled and shifted by each crop's random amounts."""
        ct_hu = batch["ct"].float()
        window = self.normalization.window

        def per_crop(values_B: Tensor) -> Tensor:
            return values_B.to(ct_hu)[:, None, None, None, None]

        changed_hu = ct_hu.clip(window.low_hu, window.high_hu)
        changed_hu = changed_hu + per_crop(batch["scale"]) * (changed_hu - window.low_hu)
        changed_hu = changed_hu + per_crop(batch["shift"]) * window.width_hu
        return (changed_hu - per_crop(batch["offset_hu"])) / per_crop(batch["scale_hu"])

    def validation_step(self, batch: Item, batch_idx: int) -> None:
        """Segment one held-out scan with overlapping windows."""
        scale = Scale(self.normalization.window, float(batch["offset_hu"]), float(batch["scale_hu"]))
        probabilities = predict_probabilities(
            self.segmenter,
            scale(batch["ct"]),
            roi=self.crop,
            overlap=self.windows.overlap,
            windows_per_batch=self.windows.windows_per_batch,
            padding=scale.lowest,
        )
        predicted = probabilities.argmax(1, keepdim=True).cpu().numpy()
        truth = batch["labels"].cpu().numpy()
        # A rank with fewer scans than the others gets one again, which does not count.
        ranks = self.trainer.world_size if self._trainer is not None else 1
        counts = batch_idx * ranks + self.global_rank < len(self.cases["validation"])
        self.tumor_dsc.update(dice(predicted == TUMOR, truth == TUMOR), weight=float(counts))
        self.organ_dsc.update(dice(predicted != BACKGROUND, truth != BACKGROUND), weight=float(counts))
        metrics = {"validation/tumor_dsc": self.tumor_dsc, "validation/organ_dsc": self.organ_dsc}
        self.log_dict(metrics, on_epoch=True, prog_bar=True)

    def export(self, path: Path, *, complete: bool, training: Mapping[str, Any], metrics: Mapping[str, float]) -> Path:
        """Write the segmenter's artifact."""
        return save_artifact(
            path,
            kind="segmenter",
            architecture=self.architecture,
            network=self.segmenter,
            preprocessing=self.preprocessing,
            organ=self.organ,
            parents=self.parents,
            training={**training, "cases": self.cases},
            metrics=metrics,
            complete=complete,
        )


def learning_rate_factor(epoch: int, *, warmup: int, total: int) -> float:
    """Return the learning rate's factor: rising linearly to 1 in ``warmup`` epochs, then half a cosine to 0."""
    if epoch < warmup:
        return (epoch + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, total - warmup)))
