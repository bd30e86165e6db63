"""Shapes in space: solids as signed distances (mm, negative inside), and the random fields that make them irregular."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float32]
Axes = tuple[Array, Array, Array]
Box = tuple[slice, slice, slice]
Point = Sequence[float] | NDArray[Any]
Path = Sequence[Point] | NDArray[Any]

# Largest displacement of a coordinate by the warp; boxes around solids are widened by it.
WARP_LIMIT_MM = 12.0
# Far enough from a surface that no voxel is partly covered.
FAR_MM = np.float32(50.0)
# Control points cover this cube around the origin, so that a field does not depend on the grid that samples it.
EXTENT_MM = 260.0
# Integral of the squared cubic B-spline: the variance of a field with unit-variance control points, per axis.
_SPLINE_POWER = 151.0 / 315.0


class SmoothField:
    """A zero-mean, unit-variance random function of position: a cubic B-spline with Gaussian control points.

    Args:
        wavelength_mm: Distance between control points; bumps are about twice as wide.
        generator: Source of the control points.
    """

    def __init__(self, *, wavelength_mm: float, generator: np.random.Generator) -> None:
        self.wavelength_mm = wavelength_mm
        count = int(np.ceil(2 * EXTENT_MM / wavelength_mm)) + 3
        self._controls = generator.standard_normal((count, count, count), dtype=np.float32)

    def sample(self, axes_mm: Axes) -> Array:
        """Return values (X, Y, Z) on the grid spanned by three coordinate axes in mm."""
        x, y, z = (self._basis(axis) for axis in axes_mm)
        values = np.einsum("ijk,ck->ijc", self._controls, z, optimize=True)
        values = np.einsum("ijc,bj->ibc", values, y, optimize=True)
        return np.einsum("ibc,ai->abc", values, x, optimize=True)

    def _basis(self, axis_mm: Array) -> Array:
        """Return (points, control points): the weight of each control point at each coordinate."""
        position = (np.clip(axis_mm, -EXTENT_MM, EXTENT_MM) + EXTENT_MM) / self.wavelength_mm + 1.0
        u = np.abs(position[:, None] - np.arange(self._controls.shape[0]))
        near = 2.0 / 3.0 - u**2 + 0.5 * u**3
        far = np.clip(2.0 - u, 0.0, None) ** 3 / 6.0
        return (np.where(u < 1.0, near, far) / np.sqrt(_SPLINE_POWER)).astype(np.float32)


def correlated_noise(
    shape: tuple[int, ...], *, sigma_voxels: tuple[float, ...], generator: np.random.Generator
) -> Array:
    """Return Gaussian noise of unit standard deviation whose neighbors are alike, as in reconstructed CT.

    Args:
        shape: Shape of the result.
        sigma_voxels: Width of the smoothing kernel per axis; 0 leaves an axis white.
        generator: Source of the noise.
    """
    noise = scipy.ndimage.gaussian_filter(
        generator.standard_normal(shape, dtype=np.float32), sigma_voxels, mode="wrap", truncate=3.0
    )
    return noise / max(float(noise.std()), 1e-6)


@dataclass(frozen=True, eq=False)
class Space:
    """A voxel grid, and for each voxel the place in the reference anatomy that it shows.

    Args:
        axes_mm: World coordinates (RAS, mm) along each axis.
        spacing_mm: Voxel size.
        scale: World mm per mm of the reference anatomy.
        coordinates: Reference coordinates x, y, z, each (X, Y, Z): the world scaled back and warped.
    """

    axes_mm: Axes
    spacing_mm: tuple[float, float, float]
    scale: tuple[float, float, float]
    coordinates: tuple[Array, Array, Array]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels per axis."""
        x, y, z = self.coordinates[0].shape
        return x, y, z

    @property
    def everything(self) -> Box:
        """The box of the whole grid."""
        x, y, z = self.shape
        return slice(0, x), slice(0, y), slice(0, z)

    def box(self, low: Point, high: Point) -> Box:
        """Return the voxels that can show reference coordinates from ``low`` to ``high``, perhaps none."""
        starts_stops = []
        for axis, scale, spacing, a, b in zip(self.axes_mm, self.scale, self.spacing_mm, low, high, strict=True):
            margin = WARP_LIMIT_MM + 2 * spacing
            start, stop = np.searchsorted(axis, ((a - margin) * scale, (b + margin) * scale))
            starts_stops.append(slice(int(start), int(stop)))
        return starts_stops[0], starts_stops[1], starts_stops[2]

    def at(self, box: Box) -> tuple[Array, Array, Array]:
        """Return the reference coordinates inside a box."""
        x, y, z = self.coordinates
        return x[box], y[box], z[box]

    def field(self, box: Box, field: SmoothField) -> Array:
        """Return the values of a smooth field inside a box."""
        x, y, z = self.axes_mm
        return field.sample((x[box[0]], y[box[1]], z[box[2]]))


