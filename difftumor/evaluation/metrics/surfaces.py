"""Surfaces of two masks, and how far apart they are.

A surface consists of the patches that marching cubes puts between voxel centers, each weighted by its area in mm², so
that thick slices count as they should (Nikolov et al. 2021, doi 10.2196/26151). Distances are measured once; every
surface metric is derived from them. The axes of the grid are assumed to be at right angles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import ConfigError
from difftumor.scans.distances import distance_mm
from difftumor.scans.grid import Box, Vector

# Distances are rounded to 32 bits, and so are the voxel sizes of many files: three voxels of 0.8 mm are within 2.4 mm.
_ROUNDING_MM = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces, patch by patch; the arrays of an empty mask are empty.

    Attributes:
        truth_mm: From each patch of the truth to the nearest of the prediction; infinite if it has none.
        prediction_mm: From each patch of the prediction to the nearest of the truth; infinite if it has none.
        truth_mm2: Areas of the patches of the truth.
        prediction_mm2: Areas of the patches of the prediction.
    """

    truth_mm: NDArray[np.float64]
    prediction_mm: NDArray[np.float64]
    truth_mm2: NDArray[np.float64]
    prediction_mm2: NDArray[np.float64]


def surface_distances(
    prediction_XYZ: NDArray[Any], truth_XYZ: NDArray[Any], *, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Measure how far apart the surfaces of two masks are.

    A mask that reaches the border of the array has a surface there.

    Args:
        prediction_XYZ: Nonzero inside the prediction.
        truth_XYZ: Nonzero inside the truth; the same shape.
        spacing_mm: Voxel size along each axis.

    Raises:
        ValueError: Shapes differ or are not 3-D, or the spacing is not three positive numbers.
    """
    spacing = check_masks(prediction_XYZ, truth_XYZ, spacing_mm)
    areas_mm2 = _patch_areas(spacing)
    box = Box.joined([Box.around(prediction_XYZ), Box.around(truth_XYZ)])
    predicted_patches, predicted_mm2 = _patches(prediction_XYZ[box.slices] != 0, areas_mm2)
    true_patches, true_mm2 = _patches(truth_XYZ[box.slices] != 0, areas_mm2)
    return SurfaceDistances(
        truth_mm=_distances(true_patches, predicted_patches, spacing),
        prediction_mm=_distances(predicted_patches, true_patches, spacing),
        truth_mm2=true_mm2,
        prediction_mm2=predicted_mm2,
    )


def check_masks(prediction_XYZ: NDArray[Any], truth_XYZ: NDArray[Any], spacing_mm: Sequence[float]) -> Vector:
    """Check masks and spacing, and return the spacing as three numbers.

    Raises:
        ValueError: Shapes differ or are not 3-D, or the spacing is not three positive numbers.
    """
    if prediction_XYZ.shape != truth_XYZ.shape or truth_XYZ.ndim != 3:
        raise ValueError(f"prediction {prediction_XYZ.shape} and truth {truth_XYZ.shape} must be 3-D and of one shape")
    spacing = tuple(float(step) for step in spacing_mm)
    if len(spacing) != 3 or not all(0 < step < math.inf for step in spacing):
        raise ValueError(f"spacing_mm {spacing} is not three positive numbers")
    return spacing


def check_tolerance(tolerance_mm: float) -> None:
    """Check a tolerance, once for all cases.

    Raises:
        ConfigError: The tolerance is negative or not finite.
    """
    if not 0 <= tolerance_mm < math.inf:
        raise ConfigError(f"The tolerance is {tolerance_mm} mm; give 0 or more, such as 2.")


def normalized_surface_distance(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Return the part of both surfaces, by area, that lies within a tolerance of the other; 1 if both are empty."""
    total = distances.truth_mm2.sum() + distances.prediction_mm2.sum()
    if total == 0:
        return 1.0
    limit_mm = tolerance_mm + _ROUNDING_MM
    agreeing = distances.truth_mm2[distances.truth_mm <= limit_mm].sum()
    agreeing += distances.prediction_mm2[distances.prediction_mm <= limit_mm].sum()
    return float(agreeing / total)


def hausdorff_mm(distances: SurfaceDistances, *, percent: float = 95.0) -> float:
    """Return the robust Hausdorff distance: the larger of the percentiles of both directions.

    The percentile of a direction is the smallest distance within which that percentage of the surface's area lies.

    Args:
        distances: Of two masks that are not empty.
        percent: Which percentile; 100 gives the Hausdorff distance itself.
    """
    return max(
        _percentile(distances.truth_mm, distances.truth_mm2, percent),
        _percentile(distances.prediction_mm, distances.prediction_mm2, percent),
    )


def average_distance_mm(distances: SurfaceDistances) -> float:
    """Return the average symmetric surface distance: the mean over both surfaces together, by area.

    Args:
        distances: Of two masks that are not empty.
    """
    total = distances.truth_mm @ distances.truth_mm2 + distances.prediction_mm @ distances.prediction_mm2
    return float(total / (distances.truth_mm2.sum() + distances.prediction_mm2.sum()))


def _percentile(values: NDArray[np.float64], weights: NDArray[np.float64], percent: float) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    # The last one if rounding leaves the sum of all below the whole.
    place = min(int(np.searchsorted(share, percent / 100 * share[-1])), len(order) - 1)
    return float(values[order[place]])


def _patch_codes(mask_XYZ: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return which corners of each cube of voxel centers are in a mask; one cube more per axis than voxels.

    Corner (a, b, c) of a cube is bit 7 − 4a − 2b − c, as in MONAI's table. The bits of an axis are set for all cubes
    at once.
    """
    codes: NDArray[np.uint8] = mask_XYZ.view(np.uint8)
    order: Literal["F", "C"] = "F" if mask_XYZ.flags.f_contiguous else "C"  # as it lies in memory, several times faster
    for axis, bits in ((2, 1), (1, 2), (0, 4)):
        shape = [size + (i == axis) for i, size in enumerate(codes.shape)]
        joined = np.zeros(shape, np.uint8, order=order)
        along, source = np.moveaxis(joined, axis, 0), np.moveaxis(codes, axis, 0)
        np.left_shift(source, bits, out=along[1:])
        along[:-1] |= source
        codes = joined
    return codes


def _patches(
    mask_XYZ: NDArray[np.bool_], areas_mm2: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which cubes hold surface, having corners both inside and outside, and its area in each in mm²."""
    codes = _patch_codes(mask_XYZ)
    surface = codes + np.uint8(1) > 1  # neither 0 nor 255, which becomes 0
    return surface, areas_mm2[codes[surface]]


def _patch_areas(spacing_mm: Vector) -> NDArray[np.float64]:
    """Return the area in mm² of the surface in a cube of each code."""
    from monai.metrics.utils import get_code_to_measure_table  # here, because MONAI takes seconds to load

    areas_mm2, _ = get_code_to_measure_table(spacing_mm)
    table: NDArray[np.float64] = areas_mm2.numpy().astype(np.float64)
    return table


def _distances(from_XYZ: NDArray[np.bool_], to_XYZ: NDArray[np.bool_], spacing_mm: Vector) -> NDArray[np.float64]:
    if not to_XYZ.any():
        return np.full(np.count_nonzero(from_XYZ), np.inf)
    import torch

    threads = torch.get_num_threads()
    if to_XYZ.flags.f_contiguous:  # transposed, it lies in memory as the transform wants it
        distances_mm = distance_mm(~to_XYZ.T, spacing_mm[::-1], threads=threads).T
    else:
        distances_mm = distance_mm(~to_XYZ, spacing_mm, threads=threads)
    return distances_mm[from_XYZ].astype(np.float64)
