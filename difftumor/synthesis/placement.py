"""Placement: where in an organ a tumor's center may lie, and what remains of its shape there.

The same ``Room`` serves drawing and applying, so that a tumor is cut by organ and neighbors as it was when drawn.
"""

import math
from collections.abc import Iterator

import numpy as np

from difftumor.errors import SynthesisError
from difftumor.scans.components import largest_component, leads_to
from difftumor.scans.distances import Distance, Mask, box_about, cut_to, dilated
from difftumor.scans.grid import Box, Vector, Voxel
from difftumor.synthesis.candidates import candidates, sliced
from difftumor.synthesis.ground import Demand, Ground


class Room:
    """The room for tumors in one organ; it shrinks as tumors take their place.

    Args:
        organ_XYZ: Organ mask; any nonzero voxel counts. Not copied where it is boolean.
        spacing_mm: Size of a voxel along each axis.
        erosion_voxels: Side of the square by which each axial slice of the organ is eroded before a center is
            chosen; 0 or 1 for none. Where nothing is left, the whole organ is used.
        minimum_inside: Least share of a tumor's volume that must remain after cutting, in (0, 1].
        open_border: Whether the organ is taken to go on beyond the array, as it does beyond a training crop; otherwise
            tumors keep away from the border as from the organ's surface.
        vessels_XYZ: Vessels that tumors keep clear of where they are asked to; any nonzero voxel counts.
        to_world: (4, 4), voxels to mm (RAS), so that a scan's tumors do not depend on the grid it is stored on; by
            default the spacing alone.

    Attributes:
        box: The organ's box and one voxel around it, inside the array.

    Raises:
        SynthesisError: The mask is empty, or the vessels have another shape.
    """

    def __init__(
        self,
        organ_XYZ: np.ndarray,
        spacing_mm: Vector = (1.0, 1.0, 1.0),
        *,
        erosion_voxels: int = 0,
        minimum_inside: float = 0.25,
        open_border: bool = True,
        vessels_XYZ: np.ndarray | None = None,
        to_world: np.ndarray | None = None,
    ) -> None:
        if organ_XYZ.ndim != 3 or not organ_XYZ.any():
            raise SynthesisError("The organ mask holds no organ voxel, so no tumor can be placed: give another mask.")
        if vessels_XYZ is not None and vessels_XYZ.shape != organ_XYZ.shape:
            raise SynthesisError(
                f"Vessels of shape {vessels_XYZ.shape} don't fit an organ mask of shape {organ_XYZ.shape}: "
                "give both on one grid."
            )
        self._ground = Ground(
            organ=np.ascontiguousarray(organ_XYZ if organ_XYZ.dtype == np.bool_ else organ_XYZ != 0),
            spacing_mm=spacing_mm,
            erosion_voxels=erosion_voxels,
            open_border=open_border,
            vessel_free=None if vessels_XYZ is None else np.ascontiguousarray(vessels_XYZ == 0),
            to_world=np.diag([*spacing_mm, 1.0]) if to_world is None else np.asarray(to_world, dtype=np.float64),
        )
        self._minimum_inside = minimum_inside
        self.box: Box = self._ground.box

    def cut(self, shape: Mask, center: Voxel, *, may_leave: bool, may_overlap: bool = False) -> tuple[Box, Mask]:
        """Return the largest connected part of a shape that lies in the room, and its box in the array.

        Args:
            shape: Mask with odd sizes, one component, its middle voxel being the tumor's center.
            center: Where the middle goes.
            may_leave: Keep what lies outside the organ; the array's border cuts in any case.
            may_overlap: Keep what lies in other tumors; otherwise they cut.
        """
        box, mask, whole = self._remains(shape, center, may_leave=may_leave, may_overlap=may_overlap)
        return box, mask if whole else _largest_part(mask, np.subtract(center, box.start))

    def take(self, box: Box, mask: Mask) -> None:
        """Let a tumor take its place: its voxels and their neighbors are no longer free."""
        around = box.padded(1)
        inside = around.clipped(self._ground.organ.shape)
        self._ground.free[inside.slices] &= ~cut_to(dilated(np.pad(mask, 1)), around, inside)
        self._ground.crowded = True

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

        Where it fits nowhere, the distance demanded from the organ's surface and from other tumors is lowered in
        steps, and the tumor will be cut. That from vessels is not lowered. A reach of 16 voxels or more may lower the
        first two by up to a fifth of the reach, see ``candidates.listed``.

        Args:
            shape: The tumor's mask, its middle voxel being its center.
            reach_mm: Largest half-axis.
            generator: Source of the choice.
            may_leave: The organ's surface does not limit the place; the center is in the organ.
            centered: Take the organ voxel nearest to the organ's centroid, however much of the tumor is cut there.
            within: Where centers may lie, besides: a mask of the array, or a box of it and a mask of that size.
            vessel_clearance_mm: No vessel voxel is nearer to the center than the reach and this; None: vessels don't
                matter.
            may_overlap: Other tumors do not limit the place.
            by_slice: The rule of the published training recipe: a slice in the middle 30-70 % of the organ, more where
                that fails, then any voxel of the organ in it. The organ cuts the tumor, whatever the reach.

        Returns:
            The center, or None where no candidate keeps ``minimum_inside`` of the tumor.

        Raises:
            SynthesisError: ``within`` has another shape than the organ mask.
        """
        demand = Demand(reach_mm, may_leave, may_overlap, vessel_clearance_mm, self._ground.local(within))
        least = 1 if centered else self._least(shape)
        centers: Iterator[Voxel]
        if centered:
            centers = iter([self.middle] if self._ground.allows(self.middle, demand) else [])
        elif by_slice:
            centers = sliced(self._ground, demand, generator)
        else:
            centers = candidates(self._ground, demand, generator)
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
        """Whether a tumor may sit at a given center: in the organ, clear of vessels, and not cut too much.

        Args:
            shape: See ``find_center``, as for all that follow but the center.
            center: Any voxel, also one outside the array.
            reach_mm: See there.
            may_leave: See there.
            vessel_clearance_mm: See there.
            may_overlap: See there.
        """
        demand = Demand(reach_mm, may_leave, may_overlap, vessel_clearance_mm)
        return self._ground.allows(center, demand) and self._keeps(
            shape, center, self._least(shape), may_leave=may_leave, may_overlap=may_overlap
        )

    @property
    def middle(self) -> Voxel:
        """The organ voxel nearest to the organ's centroid."""
        return self._ground.middle

    @property
    def depth_mm(self) -> Distance:
        """Exact distance of each voxel of ``box`` to the nearest voxel outside the organ; 0 outside the organ."""
        return self._ground.depth_mm

    def _least(self, shape: Mask) -> int:
        return max(1, math.ceil(self._minimum_inside * np.count_nonzero(shape)))

    def _keeps(self, shape: Mask, center: Voxel, least: int, *, may_leave: bool, may_overlap: bool) -> bool:
        box, mask, whole = self._remains(shape, center, may_leave=may_leave, may_overlap=may_overlap)
        if whole or np.count_nonzero(mask) < least:
            return whole
        return bool(np.count_nonzero(_largest_part(mask, np.subtract(center, box.start))) >= least)

    def _remains(self, shape: Mask, center: Voxel, *, may_leave: bool, may_overlap: bool) -> tuple[Box, Mask, bool]:
        """Return the box of a shape in the array, what is left of the shape there, and whether that is all of it."""
        around = box_about(center, shape)
        box = around.clipped(self._ground.organ.shape)
        part = cut_to(shape, around, box)
        mask = part.copy()
        if not may_overlap and self._ground.crowded:
            mask &= self._ground.free[box.slices]
        if not may_leave:
            mask &= self._ground.organ[box.slices]
        return box, mask, bool(np.count_nonzero(mask) == np.count_nonzero(shape))


def take_all(room: Room, mask_XYZ: np.ndarray | None) -> None:
    """Let what is in a mask of the array, such as tumors that are there already, keep its place."""
    if mask_XYZ is not None and not (box := Box.around(mask_XYZ)).empty:
        room.take(box, mask_XYZ[box.slices] != 0)


def _largest_part(mask: Mask, center: np.ndarray) -> Mask:
    """Return the largest component of what is left of a tumor; its center is a voxel of the mask or outside it."""
    # Searching for components takes longest, so it is left out where there is certainly one.
    if (center >= 0).all() and (center < mask.shape).all() and leads_to(mask, center.tolist()):
        return mask
    return largest_component(mask)
