"""Connected components of a mask, the one place that says which voxels are one tumor.

Voxels that share a face, an edge or a corner belong together (26-connectivity).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from difftumor.scans.grid import Box, triple


@dataclass(frozen=True, kw_only=True)
class Component:
    """One connected component.

    Attributes:
        index: Value of its voxels in ``Components.indices``, from 1.
        voxels: Number of voxels.
        centroid: Mean of its voxel indices; may lie outside a bent component.
        box: Smallest box that holds it.
    """

    index: int
    voxels: int
    centroid: tuple[float, float, float]
    box: Box


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """All components of one mask, in order of their index.

    Attributes:
        indices: uint32 map (X, Y, Z), 0 outside the mask; noise can have more components than uint16 numbers.
        voxels: Number of voxels of each, (N,).
        centroids: Mean of the voxel indices of each, (N, 3).
        bounds: First index and one past the last of each along each axis, (N, 3, 2).
    """

    indices: NDArray[np.uint32]
    voxels: NDArray[np.int64]
    centroids: NDArray[np.float64]
    bounds: NDArray[np.int64]

    @property
    def box(self) -> Box:
        """Smallest box that holds them all; empty at the origin if there are none."""
        if not len(self.bounds):
            return Box((0, 0, 0), (0, 0, 0))
        return Box(triple(self.bounds[:, :, 0].min(axis=0)), triple(self.bounds[:, :, 1].max(axis=0)))

    @cached_property
    def found(self) -> tuple[Component, ...]:
        """The same one by one; made when asked for, because noise can have many thousands."""
        each = zip(self.voxels.tolist(), self.centroids.tolist(), self.bounds.tolist(), strict=True)
        return tuple(
            Component(
                index=index,
                voxels=voxels,
                centroid=(x, y, z),
                box=Box(triple([start for start, _ in sides]), triple([stop for _, stop in sides])),
            )
            for index, (voxels, (x, y, z), sides) in enumerate(each, 1)
        )


def find_components(mask_XYZ: NDArray[Any]) -> Components:
    """Find the 26-connected components of a mask, numbered in the order of their first voxels.

    Args:
        mask_XYZ: Nonzero voxels count; may be empty.
    """
    mask = mask_XYZ if mask_XYZ.dtype == np.bool_ else mask_XYZ != 0
    indices = np.zeros(mask.shape, np.uint32)
    occupied = Box.around(mask)
    if occupied.empty:
        nothing = np.zeros(0, np.int64)
        return Components(indices=indices, voxels=nothing, centroids=np.zeros((0, 3)), bounds=nothing.reshape(0, 3, 2))
    # Only the part that holds voxels, which is little of a scan; and padded, because cc3d 4.1 crashes on some arrays of
    # a few voxels, such as [[[1, 0, 1]]].
    part = np.ascontiguousarray(np.pad(mask[occupied.slices], 1))
    numbered, count = cc3d.connected_components(part, connectivity=26, return_N=True)
    indices[occupied.slices] = numbered[1:-1, 1:-1, 1:-1]
    # Without slices: bounds are first and last index, x, y and z in turn. Entry 0 is the background.
    statistics = cc3d.statistics(numbered, no_slice_conversion=True)
    offset = np.array(occupied.start) - 1
    bounds = statistics["bounding_boxes"][1 : count + 1].astype(np.int64).reshape(count, 3, 2)
    return Components(
        indices=indices,
        voxels=statistics["voxel_counts"][1 : count + 1].astype(np.int64),
        centroids=statistics["centroids"][1 : count + 1].astype(np.float64) + offset,
        bounds=bounds + offset[:, None] + [0, 1],
    )


def largest_component(mask_XYZ: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest component of a boolean mask, the first of equals; an empty mask stays empty."""
    box = Box.around(mask_XYZ)
    # Padded for the same reason as in find_components; the statistics it asks for are not needed here.
    part = np.pad(mask_XYZ[box.slices], 1)
    numbered, count = cc3d.connected_components(part, connectivity=26, return_N=True)
    if count < 2:
        return mask_XYZ
    voxels = np.bincount(numbered[part])  # of the components alone: counting takes eight bytes a voxel
    kept = np.zeros_like(mask_XYZ)
    # Numbers follow the order of first voxels, and argmax takes the first of equals; 0 is the background.
    kept[box.slices] = (numbered == 1 + np.argmax(voxels[1:]))[1:-1, 1:-1, 1:-1]
    return kept


def leads_to(mask_XYZ: NDArray[np.bool_], voxel: Sequence[int]) -> bool:
    """Whether every voxel of a mask but one has a neighbor in it that is nearer to that one along an axis.

    Step by step all voxels then lead to that one, so that the mask is one component. A mask without this property may
    be one component too. The answer takes a fraction of the time of finding components.
    """
    nearer = np.zeros_like(mask_XYZ)
    for axis, middle in enumerate(voxel):
        along, found = np.moveaxis(mask_XYZ, axis, 0), np.moveaxis(nearer, axis, 0)
        found[middle + 1 :] |= along[middle:-1]
        found[:middle] |= along[1 : middle + 1]
    return bool(mask_XYZ[tuple(voxel)]) and np.count_nonzero(mask_XYZ > nearer) == 1


def equivalent_radius_mm(volume_mm3: float) -> float:
    """Return the radius in mm of the ball of a volume: V = 4/3 π r³, r = (3 V / 4π)^⅓."""
    return float((3 * volume_mm3 / (4 * math.pi)) ** (1 / 3))
