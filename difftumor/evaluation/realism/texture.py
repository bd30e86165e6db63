"""Texture inside a tumor: how often two gray levels are neighbors (Haralick's co-occurrence matrix, GLCM).

Only pairs of two voxels inside the tumor count, so that its surroundings have no influence. HU are used as stored,
since resampling would smooth the noise; they are clipped to the HU window and divided into ``LEVELS`` levels of equal
width. Neighbors lie in the axial plane, in its four directions, ``DISTANCE_MM`` apart, rounded to whole voxels (at
least one). Pairs of all directions are counted in one matrix, both ways round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from difftumor.scans.intensity import IntensityWindow

LEVELS = 32
DISTANCE_MM = 1.0
# Fewer pairs are too few for so many levels.
LEAST_PAIRS = 64
_DIRECTIONS = ((1, 0), (0, 1), (1, 1), (1, -1))


@dataclass(frozen=True, kw_only=True)
class Texture:
    """Haralick's properties of one tumor; NaN if it is too small.

    Attributes:
        contrast: Mean squared difference of two neighbors, in levels².
        homogeneity: Mean of 1 / (1 + squared difference).
        correlation: Of the levels of two neighbors.
        entropy: Of the matrix, in bits.
    """

    contrast: float
    homogeneity: float
    correlation: float
    entropy: float


def measure_texture(
    ct_hu_XYZ: NDArray[np.floating],
    tumor_XYZ: NDArray[np.bool_],
    *,
    spacing_mm: Sequence[float],
    window: IntensityWindow,
) -> Texture:
    """Measure one tumor.

    Args:
        ct_hu_XYZ: (X, Y, Z) HU; the first two axes lie in the axial plane.
        tumor_XYZ: Mask of the tumor.
        spacing_mm: Voxel size along X, Y, Z.
        window: HU window.
    """
    pairs = cooccurrence(ct_hu_XYZ, tumor_XYZ, spacing_mm=spacing_mm, window=window)
    total = pairs.sum()
    if total < 2 * LEAST_PAIRS:
        return Texture(contrast=math.nan, homogeneity=math.nan, correlation=math.nan, entropy=math.nan)
    share = pairs / total
    levels = np.arange(LEVELS)
    square = (levels[:, None] - levels[None]) ** 2
    mean = (share.sum(axis=1) * levels).sum()
    variance = (share.sum(axis=1) * (levels - mean) ** 2).sum()
    covariance = (share * np.outer(levels - mean, levels - mean)).sum()
    seen = share[share > 0]
    return Texture(
        contrast=float((share * square).sum()),
        homogeneity=float((share / (1 + square)).sum()),
        correlation=float(covariance / variance) if variance > 0 else math.nan,
        entropy=float(-(seen * np.log2(seen)).sum()),
    )


def cooccurrence(
    ct_hu_XYZ: NDArray[np.floating],
    tumor_XYZ: NDArray[np.bool_],
    *,
    spacing_mm: Sequence[float],
    window: IntensityWindow,
) -> NDArray[np.int64]:
    """Count pairs of neighbors inside a tumor by their levels; arguments as for ``measure_texture``.

    Returns:
        (LEVELS, LEVELS), symmetric: every pair counts from both of its ends.
    """
    unit = window.to_unit(np.asarray(ct_hu_XYZ, np.float64))
    levels = np.minimum((unit * LEVELS).astype(np.int64), LEVELS - 1)
    counts = np.zeros(LEVELS * LEVELS, np.int64)
    steps = [max(1, round(DISTANCE_MM / spacing)) for spacing in spacing_mm[:2]]
    for x, y in _DIRECTIONS:
        here, there = _ends(x * steps[0], levels.shape[0]), _ends(y * steps[1], levels.shape[1])
        one, other = (here[0], there[0]), (here[1], there[1])
        both = tumor_XYZ[one] & tumor_XYZ[other]
        counts += np.bincount((levels[one] * LEVELS + levels[other])[both], minlength=len(counts))
    matrix = counts.reshape(LEVELS, LEVELS)
    return matrix + matrix.T


def _ends(offset: int, size: int) -> tuple[slice, slice]:
    """Return where the two voxels of a pair can lie along an axis."""
    reach = min(abs(offset), size)
    low, high = slice(0, size - reach), slice(reach, size)
    return (low, high) if offset >= 0 else (high, low)
