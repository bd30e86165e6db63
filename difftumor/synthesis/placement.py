"""Placement: where in a host a tumor's center lies, and what remains of its shape there.

The same ``Placement`` serves drawing and applying, so that organ and neighbors cut a tumor as they did when it was
drawn.
"""

import math
from collections.abc import Iterator

import numpy as np

from difftumor.errors import SynthesisError
from difftumor.scans.components import largest_component, leads_to
from difftumor.scans.distances import Mask, box_about, cut_to, dilated
from difftumor.scans.grid import Box, Voxel
from difftumor.synthesis.candidates import Candidates
from difftumor.synthesis.host import Host

# Least share of a tumor's volume that must remain after cutting.
MINIMUM_INSIDE = 0.25


class Placement:
    """The tumors that were placed in a host; each takes space from those that follow.

    Args:
        host: The organ, whose tumors that are there already are placed first; not modified.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        # Where there is no tumor yet, nor a neighbor of one; None while there are no tumors.
        self._free: Mask | None = None
        tumors = host.tumors_XYZ
        if tumors is not None and not (box := Box.around(tumors)).empty:
            self.add(box, tumors[box.slices] != 0)

    def add(self, box: Box, mask: Mask) -> None:
        """Place a tumor: its voxels and their neighbors are no longer free."""
        if self._free is None:
            self._free = np.ones_like(self.host.mask)
        around = box.padded(1)
        inside = around.clipped(self.host.mask.shape)
        self._free[inside.slices] &= ~cut_to(dilated(np.pad(mask, 1)), around, inside)

    def cut(self, shape: Mask, center: Voxel, *, may_leave: bool, may_overlap: bool = False) -> tuple[Box, Mask]:
        """Return the largest connected part of a shape that has space, and its box in the array.

        Args:
            shape: Mask with odd sizes, one component, its middle voxel being the tumor's center.
            center: Where the middle goes.
            may_leave: Keep what lies outside the organ; the array's border cuts in any case.
            may_overlap: Keep what lies in other tumors; otherwise they cut.
        """
        box, mask, whole = self._remains(shape, center, may_leave=may_leave, may_overlap=may_overlap)
        return box, mask if whole else _largest_part(mask, np.subtract(center, box.start))

    def find_center(
        self,
        shape: Mask,
        reach_mm: float,
        generator: np.random.Generator,
        *,
        may_leave: bool = False,
        centered: bool = False,
        within: Mask | tuple[Box, Mask] | None = None,
        vessel_clearance_mm: float | None = None,
        may_overlap: bool = False,
        by_slice: bool = False,
    ) -> Voxel | None:
        """Choose a center, uniformly among the voxels where the tumor fits.

        If it fits nowhere, the distance from the organ's surface and from other tumors is lowered in steps, and the
        tumor will be cut. The distance from vessels is not lowered. For a reach of 16 voxels or more the first two may
        be lower by up to a fifth of the reach.

        Args:
            shape: The tumor's mask, its middle voxel being its center.
            reach_mm: Largest half-axis.
            generator: Source of the choice.
            may_leave: The organ's surface does not limit the place; the center is in the organ.
            centered: Take the organ voxel nearest to the organ's centroid, however much of the tumor is cut there.
            within: Where else centers are limited to: a mask of the array, or a box of it and a mask of that size.
            vessel_clearance_mm: No vessel is nearer to the center than the reach plus this; None if vessels do not
                matter.
            may_overlap: Other tumors do not limit the place.
            by_slice: The rule of the published training recipe: a slice in the middle 30-70 % of the organ, more if
                that fails, then any voxel of the organ in it. The organ cuts the tumor, whatever the reach.

        Returns:
            The center, or None if no candidate keeps ``MINIMUM_INSIDE`` of the tumor.

        Raises:
            SynthesisError: ``within`` has another shape than the organ mask.
        """
        candidates = self._candidates(reach_mm, may_leave, may_overlap, vessel_clearance_mm, self._boxed(within))
        least = 1 if centered else _least(shape)
        centers: Iterator[Voxel]
        if centered:
            centers = iter([self.host.middle] if candidates.allows(self.host.middle) else [])
        else:
            centers = candidates.in_slices(generator) if by_slice else candidates.uniform(generator)
        for center in centers:
            if self._keeps(shape, center, least, may_leave=may_leave, may_overlap=may_overlap):
                return center
        return None

    def fits_at(
        self,
        shape: Mask,
        center: Voxel,
        *,
        reach_mm: float,
        may_leave: bool = False,
        vessel_clearance_mm: float | None = None,
        may_overlap: bool = False,
    ) -> bool:
        """Whether a tumor may be at a given center: in the organ, clear of vessels, and not cut too much.

        Args:
            shape: The tumor's mask, its middle voxel being its center.
            center: Any voxel, even one outside the array.
            reach_mm: Largest half-axis.
            may_leave: The organ's surface does not cut.
            vessel_clearance_mm: No vessel is nearer than the reach plus this; None if vessels do not matter.
            may_overlap: Other tumors do not cut.
        """
        candidates = self._candidates(reach_mm, may_leave, may_overlap, vessel_clearance_mm, None)
        return candidates.allows(center) and self._keeps(
            shape, center, _least(shape), may_leave=may_leave, may_overlap=may_overlap
        )

    def _candidates(
        self,
        reach_mm: float,
        may_leave: bool,
        may_overlap: bool,
        vessel_clearance_mm: float | None,
        within: Mask | None,
    ) -> Candidates:
        return Candidates(
            host=self.host,
            reach_mm=reach_mm,
            may_leave=may_leave,
            free=None if may_overlap else self._free,
            vessel_clearance_mm=vessel_clearance_mm,
            within=within,
        )

    def _boxed(self, within: Mask | tuple[Box, Mask] | None) -> Mask | None:
        """Return what of a mask lies in ``host.box``."""
        if within is None:
            return None
        box, mask = within if isinstance(within, tuple) else (Box.whole(self.host.mask.shape), within)
        if mask.shape != box.shape:
            raise SynthesisError(f"A mask of shape {mask.shape} can't limit centers in {box.shape}: give it that size.")
        result, common = np.zeros(self.host.box.shape, dtype=bool), box.intersection(self.host.box)
        if not common.empty:
            result[common.relative_to(self.host.box).slices] = cut_to(mask, box, common) != 0
        return result

    def _keeps(self, shape: Mask, center: Voxel, least: int, *, may_leave: bool, may_overlap: bool) -> bool:
        box, mask, whole = self._remains(shape, center, may_leave=may_leave, may_overlap=may_overlap)
        if whole or np.count_nonzero(mask) < least:
            return whole
        return bool(np.count_nonzero(_largest_part(mask, np.subtract(center, box.start))) >= least)

    def _remains(self, shape: Mask, center: Voxel, *, may_leave: bool, may_overlap: bool) -> tuple[Box, Mask, bool]:
        """Return the box of a shape in the array, what is left of the shape there, and whether that is all of it."""
        around = box_about(center, shape)
        box = around.clipped(self.host.mask.shape)
        part = cut_to(shape, around, box)
        mask = part.copy()
        if not may_overlap and self._free is not None:
            mask &= self._free[box.slices]
        if not may_leave:
            mask &= self.host.mask[box.slices]
        return box, mask, bool(np.count_nonzero(mask) == np.count_nonzero(shape))


def _least(shape: Mask) -> int:
    return max(1, math.ceil(MINIMUM_INSIDE * np.count_nonzero(shape)))


def _largest_part(mask: Mask, center: np.ndarray) -> Mask:
    """Return the largest component of what is left of a tumor; its center is a voxel of the mask or outside it."""
    # Searching for components takes longest, so it is left out if there is certainly just one.
    if (center >= 0).all() and (center < mask.shape).all() and leads_to(mask, center.tolist()):
        return mask
    return largest_component(mask)
