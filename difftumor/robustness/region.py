"""A part of a scan as a volume of its own."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from difftumor.grids import Box, Grid
from difftumor.volume import Volume


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
