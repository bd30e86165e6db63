"""The parts of stage 1 that `benchmarks/autoencoder.py` measures, made of what training runs."""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parts as common
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.optim import Adam
from training_steps import measure_steps

from difftumor.models.autoencoder import Autoencoder
from difftumor.seeding import torch_generator
from stages.autoencoder.critics import AXIAL, Critics
from stages.autoencoder.losses import PLANES, PerceptualLoss, random_positions
from stages.autoencoder.module import AutoencoderModule
from stages.autoencoder.options import AutoencoderOptions
from stages.config.compose import compose_options

# As published: Adam, and the losses of the autoencoder (eq. 2).
LR, BETAS = 3e-4, (0.9, 0.999)
WEIGHTS = {"l1": 4.0, "commitment": 0.25, "slice_adversarial": 1.0, "volume_adversarial": 1.0, "feature_matching": 4.0}
PERCEPTUAL_WEIGHT = 4.0
PARTS = ("encode", "decode", "quantize", "update", "generator", "discriminators", "joint")


class AutoencoderParts:
    """Networks of the published sizes with random weights, inputs, and one function per part.

    Args:
        options: The command line: ``device``, ``size`` (X, Y, Z), ``batch``, ``precision``, ``compile``,
            ``perceptual``, ``repeats``, ``warmups``.
    """

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.network = Autoencoder().to(self.device)
            self.critics = Critics(base_channels=64, kind="hinge").to(self.device)
            self.perceptual = _perceptual().to(self.device) if options.perceptual else None
        X, Y, Z = options.size
        self.ct_BCZXY = 2 * self._random(1, Z, X, Y) - 1
        self.fake_BCZXY = self._random(1, Z, X, Y)
        factor = self.network.downsampling
        self.features_BCZXY = self._random(self.network.latent_channels, Z // factor, X // factor, Y // factor)
        self.network.codebook.initialize(self.features_BCZXY, generator=torch_generator(0))
        self.indices_BZXY = self.network.codebook.nearest(self.features_BCZXY)
        self.positions_4B = torch.stack(
            [
                random_positions(self.ct_BCZXY.shape[axis], options.batch, torch_generator(1))
                for axis in (AXIAL, *PLANES)
            ]
        )

    def __getitem__(self, name: str) -> Callable[[], Any]:
        """Return the function of a part, all but "joint"."""
        function: Callable[[], Any] = getattr(self, f"_{name}")()
        return function

    def compile(self) -> None:
        """Compile what training compiles."""
        for network in (self.network.encoder, self.network.decoder, self.critics.slice, self.critics.volume):
            network.compile()

    def _random(self, *shape: int) -> Tensor:
        return torch.rand(self.options.batch, *shape, generator=torch_generator(0)).to(self.device)

    def _inference(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return common.inference(run, self.options)

    def _encode(self) -> Callable[[], Any]:
        return self._inference(lambda: self.network.encode(self.ct_BCZXY))

    def _quantize(self) -> Callable[[], Any]:
        return self._inference(lambda: self.network.codebook(self.features_BCZXY))

    def _decode(self) -> Callable[[], Any]:
        book = self.network.codebook
        return self._inference(lambda: self.network.decode(book.lookup(book.nearest(self.features_BCZXY))))

    def _update(self) -> Callable[[], Any]:
        book = self.network.codebook
        return lambda: book.update(self.features_BCZXY, self.indices_BZXY, generator=torch_generator(0))

    def _generator(self) -> Callable[[], Any]:
        optimizer = Adam(self.network.parameters(), lr=LR, betas=BETAS)
        scaler = self._scaler()
        axial_B, planes_3B = self.positions_4B[0], self.positions_4B[1:]
        with torch.no_grad(), common.autocast(self.options):
            # In training the discriminators' own step pays for these.
            real = self.critics.see(self.ct_BCZXY, axial_B)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with common.autocast(self.options):
                output = self.network(self.ct_BCZXY)
                fake = output.reconstruction.float()
                losses = {
                    "l1": F.l1_loss(fake, self.ct_BCZXY),
                    "commitment": output.quantized.commitment_loss,
                    **self.critics.demands(fake, axial_B, real),
                }
                total = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
                if self.perceptual is not None:
                    total = total + PERCEPTUAL_WEIGHT * self.perceptual(fake, self.ct_BCZXY, planes_3B)
            scaler.scale(total).backward()
            scaler.step(optimizer)
            scaler.update()
            self.network.codebook.update(output.features, output.quantized.indices, generator=torch_generator(0))

        return step

    def _discriminators(self) -> Callable[[], Any]:
        optimizer = Adam(self.critics.parameters(), lr=LR, betas=BETAS)
        scaler = self._scaler()
        axial_B = self.positions_4B[0]

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with common.autocast(self.options):
                real = self.critics.see(self.ct_BCZXY, axial_B)
                losses = self.critics.losses(self.fake_BCZXY, axial_B, real)
            scaler.scale(torch.stack(list(losses.values())).sum()).backward()
            scaler.step(optimizer)
            scaler.update()

        return step

    def _scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.options.precision == "fp16")


def measure(part: str, options: Namespace) -> dict[str, Any]:
    """Measure one part, or the machine's "ceilings", in this process, which should be a fresh one."""
    return common.measure(part, options, make=AutoencoderParts, trainings={"joint": _measure_training})


def _measure_training(options: Namespace) -> dict[str, Any]:
    overrides = ["discriminators.start_step=0", f"training.compile={str(options.compile).lower()}"]
    published = compose_options("autoencoder", AutoencoderOptions, overrides)
    module = AutoencoderModule(
        seed=0, network=published.network, codebook=published.codebook, discriminators=published.discriminators,
        weights=published.loss_weights, perceptual=_perceptual() if options.perceptual else None,
        perceptual_weight=published.perceptual.weight, optimizer=published.optimizer, training=published.training,
        window=published.data.window, spacing_mm=published.data.spacing_mm, crop=options.size,
    )  # fmt: skip
    ct_BCXYZ = 425 * torch.rand(options.batch, 1, *options.size, generator=torch_generator(0)) - 175
    return measure_steps(module, lambda _: {"ct": ct_BCXYZ}, options)


def _perceptual() -> PerceptualLoss:
    """LPIPS on VGG with random weights, which costs what trained ones cost."""
    trunk = torchvision.models.vgg16(weights=None).features
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vgg16.pth"
        torch.save({f"features.{name}": value for name, value in trunk.state_dict().items()}, file)
        return PerceptualLoss(backbone="vgg", weights=file)
