"""Masks and numbers of label maps, and boxes around an organ."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import OrganError
from difftumor.scans.grid import Array, Box, Grid
from difftumor.scans.nifti import Volume


def mask_of(maps: Sequence[Volume], numbers: Sequence[int], *, organ: str) -> NDArray[np.bool_]:
    """Return the voxels that hold one of the numbers in any of some label maps, or any number where none are given.

    Raises:
        OrganError: There is none; the message lists the labels found.
    """
    mask = np.zeros(maps[0].data.shape, np.bool_, order="F")
    for labels in maps:
        mask |= np.isin(labels.data, numbers) if numbers else labels.data != 0
    if not mask.any():
        found = sorted({value for labels in maps for value in label_values(labels.data)})
        wanted = f"voxel with label {' or '.join(map(str, numbers))}" if numbers else "nonzero voxel"
        raise OrganError(
            f"{maps[0].path} holds no {wanted} for the {organ} (labels found: {', '.join(map(str, found)) or 'none'}): "
            "give another mask or label."
        )
    return mask


def label_values(labels: Array) -> list[int]:
    """Return the numbers above 0 of a label map, slice by slice, for memory."""
    found: set[int] = set()
    filled = labels[Box.around(labels).slices]
    for index in range(filled.shape[2]):
        values = filled[:, :, index].ravel(order="K")
        # Counting is many times faster than sorting, where numbers are small.
        few = values.dtype == np.uint8
        found.update((np.flatnonzero(np.bincount(values)) if few else np.unique(values)).tolist())
    return sorted(found - {0})


def box_around(organ: NDArray[np.bool_], spacing_mm: Sequence[float], margin_mm: float | None) -> Box:
    """Return the box of an organ and a margin around it, inside the array; the whole array where there is no margin."""
    if margin_mm is None:
        return Box.whole(organ.shape)
    margin = [math.ceil(margin_mm / step) for step in spacing_mm]
    return Box.around(organ).padded(margin).clipped(organ.shape)


def part_of(volume: Volume, box: Box) -> Volume:
    """Return a box of a volume, where it lies in the patient; its values are a copy."""
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ box.start
    data = volume.data[box.slices].copy(order="F")
    return replace(volume, data=data, grid=Grid(box.shape, affine), stored=None)
