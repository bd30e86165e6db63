"""What stage 1 computes: the autoencoder against two discriminators (paper, eqs. 1 to 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer

from difftumor.datasets.transforms import Item
from difftumor.models.artifact import save_artifact
from difftumor.models.autoencoder import Autoencoder, AutoencoderOutput
from difftumor.scans.intensity import IntensityWindow
from stages.autoencoder.critics import AXIAL, Critics
from stages.autoencoder.data import WholeScan
from stages.autoencoder.losses import PLANES, PerceptualLoss, psnr, random_positions
from stages.autoencoder.options import (
    AutoencoderNetworkOptions,
    AutoencoderTrainingOptions,
    ClippedAdamOptions,
    CodebookOptions,
    DiscriminatorOptions,
    LossWeights,
)
from stages.autoencoder.safe_steps import SafeSteps, StepOutcome, Undo
from stages.autoencoder.validation import MONITOR, ScanValidation
from stages.run.folder import LAST
from stages.run.module import StageModule, initial_weights, preprocessing


@dataclass(frozen=True, eq=False)
class _MicroBatch:
    """What a micro-batch leaves behind, without its graph."""

    losses: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor]
    features_BCZXY: Tensor
    indices_BZXY: Tensor


class AutoencoderModule(StageModule):
    """Two Adams by hand: one for the autoencoder, one for both discriminators once they have joined.

    Args:
        seed: Everything random derives from it.
        network: What decides the autoencoder's computation, recorded in the artifact.
        codebook: How its codes learn.
        discriminators: Their width, their loss, and when they join.
        weights: Of the losses (eq. 2); that of the codebook counts only if its codes learn by gradient.
        perceptual: The perceptual loss, or None; it stays out of checkpoints.
        perceptual_weight: Its weight.
        optimizer: Of both Adams.
        training: How steps are taken.
        window: HU that the network sees.
        spacing_mm: Voxel size, recorded in the artifact.
        crop: Voxels along X, Y, Z, recorded in the artifact.
        validation: Measures and plots held-out scans; None if there are none.
    """

    def __init__(
        self,
        *,
        seed: int,
        network: AutoencoderNetworkOptions,
        codebook: CodebookOptions,
        discriminators: DiscriminatorOptions,
        weights: LossWeights,
        perceptual: PerceptualLoss | None,
        perceptual_weight: float,
        optimizer: ClippedAdamOptions,
        training: AutoencoderTrainingOptions,
        window: IntensityWindow,
        spacing_mm: Sequence[float],
        crop: Sequence[int],
        validation: ScanValidation | None = None,
    ) -> None:
        super().__init__(seed=seed)
        self.automatic_optimization = False
        self.architecture = {"name": "vqgan3d", **asdict(network)}
        with initial_weights(seed, "autoencoder"):
            self.autoencoder = Autoencoder(
                **asdict(network),
                codebook_update=codebook.update,
                codebook_decay=codebook.decay,
                restart_below=codebook.restart_below,
                gradient_checkpointing=training.gradient_checkpointing,
            )
            self.critics = Critics(base_channels=discriminators.base_channels, kind=discriminators.loss)
        # In a tuple, so that Lightning neither saves it nor trains it.
        self._perceptual = (perceptual,)
        self.start_step = discriminators.start_step
        self.codebook_updates = codebook.updates_per_step
        self.weights = {**asdict(weights), "perceptual": perceptual_weight}
        if codebook.update == "ema":
            self.weights["codebook"] = 0.0  # moving averages stand for this term
        self.optimizer = optimizer
        self.training_options = training
        self.steps = SafeSteps(limit=training.nonfinite_limit, clip_norm=optimizer.clip_norm)
        self.window = window
        self.spacing_mm = tuple(spacing_mm)
        self.crop = tuple(crop)
        self.validation = validation

    @property
    def network(self) -> Autoencoder:
        """The autoencoder."""
        return self.autoencoder

    def configure_optimizers(self) -> list[Optimizer]:
        """One Adam for the autoencoder and one for the discriminators."""
        lr, betas = self.optimizer.lr, self.optimizer.betas
        return [Adam(network.parameters(), lr=lr, betas=betas) for network in (self.autoencoder, self.critics)]

    def on_fit_start(self) -> None:
        """Move the perceptual loss, which is not a submodule, to the device, and compile the networks if asked to."""
        if self._perceptual[0] is not None:
            self._perceptual[0].to(self.device)
        if self.training_options.compile:
            for network in (self.autoencoder.encoder, self.autoencoder.decoder, *self.critics.children()):
                network.compile()

    def training_step(self, batch: Item, batch_idx: int) -> None:
        """Take one step of the autoencoder, the codebook and, once they have joined, the discriminators; or of none."""
        ct_BCZXY, book = self._signed(batch), self.autoencoder.codebook
        undo = Undo([*book.state_dict().values(), *self.critics.buffers()])
        self._place_codes(ct_BCZXY)
        optimizers, lr = self._optimizers(), self.optimizer.lr_at(self.steps_done)
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr
        size = len(ct_BCZXY) // self.training_options.accumulate
        slices = zip(ct_BCZXY.split(size), self._positions(ct_BCZXY).split(size, dim=1), strict=True)
        parts = [self._backward(ct, positions_4B, joined="discriminators" in optimizers) for ct, positions_4B in slices]

        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        step = self.steps.take(_means([part.losses for part in parts]), optimizers, scaler=scaler)
        if step.taken:
            dead = self._update_codes(parts)
            self._log_step(step, {**_means([part.metrics for part in parts]), "dead_codes": dead.float()})
        else:
            undo()
        self.log("training/lr", lr)
        self.log("training/skipped_steps", float(self.steps.skipped))
        self.steps.check(step=self.steps_done, last=Path(self.trainer.default_root_dir) / LAST)

    def on_validation_epoch_start(self) -> None:
        """Forget the validation before."""
        if self.validation is not None:
            self.validation.start()

    def validation_step(self, batch: WholeScan | None, batch_idx: int) -> None:
        """Measure one held-out scan; None if other ranks have one more."""
        assert self.validation is not None
        self.validation.take(batch, self)

    def on_validation_epoch_end(self) -> None:
        """Log what all scans of all ranks have shown."""
        if self.validation is not None:
            for name, value in self.validation.finish(self).items():
                self.log(name, value, prog_bar=name == MONITOR, sync_dist=True)

    def export(self, path: Path, *, complete: bool, training: Mapping[str, Any], metrics: Mapping[str, float]) -> Path:
        """Write the autoencoder's artifact; the discriminators stay behind."""
        return save_artifact(
            path,
            kind="autoencoder",
            architecture=self.architecture,
            network=self.autoencoder,
            preprocessing=preprocessing(window=self.window, spacing_mm=self.spacing_mm, crop=self.crop),
            training=training,
            metrics=metrics,
            complete=complete,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the counts of skipped steps."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["safe_steps"] = self.steps.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        super().on_load_checkpoint(checkpoint)
        self.steps.load_state_dict(checkpoint["safe_steps"])

    def _signed(self, batch: Item) -> Tensor:
        """CT in [-1, 1], depth first: (B, 1, Z, X, Y) from (B, 1, X, Y, Z)."""
        return self.window.to_signed(batch["ct"]).movedim(-1, 2).contiguous()

    def _optimizers(self) -> dict[str, Optimizer]:
        """The optimizers that this step is for, by name."""
        # The raw ones: Lightning's would step, unscale and count each on its own.
        autoencoder, critics = cast(list[Optimizer], self.optimizers(use_pl_optimizer=False))
        joined = {"discriminators": critics} if self.steps_done >= self.start_step else {}
        return {"autoencoder": autoencoder, **joined}

    def _place_codes(self, ct_BCZXY: Tensor) -> None:
        """Place the codes on features of the first batch."""
        if self.autoencoder.codebook.needs_init:
            with torch.no_grad():
                parts = ct_BCZXY.split(len(ct_BCZXY) // self.training_options.accumulate)
                features = torch.cat([self.autoencoder.encode(part) for part in parts])
            self.autoencoder.codebook.initialize(features, generator=self.step_generator("codebook"))

    def _update_codes(self, parts: Sequence[_MicroBatch]) -> Tensor:
        """Update the codes, and return how many were hardly used before they restarted.

        The published training runs the encoder in both optimizers' passes of a batch, and each updates the averages.
        The second pass sees features that one step of the autoencoder has moved; here both updates take those of the
        first, the second one with the codes that are nearest by then.
        """
        book, features_BCZXY = self.autoencoder.codebook, torch.cat([part.features_BCZXY for part in parts])
        dead = book.update(
            features_BCZXY, torch.cat([p.indices_BZXY for p in parts]), generator=self.step_generator("restarts")
        )
        for number in range(1, self.codebook_updates):
            generator = self.step_generator("restarts", number)
            dead = book.update(features_BCZXY, book.nearest(features_BCZXY), generator=generator)
        return dead

    def _positions(self, ct_BCZXY: Tensor) -> Tensor:
        """Draw the slices that are judged, (4, B): an axial one for the discriminator, then one of each plane.

        They are drawn for the elements of all ranks, of which rank r of W has r, r + W, …, as the sampler deals them.
        """
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        generator = self.step_generator("slices")
        sizes = [ct_BCZXY.shape[axis] for axis in (AXIAL, *PLANES)]
        return torch.stack([random_positions(n, len(ct_BCZXY) * ranks, generator) for n in sizes])[:, rank::ranks]

    def _backward(self, ct_BCZXY: Tensor, positions_4B: Tensor, *, joined: bool) -> _MicroBatch:
        """Add a micro-batch's gradients to those of the step."""
        axial_B, planes_3B = positions_4B[0], positions_4B[1:]
        real = self.critics.see(ct_BCZXY, axial_B) if joined else {}
        output = self.autoencoder(ct_BCZXY)
        fake_BCZXY = output.reconstruction.float()
        losses = self._reconstruction_losses(ct_BCZXY, fake_BCZXY, output, planes_3B)
        if joined:
            losses |= self.critics.demands(fake_BCZXY, axial_B, real)
        losses["loss"] = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()  # eq. 2
        self._backpropagate(losses["loss"])
        if joined:
            critics = self.critics.losses(fake_BCZXY, axial_B, real)
            names = {f"{name}_discriminator": f"{name}_adversarial" for name in real}
            total = torch.stack([self.weights[names[name]] * value for name, value in critics.items()]).sum()
            self._backpropagate(total)
            losses |= {**critics, "discriminators": total}
        return _MicroBatch(
            losses={name: value.detach() for name, value in losses.items()},
            metrics={"perplexity": output.quantized.perplexity, "psnr": psnr(fake_BCZXY.detach(), ct_BCZXY)},
            features_BCZXY=output.features.detach(),
            indices_BZXY=output.quantized.indices,
        )

    def _reconstruction_losses(
        self, ct_BCZXY: Tensor, fake_BCZXY: Tensor, output: AutoencoderOutput, planes_3B: Tensor
    ) -> dict[str, Tensor]:
        # Eq. 1, without weights, and the perceptual loss.
        losses = {
            "l1": F.l1_loss(fake_BCZXY, ct_BCZXY),
            "codebook": output.quantized.codebook_loss,
            "commitment": output.quantized.commitment_loss,
        }
        if self._perceptual[0] is not None:
            losses["perceptual"] = self._perceptual[0](fake_BCZXY, ct_BCZXY, planes_3B)
        return losses

    def _backpropagate(self, loss: Tensor) -> None:
        model = self.trainer.strategy.model
        # SafeSteps averages over ranks, once per step.
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            self.manual_backward(loss / self.training_options.accumulate)

    def _log_step(self, step: StepOutcome, metrics: Mapping[str, Tensor]) -> None:
        norms = {f"{name}_gradient_norm": value for name, value in step.gradient_norms.items()}
        for name, value in {**step.losses, **norms, **metrics}.items():
            self.log(f"training/{name}", value, prog_bar=name in ("loss", "psnr"))


def _means(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
