"""Distances in a mask, and whether the surroundings of a voxel are clear.

Both answer one question, the first for all voxels at once, the other exactly and fast for a single one.
"""

from typing import TypeVar

import edt
import numpy as np
from numpy.typing import NDArray

from difftumor.scans.grid import Box, Vector, Voxel, triple

Mask = NDArray[np.bool_]
Distance = NDArray[np.float32]
ScalarT = TypeVar("ScalarT", bound=np.generic)


def distance_mm(mask_XYZ: Mask, spacing_mm: Vector, *, closed: bool = False, threads: int = 1) -> Distance:
    """Return the exact distance of each voxel to the nearest voxel that is not in a mask, center to center.

    Args:
        mask_XYZ: The mask.
        spacing_mm: Size of a voxel along each axis.
        closed: Whether the mask ends at the border of the array.
        threads: How many to use; the result does not depend on it.

    Returns:
        0 outside the mask, infinity if no voxel is outside.
    """
    mask = np.ascontiguousarray(mask_XYZ)
    whole: Distance = edt.edt(mask, anisotropy=spacing_mm, black_border=closed, parallel=threads)
    return whole


def ball_ends(radius_mm: float, spacing_mm: Vector) -> NDArray[np.int64]:
    """Return 26 voxel offsets (26, 3), the outermost that a ball holds along axes and diagonals."""
    directions = np.array([d for d in np.ndindex(3, 3, 3) if d != (1, 1, 1)]) - 1
    ends_mm = radius_mm * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return np.trunc(ends_mm / spacing_mm).astype(np.int64)


def ball_in(mask_XYZ: Mask, center: Voxel, radius_mm: float, spacing_mm: Vector) -> bool:
    """Whether a mask holds every voxel of the array at most a radius from a center, itself a voxel of the array."""
    half = [int(radius_mm / step) for step in spacing_mm]
    box = Box(triple(np.subtract(center, half)), triple(np.add(center, half) + 1)).clipped(mask_XYZ.shape)
    squares = [
        (((np.arange(a, b, dtype=np.float32) - c) * np.float32(step)) ** 2)
        for a, b, c, step in zip(box.start, box.stop, center, spacing_mm, strict=True)
    ]
    inside = squares[0][:, None, None] + (squares[1][:, None] + squares[2]) <= radius_mm**2
    return not (inside > mask_XYZ[box.slices]).any()


def look_up(mask_XYZ: Mask, voxels: NDArray[np.int64], *, beyond: bool) -> NDArray[np.bool_]:
    """Return a mask's values at voxels (..., 3); those outside the array have the value ``beyond``."""
    last = np.subtract(mask_XYZ.shape, 1)
    values: NDArray[np.bool_] = mask_XYZ[tuple(np.moveaxis(voxels.clip(0, last), -1, 0))]
    outside = ((voxels < 0) | (voxels > last)).any(axis=-1)
    return np.where(outside, beyond, values)


def box_about(center: Voxel, part: Mask) -> Box:
    """Return the box that a part with odd sizes takes when its middle is put on a center; may leave the array."""
    half = [size // 2 for size in part.shape]
    return Box(
        triple([c - h for c, h in zip(center, half, strict=True)]),
        triple([c + h + 1 for c, h in zip(center, half, strict=True)]),
    )


def cut_to(array: NDArray[ScalarT], whole: Box, box: Box) -> NDArray[ScalarT]:
    """Cut the part in a smaller box from an array that covers the box ``whole``."""
    return array[tuple(slice(a - w, b - w) for a, b, w in zip(box.start, box.stop, whole.start, strict=True))]


def eroded_in_slices(mask_XYZ: Mask, side: int) -> Mask:
    """Erode each axial slice by a square; what lies beyond the array does not erode."""
    eroded = mask_XYZ
    for axis in (0, 1):
        rows = np.moveaxis(eroded, axis, 0)
        eroded = eroded.copy()
        result = np.moveaxis(eroded, axis, 0)
        for shift in range(1, side // 2 + 1):
            result[shift:] &= rows[:-shift]
        for shift in range(1, (side - 1) // 2 + 1):
            result[:-shift] &= rows[shift:]
    return eroded


def dilated(mask_XYZ: Mask) -> Mask:
    """Return a mask with its neighbors by face, edge and corner, as far as the array reaches."""
    grown = mask_XYZ
    for axis in range(3):
        rows = np.moveaxis(grown, axis, 0)
        grown = grown.copy()
        result = np.moveaxis(grown, axis, 0)
        result[1:] |= rows[:-1]
        result[:-1] |= rows[1:]
    return grown
