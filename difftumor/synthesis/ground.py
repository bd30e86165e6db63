"""The ground of tumors: an organ, and what limits a tumor's center in it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import SynthesisError
from difftumor.scans.distances import Distance, Mask, ball_in, cut_to, distance_mm, eroded_in_slices, look_up
from difftumor.scans.grid import Box, Vector, Voxel, triple

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


# Distances are compared with this share to spare, so that rounding never decides.
_SPARE = 1e-5


@dataclass(frozen=True, eq=False)
class Demand:
    """What a tumor demands of its center; see ``Room.find_center``.

    Args:
        reach_mm: Distance from the organ's surface and from other tumors.
        may_leave: The organ's surface does not matter.
        may_overlap: Other tumors don't matter.
        vessel_clearance_mm: Distance from vessels beyond the reach; None: they don't matter.
        within: Mask of ``Ground.box``, or None for all of it.
    """

    reach_mm: float
    may_leave: bool = False
    may_overlap: bool = False
    vessel_clearance_mm: float | None = None
    within: Mask | None = None

    @property
    def distance_mm(self) -> float:
        """What surface and tumors must be further away than; the reach, and a little so that rounding never decides."""
        return self.reach_mm * (1 + _SPARE)

    @property
    def vessel_distance_mm(self) -> float | None:
        """What vessels must be further away than. Hu et al. 2023, section 3.1: none within the tumor's radius."""
        clearance_mm = self.vessel_clearance_mm
        return None if clearance_mm is None else (self.reach_mm + clearance_mm) * (1 + _SPARE)


