"""Candidates: voxels of an organ where a tumor's center may lie, in the order in which they are to be tried."""

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np

from difftumor.scans.distances import Mask, ball_ends, ball_in, look_up
from difftumor.scans.grid import Box, Voxel, triple
from difftumor.synthesis.ground import Demand, Ground, Limits, common_limits, draw_voxels, limits_mm, sorted_in_world

# A center is sought where the organ's surface is this share of the tumor's reach away; the first that works is taken.
_FIT_LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)
# Candidates tried at each level before the demand is lowered: bounds the work, whatever the organ.
_TRIES = 8
# Points drawn at once: few where each is tested by itself, more where a table answers for all.
_POINTS, _TABLE_POINTS = 192, 768
# Where distances are taken for all voxels, every n-th will do for a reach of 8 n voxels.
_COARSE = 8
# The published recipe: the middle 30-70 % of the organ's slices, and what it is widened to where that fails.
_SLICE_MARGINS = (0.3, 0.2, 0.1, 0.0)


def candidates(ground: Ground, demand: Demand, generator: np.random.Generator) -> Iterator[Voxel]:
    """Yield a bounded number of centers, the first uniform among those where the demand is met."""
    if demand.within is not None and not (ground.in_box & demand.within).any():
        return
    yield from islice(clear(ground, demand, generator), _TRIES)
    yield from listed(ground, demand, generator)


def clear(ground: Ground, demand: Demand, generator: np.random.Generator) -> Iterator[Voxel]:
    """Yield those of some random points whose surroundings are clear, each tested by itself, exactly."""
    within = demand.within
    limits = ground.limits if within is None else limits_mm(ground.in_box & within, ground.box_to_world)
    voxels = draw_voxels(generator, _POINTS, limits, ground.to_voxel)
    voxels = voxels[look_up(ground.organ, voxels, beyond=False)]
    if within is not None:
        voxels = voxels[look_up(within, voxels - ground.box.start, beyond=False)]
    if ground.erosion_voxels > 1:
        low, high = -(ground.erosion_voxels // 2), (ground.erosion_voxels + 1) // 2
        square = np.array([(x, y, 0) for x in range(low, high) for y in range(low, high)])
        voxels = voxels[look_up(ground.organ, voxels[:, None] + square, beyond=True).all(axis=1)]
    if not demand.may_leave:
        # Cheap and rejects nearly all that does not fit; and a ball whose ends are in the array is in it.
        ends = voxels[:, None] + ball_ends(demand.distance_mm, ground.spacing_mm)
        voxels = voxels[look_up(ground.organ, ends, beyond=not ground.closed).all(axis=1)]
    reach_mm = demand.distance_mm
    for x, y, z in voxels.tolist():
        center = (x, y, z)
        if not demand.may_leave and not ball_in(ground.organ, center, reach_mm, ground.spacing_mm):
            continue
        if ground.others_matter(demand) and not ball_in(ground.free, center, reach_mm, ground.spacing_mm):
            continue
        if ground.clear_of_vessels(center, demand):
            yield center


def listed(ground: Ground, demand: Demand, generator: np.random.Generator) -> Iterator[Voxel]:
    """Yield centers from tables of distances, for one level after the other; a few for each.

    For a reach of at least 16 voxels the distances from surface and tumors are taken on every second voxel, of 24
    on every third and so on. They are then off by up to a fifth of the reach, and more beside what is thinner than
    that. Distances from vessels are exact.
    """
    wanted = ground.wanted(demand)
    if not wanted.any():
        return
    wanted_limits = limits_mm(wanted, ground.box_to_world)
    steps = triple([max(1, int(demand.reach_mm / (_COARSE * step))) for step in ground.spacing_mm])
    distance = ground.cell_distance_mm(demand, steps)
    for level in _FIT_LEVELS:
        # At level 0 all that is wanted is allowed: a center is in the organ and in no other tumor.
        allowed = distance > level * demand.distance_mm if level else np.ones(distance.shape, bool)
        if allowed.any():
            yield from islice(_drawn(ground, wanted, wanted_limits, allowed, steps, generator), _TRIES)


def sliced(ground: Ground, demand: Demand, generator: np.random.Generator) -> Iterator[Voxel]:
    """Yield centers by the published rule: a slice near the organ's middle, then any voxel of the organ in it."""
    wanted = ground.wanted(demand)
    start, stop = (end[2] - ground.box.start[2] for end in (ground.tight.start, ground.tight.stop))
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
            yield ground.to_array((x, y, z))


def _drawn(
    ground: Ground, wanted: Mask, wanted_limits: Limits, allowed: Mask, steps: Voxel, generator: np.random.Generator
) -> Iterator[Voxel]:
    """Yield random voxels that are wanted and lie in allowed cells: random points, then picks from a list."""
    limits = common_limits(wanted_limits, limits_mm(allowed, ground.cells_to_world(steps)))
    voxels = draw_voxels(generator, _TABLE_POINTS, limits, ground.to_voxel) - ground.box.start
    voxels = voxels[look_up(wanted, voxels, beyond=False)]
    for voxel in voxels[allowed[tuple((voxels // steps).T)]].tolist():
        yield ground.to_array(voxel)
    cells = Box.around(allowed)
    slices = tuple(slice(a * s, b * s) for a, b, s in zip(cells.start, cells.stop, steps, strict=True))
    part, spread = wanted[slices], allowed[cells.slices]
    for axis, (step, size) in enumerate(zip(steps, part.shape, strict=True)):
        spread = spread.repeat(step, axis=axis).take(range(size), axis=axis)
    members = np.argwhere(part & spread) + np.array([side.start for side in slices])
    if len(members):
        members = sorted_in_world(members, ground.box_to_world)
        for index in generator.integers(len(members), size=_TRIES):
            yield ground.to_array(triple(members[index]))
