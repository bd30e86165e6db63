"""Losses of the autoencoder: adversarial, feature matching, perceptual. Equation numbers are the paper's.

Legend of shape suffixes: B batch, C channel (one), Z X Y voxels, H W the two axes of a slice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import lpips
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from difftumor.errors import ConfigError, TrainingError
from stages.autoencoder.options import Adversarial, Backbone, Reduction

# Where torchvision keeps the ImageNet weights that LPIPS was calibrated on.
BACKBONE_WEIGHTS: dict[str, Any] = {
    "vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}
PLANES = (2, 3, 4)  # array axes of (B, C, Z, X, Y) that a slice is taken across


def discriminator_loss(real: Tensor, fake: Tensor, kind: Adversarial) -> Tensor:
    """What a discriminator minimizes, from logits of any shape (eq. 3 is "vanilla", published training is "hinge").

    Args:
        real: Logits of real CT.
        fake: Logits of reconstructions.
        kind: Which loss.

    Returns:
        Mean of the two halves, scalar.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    # -log D(x) - log(1 - D(x̂)) with D = sigmoid(logit)
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(fake: Tensor, kind: Adversarial) -> Tensor:
    """What the autoencoder minimizes against a discriminator, from the logits of its reconstructions.

    "vanilla" is the non-saturating form, -log D(x̂), whose gradient does not vanish when the discriminator wins.
    """
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Distance between a discriminator's features of a reconstruction and of the CT (eq. 4).

    Args:
        fake: Outputs of the blocks for the reconstruction; the last, the logits, is left out.
        real: The same for the CT; no gradient flows there.

    Returns:
        Sum over the blocks of the mean absolute difference, scalar.
    """
    pairs = list(zip(fake, real, strict=True))[:-1]
    return torch.stack([F.l1_loss(ours, theirs.detach()) for ours, theirs in pairs]).sum()


def random_positions(size: int, batch: int, generator: torch.Generator) -> Tensor:
    """Draw one slice number per element of a batch."""
    return torch.randint(size, (batch,), generator=generator)


def take_slices(volume_BCZXY: Tensor, positions_B: Tensor, axis: int) -> Tensor:
    """Return one slice (B, C, H, W) per element, taken across an axis.

    Args:
        volume_BCZXY: Volumes.
        positions_B: Number of the slice in each element.
        axis: 2 for axial, 3 for sagittal, 4 for coronal slices.
    """
    elements = torch.arange(len(volume_BCZXY), device=volume_BCZXY.device)
    return volume_BCZXY.movedim(axis, 1)[elements, positions_B.to(volume_BCZXY.device)]


def psnr(reconstruction: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of values in [-1, 1], over all elements."""
    return peak_signal_noise_ratio(reconstruction, reference, data_range=2.0)


class PerceptualLoss(nn.Module):
    """LPIPS on one random slice of each plane (the three projections of the paper's section 3.1); frozen.

    Args:
        backbone: Network whose features are compared.
        weights: File with torchvision's state dict of it; None takes torchvision's own, downloaded once and cached.
        reduction: Of the three planes.

    Raises:
        TrainingError: The weights cannot be loaded; the message names the two options that solve it.
    """

    def __init__(
        self, *, backbone: Backbone = "vgg", weights: Path | None = None, reduction: Reduction = "sum"
    ) -> None:
        super().__init__()
        self.reduction = reduction
        if backbone not in BACKBONE_WEIGHTS:
            raise ConfigError(f"perceptual.backbone is {backbone!r}: choose {', '.join(BACKBONE_WEIGHTS)}.")
        state = _backbone_state(backbone, weights)
        # LPIPS draws weights that are then replaced; the global generator must stay as it was.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # lpips 0.1.4 calls torchvision by an older name of the argument; nothing a user could change.
            warnings.filterwarnings("ignore", message=".*parameter 'pretrained'.*", module="torchvision")
            warnings.filterwarnings("ignore", message="Arguments other than a weight enum", module="torchvision")
            self.lpips = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
        _fill_backbone(self.lpips.net, state, backbone, weights)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stay in evaluation mode: LPIPS has dropout."""
        return super().train(False)

    def forward(self, fake_BCZXY: Tensor, real_BCZXY: Tensor, positions_3B: Tensor) -> Tensor:
        """Return the distance, scalar: mean over the batch, and sum or mean over the three planes.

        Args:
            fake_BCZXY: Reconstruction in [-1, 1], one channel.
            real_BCZXY: CT in [-1, 1], one channel.
            positions_3B: Number of the slice in each element, for each of ``PLANES``.
        """
        distances = []
        for axis, positions_B in zip(PLANES, positions_3B, strict=True):
            pair = [take_slices(x, positions_B, axis).expand(-1, 3, -1, -1) for x in (fake_BCZXY, real_BCZXY)]
            distances.append(self.lpips(*pair).mean())
        planes = torch.stack(distances)
        return planes.sum() if self.reduction == "sum" else planes.mean()


def _backbone_state(backbone: str, weights: Path | None) -> dict[str, Tensor]:
    remedy = "set perceptual.weights=PATH to a local copy, or perceptual.weight=0 to train without this loss"
    known = BACKBONE_WEIGHTS[backbone]
    if weights is None:
        try:
            return known.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (URLError, OSError, RuntimeError) as error:
            raise TrainingError(
                f"The perceptual loss needs torchvision's {Path(known.url).name}, which cannot be downloaded: {remedy}."
            ) from error
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the file's bytes lead it to
        raise TrainingError(f"perceptual.weights={weights} cannot be read as a torch state dict: {remedy}.") from error
    if not isinstance(state, dict):
        raise TrainingError(f"perceptual.weights={weights} is not a state dict: {remedy}.")
    return state


def _fill_backbone(trunk: nn.Module, state: dict[str, Tensor], backbone: str, weights: Path | None) -> None:
    """Load ``features.<i>.…`` of torchvision into LPIPS, which cuts the same layers into ``slice<n>.<i>.…``."""
    own = trunk.state_dict()
    wanted = {name: "features." + name.split(".", 1)[1] for name in own}
    bad = [key for name, key in wanted.items() if key not in state or state[key].shape != own[name].shape]
    if bad:
        raise TrainingError(
            f"perceptual.weights={weights} lacks '{bad[0]}' of torchvision's {backbone}: give the file of that "
            "network, or set perceptual.backbone to the one it holds."
        )
    trunk.load_state_dict({name: state[key] for name, key in wanted.items()})
