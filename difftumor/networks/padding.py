"""Edge replication in channels-last memory, alone and fused with the GroupNorm and SiLU before it.

A residual block spends a good part of its time and most of its memory on what stands between its convolutions. Here
norm, activation and padding write into the padded tensor, and only their input is kept for the backward pass. Left to
autograd, the outputs of all three would be kept too.

Shapes: B batch, C channels, Z, X, Y voxels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# As for ``F.pad``: before and after the last axis, then the one before it, then the first.
Padding = tuple[int, int, int, int, int, int]


def replicate(x_BCZXY: Tensor, padding: Padding) -> Tensor:
    """Continue the edge voxels outward; no copy where there is nothing to pad."""
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
        ctx.shape, ctx.padding = x_BCZXY.shape, padding
        padded, inner = _padded(x_BCZXY, x_BCZXY.dtype, padding)
        inner.copy_(x_BCZXY)
        return _fill_edges(padded, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Of its second argument it only reads the shape.
        return torch.ops.aten.replication_pad3d_backward(grad, grad.new_empty(()).expand(ctx.shape), ctx.padding), None


class _NormSiluReplicate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCZXY: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, padding: Padding
    ) -> Tensor:
        device = x_BCZXY.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BCZXY.dtype
        B, C, *size = x_BCZXY.shape
        with torch.autocast(device, enabled=False):
            x, weight, bias = _precise(x_BCZXY, weight_C, bias_C)
            voxels = size[0] * size[1] * size[2]
            normed, mean_BG, rstd_BG = torch.native_group_norm(x, weight, bias, B, C, voxels, groups, eps)
            padded, inner = _padded(x_BCZXY, dtype, padding)
            inner.copy_(F.silu(normed, inplace=True))
        ctx.save_for_backward(x_BCZXY, weight_C, bias_C, mean_BG, rstd_BG)
        ctx.padding = padding
        return _fill_edges(padded, padding)

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


def _padded(x_BCZXY: Tensor, dtype: torch.dtype, padding: Padding) -> tuple[Tensor, Tensor]:
    """Return an empty padded tensor in channels-last memory, and the view of it that the input fills."""
    B, C, *size = x_BCZXY.shape
    before, after = (padding[4], padding[2], padding[0]), (padding[5], padding[3], padding[1])
    wide = [b + n + a for b, n, a in zip(before, size, after, strict=True)]
    padded = torch.empty(B, C, *wide, dtype=dtype, device=x_BCZXY.device, memory_format=torch.channels_last_3d)
    inner = padded
    for axis, (b, n) in enumerate(zip(before, size, strict=True), start=2):
        inner = inner.narrow(axis, b, n)
    return padded, inner


def _fill_edges(padded_BCZXY: Tensor, padding: Padding) -> Tensor:
    """Copy the outermost voxels of the inner part outward, axis by axis."""
    for axis, before, after in ((4, *padding[:2]), (3, *padding[2:4]), (2, *padding[4:])):
        last = padded_BCZXY.shape[axis] - after - 1
        padded_BCZXY.narrow(axis, 0, before).copy_(padded_BCZXY.narrow(axis, before, 1))
        padded_BCZXY.narrow(axis, last + 1, after).copy_(padded_BCZXY.narrow(axis, last, 1))
    return padded_BCZXY


def _sums(grad_BCZXY: Tensor, x_BCZXY: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ g and Σ g·x over the voxels, (B, C) each, without a tensor of the products."""
    g_BCN, x_BCN = grad_BCZXY.flatten(2), x_BCZXY.flatten(2)
    # A product of matrices reads both once; its diagonal is what is wanted.
    return g_BCN.sum(2), torch.bmm(g_BCN, x_BCN.mT).diagonal(dim1=1, dim2=2)


def _precise(*tensors: Tensor) -> list[Tensor]:
    """Return half-precision tensors as float32."""
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]


def _spread(x_BC: Tensor) -> Tensor:
    return x_BC[:, :, None, None, None]
