"""Patches: which part of a CT the networks see for each tumor."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difftumor.scans.grid import Box, Voxel, triple
from difftumor.synthesis.blending import blur_radius
from difftumor.synthesis.records import TumorRecord


@dataclass(frozen=True)
class PlacedTumor:
    """A tumor in one element of a batch.

    Args:
        element: Index in the batch.
        instance: Its number in the lesion map, from 1.
        record: How it was drawn.
        box: Box of its voxels.
    """

    element: int
    instance: int
    record: TumorRecord
    box: Box

    @property
    def whole_halo_box(self) -> Box:
        """Box in which the blurred mask may differ from zero; it may reach beyond the array."""
        return self.box.padded(blur_radius(self.record.blur_sigma_voxels))

    def halo_box(self, shape: Voxel) -> Box:
        """Return the part of that box inside the array."""
        return self.whole_halo_box.clipped(shape)


@dataclass(frozen=True)
class Patch:
    """What goes through the networks at once for some tumors of one element.

    Args:
        element: Index in the batch.
        box: Where it lies in the array; it reaches beyond an array that is smaller than the patch.
        tumors: Tumors that get their texture from it.
        whole: Whether it is a training crop, one patch as a whole.
    """

    element: int
    box: Box
    tumors: tuple[PlacedTumor, ...]
    whole: bool = False

    @property
    def seed(self) -> int:
        """Seed of the noise: that of the first tumor."""
        return self.tumors[0].record.texture_seed


def plan_patches(
    tumors: list[PlacedTumor], array: Voxel, patch: Voxel, multiple: Voxel, *, together: bool
) -> list[Patch]:
    """Decide which patches are needed.

    A training crop is one patch, with all its tumors together, as in the published recipe. Elsewhere every tumor gets a
    patch of its own, centered on it but kept inside the array where the array is large enough, and larger than
    ``patch`` where tumor and halo need it.

    Args:
        tumors: All tumors of the batch, in order.
        array: Size of the arrays.
        patch: Wanted size of a patch.
        multiple: The networks take multiples of this.
        together: Whether each array, which then has the patch's size, is one patch.
    """
    if together:
        elements = dict.fromkeys(tumor.element for tumor in tumors)
        own = {element: tuple(tumor for tumor in tumors if tumor.element == element) for element in elements}
        return [Patch(element, Box.whole(array), members, whole=True) for element, members in own.items()]
    return [Patch(tumor.element, _patch_box(tumor, array, patch, multiple), (tumor,)) for tumor in tumors]


def take_patch(array_XYZ: Tensor, box: Box) -> Tensor:
    """Cut a box from an array; beyond the border the border voxels are repeated."""
    result = array_XYZ
    for axis, (start, stop) in enumerate(zip(box.start, box.stop, strict=True)):
        index = torch.arange(start, stop, device=array_XYZ.device).clamp(0, array_XYZ.shape[axis] - 1)
        result = result.index_select(axis, index)
    return result


def _patch_box(tumor: PlacedTumor, array: Voxel, patch: Voxel, multiple: Voxel) -> Box:
    halo = tumor.halo_box(array)
    starts, stops = [], []
    for axis in range(3):
        extent = halo.stop[axis] - halo.start[axis]
        size = max(patch[axis], math.ceil(extent / multiple[axis]) * multiple[axis])
        if size >= array[axis]:
            start = -((size - array[axis]) // 2)
        else:
            middle = (halo.start[axis] + halo.stop[axis]) // 2
            start = min(max(0, middle - size // 2), array[axis] - size)
        starts.append(start)
        stops.append(start + size)
    return Box(triple(starts), triple(stops))
