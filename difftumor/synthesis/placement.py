"""Placement: where in an organ a tumor's center may lie, and what remains of its shape there.

The same ``Room`` serves drawing and applying, so that a tumor is cut by organ and neighbors as it was when drawn.
"""

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from difftumor.components import largest_component
from difftumor.errors import SynthesisError
from difftumor.grids import Box, triple
from difftumor.synthesis.records import Triple, Voxel

Mask = NDArray[np.bool_]

# A center is sought where the organ's surface is this share of the tumor's reach away; the first that works is taken.
_FIT_LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)
# Candidates tried at each level before the demand is lowered: bounds the work, whatever the organ.
_TRIES = 8


class Room:
    """The room for tumors in one organ; it shrinks as tumors take their place.

    Args:
        organ_XYZ: Organ mask; any nonzero voxel counts.
        spacing_mm: Size of a voxel along each axis.
        erosion_voxels: Side of the square by which each axial slice of the organ is eroded before a center is
            chosen; 0 or 1 for none. Where nothing is left, the whole organ is used.
        minimum_inside: Least share of a tumor's volume that must remain after cutting, in (0, 1].
        open_border: Whether the organ is taken to go on beyond the array, as it does beyond a training crop; otherwise
            tumors keep away from the border as from the organ's surface.

    Raises:
        SynthesisError: The mask is empty.
    """

    def __init__(
        self,
        organ_XYZ: np.ndarray,
        spacing_mm: Triple = (1.0, 1.0, 1.0),
        *,
        erosion_voxels: int = 0,
        minimum_inside: float = 0.25,
        open_border: bool = True,
        vessels_XYZ=None,
        to_world=None,
    ) -> None:
        self._organ: Mask = np.ascontiguousarray(organ_XYZ != 0)
        if self._organ.ndim != 3 or not self._organ.any():
            raise SynthesisError("The organ mask holds no organ voxel, so no tumor can be placed: give another mask.")
        self._free: Mask = np.ones_like(self._organ)
        self._spacing_mm = spacing_mm
        self._erosion_voxels = erosion_voxels
        self._minimum_inside = minimum_inside
        self._open_border = open_border
        self._vessels = vessels_XYZ
        # Centers lie in the organ; one voxel around it is enough to see its surface.
        self._box = Box.around(self._organ).padded(1).clipped(self._organ.shape)
        self.box = self._box

    @property
    def depth_mm(self):
        return self._organ_distance_mm

    def fits_at(self, shape, center, *, reach_mm, may_leave=False, vessel_clearance_mm=None, may_overlap=False):
        _, kept = self.cut(shape, center, may_leave=may_leave, may_overlap=may_overlap)
        return np.count_nonzero(kept) >= max(1, math.ceil(self._minimum_inside * np.count_nonzero(shape)))

    def cut(self, shape: Mask, center: Voxel, *, may_leave: bool, may_overlap: bool = False) -> tuple[Box, Mask]:
        """Return the largest connected part of a shape that lies in the room, and its box in the array.

        Args:
            shape: Mask with odd sizes, its middle voxel being the tumor's center.
            center: Where the middle goes.
            may_leave: Keep what lies outside the organ; other tumors and the array's border cut in any case.
        """
        half = [size // 2 for size in shape.shape]
        whole = Box(
            triple([c - h for c, h in zip(center, half, strict=True)]),
            triple([c + h + 1 for c, h in zip(center, half, strict=True)]),
        )
        box = whole.clipped(self._organ.shape)
        part = shape[tuple(slice(a - w, b - w) for a, b, w in zip(box.start, box.stop, whole.start, strict=True))]
        mask = part & (True if may_overlap else self._free[box.slices])
        if not may_leave:
            mask &= self._organ[box.slices]
        return box, largest_component(mask)

    def take(self, box: Box, mask: Mask) -> None:
        """Let a tumor take its place: its voxels and their neighbors are no longer free."""
        around = box.padded(1)
        inside = around.clipped(self._free.shape)
        grown = ndimage.binary_dilation(np.pad(mask, 1), np.ones((3, 3, 3), dtype=bool))
        index = tuple(slice(a - s, b - s) for a, b, s in zip(inside.start, inside.stop, around.start, strict=True))
        self._free[inside.slices] &= ~grown[index]

    def find_center(
        self,
        shape: Mask,
        reach_mm: float,
        generator: np.random.Generator,
        *,
        may_leave: bool = False,
        centered: bool = False,
        within=None,
        vessel_clearance_mm=None,
        may_overlap=False,
        by_slice=False,
    ) -> Voxel | None:
        """Choose a center, uniformly among the voxels where the tumor fits.

        Where it fits nowhere, the distance demanded from the organ's surface and from other tumors is lowered in
        steps, and the tumor will be cut.

        Args:
            shape: The tumor's mask, its middle voxel being its center.
            reach_mm: Largest half-axis.
            generator: Source of the choice.
            may_leave: Only other tumors limit the place, not the organ's surface; the center is in the organ.
            centered: Take the organ voxel nearest to the organ's centroid, however much of the tumor is cut there.

        Returns:
            The center, or None where no candidate keeps ``minimum_inside`` of the tumor.
        """
        least = 1 if centered else max(1, math.ceil(self._minimum_inside * np.count_nonzero(shape)))
        distance_mm = self._distance_mm(may_leave=may_leave)
        wanted = self.middle if centered else self._eroded & self._free[self._box.slices]
        if within is not None:
            whole = np.zeros(self._organ.shape, bool)
            if isinstance(within, tuple):
                whole[within[0].slices] = within[1]
            else:
                whole = within
            wanted = wanted & whole[self._box.slices]
        if vessel_clearance_mm is not None and self._vessels.any():
            d = ndimage.distance_transform_edt(~self._vessels[self._box.slices], sampling=self._spacing_mm)
            wanted = wanted & (d > reach_mm + vessel_clearance_mm)
        for level in _FIT_LEVELS:
            candidates = np.flatnonzero(wanted & (distance_mm > level * reach_mm))
            if len(candidates) == 0:
                continue
            for index in generator.integers(len(candidates), size=_TRIES):
                local = np.unravel_index(candidates[index], wanted.shape)
                center = triple([int(i) + s for i, s in zip(local, self._box.start, strict=True)])
                _, kept = self.cut(shape, center, may_leave=may_leave)
                if np.count_nonzero(kept) >= least:
                    return center
        return None

    @cached_property
    def middle(self) -> Mask:
        """Mask of one voxel, within the organ's box: the organ voxel nearest to the organ's centroid."""
        voxels = np.argwhere(self._organ[self._box.slices])
        offsets_mm = (voxels - voxels.mean(axis=0)) * np.asarray(self._spacing_mm)
        mask: Mask = np.zeros(self._box.shape, dtype=bool)
        mask[tuple(voxels[np.argmin((offsets_mm**2).sum(axis=1))])] = True
        return mask

    @cached_property
    def _eroded(self) -> Mask:
        organ = self._organ[self._box.slices]
        if self._erosion_voxels <= 1:
            return organ
        side = self._erosion_voxels
        # Beyond the array the organ is taken to go on, so that a crop's border does not erode.
        eroded = ndimage.minimum_filter(organ.view(np.uint8), size=(side, side, 1), mode="nearest").astype(bool)
        return eroded if eroded.any() else organ

    @cached_property
    def _organ_distance_mm(self) -> NDArray[np.float32]:
        organ = self._organ[self._box.slices]
        if not self._open_border:
            # A rim of background closes the border; where the box ends inside the array it changes nothing.
            closed = ndimage.distance_transform_edt(np.pad(organ, 1), sampling=self._spacing_mm)
            return closed[1:-1, 1:-1, 1:-1].astype(np.float32)
        if organ.all():
            return np.full(organ.shape, np.inf, dtype=np.float32)
        return ndimage.distance_transform_edt(organ, sampling=self._spacing_mm).astype(np.float32)

    def _distance_mm(self, *, may_leave: bool) -> NDArray[np.float32]:
        """Distance in mm of each voxel of the organ's box to the nearest voxel where the tumor must not be."""
        free = self._free[self._box.slices]
        distance = np.full(free.shape, np.inf, np.float32) if may_leave else self._organ_distance_mm
        if free.all():
            return distance
        taken_mm = ndimage.distance_transform_edt(free, sampling=self._spacing_mm).astype(np.float32)
        return np.minimum(distance, taken_mm)
