"""What differs from person to person: size, fat, where organs lie, how they enhance."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from difftumor.datasets.phantom.solids import WARP_LIMIT_MM, Array, Axes, Point, SmoothField, Space
from difftumor.seeding import Key, numpy_generator

# Mean attenuation of a tissue, and how much it spreads from person to person (standard deviation), in HU. The means
# are typical portal venous values of adults, about 70 s after injection, as general radiology texts give them; they are
# fitted to no data set. The spreads are our choice, smaller than in patients so that vessels stay visible in the liver:
# what depends on the timing of the scan most, kidneys and vessels, spreads more than parenchyma, and bone most.
PORTAL_VENOUS_HU: Mapping[str, tuple[float, float]] = {
    "fat": (-102.0, 5.0),
    "mesentery": (-90.0, 6.0),
    "skin": (20.0, 6.0),
    "muscle": (60.0, 5.0),
    "bowel": (55.0, 8.0),
    "bowel_wall": (85.0, 8.0),
    "fluid": (12.0, 4.0),
    "bile": (8.0, 4.0),
    "lung": (-830.0, 20.0),
    "heart": (150.0, 10.0),
    "aorta": (150.0, 10.0),
    "vena_cava": (140.0, 10.0),
    "portal_vein": (172.0, 10.0),
    "hepatic_vein": (160.0, 10.0),
    "liver": (110.0, 7.0),
    "spleen": (120.0, 7.0),
    "pancreas": (100.0, 7.0),
    "renal_cortex": (198.0, 12.0),
    "renal_medulla": (172.0, 12.0),
    "cortical_bone": (420.0, 40.0),
    "marrow": (170.0, 20.0),
    "disc": (85.0, 6.0),
    "cord": (35.0, 4.0),
}


@dataclass(frozen=True)
class Person:
    """One individual of a cohort; everything about it follows from (seed, index).

    Args:
        seed: Seed of the cohort.
        index: Number of the case.
    """

    seed: int
    index: int

    def generator(self, *keys: Key) -> np.random.Generator:
        """Return the random generator of one part, so that parts vary independently."""
        return numpy_generator(self.seed, "phantom", self.index, *keys)

    def hu(self, tissue: str) -> float:
        """Return this person's attenuation of a tissue."""
        mean, spread = PORTAL_VENOUS_HU[tissue]
        return mean + spread * float(np.clip(self.generator("hu", tissue).normal(), -2.0, 2.0))

    def place(self, part: str, center: Point, spread_mm: float = 4.0) -> NDArray[np.float64]:
        """Return a center moved by a random offset."""
        return np.asarray(center) + spread_mm * np.clip(self.generator("place", part).normal(size=3), -1.8, 1.8)

    def size(self, part: str, half: Point, spread: float = 0.06) -> NDArray[np.float64]:
        """Return half-axes changed by a random factor each."""
        return np.asarray(half) * np.exp(spread * np.clip(self.generator("size", part).normal(size=3), -1.8, 1.8))

    def tilt(self, part: str, degrees: Point, spread_degrees: float = 6.0) -> Array:
        """Return a rotation by angles about x, y and z, changed by random amounts; its rows are an organ's axes."""
        change = spread_degrees * np.clip(self.generator("tilt", part).normal(size=3), -1.8, 1.8)
        angles = np.deg2rad(np.asarray(degrees) + change)
        rotation = np.eye(3)
        for axis, angle in enumerate(angles):
            turn = np.eye(3)
            i, j = (axis + 1) % 3, (axis + 2) % 3
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = np.sin(angle), -np.sin(angle)
            rotation = turn @ rotation
        return rotation.astype(np.float32)

    def bumps(self, part: str, *, wavelength_mm: float) -> SmoothField:
        """Return a field that roughens a surface or a texture."""
        return SmoothField(wavelength_mm=wavelength_mm, generator=self.generator("bumps", part))

    def space(self, axes_mm: Axes, spacing_mm: tuple[float, float, float]) -> Space:
        """Lay the reference anatomy, scaled and warped to this person, over a voxel grid."""
        wide, deep, tall = np.exp(np.clip(self.generator("scale").normal(size=3), -1.8, 1.8) * (0.028, 0.045, 0.03))
        scale = (float(wide), float(deep), float(tall))
        grid = np.meshgrid(*(axis / np.float32(s) for axis, s in zip(axes_mm, scale, strict=True)), indexing="ij")
        warped = []
        for name, coordinate in zip("xyz", grid, strict=True):
            shift = self.bumps(f"warp {name}", wavelength_mm=90.0).sample(axes_mm) * np.float32(4.5)
            warped.append(coordinate + np.clip(shift, -WARP_LIMIT_MM, WARP_LIMIT_MM))
        return Space(axes_mm, spacing_mm, scale, (warped[0], warped[1], warped[2]))
