"""What stage 2 computes: noise prediction in the latent space of a frozen autoencoder (paper, eq. 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from difftumor.datasets.transforms import Item
from difftumor.models.artifact import Parent, save_artifact
from difftumor.models.denoiser import Denoiser
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule
from difftumor.scans.appearance import AppearanceRanges
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.lesions import SizeGroup
from difftumor.scans.organs import TUMOR
from difftumor.seeding import torch_generator
from stages.config.options import AdamOptions
from stages.diffusion.ema import ExponentialMovingAverage
from stages.diffusion.options import AverageOptions, DenoiserOptions, NoiseOptions
from stages.diffusion.validation import MONITOR, HostValidation, TimestepLosses, visited_times
from stages.ranks import say
from stages.run.module import StageModule, initial_weights, preprocessing

# Those of the demo have 0.2.
LEAST_SD = 0.03
MakeHosts = Callable[[Denoiser, NoiseSchedule], HostValidation]


def network_arguments(network: DenoiserOptions, codec: LatentCodec) -> dict[str, Any]:
    """Return the arguments of ``Denoiser``: its channels follow from the codec."""
    channels = codec.latent_channels
    return {"latent_channels": channels, "condition_channels": channels + 1, **asdict(network)}


class DiffusionModule(StageModule):
    """Train a denoiser; its moving average is what the artifact holds.

    Args:
        seed: Everything random derives from it.
        network: The denoiser's size; its channels follow from the codec.
        codec: Around the frozen autoencoder; neither trained nor saved here.
        autoencoder: The autoencoder's artifact, recorded as parent.
        size_group: Which tumors the model learns.
        diffusion: Noise schedule, sampler, condition and loss.
        ema: How the moving average follows.
        optimizer: Adam's options.
        organ: Recorded in the artifact.
        window: HU that the networks see.
        spacing_mm: Voxel size, recorded in the artifact.
        crop: Voxels along X, Y, Z, recorded in the artifact.
        cases: What is trained on, recorded in the artifact.
        hosts: Makes, measures and plots tumors, given the average of the denoiser; None validates without tumors.
        compiled: Compile the denoiser for training.

    Raises:
        ConfigError: The denoiser's sizes do not go together.
    """

    def __init__(
        self,
        *,
        seed: int,
        network: DenoiserOptions,
        codec: LatentCodec,
        autoencoder: Parent,
        size_group: SizeGroup,
        diffusion: NoiseOptions,
        ema: AverageOptions,
        optimizer: AdamOptions,
        organ: str,
        window: IntensityWindow,
        spacing_mm: Sequence[float],
        crop: Sequence[int],
        cases: Mapping[str, Any] | None = None,
        hosts: MakeHosts | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__(seed=seed)
        arguments = network_arguments(network, codec)
        self.architecture = {"name": "factorized_unet", **arguments}
        with initial_weights(seed, "denoiser"):
            self.denoiser = Denoiser(**arguments)
        # Neither is a submodule: the average has an entry of its own in checkpoints, the autoencoder none.
        self.ema = ExponentialMovingAverage(self.denoiser, **asdict(ema))
        self.codec = codec
        self.schedule = NoiseSchedule(diffusion.timesteps)
        self.sampler = diffusion.sampler
        self.parents = {"autoencoder": autoencoder}
        self.size_group = size_group
        self.masked, self.loss = diffusion.masked, diffusion.loss
        self.optimizer = optimizer
        self.organ = organ
        self.window = window
        self.preprocessing = preprocessing(window=window, spacing_mm=spacing_mm, crop=crop)
        self.cases = dict(cases or {})
        self.compiled = compiled
        self._batches, self._stepped = 0, False  # of the present step, and whether it has been taken
        self._latents_seen = False
        self.losses_by_time = TimestepLosses(visited_times(diffusion.timesteps))
        self.hosts = None if hosts is None else hosts(self.ema.module, self.schedule)

    @property
    def network(self) -> nn.Module:
        """The average of the denoiser's weights."""
        return self.ema.module

    def configure_optimizers(self) -> Optimizer:
        """Adam on the denoiser alone."""
        return Adam(self.denoiser.parameters(), lr=self.optimizer.lr, betas=self.optimizer.betas)

    def on_fit_start(self) -> None:
        """Move what is not a submodule to the device, and compile the denoiser if asked to."""
        self.codec.autoencoder.to(self.device)
        self.ema.to(self.device)
        if self.compiled:
            self.denoiser.compile()

    def training_step(self, batch: Item, batch_idx: int) -> Tensor:
        """Predict the noise in the latents of a batch of crops."""
        latent_BCZXY, condition_BCZXY = self.encoded(batch)
        self._watch(latent_BCZXY)
        time_B, noise_BCZXY = self._drawn(latent_BCZXY)
        loss_B = self.losses(self.denoiser, latent_BCZXY, condition_BCZXY, time_B, noise_BCZXY)
        loss = loss_B.mean()
        self.check_finite({"loss": loss})
        self.log("training/loss", loss.detach(), prog_bar=True)
        return loss

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Take the step, after the last of its batches."""
        super().optimizer_step(*arguments, **options)
        self._stepped = True

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step and let the average follow, once all batches of the step are through."""
        self._batches += 1
        if self._stepped:
            super().on_train_batch_end(outputs, batch, batch_idx)
            self.ema.update(self.denoiser)
            self._batches, self._stepped = 0, False

    def on_validation_epoch_start(self) -> None:
        """Forget the validation before."""
        self.losses_by_time.reset()
        if self.hosts is not None:
            self.hosts.start()

    def validation_step(self, batch: Item | int, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Judge the average on held-out tumors, or let it make the tumor of the host of this number."""
        if isinstance(batch, int):
            assert self.hosts is not None
            self.hosts.take(batch, self)
            return
        latent_BCZXY, condition_BCZXY = self.encoded(batch)
        losses = []
        for time in self.losses_by_time.times:
            # Noise belongs to tumor and timestep.
            generators = [torch_generator(self.seed, "validation", key, "time", time) for key in batch["key"]]
            noise = torch.stack([torch.randn(latent_BCZXY.shape[1:], generator=each) for each in generators])
            time_B = torch.full((len(noise),), time, device=latent_BCZXY.device)
            noise = noise.to(latent_BCZXY.device)
            losses.append(self.losses(self.ema.module, latent_BCZXY, condition_BCZXY, time_B, noise))
        self.losses_by_time.update(torch.stack(losses), batch["counted"])

    def on_validation_epoch_end(self) -> None:
        """Log what all crops and hosts of all ranks have shown."""
        found = self.losses_by_time.compute() if self.losses_by_time.update_called else {}  # on all ranks or on none
        if self.hosts is not None:
            found |= self.hosts.finish(self)
        for name, value in found.items():
            self.log(name, value, prog_bar=name == MONITOR, sync_dist=True)

    @torch.no_grad()
    def encoded(self, batch: Item) -> tuple[Tensor, Tensor]:
        """Return z₀ and the condition of a batch with ``ct`` in HU and ``labels``, (B, 1, X, Y, Z), or with both."""
        if "latent" in batch:
            return batch["latent"], batch["condition"]
        with torch.autocast(batch["ct"].device.type, enabled=False):
            signed_B1XYZ = self.window.to_signed(batch["ct"].float())
            tumor_B1XYZ = batch["labels"] == TUMOR
            return self.codec.encode_both(signed_B1XYZ, tumor_B1XYZ, masked=self.masked)

    def losses(self, denoiser: nn.Module, latent: Tensor, condition: Tensor, time_B: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of every element, (B,)."""
        # eq. 6: ‖ε - ε_θ(z_t, z_healthy, m, t)‖₂², or its published variant with L1.
        predicted = denoiser(self.schedule.add_noise(latent, noise, time_B), time_B, condition).float()
        distance = F.l1_loss if self.loss == "l1" else F.mse_loss
        return distance(predicted, noise, reduction="none").flatten(1).mean(1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the average."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the average."""
        super().on_load_checkpoint(checkpoint)
        self.ema.load_state_dict(checkpoint["ema"])

    def export(self, path: Path, *, complete: bool, training: Mapping[str, Any], metrics: Mapping[str, float]) -> Path:
        """Write the artifact of the average, and how the real tumors look that it has learned."""
        # Only the rank that exports measures them, once: `learned` is kept.
        real_tumors = {} if self.hosts is None else AppearanceRanges.of(self.hosts.held_out.learned).to_dict()
        return save_artifact(
            path,
            kind="diffusion",
            architecture=self.architecture,
            network=self.network,
            preprocessing=self.preprocessing,
            organ=self.organ,
            parents=self.parents,
            settings={
                "timesteps": self.schedule.timesteps,
                "sampler": asdict(self.sampler),
                "masked": self.masked,
                "tumor_stage": self.size_group,
            },
            training={**training, "cases": self.cases},
            metrics=metrics,
            real_tumors=real_tumors,
            complete=complete,
        )

    def _watch(self, latent_BCZXY: Tensor) -> None:
        """Log the standard deviation of the scaled latents, and warn once if it is tiny.

        They are scaled by the lowest and highest number of all codes, so one code far from the others compresses all.
        """
        deviation = latent_BCZXY.std()
        self.log("training/latent_sd", deviation)
        if not self._latents_seen and (value := float(deviation)) < LEAST_SD:
            say(
                f"Warning: the scaled latents have a standard deviation of {value:.3g}, the noise has 1: a code of "
                f"{self.parents['autoencoder'].path} lies far from the others. Train it for longer, or with another "
                "codebook.decay or codebook.restart_below."
            )
        self._latents_seen = True

    def _drawn(self, latent_BCZXY: Tensor) -> tuple[Tensor, Tensor]:
        """Draw t and ε of every element from (seed, step, element), counting on through the step's batches.

        Rank r of W has the elements r, r + W, … of the step, as the sampler deals them.
        """
        times, noises = [], []
        ranks = self.trainer.world_size if self._trainer is not None else 1
        first = self._batches * len(latent_BCZXY)
        for own in range(first, first + len(latent_BCZXY)):
            # The first two keys are as in earlier versions, in which every rank had noise of its own.
            generator = self.step_generator("rank", 0, "element", self.global_rank + own * ranks)
            times.append(torch.randint(self.schedule.timesteps, (), generator=generator))
            noises.append(torch.randn(latent_BCZXY.shape[1:], generator=generator))
        device = latent_BCZXY.device
        return torch.stack(times).to(device), torch.stack(noises).to(device)
