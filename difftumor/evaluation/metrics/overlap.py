"""Scores of a predicted mask: overlap, distances between surfaces, error of volume.

Empty masks have scores by rule, so that a mean over cases is always defined and always means the same: if truth and
prediction are both empty, they agree and have the best scores; if one of them is empty, scores are the worst possible.
`OverlapScores.empty` says which scores these are.

Everything is computed on the given grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from difftumor.evaluation.metrics.surfaces import (
    average_distance_mm,
    check_masks,
    hausdorff_mm,
    normalized_surface_distance,
    surface_distances,
)

TOLERANCE_MM = 2.0
_MM3_PER_ML = 1000.0

Empty = Literal["neither", "prediction", "truth", "both"]


@dataclass(frozen=True, kw_only=True)
class OverlapScores:
    """Scores of one mask against another; all are finite numbers.

    Attributes:
        dsc: Dice similarity coefficient, in [0, 1]. Both empty: 1; one empty: 0.
        nsd: Normalized surface distance, in [0, 1]. Both empty: 1; one empty: 0.
        hd95_mm: 95th percentile of the Hausdorff distance. Both empty: 0; one empty: the diagonal of the scan,
            the largest distance possible on its grid.
        assd_mm: Average symmetric surface distance; the same rules.
        volume_error_ml: Predicted minus true volume.
        volume_error: The same divided by the mean of both volumes, in [−2, 2]. Both empty: 0; prediction empty:
            −2; truth empty: 2.
        empty: Which of the masks is empty; unless "neither", the scores are those of the rules.
    """

    dsc: float
    nsd: float
    hd95_mm: float
    assd_mm: float
    volume_error_ml: float
    volume_error: float
    empty: Empty


def overlap_scores(
    prediction_XYZ: NDArray[Any],
    truth_XYZ: NDArray[Any],
    *,
    spacing_mm: Sequence[float],
    tolerance_mm: float = TOLERANCE_MM,
    voxel_mm3: float | None = None,
) -> OverlapScores:
    """Compare a predicted mask with the true one.

    Args:
        prediction_XYZ: Nonzero inside the prediction.
        truth_XYZ: Nonzero inside the truth; the same shape.
        spacing_mm: Voxel size along each axis.
        tolerance_mm: Largest distance at which two surfaces agree; 0 or more, checked by `check_tolerance`.
        voxel_mm3: Volume of a voxel if the axes are not at right angles; by default the product of the spacing.

    Raises:
        ValueError: Shapes differ or are not 3-D, or the spacing is out of range.
    """
    spacing = check_masks(prediction_XYZ, truth_XYZ, spacing_mm)
    voxels = int(np.count_nonzero(prediction_XYZ)), int(np.count_nonzero(truth_XYZ))
    empty = _EMPTY[voxels[0] == 0, voxels[1] == 0]
    if empty == "neither":
        distances = surface_distances(prediction_XYZ, truth_XYZ, spacing_mm=spacing)
        nsd = normalized_surface_distance(distances, tolerance_mm=tolerance_mm)
        hd95_mm, assd_mm = hausdorff_mm(distances), average_distance_mm(distances)
    elif empty == "both":
        nsd, hd95_mm, assd_mm = 1.0, 0.0, 0.0
    else:
        nsd = 0.0
        hd95_mm = assd_mm = diagonal_mm(truth_XYZ.shape, spacing)
    difference, total = voxels[0] - voxels[1], voxels[0] + voxels[1]
    voxel_ml = (math.prod(spacing) if voxel_mm3 is None else voxel_mm3) / _MM3_PER_ML
    return OverlapScores(
        dsc=dice(prediction_XYZ, truth_XYZ),
        nsd=nsd,
        hd95_mm=hd95_mm,
        assd_mm=assd_mm,
        volume_error_ml=difference * voxel_ml,
        volume_error=2 * difference / total if total else 0.0,
        empty=empty,
    )


_EMPTY: dict[tuple[bool, bool], Empty] = {
    (False, False): "neither",
    (True, False): "prediction",
    (False, True): "truth",
    (True, True): "both",
}


def dice(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the Dice similarity coefficient 2 |P ∩ T| / (|P| + |T|); 1 if both are empty.

    Raises:
        ValueError: The shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(np.logical_and(prediction, truth)) / total) if total else 1.0


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Return the length of a scan's diagonal, from outer corner to outer corner."""
    return math.hypot(*(size * step for size, step in zip(shape, spacing_mm, strict=True)))
