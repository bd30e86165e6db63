"""What a predicted label map says, as a record."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.evaluation.lesions import LesionMap, find_lesions
from difftumor.grids import Grid
from difftumor.organs import TUMOR


def prediction_record(
    labels: NDArray[Any], grid: Grid, *, tumor_probability: NDArray[Any] | None = None
) -> dict[str, Any]:
    """Describe a predicted label map (0 background, 1 organ, 2 tumor), JSON-able.

    Args:
        labels: (X, Y, Z).
        grid: Where its voxels lie.
        tumor_probability: (X, Y, Z), at least where there is tumor.

    Returns:
        ``organ_mm3`` (tumors included), ``tumor_mm3``, and per lesion its voxels, ``volume_mm3``,
        ``equivalent_diameter_mm`` and ``center_mm`` (right, anterior, superior), the largest first; with probabilities
        also ``mean_tumor_probability``.
    """
    found = find_lesions(labels == TUMOR, grid)
    lesions = sorted(found.lesions, key=lambda lesion: -lesion.voxels)
    means = None if tumor_probability is None else _means(tumor_probability, found)
    return {
        "organ_mm3": int(np.count_nonzero(labels)) * grid.voxel_mm3,
        "tumor_mm3": sum(lesion.volume_mm3 for lesion in lesions),
        "lesions": [
            {
                "voxels": lesion.voxels,
                "volume_mm3": lesion.volume_mm3,
                "equivalent_diameter_mm": lesion.diameter_mm,
                "center_mm": list(lesion.center_mm),
                **({} if means is None else {"mean_tumor_probability": means[lesion.index]}),
            }
            for lesion in lesions
        ],
    }


def _means(values: NDArray[Any], lesions: LesionMap) -> list[float]:
    """Return the mean of values in each lesion, at the place of its index."""
    inside = lesions.indices > 0
    indices = lesions.indices[inside]
    sums = np.bincount(indices, weights=values[inside])
    return [float(mean) for mean in sums / np.maximum(np.bincount(indices), 1)]
