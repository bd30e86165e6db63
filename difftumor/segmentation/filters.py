"""Which predicted tumors count: those in or near the organ, and those that are large enough."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.scans.components import find_components
from difftumor.scans.distances import dilated, distance_mm
from difftumor.scans.grid import Box
from difftumor.scans.organs import BACKGROUND, ORGAN, TUMOR
from difftumor.segmentation.options import CLOSING_MM, DILATION_MM

# Of the organ in its largest piece: a smaller piece is noise, and a larger one the other kidney.
_PIECE = 0.1


def keep_inside_organ(
    labels: NDArray[np.uint8],
    organ_mask: NDArray[Any],
    *,
    spacing_mm: Sequence[float],
    closing_mm: float = CLOSING_MM,
    dilation_mm: float = DILATION_MM,
) -> NDArray[np.uint8]:
    """Drop tumor voxels that lie outside the organ, closed and then dilated by balls.

    Args:
        labels: (X, Y, Z): 0 background, 1 organ, 2 tumor.
        organ_mask: (X, Y, Z), nonzero in the organ; its tumors may be part of it or left out.
        spacing_mm: Voxel size.
        closing_mm: Radius of the closing, which fills gaps such as tumors left out of the mask.
        dilation_mm: How far a tumor may reach out of the closed organ.

    Returns:
        A copy in which dropped voxels are background.

    Raises:
        ValueError: The shapes differ or a radius is negative.
    """
    if labels.shape != organ_mask.shape:
        raise ValueError(f"labels {labels.shape} and organ mask {organ_mask.shape} differ in shape")
    if closing_mm < 0 or dilation_mm < 0:
        raise ValueError(f"closing_mm {closing_mm} and dilation_mm {dilation_mm} must not be negative")
    reach = [int(np.ceil((closing_mm + dilation_mm) / step)) + 1 for step in spacing_mm]
    organ_box = Box.around(organ_mask)
    allowed = np.zeros_like(labels, bool)
    if not organ_box.empty:
        box = organ_box.padded(reach).clipped(organ_mask.shape)
        organ = organ_mask[box.slices] != 0
        closed = _eroded(_dilated(organ, closing_mm, spacing_mm), closing_mm, spacing_mm)
        # Erosion by rounding must not lose what was there.
        allowed[box.slices] = _dilated(closed | organ, dilation_mm, spacing_mm)
    kept = labels.copy(order="K")
    kept[(labels == TUMOR) & ~allowed] = BACKGROUND
    return kept


def predicted_organ(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the predicted organ: its largest piece with its tumors, and pieces at least a tenth as large.

    Args:
        labels: (X, Y, Z): 0 background, 1 organ, 2 tumor.

    Returns:
        (X, Y, Z): organ and tumor voxels of the connected pieces that hold at least a tenth as many organ voxels as the
        piece with the most, such as both kidneys. Empty if no organ is predicted: tumor alone is not an organ.
    """
    pieces = find_components(labels != BACKGROUND)
    voxels = np.bincount(pieces.indices[labels == ORGAN], minlength=len(pieces.found) + 1)
    organ = np.zeros_like(labels, bool)
    for piece in pieces.found:
        if voxels[piece.index] > 0 and voxels[piece.index] >= _PIECE * voxels.max():
            organ[piece.box.slices] |= pieces.indices[piece.box.slices] == piece.index
    return organ


def drop_small_tumors(labels: NDArray[np.uint8], *, least_mm3: float, voxel_mm3: float) -> NDArray[np.uint8]:
    """Drop tumors below a volume.

    Args:
        labels: (X, Y, Z): 0 background, 1 organ, 2 tumor.
        least_mm3: Smaller connected tumors are dropped.
        voxel_mm3: Volume of a voxel.

    Returns:
        A copy in which a dropped tumor becomes organ if most voxels that touch it are organ, else background.
    """
    kept = labels.copy(order="K")
    tumors = find_components(labels == TUMOR)
    for tumor in tumors.found:
        if tumor.voxels * voxel_mm3 >= least_mm3:
            continue
        around = tumor.box.padded(1).clipped(labels.shape)
        own = tumors.indices[around.slices] == tumor.index
        touching = labels[around.slices][dilated(own) & ~own]
        inside = np.count_nonzero(touching == ORGAN) * 2 > touching.size
        kept[around.slices][own] = ORGAN if inside else BACKGROUND
    return kept


def _dilated(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    return mask if radius_mm == 0 else _distance_mm(~mask, spacing_mm) <= radius_mm


def _eroded(mask: NDArray[np.bool_], radius_mm: float, spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    """Erode by a ball; what lies beyond the array does not erode, so organs cut by the scan's end stay whole."""
    return mask if radius_mm == 0 else _distance_mm(mask, spacing_mm) > radius_mm


def _distance_mm(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    x, y, z = spacing_mm
    return distance_mm(mask, (x, y, z))
