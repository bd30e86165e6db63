"""One tumor, grown by thresholding a random field, so that it looks unlike an ellipsoid that was deformed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter, label, map_coordinates

from difftumor.datasets.phantom.fields import Array

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
        distance = map_coordinates(self.distance, places, order=1, cval=far)
        return distance, map_coordinates(self.strength, places, order=1, mode="nearest")


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
    field = _unit(gaussian_filter(generator.standard_normal(shape, dtype=np.float32), 0.33 / _STEP))
    arrival = np.sqrt(x * x + y * y + z * z) / np.float32(radius_mm) - np.float32(irregularity) * field
    arrival += np.float32(5.0 / radius_mm) * np.clip(outside_mm(offsets), 0.0, None)
    mask = _invaded(arrival, round(4.0 / 3.0 * np.pi / _STEP**3))
    inner = distance_transform_edt(mask)
    outer = distance_transform_edt(~mask)
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
        parts, _count = label(arrival <= threshold)
        mask = parts == parts[seed]
        size = int(mask.sum())
        if abs(size - volume) < miss:
            best, miss = mask, abs(size - volume)
        low, high = (threshold, high) if size < volume else (low, threshold)
        if miss * 100 < volume:
            break
    best[seed] = True
    return binary_fill_holes(best)


def _strength(distance: Array, mask: NDArray[np.bool_], radius_mm: float, generator: np.random.Generator) -> Array:
    """Return how strongly each place differs from the parenchyma: texture, and in larger tumors a rim and necrosis."""
    texture = _unit(gaussian_filter(generator.standard_normal(distance.shape, dtype=np.float32), 0.25 / _STEP))
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
