"""Diffusion texture: the healthy CT around a tumor and the tumor's mask in, the CT with a tumor out.

Chen et al. 2024 (DiffTumor), section 3.2: the sampler starts from noise and is conditioned on the latent of the CT
without the tumor voxels and on the mask.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from difftumor.errors import ConfigError, SynthesisError
from difftumor.models.denoiser import Denoiser
from difftumor.models.diffusion_config import Masked, SamplerConfig
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule, sample
from difftumor.scans.grid import Voxel, triple
from difftumor.scans.intensity import IntensityWindow
from difftumor.seeding import torch_generator

Precision = Literal["fp32", "bf16"]


class DiffusionTexture:
    """Makes tumor texture with a diffusion model.

    Args:
        codec: Between CT and latent.
        denoiser: Trained on tumors of one organ and size group.
        schedule: With the number of timesteps the denoiser was trained with.
        sampler: How to sample.
        window: HU that the networks see.
        patch: Size of the patches that the networks see, one number or one per axis.
        patches_at_once: Patches that go through the networks together; bounds the memory.
        masked: Whether the tumor is removed from the condition's image or its latent, as in the denoiser's training.
        precision: What the networks compute in, whatever the caller's autocast: "fp32", or "bf16" for convolutions and
            products. The sampler's state, the scaling of latents and the search for codes are always float32.

    Raises:
        ConfigError: ``patches_at_once`` is less than 1, or the precision is unknown.
        SynthesisError: The patch is not a multiple of what codec and denoiser halve.
    """

    def __init__(
        self,
        *,
        codec: LatentCodec,
        denoiser: Denoiser,
        schedule: NoiseSchedule,
        sampler: SamplerConfig | None = None,
        window: IntensityWindow | None = None,
        patch: int | Sequence[int] = 96,
        patches_at_once: int = 4,
        masked: Masked = "image",
        precision: Precision = "fp32",
    ) -> None:
        if patches_at_once < 1:
            raise ConfigError(f"patches_at_once is {patches_at_once}: give 1 or more.")
        if precision not in get_args(Precision):
            raise ConfigError(f"The precision {precision!r} is unknown: choose fp32 or bf16.")
        self.codec = codec
        self.window = window or IntensityWindow()
        self.sampler = sampler or SamplerConfig()
        self.precision: Precision = precision
        self._denoiser = denoiser
        self._schedule = schedule
        self.patches_at_once = patches_at_once
        self._masked = masked
        self.patch: Voxel = triple([patch] * 3 if isinstance(patch, int) else patch)
        in_slice = codec.downsampling * denoiser.in_slice_divisor
        self.multiple: Voxel = (in_slice, in_slice, codec.downsampling)
        if any(size < 1 or size % step for size, step in zip(self.patch, self.multiple, strict=True)):
            raise SynthesisError(f"Patch {self.patch} must be a multiple of {self.multiple}: choose another size.")

    @property
    def sampling(self) -> dict[str, Any]:
        """How tumors are sampled: the fields of ``SamplerConfig``, and ``precision``."""
        return {**asdict(self.sampler), "precision": self.precision}

    def to(self, device: torch.device | str) -> None:
        """Move the networks to a device."""
        self.codec.autoencoder.to(device)
        self._denoiser.to(device)
        self._schedule.to(device)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self._denoiser.parameters()).device

    @torch.no_grad()
    def make(self, ct_hu_B1XYZ: Tensor, mask_B1XYZ: Tensor, seeds: Sequence[int]) -> Tensor:
        """Make the CT with tumors, one per element.

        Args:
            ct_hu_B1XYZ: Healthy CT in HU; sizes are multiples of the codec's downsampling.
            mask_B1XYZ: Tumor mask.
            seeds: Seed of the noise of every element, so that a batch equals its elements one by one.

        Returns:
            CT in HU inside the window, (B, 1, X, Y, Z). Only the tumor and its rim are meant to be used.

        Raises:
            SynthesisError: The networks return values that are not finite, or there are not as many seeds as elements.
        """
        if len(seeds) != len(ct_hu_B1XYZ):
            raise SynthesisError(f"{len(ct_hu_B1XYZ)} patches need as many seeds, not {len(seeds)}: give one for each.")
        parts = []
        for start in range(0, len(seeds), self.patches_at_once):
            part = slice(start, start + self.patches_at_once)
            generators = [torch_generator(seed, "texture") for seed in seeds[part]]
            parts.append(self._made(ct_hu_B1XYZ[part], mask_B1XYZ[part], generators=generators))
        return torch.cat(parts)

    @torch.no_grad()
    def make_from_noise(self, ct_hu_B1XYZ: Tensor, mask_B1XYZ: Tensor, noise: Tensor) -> Tensor:
        """Make the CT with tumors from given noise (steps + 1, B, C, z, x, y); otherwise as ``make``."""
        return self._made(ct_hu_B1XYZ, mask_B1XYZ, noise=noise)

    def _made(
        self,
        ct_hu_B1XYZ: Tensor,
        mask_B1XYZ: Tensor,
        *,
        noise: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        signed_B1XYZ = self.window.to_signed(ct_hu_B1XYZ)
        bf16 = self.precision == "bf16"
        with torch.autocast(signed_B1XYZ.device.type, dtype=torch.bfloat16, enabled=bf16):
            condition = self.codec.condition(signed_B1XYZ, mask_B1XYZ, masked=self._masked)
            latent = sample(self._denoiser, condition, self._schedule, self.sampler, noise=noise, generators=generators)
            signed = self.codec.decode(latent)
        # The latent too: the codebook turns any latent into codes, and so hides what is not finite.
        if not (latent.isfinite().all() and signed.isfinite().all()):
            raise SynthesisError(
                "The diffusion model returned values that are not finite: train or choose another one."
            )
        # The decoder may overshoot; the window's limits are all that the networks were shown.
        return self.window.from_signed(signed.clamp(-1.0, 1.0)).float()
