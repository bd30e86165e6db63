"""Points drawn in the patient rather than in an array.

A point is uniform in a box along the axes of the world (RAS mm), and its nearest voxel is taken: the same numbers give
the same place, whatever the grid that the scan is stored on, and every voxel has the same chance. The box is around an
organ, whose ends move when a thin one is resampled, so that a point must not depend on them; see ``draw_voxels``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.grids import Box

Mask = NDArray[np.bool_]
Voxels = NDArray[np.int64]
Matrix = NDArray[np.floating[Any]]
Limits = tuple[Matrix, Matrix]

# Matrix entries below this share of the largest count as zero; over a scan that is less than a hundredth of a mm.
_ALIGNED = 1e-5
# Less than this is rounding.
_ROUNDING_MM = 1e-3


def limits_mm(mask_XYZ: Mask, to_world: Matrix, box: Box | None = None) -> Limits:
    """Return the lower and upper ends, (3,) each, of the box along world axes around the cells of a mask's voxels.

    Args:
        mask_XYZ: At least one voxel.
        to_world: (4, 4), voxel indices to mm.
        box: The mask's box where it is known.
    """
    box = Box.around(mask_XYZ) if box is None else box
    matrix = to_world[:3, :3]
    if (np.abs(matrix) > _ALIGNED * np.abs(matrix).max()).sum() == 3:
        voxels = np.array([box.start, np.subtract(box.stop, 1)])
    else:
        # Along a line a linear function is largest at one of the ends.
        part = mask_XYZ[box.slices]
        x, y = np.nonzero(part.any(axis=2))
        rows = part[x, y]
        first, last = rows.argmax(axis=1), rows.shape[1] - 1 - rows[:, ::-1].argmax(axis=1)
        voxels = np.concatenate([np.stack([x, y, z], axis=1) for z in (first, last)]) + box.start
    points_mm = to_mm(voxels, to_world)
    half_cell_mm = np.abs(matrix).sum(axis=1) / 2
    return points_mm.min(axis=0) - half_cell_mm, points_mm.max(axis=0) + half_cell_mm


def common_limits(first: Limits, second: Limits) -> Limits:
    """Return the box that two boxes share; no point where they do not overlap."""
    low = np.maximum(first[0], second[0])
    return low, np.maximum(low, np.minimum(first[1], second[1]))


def draw_voxels(generator: np.random.Generator, count: int, limits: Limits, to_voxel: Matrix) -> Voxels:
    """Draw points around a box and return the nearest voxels, (count, 3); some lie beside it or outside the array.

    Numbers drawn give points that repeat through the world with a period, and of these the one in a window of that size
    around the box is taken. When the box moves, points change at the window's ends and nowhere else. The period is
    the next power of two in mm, so that it hardly ever changes; one point of eight or more lies in the box, on average.

    Args:
        generator: Source; the same amount is taken whatever the box.
        count: Number of points.
        limits: As ``limits_mm`` returns.
        to_voxel: (4, 4), mm to voxel indices.
    """
    low, high = limits
    # A side of 64 mm, however rounded, has a period of 64 mm.
    period = 2.0 ** np.ceil(np.log2(np.maximum(high - low, 2 * _ROUNDING_MM) - _ROUNDING_MM))
    start = (low + high - period) / 2
    points_mm = start + np.mod(generator.random((count, 3)) * period - start, period)
    return np.rint(to_mm(points_mm, to_voxel)).astype(np.int64)


def sorted_in_world(voxels: Voxels, to_world: Matrix) -> Voxels:
    """Return voxels (N, 3) in an order that does not depend on flips and permutations of the grid."""
    # Rounded, so that what lies in one plane of the world is not sorted by rounding errors.
    x, y, z = np.round(to_mm(voxels, to_world) / _ROUNDING_MM).T
    return voxels[np.lexsort((z, y, x))]


def to_mm(points: NDArray[Any], affine: Matrix) -> Matrix:
    """Apply an affine to points (N, 3)."""
    moved: Matrix = points @ affine[:3, :3].T + affine[:3, 3]
    return moved
