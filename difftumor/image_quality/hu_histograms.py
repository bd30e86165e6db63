"""HU inside tumors as histograms, and how far two sets of them are apart.

Every tumor counts the same, whatever its size. HU are taken as stored, neither resampled nor clipped to the networks'
window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOW_HU, HIGH_HU = -1024, 3071
# Single HU are too fine for the shape of a distribution: of a small tumor they hold a voxel or none.
SHAPE_BIN_HU = 8


def hu_histogram(hu: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the share of voxels at each whole HU from ``LOW_HU`` to ``HIGH_HU``; what lies beyond counts at the ends.

    Args:
        hu: Of any shape, at least one.
    """
    bins = np.clip(np.rint(hu).astype(np.int64).ravel(), LOW_HU, HIGH_HU) - LOW_HU
    counts = np.bincount(bins, minlength=HIGH_HU - LOW_HU + 1)
    return (counts / counts.sum()).astype(np.float32)


def hu_wasserstein(one_NH: NDArray[np.floating], other_MH: NDArray[np.floating]) -> float:
    """Return the Wasserstein-1 distance of the mean histograms of two sets, in HU."""
    difference = one_NH.mean(axis=0, dtype=np.float64) - other_MH.mean(axis=0, dtype=np.float64)
    return float(np.abs(np.cumsum(difference)).sum())


def hu_jensen_shannon(one_NH: NDArray[np.floating], other_MH: NDArray[np.floating]) -> float:
    """Return the Jensen–Shannon distance of two mean histograms, from 0 to 1, in bins of ``SHAPE_BIN_HU``."""
    from scipy.spatial.distance import jensenshannon

    one, other = (
        each.mean(axis=0, dtype=np.float64).reshape(-1, SHAPE_BIN_HU).sum(axis=1) for each in (one_NH, other_MH)
    )
    # Where both are equal, rounding may leave a root of less than 0.
    return float(np.nan_to_num(jensenshannon(one, other, base=2)))
