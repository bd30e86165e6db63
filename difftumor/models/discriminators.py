"""PatchGAN discriminators of axial slices and of volumes; every block's output is a feature to match.

Attribute names are those of the published checkpoint, without ``image_discriminator.`` and ``video_discriminator.``.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from difftumor.errors import ConfigError, ShapeError

KERNEL_SIZE = 4
PADDING = 2
NEGATIVE_SLOPE = 0.2


class _PatchDiscriminator(nn.Module):
    """Five blocks of 4-wide convolutions; the last gives one logit per patch.

    Args:
        in_channels: Channels of the input.
        base_channels: Channels of the first block; the next three double them.
    """

    conv: ClassVar[type[nn.Conv2d] | type[nn.Conv3d]]
    norm: ClassVar[type[nn.BatchNorm2d] | type[nn.BatchNorm3d]]
    layout: ClassVar[torch.memory_format]
    spatial: ClassVar[str]

    def __init__(self, *, in_channels: int = 1, base_channels: int = 64) -> None:
        super().__init__()
        if min(in_channels, base_channels) < 1:
            raise ConfigError(f"in_channels {in_channels} and base_channels {base_channels} must be positive.")
        self.in_channels = in_channels
        widths = [base_channels * 2**level for level in range(4)]
        self.model0 = self._block(in_channels, widths[0], stride=2, norm=False)
        self.model1 = self._block(widths[0], widths[1], stride=2)
        self.model2 = self._block(widths[1], widths[2], stride=2)
        self.model3 = self._block(widths[2], widths[3], stride=1)
        self.model4 = nn.Sequential(self.conv(widths[3], 1, KERNEL_SIZE, stride=1, padding=PADDING))
        self.to(memory_format=self.layout)

    def _block(self, in_channels: int, out_channels: int, *, stride: int, norm: bool = True) -> nn.Sequential:
        layers: list[nn.Module] = [self.conv(in_channels, out_channels, KERNEL_SIZE, stride=stride, padding=PADDING)]
        if norm:
            layers.append(self.norm(out_channels))
        # In place: neither convolution nor batch norm needs its output for the backward pass.
        layers.append(nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the five blocks; the last are the logits, one per patch.

        Raises:
            ShapeError: The input has another number of axes or channels.
        """
        if x.ndim != 2 + len(self.spatial.split(", ")) or x.shape[1] != self.in_channels:
            raise ShapeError(
                f"{type(self).__name__} takes (B, {self.in_channels}, {self.spatial}), not {tuple(x.shape)}."
            )
        features = []
        for block in (self.model0, self.model1, self.model2, self.model3, self.model4):
            x = block(x)
            features.append(x)
        return tuple(features)


class SliceDiscriminator(_PatchDiscriminator):
    """PatchGAN of axial slices (B, 1, X, Y)."""

    conv = nn.Conv2d
    norm = nn.BatchNorm2d
    layout = torch.channels_last
    spatial = "X, Y"


class VolumeDiscriminator(_PatchDiscriminator):
    """PatchGAN of volumes (B, 1, Z, X, Y)."""

    conv = nn.Conv3d
    norm = nn.BatchNorm3d
    layout = torch.channels_last_3d
    spatial = "Z, X, Y"
