"""Candidates: voxels of an organ where a tumor's center may lie, in the order in which they are tried."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.scans.distances import Distance, Mask, ball_ends, ball_in, cut_to, distance_mm, look_up
from difftumor.scans.grid import Box, Voxel, triple
from difftumor.synthesis.host import Host, Limits, Matrix, limits_mm, transformed

# A center is sought where the organ's surface is this share of the tumor's reach away; the first that works is taken.
_FIT_LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)
# Candidates tried at each level before the distance is lowered: bounds the work, whatever the organ.
_TRIES = 8
# Points drawn at once: few where each is tested by itself, more where a table answers for all.
_POINTS, _TABLE_POINTS = 192, 768
# Where distances are taken for all voxels, every n-th is enough for a reach of 8 n voxels.
_COARSE = 8
# The published recipe: the middle 30-70 % of the organ's slices, and what this is widened to if it fails.
_SLICE_MARGINS = (0.3, 0.2, 0.1, 0.0)
# Distances are compared with this share to spare, so that rounding never decides.
_SPARE = 1e-5
# Less than this is rounding.
_ROUNDING_MM = 1e-3

Voxels = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """Where the center of one tumor may lie in a host.

    Args:
        host: The organ.
        reach_mm: Distance that the center keeps from the organ's surface and from other tumors.
        may_leave: Whether the organ's surface does not matter.
        free: Mask of the array without other tumors and their neighbors; None if other tumors do not matter.
        vessel_clearance_mm: Distance from vessels beyond the reach; None if vessels do not matter.
        within: Mask of ``host.box`` to which centers are limited; None for all of it.
    """

    host: Host
    reach_mm: float
    may_leave: bool = False
    free: Mask | None = None
    vessel_clearance_mm: float | None = None
    within: Mask | None = None

    def allows(self, center: Voxel) -> bool:
        """Whether a center meets what is never lowered, erosion aside: in the organ, free and clear of vessels."""
        voxel = np.array(center, dtype=np.int64)
        return bool(
            look_up(self.host.mask, voxel, beyond=False)
            and (self.free is None or self.free[center])
            and (self.within is None or look_up(self.within, voxel - self.host.box.start, beyond=False))
            and self._clear_of_vessels(center)
        )

    def uniform(self, generator: np.random.Generator) -> Iterator[Voxel]:
        """Yield a bounded number of centers, the first uniform among those that keep the whole distance."""
        if self.within is not None and not (self.host.boxed & self.within).any():
            return
        yield from islice(self._tested(generator), _TRIES)
        yield from self._listed(generator)

    def in_slices(self, generator: np.random.Generator) -> Iterator[Voxel]:
        """Yield centers by the published rule: a slice near the organ's middle, then any voxel of the organ in it."""
        host, wanted = self.host, self._wanted()
        start, stop = (end[2] - host.box.start[2] for end in (host.organ_box.start, host.organ_box.stop))
        filled = np.flatnonzero(wanted.any(axis=(0, 1)))
        for margin in _SLICE_MARGINS:
            cut = margin * (stop - start)
            # The slices whose middle lies in the share; the middle one at least.
            low, high = math.ceil(start + cut - 0.5), math.floor(stop - cut - 0.5)
            slices = filled[(filled >= min(low, (start + stop) // 2)) & (filled <= max(high, (start + stop) // 2))]
            for _ in range(_TRIES if len(slices) else 0):
                z = int(slices[generator.integers(len(slices))])
                in_slice = np.argwhere(wanted[:, :, z])
                x, y = in_slice[generator.integers(len(in_slice))]
                yield self._in_array((x, y, z))

    @property
    def _distance_mm(self) -> float:
        """What surface and tumors must be further away than."""
        return self.reach_mm * (1 + _SPARE)

    @property
    def _vessel_distance_mm(self) -> float | None:
        """What vessels must be further away than. Hu et al. 2023, section 3.1: none within the tumor's radius."""
        clearance_mm = self.vessel_clearance_mm
        return None if clearance_mm is None else (self.reach_mm + clearance_mm) * (1 + _SPARE)

    def _clear_of_vessels(self, center: Voxel) -> bool:
        limit_mm = self._vessel_distance_mm
        return limit_mm is None or ball_in(self.host.vessel_free, center, limit_mm, self.host.spacing_mm)

    def _tested(self, generator: np.random.Generator) -> Iterator[Voxel]:
        """Yield those of some random points whose surroundings are clear, each tested by itself, exactly."""
        host, within, reach_mm = self.host, self.within, self._distance_mm
        limits = host.limits_mm if within is None else limits_mm(host.boxed & within, self._cells_to_world((1, 1, 1)))
        voxels = draw_voxels(generator, _POINTS, limits, host.to_voxel)
        voxels = voxels[look_up(host.mask, voxels, beyond=False)]
        if within is not None:
            voxels = voxels[look_up(within, voxels - host.box.start, beyond=False)]
        if (side := host.organ.erosion_voxels) > 1:
            low, high = -(side // 2), (side + 1) // 2
            square = np.array([(x, y, 0) for x in range(low, high) for y in range(low, high)])
            voxels = voxels[look_up(host.mask, voxels[:, None] + square, beyond=True).all(axis=1)]
        if not self.may_leave:
            # Cheap and rejects nearly all that does not fit; and a ball whose ends are in the array is in it.
            ends = voxels[:, None] + ball_ends(reach_mm, host.spacing_mm)
            voxels = voxels[look_up(host.mask, ends, beyond=host.open_border).all(axis=1)]
        for x, y, z in voxels.tolist():
            center = (x, y, z)
            if not self.may_leave and not ball_in(host.mask, center, reach_mm, host.spacing_mm):
                continue
            if self.free is not None and not ball_in(self.free, center, reach_mm, host.spacing_mm):
                continue
            if self._clear_of_vessels(center):
                yield center

    def _listed(self, generator: np.random.Generator) -> Iterator[Voxel]:
        """Yield centers from tables of distances, for one level after the other; a few for each.

        For a reach of at least 16 voxels the distances from surface and tumors are taken on every second voxel, for 24
        on every third and so on. They are then off by up to a fifth of the reach, and more beside what is thinner than
        that. Distances from vessels are exact.
        """
        wanted = self._wanted()
        if not wanted.any():
            return
        wanted_limits = limits_mm(wanted, self._cells_to_world((1, 1, 1)))
        steps = triple([max(1, int(self.reach_mm / (_COARSE * step))) for step in self.host.spacing_mm])
        distance = self._cell_distance_mm(steps)
        for level in _FIT_LEVELS:
            # At level 0 all that is wanted is allowed: a center is in the organ and in no other tumor.
            allowed = distance > level * self._distance_mm if level else np.ones(distance.shape, bool)
            if allowed.any():
                yield from islice(self._in_cells(wanted, wanted_limits, allowed, steps, generator), _TRIES)

    def _in_cells(
        self, wanted: Mask, wanted_limits: Limits, allowed: Mask, steps: Voxel, generator: np.random.Generator
    ) -> Iterator[Voxel]:
        """Yield random voxels that are wanted and lie in allowed cells: random points, then picks from a list."""
        limits = _common_limits(wanted_limits, limits_mm(allowed, self._cells_to_world(steps)))
        voxels = draw_voxels(generator, _TABLE_POINTS, limits, self.host.to_voxel) - self.host.box.start
        voxels = voxels[look_up(wanted, voxels, beyond=False)]
        for voxel in voxels[allowed[tuple((voxels // steps).T)]].tolist():
            yield self._in_array(voxel)
        cells = Box.around(allowed)
        slices = tuple(slice(a * s, b * s) for a, b, s in zip(cells.start, cells.stop, steps, strict=True))
        part, spread = wanted[slices], allowed[cells.slices]
        for axis, (step, size) in enumerate(zip(steps, part.shape, strict=True)):
            spread = spread.repeat(step, axis=axis).take(range(size), axis=axis)
        members = np.argwhere(part & spread) + np.array([side.start for side in slices])
        if len(members):
            members = _sorted_in_world(members, self._cells_to_world((1, 1, 1)))
            for index in generator.integers(len(members), size=_TRIES):
                yield self._in_array(triple(members[index]))

    def _wanted(self) -> Mask:
        """Mask of ``host.box``: where a center may lie at every level."""
        host, wanted = self.host, self.host.eroded
        if self.within is not None:
            wanted = wanted & self.within
        if self.free is not None:
            wanted = wanted & self.free[host.box.slices]
        limit_mm = self._vessel_distance_mm
        if limit_mm is not None and wanted.any():
            around = host.box.padded([int(limit_mm / step) for step in host.spacing_mm]).clipped(host.mask.shape)
            vessels_mm = distance_mm(host.vessel_free[around.slices], host.spacing_mm)
            wanted = wanted & (cut_to(vessels_mm, around, host.box) > limit_mm)
        return wanted

    def _cell_distance_mm(self, steps: Voxel) -> Distance:
        """Distance to the organ's surface and to other tumors, of one voxel in each cell; infinity if none matters."""
        host = self.host
        spacing_mm = (host.spacing_mm[0] * steps[0], host.spacing_mm[1] * steps[1], host.spacing_mm[2] * steps[2])
        chosen = np.ix_(
            *(np.minimum(np.arange(0, n, s) + s // 2, n - 1) for n, s in zip(host.box.shape, steps, strict=True))
        )
        distance: Distance = np.full([side.size for side in chosen], np.inf, np.float32)
        if not self.may_leave and steps == (1, 1, 1):
            distance = host.depth_mm
        elif not self.may_leave:
            # A cell outside the organ on each side where the organ ends: its surface may lie between two cells.
            closed, ends = not host.open_border, zip(host.box.start, host.box.stop, host.mask.shape, strict=True)
            sides = [(int(closed or a > 0), int(closed or b < n)) for a, b, n in ends]
            padded = distance_mm(np.pad(host.boxed[chosen], sides), spacing_mm)
            distance = padded[tuple(slice(a, size - b) for (a, b), size in zip(sides, padded.shape, strict=True))]
        if self.free is not None:
            distance = np.minimum(distance, distance_mm(self.free[host.box.slices][chosen], spacing_mm))
        return distance

    def _cells_to_world(self, steps: Voxel) -> Matrix:
        """Return (4, 4), indices of cells of some voxels per axis in ``host.box`` to the mm of their middle."""
        to_voxel = np.diag([*steps, 1.0])
        to_voxel[:3, 3] = np.add(self.host.box.start, np.subtract(steps, 1) / 2)
        matrix: Matrix = self.host.to_world @ to_voxel
        return matrix

    def _in_array(self, voxel: Any) -> Voxel:
        """Return the voxel of the array that a voxel of ``host.box`` is."""
        return triple(np.add(voxel, self.host.box.start))


def draw_voxels(generator: np.random.Generator, count: int, limits: Limits, to_voxel: Matrix) -> Voxels:
    """Draw points around a box and return the nearest voxels, (count, 3); some lie beside it or outside the array.

    The numbers drawn give points that repeat through the world with a period; for each, the one in a window of that
    size around the box is taken. When the box moves, points change at the window's ends and nowhere else. The period is
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
    return np.rint(transformed(points_mm, to_voxel)).astype(np.int64)


def _common_limits(first: Limits, second: Limits) -> Limits:
    """Return the box that two boxes share; a single point if they do not overlap."""
    low = np.maximum(first[0], second[0])
    return low, np.maximum(low, np.minimum(first[1], second[1]))


def _sorted_in_world(voxels: Voxels, to_world: Matrix) -> Voxels:
    """Return voxels (N, 3) in an order that does not depend on flips and permutations of the grid."""
    # Rounded, so that what lies in one plane of the world is not sorted by rounding errors.
    x, y, z = np.round(transformed(voxels, to_world) / _ROUNDING_MM).T
    return voxels[np.lexsort((z, y, x))]