class Ground:
    """An organ, and what limits tumors in it.

    Args:
        organ: Mask with at least one voxel.
        spacing_mm: See ``Room``, as for all that follow but the vessels.
        erosion_voxels: See there.
        open_border: See there.
        to_world: See there.
        vessel_free: Where there is no vessel; None where vessels are not known.

    Attributes:
        crowded: Whether there are tumors; set by who takes voxels from ``free``.
        box: The organ's box and one voxel around it, inside the array.
        tight: The organ's box.
        closed: Whether the array's border counts as the organ's surface.
        to_voxel: (4, 4), mm to voxels.
    """

    def __init__(
        self,
        organ: Mask,
        spacing_mm: Vector,
        *,
        erosion_voxels: int,
        open_border: bool,
        to_world: Matrix,
        vessel_free: Mask | None = None,
    ) -> None:
        self.organ = organ
        self.crowded = False
        self.spacing_mm = spacing_mm
        self.erosion_voxels = erosion_voxels
        self.closed = not open_border
        self._vessel_free = vessel_free
        self.to_world = to_world
        self.to_voxel = np.linalg.inv(to_world)
        # Centers lie in the organ; one voxel around it is enough to see its surface.
        self.tight = Box.around(organ)
        self.box = self.tight.padded(1).clipped(organ.shape)

    def allows(self, center: Voxel, demand: Demand) -> bool:
        """Whether a center meets what is demanded at every level, the erosion apart."""
        voxel = np.array(center, dtype=np.int64)
        return bool(
            look_up(self.organ, voxel, beyond=False)
            and (not self.others_matter(demand) or self.free[center])
            and (demand.within is None or look_up(demand.within, voxel - self.box.start, beyond=False))
            and self.clear_of_vessels(center, demand)
        )

    def local(self, within: Mask | tuple[Box, Mask] | None) -> Mask | None:
        """Return what of a mask lies in ``box``.

        Args:
            within: Mask of the array, or a box of it and a mask of that size, or None.

        Raises:
            SynthesisError: A mask has another size.
        """
        if within is None:
            return None
        box, mask = within if isinstance(within, tuple) else (Box.whole(self.organ.shape), within)
        if mask.shape != box.shape:
            raise SynthesisError(f"A mask of shape {mask.shape} can't limit centers in {box.shape}: give it that size.")
        start, stop = np.maximum(box.start, self.box.start), np.minimum(box.stop, self.box.stop)
        result: Mask = np.zeros(self.box.shape, dtype=bool)
        if (start < stop).all():
            here, there = (
                tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))
                for origin in (self.box.start, box.start)
            )
            result[here] = mask[there] != 0
        return result

    @cached_property
    def free(self) -> Mask:
        """Where there is no tumor yet, nor a neighbor of one; ``crowded`` where it is not everywhere."""
        return np.ones_like(self.organ)

    @cached_property
    def middle(self) -> Voxel:
        """The organ voxel nearest to the organ's centroid."""
        organ = self.in_box
        counts = [organ.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
        centroid = np.array([np.average(np.arange(len(n)), weights=n) for n in counts])
        nearest = triple(np.rint(centroid))
        if not organ[nearest]:
            voxels = np.argwhere(organ)
            nearest = triple(voxels[np.argmin((((voxels - centroid) * self.spacing_mm) ** 2).sum(axis=1))])
        return self.to_array(nearest)

    @cached_property
    def depth_mm(self) -> Distance:
        """Exact distance of each voxel of ``box`` to the nearest voxel outside the organ."""
        # A closed border of the box changes nothing where the box ends inside the array.
        return distance_mm(self.in_box, self.spacing_mm, closed=self.closed)

    @property
    def in_box(self) -> Mask:
        """The organ in ``box``."""
        return self.organ[self.box.slices]

    @cached_property
    def box_to_world(self) -> Matrix:
        """(4, 4), voxels of ``box`` to mm."""
        return self.cells_to_world((1, 1, 1))

    @cached_property
    def limits(self) -> Limits:
        """The organ's box along the axes of the world, in mm."""
        return limits_mm(self.organ, self.to_world, self.tight)

    @cached_property
    def _eroded(self) -> Mask:
        if self.erosion_voxels <= 1:
            return self.in_box
        eroded = eroded_in_slices(self.in_box, self.erosion_voxels)
        return eroded if eroded.any() else self.in_box

    def to_array(self, local: Voxel) -> Voxel:
        """Return the voxel of the array that a voxel of ``box`` is."""
        return triple([i + s for i, s in zip(local, self.box.start, strict=True)])

    def cells_to_world(self, steps: Voxel) -> Matrix:
        """Return (4, 4), indices of cells of some voxels per axis in ``box`` to the mm of their middle."""
        to_voxel = np.diag([*steps, 1.0])
        to_voxel[:3, 3] = np.add(self.box.start, np.subtract(steps, 1) / 2)
        matrix: Matrix = self.to_world @ to_voxel
        return matrix

    def others_matter(self, demand: Demand) -> bool:
        """Whether there are tumors to keep away from."""
        return self.crowded and not demand.may_overlap

    def clear_of_vessels(self, center: Voxel, demand: Demand) -> bool:
        """Whether no vessel is too near to a voxel."""
        limit_mm = demand.vessel_distance_mm
        if self._vessel_free is None or limit_mm is None:
            return True
        return ball_in(self._vessel_free, center, limit_mm, self.spacing_mm)

    def wanted(self, demand: Demand) -> Mask:
        """Mask of ``box``: where a center may lie at every level."""
        wanted = self._eroded
        if demand.within is not None:
            wanted = wanted & demand.within
        if self.others_matter(demand):
            wanted = wanted & self.free[self.box.slices]
        limit_mm = demand.vessel_distance_mm
        if self._vessel_free is not None and limit_mm is not None and wanted.any():
            around = self.box.padded([int(limit_mm / step) for step in self.spacing_mm]).clipped(self.organ.shape)
            vessels_mm = distance_mm(self._vessel_free[around.slices], self.spacing_mm)
            wanted = wanted & (cut_to(vessels_mm, around, self.box) > limit_mm)
        return wanted

    def cell_distance_mm(self, demand: Demand, steps: Voxel) -> Distance:
        """Distance to the organ's surface and to other tumors, of one voxel in each cell; infinity if none matters."""
        spacing_mm = (self.spacing_mm[0] * steps[0], self.spacing_mm[1] * steps[1], self.spacing_mm[2] * steps[2])
        chosen = np.ix_(
            *(np.minimum(np.arange(0, n, s) + s // 2, n - 1) for n, s in zip(self.box.shape, steps, strict=True))
        )
        distance: Distance = np.full([side.size for side in chosen], np.inf, np.float32)
        if not demand.may_leave and steps == (1, 1, 1):
            distance = self.depth_mm
        elif not demand.may_leave:
            # A cell that belongs to no organ on each side where the organ ends: its surface may lie between two cells.
            ends = zip(self.box.start, self.box.stop, self.organ.shape, strict=True)
            sides = [(int(self.closed or a > 0), int(self.closed or b < n)) for a, b, n in ends]
            padded = distance_mm(np.pad(self.in_box[chosen], sides), spacing_mm)
            distance = padded[tuple(slice(a, size - b) for (a, b), size in zip(sides, padded.shape, strict=True))]
        if self.others_matter(demand):
            free = self.free[self.box.slices][chosen]
            distance = np.minimum(distance, distance_mm(free, spacing_mm))
        return distance
