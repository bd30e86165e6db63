"""What stage 1 computes: the autoencoder against two discriminators (paper, eqs. 1 to 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim import Adam, Optimizer

from difftumor.artifacts import save_artifact
from difftumor.datasets.transforms import Item
from difftumor.intensity import IntensityWindow
from difftumor.networks.autoencoder import Autoencoder, AutoencoderOutput
from difftumor.networks.discriminators import SliceDiscriminator, VolumeDiscriminator
from difftumor.pictures import Panel, three_planes
from stages.losses import (
    Adversarial,
    PerceptualLoss,
    discriminator_loss,
    feature_matching,
    generator_loss,
    psnr,
    random_positions,
    take_slices,
)
from stages.module import StageModule, adam_betas, initial_weights, preprocessing

AXIAL = 2  # axis Z of (B, C, Z, X, Y)


class AutoencoderModule(StageModule):
    """Two Adams by hand: one for the autoencoder, one for both discriminators once they have joined.

    Args:
        seed: Everything random derives from it.
        network: Constructor arguments of ``Autoencoder``.
        discriminator_channels: Width of both discriminators.
        start_step: Step at which the discriminators join.
        adversarial: Their loss.
        weights: ``l1``, ``slice_adversarial``, ``volume_adversarial``, ``feature_matching`` (eq. 2).
        perceptual: The perceptual loss, or None; it stays out of checkpoints.
        perceptual_weight: Its weight.
        lr: Learning rate of both optimizers.
        betas: Their momentum coefficients.
        window: HU that the network sees.
        spacing_mm: Voxel size, recorded in the artifact.
        crop: Voxels along X, Y, Z, recorded in the artifact.
        pictures_every_n_epochs: How often a reconstruction is drawn; 0 for never.
    """

    def __init__(
        self,
        *,
        seed: int,
        network: Mapping[str, Any],
        discriminator_channels: int,
        start_step: int,
        adversarial: Adversarial,
        weights: Mapping[str, float],
        perceptual: PerceptualLoss | None,
        perceptual_weight: float,
        lr: float,
        betas: Sequence[float],
        window: IntensityWindow,
        spacing_mm: Sequence[float],
        crop: Sequence[int],
        pictures_every_n_epochs: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.automatic_optimization = False
        self.architecture = {"name": "vqgan3d", **network}
        with initial_weights(seed, "autoencoder"):
            self.autoencoder = Autoencoder(**network)
            self.slice_discriminator = SliceDiscriminator(base_channels=discriminator_channels)
            self.volume_discriminator = VolumeDiscriminator(base_channels=discriminator_channels)
        # In a tuple, so that Lightning neither saves it nor trains it.
        self._perceptual = (perceptual,)
        self.start_step = start_step
        self.adversarial = adversarial
        # The commitment has its ¼ inside.
        self.weights = {**weights, "perceptual": perceptual_weight, "commitment": 1.0}
        self.lr = lr
        self.betas = adam_betas(betas)
        self.window = window
        self.spacing_mm = tuple(spacing_mm)
        self.crop = tuple(crop)
        self.pictures_every_n_epochs = pictures_every_n_epochs

    @property
    def network(self) -> Autoencoder:
        """The autoencoder."""
        return self.autoencoder

    def configure_optimizers(self) -> list[Optimizer]:
        """One Adam for the autoencoder and one for the discriminators."""
        critics = [*self.slice_discriminator.parameters(), *self.volume_discriminator.parameters()]
        return [
            Adam(self.autoencoder.parameters(), lr=self.lr, betas=self.betas),
            Adam(critics, lr=self.lr, betas=self.betas),
        ]

    def on_fit_start(self) -> None:
        """Bring the perceptual loss along, which is no submodule."""
        if self._perceptual[0] is not None:
            self._perceptual[0].to(self.device)

    def training_step(self, batch: Item, batch_idx: int) -> None:
        """One step of the autoencoder, one of the codebook and, once they have joined, one of the discriminators."""
        ct_BCZXY = self._signed(batch)
        optimizer, _ = cast(list[LightningOptimizer], self.optimizers())
        # The raw one: Lightning would count its steps too, and log everything at twice the step.
        _, critic_optimizer = cast(list[Optimizer], self.optimizers(use_pl_optimizer=False))
        if self.autoencoder.codebook.needs_init:
            with torch.no_grad():
                features = self.autoencoder.encode(ct_BCZXY)
            self.autoencoder.codebook.initialize(features, generator=self.step_generator("codebook"))
        joined = self.steps_done >= self.start_step
        positions_B = random_positions(ct_BCZXY.shape[AXIAL], len(ct_BCZXY), self.step_generator("slices"))

        self._set_critics_frozen(True)
        output = self.autoencoder(ct_BCZXY)
        losses = self._autoencoder_losses(ct_BCZXY, output)
        if joined:
            losses |= self._adversarial_losses(ct_BCZXY, output.reconstruction, positions_B)
        total = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()  # eq. 2
        self.check_finite({"loss": total})
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(total)
        optimizer.step()
        self.autoencoder.codebook.update(
            output.features, output.quantized.indices, generator=self.step_generator("restarts")
        )

        self._set_critics_frozen(False)
        if joined:
            losses["discriminators"] = critics = self._critic_loss(ct_BCZXY, output.reconstruction, positions_B)
            self.check_finite({"discriminators' loss": critics})
            critic_optimizer.zero_grad(set_to_none=True)
            self.manual_backward(critics)
            critic_optimizer.step()
        self._log_step(losses, total, output, ct_BCZXY)

    def validation_step(self, batch: Item, batch_idx: int) -> None:
        """Measure reconstructions of the held-out crops."""
        ct_BCZXY = self._signed(batch)
        output = self.autoencoder(ct_BCZXY)
        metrics = {
            "validation/l1": F.l1_loss(output.reconstruction, ct_BCZXY),
            "validation/psnr": psnr(output.reconstruction, ct_BCZXY),
            "validation/perplexity": output.quantized.perplexity,
        }
        self.log_dict(metrics, batch_size=len(ct_BCZXY), sync_dist=True, prog_bar=True)
        every = self.pictures_every_n_epochs
        if batch_idx == 0 and every and (self.current_epoch + 1) % every == 0 and self.trainer.is_global_zero:
            self._draw(batch["ct"][0, 0], output.reconstruction[0, 0])

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

    def _signed(self, batch: Item) -> Tensor:
        """CT in [-1, 1], depth first: (B, 1, Z, X, Y) from (B, 1, X, Y, Z)."""
        return self.window.to_signed(batch["ct"]).movedim(-1, 2).contiguous()

    def _set_critics_frozen(self, frozen: bool) -> None:
        self.slice_discriminator.requires_grad_(not frozen)
        self.volume_discriminator.requires_grad_(not frozen)

    def _autoencoder_losses(self, ct_BCZXY: Tensor, output: AutoencoderOutput) -> dict[str, Tensor]:
        # Eq. 1, without weights; moving averages stand for the codebook term.
        losses = {
            "l1": F.l1_loss(output.reconstruction, ct_BCZXY),
            "commitment": output.quantized.commitment_loss,
        }
        if self._perceptual[0] is not None:
            generator = self.step_generator("perceptual")
            losses["perceptual"] = self._perceptual[0](output.reconstruction, ct_BCZXY, generator)
        return losses

    def _adversarial_losses(self, ct_BCZXY: Tensor, fake_BCZXY: Tensor, positions_B: Tensor) -> dict[str, Tensor]:
        """What the discriminators demand of the reconstruction (eqs. 3 and 4)."""
        losses, matching = {}, []
        for name, critic, real, fake in self._critics(ct_BCZXY, fake_BCZXY, positions_B):
            fake_features = critic(fake)
            with torch.no_grad():
                real_features = critic(real)
            losses[f"{name}_adversarial"] = generator_loss(fake_features[-1], self.adversarial)
            matching.append(feature_matching(fake_features, real_features))
        losses["feature_matching"] = torch.stack(matching).sum()
        return losses

    def _critic_loss(self, ct_BCZXY: Tensor, fake_BCZXY: Tensor, positions_B: Tensor) -> Tensor:
        parts = [
            self.weights[f"{name}_adversarial"]
            * discriminator_loss(critic(real)[-1], critic(fake)[-1], self.adversarial)
            for name, critic, real, fake in self._critics(ct_BCZXY, fake_BCZXY.detach(), positions_B)
        ]
        return torch.stack(parts).sum()

    def _critics(
        self, ct_BCZXY: Tensor, fake_BCZXY: Tensor, positions_B: Tensor
    ) -> list[tuple[str, torch.nn.Module, Tensor, Tensor]]:
        """Name, discriminator, real and fake input of both discriminators."""
        slices = [take_slices(x, positions_B, AXIAL) for x in (ct_BCZXY, fake_BCZXY)]
        return [
            ("slice", self.slice_discriminator, slices[0], slices[1]),
            ("volume", self.volume_discriminator, ct_BCZXY, fake_BCZXY),
        ]

    def _log_step(self, losses: Mapping[str, Tensor], total: Tensor, output: AutoencoderOutput, ct: Tensor) -> None:
        self.log_dict({f"training/{name}": value.detach() for name, value in losses.items()})
        self.log("training/perplexity", output.quantized.perplexity)
        self.log("training/psnr", psnr(output.reconstruction.detach(), ct), prog_bar=True)
        self.log("training/loss", total.detach(), prog_bar=True)

    def _draw(self, ct_XYZ: Tensor, reconstruction_ZXY: Tensor) -> None:
        """Draw a crop beside its reconstruction, into TensorBoard and the run's folder."""
        ct = ct_XYZ.clip(self.window.low_hu, self.window.high_hu).cpu().numpy()
        ours = self.window.from_signed(reconstruction_ZXY.float().clip(-1, 1).movedim(0, -1)).cpu().numpy()
        panels = [
            Panel(title="CT", image=ct),
            Panel(title="Reconstruction", image=ours),
            Panel(title="Difference", image=ours - ct, kind="difference"),
        ]
        figure = three_planes(panels, spacing_mm=self.spacing_mm, title=f"Step {self.steps_done}")
        folder = Path(self.trainer.default_root_dir) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"reconstruction_{self.steps_done:07d}.png")
        if isinstance(self.logger, TensorBoardLogger):
            self.logger.experiment.add_figure("reconstruction", figure, self.steps_done)
