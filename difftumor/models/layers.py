"""Building blocks of the autoencoder. Attribute names are those of the published checkpoint.

Shapes: B batch, C channels, Z, X, Y voxels, depth first.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from difftumor.errors import ConfigError

NORM_EPS = 1e-6

# As for ``F.pad``: before and after the last axis, then the one before it, then the first.
Padding = tuple[int, int, int, int, int, int]


def replicate(x_BCZXY: Tensor, padding: Padding) -> Tensor:
    """Repeat the edge voxels outward; no copy is made if there is nothing to pad."""
    if not any(padding):
        return x_BCZXY
    if torch.compiler.is_compiling():
        return F.pad(x_BCZXY, padding, mode="replicate")
    return _Replicate.apply(x_BCZXY, padding)


def norm_silu_replicate(x_BCZXY: Tensor, norm: nn.GroupNorm, padding: Padding) -> Tensor:
    """Return ``replicate(silu(norm(x)))``, in the data type that a convolution would take it in."""
    if torch.compiler.is_compiling():
        # The compiler fuses the plain operations itself.
        return replicate(F.silu(norm(x_BCZXY)), padding)
    return _NormSiluReplicate.apply(x_BCZXY, norm.weight, norm.bias, norm.num_groups, norm.eps, padding)


class _Replicate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCZXY: Tensor, padding: Padding) -> Tensor:
        ctx.padding = padding
        return _padded(x_BCZXY, x_BCZXY.dtype, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Of its second argument it only reads the shape and the memory format.
        return torch.ops.aten.replication_pad3d_backward(grad, _inner(grad, ctx.padding), ctx.padding), None


class _NormSiluReplicate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCZXY: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, padding: Padding
    ) -> Tensor:
        device = x_BCZXY.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BCZXY.dtype
        with torch.autocast(device, enabled=False):
            x, weight, bias = _precise(x_BCZXY, weight_C, bias_C)
            normed, mean_BG, rstd_BG = _group_norm(x, weight, bias, groups, eps)
            padded = _padded(F.silu(normed, inplace=True), dtype, padding)
        ctx.save_for_backward(x_BCZXY, weight_C, bias_C, mean_BG, rstd_BG)
        ctx.padding = padding
        return padded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_BCZXY, weight_C, bias_C, mean_BG, rstd_BG = ctx.saved_tensors
        x, weight, bias = _precise(x_BCZXY, weight_C, bias_C)
        per_group = weight.numel() // mean_BG.shape[1]
        mean_BC, rstd_BC = (t.repeat_interleave(per_group, 1) for t in (mean_BG, rstd_BG))
        scale_BC = rstd_BC * weight
        with torch.autocast(x.device.type, enabled=False):
            normed = torch.addcmul(_spread(bias - mean_BC * scale_BC), x, _spread(scale_BC))
            grad = torch.ops.aten.replication_pad3d_backward(grad.to(x.dtype), normed, ctx.padding)
            torch.ops.aten.silu_backward.grad_input(grad, normed, grad_input=grad)
            del normed
            # How the sums over voxels enter: Σ g and Σ g·(x − mean)·rstd, each per channel.
            sums_BC, products_BC = _sums(grad, x)
            products_BC = (products_BC - mean_BC * sums_BC) * rstd_BC
            count = x[0, 0].numel() * per_group
            along_BC, offset_BC = (
                (t * weight).unflatten(1, (-1, per_group)).sum(2).div(count).repeat_interleave(per_group, 1)
                for t in (products_BC, sums_BC)
            )
            # grad_x = rstd · (weight·g − offset − (x − mean)·rstd·along)
            slope_BC = -along_BC * rstd_BC.square()
            grad.mul_(_spread(scale_BC)).addcmul_(x, _spread(slope_BC))
            grad.sub_(_spread(offset_BC * rstd_BC + slope_BC * mean_BC))
        return grad.to(x_BCZXY.dtype), products_BC.sum(0), sums_BC.sum(0), None, None, None


def _padded(x_BCZXY: Tensor, dtype: torch.dtype, padding: Padding) -> Tensor:
    """Return a copy in channels-last memory whose outermost voxels are repeated outward, axis by axis."""
    shape = list(x_BCZXY.shape)
    for axis, before, after in _sides(padding):
        shape[axis] += before + after
    padded = torch.empty(shape, dtype=dtype, device=x_BCZXY.device, memory_format=torch.channels_last_3d)
    _inner(padded, padding).copy_(x_BCZXY)
    for axis, before, after in _sides(padding):
        last = shape[axis] - after - 1
        padded.narrow(axis, 0, before).copy_(padded.narrow(axis, before, 1))
        padded.narrow(axis, last + 1, after).copy_(padded.narrow(axis, last, 1))
    return padded


def _inner(padded_BCZXY: Tensor, padding: Padding) -> Tensor:
    """Return the view of a padded tensor that the input fills."""
    for axis, before, after in _sides(padding):
        padded_BCZXY = padded_BCZXY.narrow(axis, before, padded_BCZXY.shape[axis] - before - after)
    return padded_BCZXY


def _sides(padding: Padding) -> tuple[tuple[int, int, int], ...]:
    """Return each axis with what stands before and after it."""
    return (4, *padding[:2]), (3, *padding[2:4]), (2, *padding[4:])


def _group_norm(
    x_BCZXY: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the norm gives, and the mean and the inverse deviation of each group, (B, groups)."""
    # Older versions of PyTorch refuse memory with gaps and, on a GPU, channels-last memory.
    if x_BCZXY.device.type != "cpu" or not x_BCZXY.is_contiguous(memory_format=torch.channels_last_3d):
        x_BCZXY = x_BCZXY.contiguous()
    B, C, *size = x_BCZXY.shape
    return torch.native_group_norm(x_BCZXY, weight_C, bias_C, B, C, math.prod(size), groups, eps)


def _sums(grad_BCZXY: Tensor, x_BCZXY: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ g and Σ g·x over the voxels, (B, C) each, without a tensor of the products."""
    g_BCN, x_BCN = grad_BCZXY.flatten(2), x_BCZXY.flatten(2)
    # A product of matrices reads both once; only its diagonal is needed.
    return g_BCN.sum(2), torch.bmm(g_BCN, x_BCN.mT).diagonal(dim1=1, dim2=2)


def _precise(*tensors: Tensor) -> list[Tensor]:
    """Return half-precision tensors as float32."""
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]


def _spread(x_BC: Tensor) -> Tensor:
    return x_BC[:, :, None, None, None]


# GroupNorm's eps in the published networks; PyTorch's own default is 1e-5.
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
