"""Building blocks of the autoencoder. Attribute names are those of the published checkpoint.

Shapes: B batch, C channels, Z, X, Y voxels, depth first.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from difftumor.errors import ConfigError
from difftumor.networks.padding import Padding, norm_silu_replicate, replicate

# GroupNorm's eps in the published networks; PyTorch's own default is 1e-5.
NORM_EPS = 1e-6


def same_padding(kernel_size: int, stride: int) -> Padding:
    """Return the padding (for ``F.pad``) that makes a 3-D convolution give size / stride.

    It is ``kernel_size - stride`` in all; the odd voxel goes before.
    """
    total = kernel_size - stride
    if total < 0:
        raise ConfigError(f"kernel_size {kernel_size} is smaller than stride {stride}; voxels would be skipped.")
    after = total // 2
    before = total - after
    return (before, after, before, after, before, after)


def group_norm(groups: int, channels: int) -> nn.GroupNorm:
    """Return a GroupNorm; raises ConfigError when the groups don't divide the channels."""
    if groups < 1 or channels % groups:
        raise ConfigError(f"norm_groups {groups} doesn't divide {channels} channels; choose a divisor of {channels}.")
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


class SameConv3d(nn.Module):
    """Convolution that gives size / stride: edges replicated, then convolved without padding."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.padding = same_padding(kernel_size, stride)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride=stride)

    def forward(self, x_BCZXY: Tensor) -> Tensor:
        """Map (B, in, Z, X, Y) to (B, out, Z/stride, X/stride, Y/stride)."""
        return self.conv(replicate(x_BCZXY, self.padding))

    def after_norm(self, x_BCZXY: Tensor, norm: nn.GroupNorm) -> Tensor:
        """Map what a GroupNorm and SiLU make of the input; the same as ``self(silu(norm(x)))``."""
        return self.conv(norm_silu_replicate(x_BCZXY, norm, self.padding))


class SameConvTranspose3d(nn.Module):
    """Transposed convolution that gives size · stride: edges replicated, and what the padding adds cropped again."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.padding = same_padding(kernel_size, stride)
        self.convt = nn.ConvTranspose3d(
            in_channels, out_channels, kernel_size, stride=stride, padding=self._crop(kernel_size, stride)
        )

    @staticmethod
    def _crop(kernel_size: int, stride: int) -> int:
        # (n + kernel - stride - 1) · stride + kernel - 2 · crop must be n · stride.
        excess = (kernel_size - stride - 1) * stride + kernel_size
        if excess % 2:
            raise ConfigError(
                f"kernel_size {kernel_size} with stride {stride} can't give exactly {stride} times the size; "
                "use an even kernel with an even stride."
            )
        return excess // 2

    def forward(self, x_BCZXY: Tensor) -> Tensor:
        """Map (B, in, Z, X, Y) to (B, out, Z·stride, X·stride, Y·stride)."""
        return self.convt(replicate(x_BCZXY, self.padding))


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, plus the input.

    Args:
        channels: Channels in and out.
        norm_groups: Groups of both norms.
        checkpointed: Keep only the input for the backward pass and compute the rest again.
    """

    def __init__(self, channels: int, *, norm_groups: int, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.norm1 = group_norm(norm_groups, channels)
        self.conv1 = SameConv3d(channels, channels, kernel_size=3)
        self.norm2 = group_norm(norm_groups, channels)
        self.conv2 = SameConv3d(channels, channels, kernel_size=3)

    def forward(self, x_BCZXY: Tensor) -> Tensor:
        """Map (B, channels, Z, X, Y) to the same shape."""
        if self.checkpointed and torch.is_grad_enabled():
            # Nothing in here is random.
            return checkpoint(self._compute, x_BCZXY, use_reentrant=False, preserve_rng_state=False)
        return self._compute(x_BCZXY)

    def _compute(self, x_BCZXY: Tensor) -> Tensor:
        hidden = self.conv1.after_norm(x_BCZXY, self.norm1)
        hidden = self.conv2.after_norm(hidden, self.norm2)
        # A convolution keeps its input for the backward pass, not its output.
        return hidden.add_(x_BCZXY)
