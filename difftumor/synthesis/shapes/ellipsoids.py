"""Tumor shapes: ellipsoids with elastic deformation, made in the tumor's own small box.

Hu et al. 2023, section 3.1: half-axes U(0.75 r, 1.25 r) and an elastic deformation controlled by σe, after Ronneberger
et al. 2015: random displacements at the points of a coarse 3 x 3 lattice, interpolated by cubics. A volume gets one in
each of its planes (x-y, x-z, y-z), constant along the third axis. Everything is computed on the CPU, in mm and in a
fixed order of rounded operations, so that labels are the same on every machine.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from difftumor.scans.components import find_components, leads_to
from difftumor.scans.grid import Box, Vector
from difftumor.seeding import numpy_generator
from difftumor.synthesis.records import TumorRecord

Array = NDArray[np.float32]
# Per axis, what adds up to the place of a voxel; see _terms.
Terms = list[tuple[Array, Array]]

# Lattice points per axis: the middle and both ends of the box, and one more on each side for the cubic.
_LATTICE = 5
# Normal displacements stay within this many σe, which the box leaves around the ellipsoid.
_REACH = 3.0
_PLANES = ((0, 1), (0, 2), (1, 2))
# Voxels computed at once, few enough for the processor's cache; a box of no more is not worth shrinking.
_AT_ONCE = 131_072
# The threshold found on every n-th voxel is off by less than this share, except for rare shapes that take longer.
_MARGIN = 0.05
# A tumor's shape is needed when it is drawn, judged and applied. These many are remembered.
_REMEMBERED = 32


def reach_mm(half_axis_mm: float, deformation_sigma_mm: float) -> float:
    """Return how far from its center a tumor may extend along an axis, deformation included."""
    return half_axis_mm + _REACH * deformation_sigma_mm


def tumor_shape(record: TumorRecord) -> np.ndarray:
    """Make the mask of one tumor.

    The deformed ellipsoid is {x : |(x + u(x)) / a|² ≤ c}. The displacement u is zero at the center, and c is chosen so
    that the mask has the ellipsoid's volume: the deformation changes the shape, neither place nor size.

    Args:
        record: Half-axes, deformation and spacing are read, nothing else.

    Returns:
        Boolean array, read-only, with odd sizes, whose middle voxel is the tumor's center: one 26-connected component,
        never empty, without empty slices at its faces except where symmetry about the center needs them.
    """
    return _shape(_Ellipsoid(record.half_axes_mm, record.deformation_sigma_mm, record.shape_seed, record.spacing_mm))


def farthest_mm(shape: np.ndarray, spacing_mm: Vector) -> float:
    """Return how far the farthest voxel of a shape is from its middle."""
    offsets_mm = (np.argwhere(shape) - np.array(shape.shape) // 2) * spacing_mm
    return float(np.sqrt((offsets_mm**2).sum(axis=1).max()))


class _Ellipsoid(NamedTuple):
    """What of a record decides its shape."""

    half_axes_mm: Vector
    deformation_sigma_mm: float
    shape_seed: int
    spacing_mm: Vector


@lru_cache(maxsize=_REMEMBERED)
def _shape(tumor: _Ellipsoid) -> np.ndarray:
    mask = _deformed(tumor)
    mask.setflags(write=False)
    return mask


def _deformed(tumor: _Ellipsoid) -> NDArray[np.bool_]:
    terms, middle = _terms(tumor)
    voxels = 4 / 3 * math.pi * math.prod(tumor.half_axes_mm) / math.prod(tumor.spacing_mm)
    guess = _guess(terms, middle, voxels)
    for bound in (guess * (1 + _MARGIN), math.inf):
        part = _part_below(terms, bound)
        level = _level(terms, part)
        threshold = _threshold(level, voxels, (guess * (1 - _MARGIN), bound))
        # Outside the part all values are above the bound, so a threshold up to it is that of the whole box.
        if threshold <= bound:
            break
    mask = level <= threshold
    if tumor.deformation_sigma_mm == 0:
        # Many voxels share a value, by symmetry: take them all or none, whichever is closer.
        without = level < threshold
        if without.any() and voxels - np.count_nonzero(without) < np.count_nonzero(mask) - voxels:
            mask = without
    mask = _cropped_about([m - side.start for m, side in zip(middle, part, strict=True)], mask)
    center = tuple(n // 2 for n in mask.shape)
    if leads_to(mask, center):
        return mask
    pieces = find_components(mask).indices
    return _cropped_about(center, pieces == pieces[center])


def _terms(tumor: _Ellipsoid) -> tuple[Terms, list[int]]:
    """Return where the deformation takes the voxels of the tumor's box, and the index of the box's middle.

    Per axis (x + u(x)) / a is the sum of two arrays, one for each plane that holds the axis; they have size 1 along the
    axis that the plane does not hold.
    """
    sigma = tumor.deformation_sigma_mm
    reaches = [reach_mm(axis, sigma) for axis in tumor.half_axes_mm]
    middle = [max(1, math.ceil(reach / step)) for reach, step in zip(reaches, tumor.spacing_mm, strict=True)]
    positions_mm = [np.arange(-n, n + 1) * step for n, step in zip(middle, tumor.spacing_mm, strict=True)]
    weights = [_catmull_rom(np.clip(p / reach, -1, 1)) for p, reach in zip(positions_mm, reaches, strict=True)]
    # σe controls the deformation as a whole: along each axis a displacement is the sum of two planes', so these have
    # σe / √2 each. In the lattice's middle there is none: the center stays.
    lattice_mm = numpy_generator(tumor.shape_seed, "elastic").standard_normal((3, 2, _LATTICE, _LATTICE))
    lattice_mm -= lattice_mm[:, :, _LATTICE // 2, _LATTICE // 2][:, :, None, None]
    fields: list[list[Array]] = [[], [], []]
    for plane, displacements_mm in zip(_PLANES, lattice_mm * (sigma / math.sqrt(2)), strict=True):
        for axis, displacement_mm in zip(plane, displacements_mm, strict=True):
            half_axis_mm = tumor.half_axes_mm[axis]
            lattice = (displacement_mm / half_axis_mm).astype(np.float32)
            field = _interpolated(lattice, weights[plane[0]], weights[plane[1]])
            if not fields[axis]:
                position = (positions_mm[axis] / half_axis_mm).astype(np.float32)
                field += position[:, None] if axis == plane[0] else position
            fields[axis].append(np.expand_dims(field, 3 - sum(plane)))
    return [(first, second) for first, second in fields], middle


def _guess(terms: Terms, middle: Sequence[int], voxels: float) -> float:
    """Return about the threshold, from every n-th voxel; infinity for a small box, which is not worth shrinking."""
    sizes = [2 * m + 1 for m in middle]
    if math.prod(sizes) <= _AT_ONCE:
        return math.inf
    step = max(2, min(sizes) // 16)
    level = _level(terms, tuple(slice(m % step, None, step) for m in middle))
    return _threshold(level, voxels / step**3)


def _threshold(level: Array, voxels: float, expected: tuple[float, float] = (0.0, math.inf)) -> float:
    """Return the c that gives a volume: the volume-th smallest value, infinity if there are fewer.

    Args:
        level: Values of all voxels.
        voxels: The volume.
        expected: Only values above the first and up to the second of these are sorted, if the result is among them.
    """
    rank = max(round(voxels), 1)
    if rank > level.size:
        return math.inf
    low, high = expected
    below = level <= low
    between = level[(level <= high) ^ below]
    inner = rank - int(np.count_nonzero(below))
    if not 0 < inner <= between.size:
        between, inner = level.ravel(), rank
    return float(np.partition(between, inner - 1)[inner - 1])


def _part_below(terms: Terms, bound: float) -> tuple[slice, slice, slice]:
    """Return a part of the box outside of which |(x + u(x)) / a|² is above a bound; it holds the middle."""
    part = [slice(0, term.shape[axis]) for axis, (term, _) in enumerate(terms)]
    # What is cut along one axis narrows the sums along the others, so a second round pays.
    for axis in (0, 1, 2, 0, 1, 2) if math.isfinite(bound) else ():
        others = tuple(other for other in range(3) if other != axis)
        sides = [slice(None) if i == axis else side for i, side in enumerate(part)]
        pair = [_cut(term, sides) for term in terms[axis]]
        lowest, highest = (sum(end(term, axis=others) for term in pair) for end in (np.min, np.max))
        # The least magnitude in a slice: 0 if the sum may change its sign. Rounding keeps the order of numbers.
        least = np.maximum(np.maximum(lowest, -highest), 0)
        inside = np.flatnonzero(least * least <= bound)
        part[axis] = slice(int(inside[0]), int(inside[-1]) + 1)
    return part[0], part[1], part[2]


def _cut(term: Array, part: Sequence[slice]) -> Array:
    """Cut a part of the box from an array that may have size 1 along an axis."""
    return term[tuple(slice(None) if n == 1 else side for n, side in zip(term.shape, part, strict=True))]


def _level(terms: Terms, part: Sequence[slice]) -> Array:
    """Return |(x + u(x)) / a|² in a part of the box, the sum of the axes' squares, (X, Y, Z)."""
    pairs = [[_cut(term, part) for term in pair] for pair in terms]
    shape = np.broadcast_shapes(*(term.shape for pair in pairs for term in pair))
    level = np.empty(shape, np.float32)
    rows = max(1, _AT_ONCE // math.prod(shape[1:]))
    scratch = np.empty((rows, *shape[1:]), np.float32)
    for start in range(0, shape[0], rows):
        slab = level[start : start + rows]
        for axis, pair in enumerate(pairs):
            first, second = (_cut(term, (slice(start, start + rows), slice(None), slice(None))) for term in pair)
            square = scratch[: len(slab)] if axis else slab
            np.add(first, second, out=square)
            np.multiply(square, square, out=square)
            if axis:
                slab += square
    return level


def _interpolated(lattice: Array, rows: Array, columns: Array) -> Array:
    """Return rows · lattice · columnsᵀ, summed in the order of the lattice points; a library's product may differ."""
    by_row = sum(rows[:, point, None] * lattice[point] for point in range(_LATTICE))
    field = by_row[:, 0, None] * columns[:, 0]
    for point in range(1, _LATTICE):
        field += by_row[:, point, None] * columns[:, point]
    return field


def _catmull_rom(position: NDArray[np.float64]) -> Array:
    """Return (points, _LATTICE) interpolation weights for positions in [-1, 1]; lattice points at -2, -1, 0, 1, 2."""
    cell = np.clip(np.floor(position), -1, 0)
    t = position - cell
    # The cubic through two points with the slopes of their neighbors (Catmull and Rom 1974); rows sum to one.
    cubic = [t * (t * (2 - t) - 1), t * t * (3 * t - 5) + 2, t * (t * (4 - 3 * t) + 1), t * t * (t - 1)]
    weights = np.zeros((len(position), _LATTICE), np.float32)
    np.put_along_axis(weights, cell.astype(int)[:, None] + 1 + np.arange(4), 0.5 * np.stack(cubic, axis=1), axis=1)
    return weights


def _cropped_about(middle: Sequence[int], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cut a mask so that a voxel is its middle, as close around what it holds as that allows."""
    box = Box.around(mask)
    halves = [max(m - a, b - 1 - m) for m, a, b in zip(middle, box.start, box.stop, strict=True)]
    whole = Box(
        (middle[0] - halves[0], middle[1] - halves[1], middle[2] - halves[2]),
        (middle[0] + halves[0] + 1, middle[1] + halves[1] + 1, middle[2] + halves[2] + 1),
    )
    cropped = np.zeros(whole.shape, dtype=bool)
    inside = tuple(slice(a - w, b - w) for a, b, w in zip(box.start, box.stop, whole.start, strict=True))
    cropped[inside] = mask[box.slices]
    return cropped
