"""Filters over volumes (X, Y, Z) that keep their size; beyond the border the outermost voxels go on."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# As Wang et al. 2004 (doi 10.1109/TIP.2003.819861): Gaussian of 1.5 voxels over 11, and the two constants.
SSIM_SIGMA, SSIM_RADIUS, SSIM_K1, SSIM_K2 = 1.5, 5, 0.01, 0.03


def smoothed(volume_XYZ: Tensor, sigma: float, *, radius: int | None = None) -> Tensor:
    """Smooth with a Gaussian.

    Axis by axis and shift by shift: on a CPU this takes a fifth of the time of a convolution with one channel.

    Args:
        volume_XYZ: Floats.
        sigma: In voxels.
        radius: Where the Gaussian ends, in voxels; four sigma when None.
    """
    reach = math.ceil(4 * sigma) if radius is None else radius
    weights = [math.exp(-0.5 * (shift / sigma) ** 2) for shift in range(-reach, reach + 1)]
    total = sum(weights)
    for axis, size in enumerate(volume_XYZ.shape):
        padded = _extended(volume_XYZ, axis, reach)
        volume_XYZ = padded.narrow(axis, 0, size) * (weights[0] / total)
        for shift, weight in enumerate(weights[1:], start=1):
            volume_XYZ.add_(padded.narrow(axis, shift, size), alpha=weight / total)
    return volume_XYZ


def gradient_magnitude(volume_XYZ: Tensor) -> Tensor:
    """Return the length of the gradient by central differences, per voxel; one-sided and halved at the border."""
    squares = torch.zeros_like(volume_XYZ)
    for axis, size in enumerate(volume_XYZ.shape):
        padded = _extended(volume_XYZ, axis, 1)
        squares += ((padded.narrow(axis, 2, size) - padded.narrow(axis, 0, size)) / 2).square_()
    return squares.sqrt_()


def structural_similarity(a_XYZ: Tensor, b_XYZ: Tensor) -> Tensor:
    """Return the map of the structural similarity of two volumes scaled to [0, 1]."""
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = (
        smoothed(values, SSIM_SIGMA, radius=SSIM_RADIUS) for values in (a_XYZ, b_XYZ, a_XYZ**2, b_XYZ**2, a_XYZ * b_XYZ)
    )
    covariance = mean_ab - mean_a * mean_b
    variances = mean_aa - mean_a**2 + mean_bb - mean_b**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def grown(mask_XYZ: Tensor) -> Tensor:
    """Return a boolean mask with all voxels that touch it, by a corner at least."""
    for axis, size in enumerate(mask_XYZ.shape):
        result = mask_XYZ.clone()
        result.narrow(axis, 1, size - 1).logical_or_(mask_XYZ.narrow(axis, 0, size - 1))
        result.narrow(axis, 0, size - 1).logical_or_(mask_XYZ.narrow(axis, 1, size - 1))
        mask_XYZ = result
    return mask_XYZ


def _extended(volume_XYZ: Tensor, axis: int, reach: int) -> Tensor:
    """Repeat the outermost voxels of one axis ``reach`` times on both sides."""
    sides = [0] * 6
    sides[2 * (2 - axis)] = sides[2 * (2 - axis) + 1] = reach
    return F.pad(volume_XYZ[None, None], sides, mode="replicate")[0, 0]
