"""Overlap of two masks: Dice similarity coefficient (DSC) and normalized surface distance (NSD).

Empty masks have scores by rule: where truth and prediction are both empty, they agree and every score is 1; where one
of them is empty, every score is 0.

All is computed on the given grid, inside the box that holds both masks. A surface is made of the patches that marching
cubes puts between voxel centers, each weighed by its area in mm², so that thick slices count as much as they should
(Nikolov et al. 2021, doi 10.2196/26151). Distances are measured once; every surface metric is derived from them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.metrics.utils import get_code_to_measure_table
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from difftumor.errors import ConfigError
from difftumor.grids import Box

TOLERANCE_MM = 2.0


@dataclass(frozen=True, kw_only=True)
class OverlapScores:
    """Scores of one mask against another, as fractions.

    Attributes:
        dsc: Dice similarity coefficient, in [0, 1].
        nsd: Normalized surface distance, in [0, 1].
    """

    dsc: float
    nsd: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces, patch by patch; empty arrays where a mask is empty.

    Attributes:
        truth_mm: From each patch of the truth to the nearest of the prediction; infinite where there is none.
        prediction_mm: From each patch of the prediction to the nearest of the truth; infinite where there is none.
        truth_mm2: Areas of the patches of the truth.
        prediction_mm2: Areas of the patches of the prediction.
    """

    truth_mm: NDArray[np.float64]
    prediction_mm: NDArray[np.float64]
    truth_mm2: NDArray[np.float64]
    prediction_mm2: NDArray[np.float64]


def overlap_scores(
    prediction_XYZ: NDArray[Any],
    truth_XYZ: NDArray[Any],
    *,
    spacing_mm: Sequence[float],
    tolerance_mm: float = TOLERANCE_MM,
) -> OverlapScores:
    """Compute DSC and NSD of a predicted mask.

    Args:
        prediction_XYZ: Nonzero inside the prediction.
        truth_XYZ: Nonzero inside the truth; the same shape.
        spacing_mm: Voxel size along each axis.
        tolerance_mm: Largest distance at which two surfaces still agree.

    Raises:
        ConfigError: The tolerance is negative or not finite.
        ValueError: Shapes differ or are not 3-D, or the spacing is out of range.
    """
    distances = surface_distances(prediction_XYZ, truth_XYZ, spacing_mm=spacing_mm)
    nsd = normalized_surface_distance(distances, tolerance_mm=tolerance_mm)
    return OverlapScores(dsc=dice(prediction_XYZ, truth_XYZ), nsd=nsd)


def dice(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the Dice similarity coefficient 2 |P ∩ T| / (|P| + |T|); 1 where both are empty.

    Raises:
        ValueError: The shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    predicted, true = prediction != 0, truth != 0
    total = np.count_nonzero(predicted) + np.count_nonzero(true)
    return float(2 * np.count_nonzero(predicted & true) / total) if total else 1.0


def surface_distances(
    prediction_XYZ: NDArray[Any], truth_XYZ: NDArray[Any], *, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Measure how far the surfaces of two masks are apart.

    Beyond the array is outside of both masks: a mask that reaches the border has a surface there.

    Raises:
        ValueError: Shapes differ or are not 3-D, or the spacing is not three positive numbers.
    """
    if prediction_XYZ.shape != truth_XYZ.shape or truth_XYZ.ndim != 3:
        raise ValueError(f"prediction {prediction_XYZ.shape} and truth {truth_XYZ.shape} must be 3-D and of one shape")
    spacing = tuple(float(step) for step in spacing_mm)
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing_mm {spacing} is not three positive numbers")
    predicted, true = prediction_XYZ != 0, truth_XYZ != 0
    box = Box.around(predicted | true)
    predicted_mm2 = _patch_areas(predicted[box.slices], spacing)
    true_mm2 = _patch_areas(true[box.slices], spacing)
    return SurfaceDistances(
        truth_mm=_distances(true_mm2, predicted_mm2, spacing),
        prediction_mm=_distances(predicted_mm2, true_mm2, spacing),
        truth_mm2=true_mm2[true_mm2 > 0],
        prediction_mm2=predicted_mm2[predicted_mm2 > 0],
    )


def normalized_surface_distance(distances: SurfaceDistances, *, tolerance_mm: float = TOLERANCE_MM) -> float:
    """Return the part of both surfaces, by area, that lies within a tolerance of the other; 1 where both are empty.

    Raises:
        ConfigError: The tolerance is negative or not finite.
    """
    if not 0 <= tolerance_mm < math.inf:
        raise ConfigError(f"The tolerance is {tolerance_mm} mm; give 0 or more, such as 2.")
    total = distances.truth_mm2.sum() + distances.prediction_mm2.sum()
    if total == 0:
        return 1.0
    agreeing = distances.truth_mm2[distances.truth_mm <= tolerance_mm].sum()
    agreeing += distances.prediction_mm2[distances.prediction_mm <= tolerance_mm].sum()
    return float(agreeing / total)


def _patch_areas(mask: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the area of surface in every cube of eight voxel centers, one more along each axis than the mask."""
    if not mask.any():
        return np.zeros([size + 1 for size in mask.shape])
    areas_mm2, kernel = get_code_to_measure_table(spacing_mm)
    weights = kernel.reshape(2, 2, 2).numpy().astype(np.uint8)
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([size + 1 for size in mask.shape], np.uint8)
    for corner in np.ndindex(2, 2, 2):
        part = tuple(slice(first, first + size) for first, size in zip(corner, codes.shape, strict=True))
        codes += weights[corner] * padded[part]
    table: NDArray[np.float64] = areas_mm2.numpy().astype(np.float64)
    return table[codes]


def _distances(
    from_mm2: NDArray[np.float64], to_mm2: NDArray[np.float64], spacing_mm: tuple[float, ...]
) -> NDArray[np.float64]:
    patches = from_mm2 > 0
    if not to_mm2.any():
        return np.full(np.count_nonzero(patches), np.inf)
    distance_mm: NDArray[np.float64] = distance_transform_edt(to_mm2 == 0, sampling=spacing_mm)
    return distance_mm[patches]
