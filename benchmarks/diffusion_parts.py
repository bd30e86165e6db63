"""The parts of stage 2, and of making an early tumor, that `benchmarks/diffusion.py` measures."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import parts as common
import torch
from torch import Tensor

from difftumor.models.autoencoder import Autoencoder
from difftumor.models.denoiser import Denoiser
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule, sample
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.organs import TUMOR
from difftumor.seeding import torch_generator
from difftumor.synthesis.generators.diffusion import DiffusionTexture

Network = TypeVar("Network", Autoencoder, Denoiser)
# What an early tumor is made of, one after the other; "denoise" is one of the calls in "sample".
STAGES = ("condition", "sample", "decode")
PARTS = ("condition", "denoise", "sample", "decode", "tumor", "training")
TIMESTEPS = 4  # as published for early tumors


class DiffusionParts:
    """Networks of the published sizes with random weights, CT and tumors, and one function per part.

    Args:
        options: The command line: ``device``, ``size`` (X, Y, Z), ``batch``, ``precision``, ``graphs``.
    """

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.codec = random_codec(self.device)
        self.denoiser = seeded(Denoiser).to(self.device).eval()
        self.schedule = NoiseSchedule(TIMESTEPS).to(self.device)
        self.ct_hu_BCXYZ, self.mask_BCXYZ = (x.to(self.device) for x in _ct_and_tumor(options))
        self.texture = DiffusionTexture(
            codec=self.codec, denoiser=self.denoiser, schedule=self.schedule, patches_at_once=options.batch,
            precision=options.precision,
        )  # fmt: skip

    def __getitem__(self, name: str) -> Callable[[], Any]:
        """Return the function of a part, all but "training"."""
        if name == "tumor":  # knows its precision
            return lambda: self.texture.make(self.ct_hu_BCXYZ, self.mask_BCXYZ, range(self.options.batch))
        function: Callable[[], Any] = getattr(self, f"_{name}")()
        return common.inference(function, self.options)

    def compile(self) -> None:
        """Compile the three networks; with ``--graphs``, the denoiser's kernels are also recorded and replayed."""
        self.denoiser.compile(mode="reduce-overhead" if self.options.graphs else None)
        self.codec.autoencoder.encoder.compile()
        self.codec.autoencoder.decoder.compile()

    def _condition(self) -> Callable[[], Any]:
        signed_BCXYZ = IntensityWindow().to_signed(self.ct_hu_BCXYZ)
        return lambda: self.codec.condition(signed_BCXYZ, self.mask_BCXYZ)

    def _denoise(self) -> Callable[[], Any]:
        condition = self._random(self.codec.latent_channels + 1)
        noisy = self._random(self.codec.latent_channels)
        time_B = torch.arange(self.options.batch, device=self.device) % TIMESTEPS
        return lambda: self.denoiser(noisy, time_B, condition)

    def _sample(self) -> Callable[[], Any]:
        condition = self._random(self.codec.latent_channels + 1)
        batch = range(self.options.batch)
        return lambda: sample(
            self.denoiser, condition, self.schedule, SamplerConfig(), generators=[torch_generator(i) for i in batch]
        )

    def _decode(self) -> Callable[[], Any]:
        latent = self._random(self.codec.latent_channels)
        return lambda: self.codec.decode(latent)

    def _random(self, channels: int) -> Tensor:
        size = self.codec.latent_shape(self.options.size)[1:]
        values = torch.rand(self.options.batch, channels, *size, generator=torch_generator(channels))
        return (2 * values - 1).to(self.device)


def measure(part: str, options: Namespace) -> dict[str, Any]:
    """Measure one part, or the machine's "ceilings", in this process, which should be a fresh one."""
    return common.measure(part, options, make=DiffusionParts, trainings={"training": _measure_training})


def _measure_training(options: Namespace) -> dict[str, Any]:
    """Measure whole steps: encoding, the denoiser's step, Adam and the moving average."""
    # Here, so that making tumors is measured without the memory of Lightning's modules.
    from training_steps import measure_steps

    from difftumor.models.artifact import Parent
    from stages.config.compose import compose_options
    from stages.diffusion.module import DiffusionModule
    from stages.diffusion.options import DiffusionOptions

    published = compose_options("diffusion", DiffusionOptions)
    module = DiffusionModule(
        seed=0, network=published.network, codec=random_codec(torch.device("cpu")), autoencoder=Parent(Path(), ""),
        size_group="early", diffusion=published.diffusion, ema=published.ema, optimizer=published.optimizer,
        organ="liver", window=published.data.window, spacing_mm=published.data.spacing_mm, crop=options.size,
        compiled=options.compile,
    )  # fmt: skip
    ct_hu_BCXYZ, mask_BCXYZ = _ct_and_tumor(options)
    batch = {"ct": ct_hu_BCXYZ, "labels": TUMOR * mask_BCXYZ}
    return measure_steps(module, lambda _: batch, options)


def _ct_and_tumor(options: Namespace) -> tuple[Tensor, Tensor]:
    """Return noise in HU and a cube of a sixth of the crop's size as tumor, (B, 1, X, Y, Z) each."""
    ct_hu_BCXYZ = 425 * torch.rand(options.batch, 1, *options.size, generator=torch_generator(0)) - 175
    mask_BCXYZ = torch.zeros_like(ct_hu_BCXYZ)
    x, y, z = (slice(size // 2 - size // 12, size // 2 + size // 12) for size in options.size)
    mask_BCXYZ[:, :, x, y, z] = 1
    return ct_hu_BCXYZ, mask_BCXYZ


def random_codec(device: torch.device) -> LatentCodec:
    """Return an autoencoder of the published size with random weights."""
    autoencoder = seeded(Autoencoder).eval()
    features = torch.rand(1, autoencoder.latent_channels, 16, 16, 16, generator=torch_generator(0))
    autoencoder.codebook.initialize(features, generator=torch_generator(0))
    return LatentCodec(autoencoder.to(device))


def seeded(network: type[Network]) -> Network:
    """Return a network of the published size, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return network()
