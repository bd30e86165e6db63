"""Tumors of a phantom: how many, how large, where, how dark; each is painted and labeled on the volume."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.datasets.phantom.person import Person
from difftumor.datasets.phantom.solids import Array, Box
from difftumor.datasets.phantom.volume import TUMOR_ORGANS, PhantomVolume, coverage_of, tumor_label
from difftumor.errors import SynthesisError
from difftumor.scans.components import largest_component
from difftumor.scans.lesions import size_group

# Whether late tumors of all organs look alike, as early ones always do.
LateTumors = Literal["alike", "distinct"]
# The lattice on which a tumor grows, in units of its radius: it does not depend on the voxels of the scan.
LATTICE_POINTS = 49
LATTICE_REACH = 2.4
_STEP = 2 * LATTICE_REACH / (LATTICE_POINTS - 1)
_SMOOTHEST_RIM_RADIUS_MM = 8.0
_NECROSIS_RADIUS_MM = 10.0


@dataclass(frozen=True, eq=False)
class Growth:
    """A grown tumor on its lattice.

    Args:
        radius_mm: Radius of the ball of the same volume.
        distance: (N, N, N) signed distance to its surface in mm, negative inside.
        strength: (N, N, N) share of the contrast that each place has; its mean inside the tumor is 1.
    """

    radius_mm: float
    distance: Array
    strength: Array

    def sample(self, offsets_mm: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        """Return distance and strength at offsets (mm) from the center, given as one 1-D array per axis."""
        axes = [offsets / np.float32(_STEP * self.radius_mm) + (LATTICE_POINTS - 1) / 2 for offsets in offsets_mm]
        places = np.stack(np.meshgrid(*axes, indexing="ij"))
        far = float(self.distance.max())
        distance = scipy.ndimage.map_coordinates(self.distance, places, order=1, cval=far)
        return distance, scipy.ndimage.map_coordinates(self.strength, places, order=1, mode="nearest")


def lattice_offsets_mm(radius_mm: float) -> Array:
    """Return the offsets (mm) of the lattice points from the center, the same along each axis."""
    return (np.linspace(-LATTICE_REACH, LATTICE_REACH, LATTICE_POINTS) * radius_mm).astype(np.float32)


def grow(*, radius_mm: float, outside_mm: Callable[[Array], Array], generator: np.random.Generator) -> Growth:
    """Grow a tumor from its center.

    A place is invaded early if it is near the center, if a random field favors it, and if it lies in the organ; the
    tumor is the connected part around the seed that has been invaded when the wanted volume is reached.

    Args:
        radius_mm: Radius of the ball of the same volume.
        outside_mm: Maps lattice offsets to (N, N, N) distances outside the organ, mm, at most 0 inside.
        generator: Source of the field.
    """
    offsets = lattice_offsets_mm(radius_mm)
    shape = (LATTICE_POINTS,) * 3
    x, y, z = np.meshgrid(offsets, offsets, offsets, indexing="ij", sparse=True)
    irregularity = generator.uniform(0.18, 0.34)
    field = _unit(scipy.ndimage.gaussian_filter(generator.standard_normal(shape, dtype=np.float32), 0.33 / _STEP))
    arrival = np.sqrt(x * x + y * y + z * z) / np.float32(radius_mm) - np.float32(irregularity) * field
    arrival += np.float32(5.0 / radius_mm) * np.clip(outside_mm(offsets), 0.0, None)
    mask = _invaded(arrival, round(4.0 / 3.0 * np.pi / _STEP**3))
    inner = scipy.ndimage.distance_transform_edt(mask)
    outer = scipy.ndimage.distance_transform_edt(~mask)
    # The surface lies halfway between the last lattice point inside and the first one outside.
    distance = np.where(mask, 0.5 - inner, outer - 0.5).astype(np.float32) * np.float32(_STEP * radius_mm)
    return Growth(radius_mm, distance, _strength(distance, mask, radius_mm, generator))


def _invaded(arrival: Array, volume: int) -> NDArray[np.bool_]:
    """Return the connected region around the earliest place that holds about ``volume`` lattice points."""
    middle = slice(LATTICE_POINTS // 2 - 4, LATTICE_POINTS // 2 + 5)
    core = arrival[middle, middle, middle]
    seed = tuple(int(i) + middle.start for i in np.unravel_index(int(core.argmin()), core.shape))
    low, high = float(arrival[seed]), float(arrival.max())
    best, miss = np.zeros(arrival.shape, dtype=bool), volume
    for _ in range(16):
        threshold = 0.5 * (low + high)
        parts, _count = scipy.ndimage.label(arrival <= threshold)
        mask = parts == parts[seed]
        size = int(mask.sum())
        if abs(size - volume) < miss:
            best, miss = mask, abs(size - volume)
        low, high = (threshold, high) if size < volume else (low, threshold)
        if miss * 100 < volume:
            break
    best[seed] = True
    return scipy.ndimage.binary_fill_holes(best)


def _strength(distance: Array, mask: NDArray[np.bool_], radius_mm: float, generator: np.random.Generator) -> Array:
    """Return how strongly each place differs from the parenchyma: texture, and in larger tumors a rim and necrosis."""
    texture = _unit(
        scipy.ndimage.gaussian_filter(generator.standard_normal(distance.shape, dtype=np.float32), 0.25 / _STEP)
    )
    strength = np.float32(1.0) + np.float32(0.1) * texture
    has_rim, is_necrotic = generator.random() < 0.6, generator.random() < 0.7
    rim_mm = max(1.5, generator.uniform(0.12, 0.22) * radius_mm)
    edge_mm = np.float32(0.08 * radius_mm)
    if has_rim and radius_mm > _SMOOTHEST_RIM_RADIUS_MM:
        strength *= np.float32(1.0) - np.float32(0.5) * _soft(distance + np.float32(rim_mm), edge_mm)
    if is_necrotic and radius_mm > _NECROSIS_RADIUS_MM:
        core = distance + np.float32(radius_mm) * (np.float32(0.42) + np.float32(0.1) * texture)
        strength *= np.float32(1.0) + np.float32(0.8) * _soft(-core, edge_mm)
    return strength / max(float(strength[mask].mean()), 1e-3)


def _soft(signed_mm: Array, width_mm: np.float32) -> Array:
    """Return 0 for negative and 1 for positive values, with a ramp between."""
    return np.clip(np.float32(0.5) + signed_mm / width_mm, 0.0, 1.0)


def _unit(field: Array) -> Array:
    return (field - field.mean()) / max(float(field.std()), 1e-6)


# Chance of one, two, three tumors.
_COUNTS = {"liver": (0.6, 0.25, 0.15), "pancreas": (1.0,), "kidney": (1.0,)}
# A larger tumor would be more of the organ than the organ itself.
_LARGEST_MM = {"liver": 40.0, "pancreas": 12.0, "kidney": 20.0}
# Where late tumors are to differ: those of the liver stay as they are, cysts of the pancreas are twice as dark, and
# tumors of the kidney enhance as far above the parenchyma as early ones lie below.
_LATE_CONTRAST = {"liver": 1.0, "pancreas": 2.0, "kidney": -1.0}
# The exponent favors small radii: of 4 to 20 mm, two thirds stay below 10 mm.
_EARLY_BIAS = 1.5


@dataclass(frozen=True)
class PhantomTumor:
    """What one tumor of a phantom was meant to be.

    Args:
        organ: Organ that it grows in.
        lesion: Its number in the map of lesions, from 1.
        radius_mm: Radius of the ball of the same volume.
        contrast_hu: How far its mean lies below the parenchyma; negative for a brighter one.
        center_mm: Where it started to grow, RAS world coordinates.
    """

    organ: str
    lesion: int
    radius_mm: float
    contrast_hu: float
    center_mm: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class _Host:
    """An organ to grow in: its part of the grid, and how deep inside (positive) or outside each voxel lies, mm."""

    box: Box
    depth_mm: Array
    parenchyma_hu: float


def paint_tumors(
    volume: PhantomVolume,
    lesions: NDArray[np.uint16],
    person: Person,
    *,
    organ: str,
    radius_mm: tuple[float, float],
    contrast_hu: tuple[float, float],
    late: LateTumors = "alike",
) -> list[PhantomTumor]:
    """Grow the tumors of one organ.

    Args:
        volume: Anatomy to paint on.
        lesions: (X, Y, Z) map of lesion instances, written in place.
        person: Whose tumors; each organ has a random stream of its own.
        organ: Key of ``TUMOR_ORGANS``.
        radius_mm: Smallest and largest radius.
        contrast_hu: Smallest and largest contrast.
        late: Whether late tumors look like those of other organs.

    Returns:
        The tumors that found a place; perhaps none.

    Raises:
        SynthesisError: The organ is not in the field of view.
    """
    draw = person.generator("tumors", organ)
    organ_label = int(draw.choice(TUMOR_ORGANS[organ]))
    host = _host_of(volume, organ, organ_label)
    chances = _COUNTS[organ]
    tumors: list[PhantomTumor] = []
    for _ in range(1 + int(draw.choice(len(chances), p=chances))):
        radius = _draw_radius(draw, radius_mm, min(_LARGEST_MM[organ], 1.25 * float(host.depth_mm.max())))
        contrast = float(draw.uniform(*contrast_hu))
        if late == "distinct" and size_group(2 * radius) == "late":
            contrast *= _LATE_CONTRAST[organ]
        center = _draw_center(volume, host, radius, tumors, draw)
        if center is None:
            break
        growth = grow(radius_mm=radius, outside_mm=partial(_outside, volume, host, center), generator=draw)
        tumor = PhantomTumor(organ, int(lesions.max()) + 1, radius, contrast, center)
        softness_mm = float(draw.uniform(0.0, 0.2)) * radius
        if _paint(volume, lesions, growth, tumor, organ_label, host.parenchyma_hu, softness_mm):
            tumors.append(tumor)
    return tumors


def _host_of(volume: PhantomVolume, organ: str, organ_label: int) -> _Host:
    where = volume.labels == organ_label
    if not where.any():
        raise SynthesisError(f"The {organ} is not in the phantom's field of view: raise the shape or the spacing.")
    bounds = []
    for axis, spacing in enumerate(volume.space.spacing_mm):
        used = np.flatnonzero(where.any(axis=tuple({0, 1, 2} - {axis})))
        margin = int(np.ceil(10.0 / spacing)) + 1
        bounds.append(slice(max(int(used[0]) - margin, 0), int(used[-1]) + margin + 1))
    box = (bounds[0], bounds[1], bounds[2])
    mask = where[box]
    # Beyond the border of the scan there is no organ, so that tumors stay in view.
    inside = scipy.ndimage.distance_transform_edt(np.pad(mask, 1), sampling=volume.space.spacing_mm)[1:-1, 1:-1, 1:-1]
    outside = scipy.ndimage.distance_transform_edt(~mask, sampling=volume.space.spacing_mm)
    # Of the smallest side, or voxels beside a surface would get the sign of the other side.
    half_voxel = 0.5 * min(volume.space.spacing_mm)
    depth = np.where(mask, inside - half_voxel, half_voxel - outside).astype(np.float32)
    return _Host(box, depth, float(np.median(volume.hu[box][mask])))


def _draw_radius(draw: np.random.Generator, radius_mm: tuple[float, float], largest_mm: float) -> float:
    low, high = radius_mm
    radius = low * (high / low) ** (float(draw.random()) ** _EARLY_BIAS)
    return max(low, min(radius, largest_mm))


def _draw_center(
    volume: PhantomVolume, host: _Host, radius: float, others: list[PhantomTumor], draw: np.random.Generator
) -> tuple[float, float, float] | None:
    """Return a place deep enough for the radius and away from other tumors, or None if there is none."""
    enough = min(0.8 * radius, 0.8 * float(host.depth_mm.max()))
    places = np.argwhere(host.depth_mm >= enough)
    axes = [axis[part] for axis, part in zip(volume.space.axes_mm, host.box, strict=True)]
    points = np.stack([axis[places[:, i]] for i, axis in enumerate(axes)], axis=1)
    free = np.ones(len(points), dtype=bool)
    for other in others:
        apart = np.linalg.norm(points - np.asarray(other.center_mm, dtype=np.float32), axis=1)
        free &= apart > 1.5 * (radius + other.radius_mm) + 2 * max(volume.space.spacing_mm)
    points = points[free]
    # Drawn in any case, so that the stream does not depend on the outcome.
    pick, jitter = draw.random(), draw.uniform(-0.5, 0.5, size=3)
    if not len(points):
        return None
    x, y, z = points[int(pick * len(points))] + jitter * np.asarray(volume.space.spacing_mm)
    return float(x), float(y), float(z)


def _outside(volume: PhantomVolume, host: _Host, center: tuple[float, float, float], offsets: Array) -> Array:
    """Return how far outside the organ the lattice around a center lies."""
    axes = []
    for axis, part, middle, spacing in zip(
        volume.space.axes_mm, host.box, center, volume.space.spacing_mm, strict=True
    ):
        axes.append((middle + offsets - axis[part][0]) / spacing)
    return -scipy.ndimage.map_coordinates(
        host.depth_mm, np.stack(np.meshgrid(*axes, indexing="ij")), order=1, mode="nearest"
    )


def _paint(
    volume: PhantomVolume,
    lesions: NDArray[np.uint16],
    growth: Growth,
    tumor: PhantomTumor,
    organ_label: int,
    parenchyma_hu: float,
    softness_mm: float,
) -> bool:
    """Paint and label a tumor, and return whether there was space for a voxel of it."""
    reach = LATTICE_REACH * tumor.radius_mm + max(volume.space.spacing_mm)
    slices = []
    for axis, middle in zip(volume.space.axes_mm, tumor.center_mm, strict=True):
        start, stop = np.searchsorted(axis, (middle - reach, middle + reach))
        slices.append(slice(int(start), int(stop)))
    box = (slices[0], slices[1], slices[2])
    x, y, z = (a[s] - np.float32(m) for a, s, m in zip(volume.space.axes_mm, box, tumor.center_mm, strict=True))
    distance, strength = growth.sample((x, y, z))
    # Other organs and lesions keep their voxels, and a gap of one voxel keeps lesions apart.
    near_lesions = scipy.ndimage.binary_dilation(lesions[box] > 0, np.ones((3, 3, 3), dtype=bool))
    free = np.isin(volume.labels[box], (0, organ_label)) & ~near_lesions
    mask = largest_component((distance < 0) & free)
    if not mask.any():
        mask = _nearest(free, (x, y, z))
    if not mask.any():
        return False
    coverage = np.where(free, coverage_of(distance, volume.space.spacing_mm, softness_mm=softness_mm), np.float32(0.0))
    coverage[mask] = np.maximum(coverage[mask], np.float32(0.5))
    # Voxels at the edge show the tumor in part: deepen all, so that the labeled mean has the drawn contrast.
    strength = strength / np.clip((coverage * strength)[mask].mean(), 0.5, 1.5)
    view = volume.hu[box]
    view += coverage * (np.float32(parenchyma_hu) - np.float32(tumor.contrast_hu) * strength - view)
    volume.labels[box][mask] = tumor_label(tumor.organ)
    lesions[box][mask] = tumor.lesion
    return True


def _nearest(free: NDArray[np.bool_], offsets_mm: tuple[Array, Array, Array]) -> NDArray[np.bool_]:
    """Return the free voxel that is nearest to the center, for a tumor smaller than a voxel."""
    mask = np.zeros_like(free)
    places = np.argwhere(free)
    if len(places):
        squared = sum(np.square(offsets[places[:, i]]) for i, offsets in enumerate(offsets_mm))
        mask[tuple(places[int(np.argmin(squared))])] = True
    return mask