@dataclass(frozen=True, eq=False)
class Solid:
    """Signed distances inside a box of the grid; everything beyond the box is outside the solid."""

    box: Box
    distance: Array

    def grown(self, amount: float | Array) -> "Solid":
        """Return the solid with its surface moved outward by ``amount`` mm."""
        return Solid(self.box, self.distance - np.asarray(amount, dtype=np.float32))

    def without(self, other: "Solid", *, smooth_mm: float = 0.0) -> "Solid":
        """Return this solid with ``other`` carved out."""
        shared = _intersection(self.box, other.box)
        if shared is None:
            return self
        distance = self.distance.copy()
        mine, theirs = _within(shared, self.box), _within(shared, other.box)
        distance[mine] = -smooth_minimum(-distance[mine], other.distance[theirs], smooth_mm)
        return Solid(self.box, distance)

    def include(self, other: "Solid") -> None:
        """Add ``other``, as far as it lies in this box, in place."""
        shared = _intersection(self.box, other.box)
        if shared is not None:
            view = self.distance[_within(shared, self.box)]
            np.minimum(view, other.distance[_within(shared, other.box)], out=view)

    def main_part(self) -> "Solid":
        """Return the solid without islands: only its largest connected part."""
        parts, count = scipy.ndimage.label(self.distance < 0)
        if count < 2:
            return self
        main = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
        # Islands go with their soft edge; the soft edge of the main part lies within one voxel of it.
        gone = ~scipy.ndimage.binary_dilation(main, np.ones((3, 3, 3), dtype=bool))
        return Solid(self.box, np.where(gone, np.maximum(self.distance, FAR_MM), self.distance))

    def joined(self, other_distance: Array, *, smooth_mm: float) -> "Solid":
        """Return the union with a solid given on the same box, with a fillet of ``smooth_mm``."""
        return Solid(self.box, smooth_minimum(self.distance, other_distance, smooth_mm))

    def inside(self, other_distance: Array, *, smooth_mm: float = 0.0) -> "Solid":
        """Return the intersection with a solid given on the same box."""
        return Solid(self.box, -smooth_minimum(-self.distance, -other_distance, smooth_mm))


def smooth_minimum(a: Array, b: Array, width: float) -> Array:
    """Return the minimum of two distances, rounded where they differ by less than ``width`` mm."""
    if width <= 0:
        return np.minimum(a, b)
    blend = np.clip(width - np.abs(a - b), 0.0, None)
    return np.minimum(a, b) - blend * blend * np.float32(0.25 / width)


def ellipsoid_distance(
    coordinates: tuple[Array, Array, Array], center: Point, half: Point, rotation: Array | None = None
) -> Array:
    """Return first-order signed distances to an ellipsoid.

    Args:
        coordinates: x, y, z of the points, mm.
        center: Center, mm.
        half: Half-axes, mm; infinite ones make a cylinder.
        rotation: (3, 3) whose rows are the directions of the half-axes; the axes of space by default.
    """
    relative = [c - np.float32(m) for c, m in zip(coordinates, center, strict=True)]
    if rotation is not None:
        relative = [sum(np.float32(w) * r for w, r in zip(row, relative, strict=True)) for row in rotation]  # type: ignore[misc]
    level = np.float32(1e-6)
    slope = np.float32(1e-12)
    for component, length in zip(relative, half, strict=True):
        if np.isfinite(length):
            level = level + np.square(component * np.float32(1.0 / length))
            slope = slope + np.square(component * np.float32(1.0 / length**2))
    level = np.sqrt(level)
    # f / |grad f| for f = |p / half| - 1: exact on the surface and for spheres.
    return (level * (level - np.float32(1.0)) / np.sqrt(slope)).astype(np.float32, copy=False)


def ellipsoid(space: Space, center: Point, half: Point, rotation: Array | None = None) -> Solid:
    """Return an ellipsoid; see ``ellipsoid_distance``."""
    reach = max(half)
    center = np.asarray(center)
    extents = np.full(3, reach) if rotation is not None else np.asarray(half)
    box = space.box(center - extents, center + extents)
    return Solid(box, ellipsoid_distance(space.at(box), center, half, rotation))


def tube(space: Space, points: Path, radii: Sequence[float], *, smooth_mm: float = 0.0) -> Solid:
    """Return a tube along a polyline, whose radius changes linearly from point to point.

    Args:
        space: Where to sample it.
        points: Corners, at least two, mm.
        radii: Radius at each corner, mm.
        smooth_mm: Fillet between consecutive pieces.
    """
    reach = max(radii)
    corners = np.asarray(points, dtype=np.float64)
    box = space.box(corners.min(0) - reach, corners.max(0) + reach)
    coordinates = space.at(box)
    distance: Array | None = None
    for a, b, ra, rb in zip(corners[:-1], corners[1:], radii[:-1], radii[1:], strict=True):
        piece = _segment_distance(coordinates, a, b, ra, rb)
        distance = piece if distance is None else smooth_minimum(distance, piece, smooth_mm)
    assert distance is not None
    return Solid(box, distance)


def _segment_distance(
    coordinates: tuple[Array, Array, Array], a: NDArray[Any], b: NDArray[Any], radius_a: float, radius_b: float
) -> Array:
    direction = (b - a).astype(np.float32)
    relative = [c - np.float32(m) for c, m in zip(coordinates, a, strict=True)]
    along = sum(d * r for d, r in zip(direction, relative, strict=True))
    t = np.clip(along / np.float32(max(float(direction @ direction), 1e-6)), 0.0, 1.0)
    squared = sum(np.square(r - d * t) for d, r in zip(direction, relative, strict=True))
    radius = np.float32(radius_a) + np.float32(radius_b - radius_a) * t
    return (np.sqrt(squared) - radius).astype(np.float32, copy=False)


def _intersection(a: Box, b: Box) -> Box | None:
    starts = [max(s.start, t.start) for s, t in zip(a, b, strict=True)]
    stops = [min(s.stop, t.stop) for s, t in zip(a, b, strict=True)]
    if any(start >= stop for start, stop in zip(starts, stops, strict=True)):
        return None
    return slice(starts[0], stops[0]), slice(starts[1], stops[1]), slice(starts[2], stops[2])


def _within(shared: Box, box: Box) -> Box:
    x, y, z = (slice(s.start - t.start, s.stop - t.start) for s, t in zip(shared, box, strict=True))
    return x, y, z
