"""Lesions of a label map: connected components of tumor voxels, their size and place, and which are early."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from difftumor.scans.components import Components, equivalent_radius_mm, find_components
from difftumor.scans.grid import Grid, Voxel, triple
from difftumor.scans.organs import ORGAN

SizeGroup = Literal["early", "late"]
SIZE_GROUPS: tuple[SizeGroup, ...] = get_args(SizeGroup)

# Early-stage tumors are smaller than 2 cm.
EARLY_DIAMETER_MM = 20.0
# Smaller components are stray voxels of the annotation, not lesions that a texture can be learned from.
MINIMUM_VOXELS = 8


def size_group(
    diameter_mm: float, *, early_diameter_mm: float = EARLY_DIAMETER_MM, includes_limit: bool = False
) -> SizeGroup:
    """Return the size group of a tumor: early if it is smaller than 2 cm, late otherwise.

    Args:
        diameter_mm: Diameter of the ball of the same volume.
        early_diameter_mm: Limit between the groups.
        includes_limit: Whether a tumor of exactly the limit is early, as in the published models.
    """
    early = diameter_mm <= early_diameter_mm if includes_limit else diameter_mm < early_diameter_mm
    return "early" if early else "late"


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One connected component of tumor voxels.

    Attributes:
        index: Value of its voxels in ``LesionMap.indices``, from 1.
        voxels: Number of voxels.
        volume_mm3: Volume.
        diameter_mm: Diameter of the ball of the same volume.
        center_mm: Center of mass in the patient's space: right, anterior and superior of the scan's origin.
    """

    index: int
    voxels: int
    volume_mm3: float
    diameter_mm: float
    center_mm: tuple[float, float, float]

    @property
    def radius_mm(self) -> float:
        """Radius of the ball of the same volume."""
        return self.diameter_mm / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class LesionMap:
    """All lesions of one label map.

    Attributes:
        components: Where they are on the grid of voxels.
        lesions: In order of their index.
        grid: Where its voxels lie.
    """

    components: Components
    lesions: tuple[Lesion, ...]
    grid: Grid

    @property
    def indices(self) -> NDArray[np.uint32]:
        """Map (X, Y, Z) of the lesions' indices, 0 where there is no tumor."""
        return self.components.indices

    def voxels_of(self, lesion: Lesion) -> NDArray[np.intp]:
        """Return the voxels of a lesion, (N, 3)."""
        component = self.components.found[lesion.index - 1]
        return np.argwhere(self.indices[component.box.slices] == component.index) + np.asarray(component.box.start)

    def middle_voxel(self, lesion: Lesion) -> Voxel:
        """Return the voxel of a lesion nearest to its center of mass, which may itself lie outside."""
        voxels, centroid = self.voxels_of(lesion), self.components.found[lesion.index - 1].centroid
        distances_mm = np.linalg.norm((voxels - centroid) * np.asarray(self.grid.spacing_mm), axis=1)
        return triple(voxels[int(np.argmin(distances_mm))])

    def keep(self, indices: Iterable[int], labels_XYZ: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a copy of the labels in which all lesions except those of the given indices count as organ."""
        kept = np.zeros(len(self.lesions) + 1, dtype=bool)
        kept[list(indices)] = True
        labels = labels_XYZ.copy()
        labels[(self.indices > 0) & ~kept[self.indices]] = ORGAN
        return labels


def find_lesions(tumor_XYZ: NDArray[Any], grid: Grid) -> LesionMap:
    """Find the lesions of a tumor mask.

    Args:
        tumor_XYZ: Nonzero in tumors.
        grid: Where its voxels lie.

    Raises:
        ValueError: The mask is not on the grid.
    """
    if tumor_XYZ.shape != grid.shape:
        raise ValueError(f"mask {tumor_XYZ.shape} is not on the grid {grid.shape}")
    components = find_components(tumor_XYZ)
    centers_mm = components.centroids @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    voxel_mm3 = grid.voxel_mm3
    lesions = tuple(
        Lesion(
            index=index,
            voxels=voxels,
            volume_mm3=voxels * voxel_mm3,
            diameter_mm=2 * equivalent_radius_mm(voxels * voxel_mm3),
            center_mm=(x, y, z),
        )
        for index, (voxels, (x, y, z)) in enumerate(
            zip(components.voxels.tolist(), centers_mm.tolist(), strict=True), 1
        )
    )
    return LesionMap(components=components, lesions=lesions, grid=grid)


@dataclass(frozen=True, kw_only=True)
class SizeRule:
    """Which components of a label map are early lesions, which are late ones, and which are neither.

    Attributes:
        early_radius_mm: Limit between early and late lesions: radius of the ball of the same volume.
        early_includes_limit: Whether a lesion of exactly the limit is early, as in the published models.
        minimum_voxels: Smaller components belong to neither group.
    """

    early_radius_mm: float = EARLY_DIAMETER_MM / 2
    early_includes_limit: bool = False
    minimum_voxels: int = MINIMUM_VOXELS

    def group(self, lesion: Lesion) -> SizeGroup | None:
        """Return the size group of a lesion, None if it is too small to count."""
        if lesion.voxels < self.minimum_voxels:
            return None
        return size_group(
            lesion.diameter_mm,
            early_diameter_mm=2 * self.early_radius_mm,
            includes_limit=self.early_includes_limit,
        )

    def choose(self, lesions: LesionMap, group: SizeGroup) -> tuple[Lesion, ...]:
        """Return the lesions of a size group."""
        return tuple(lesion for lesion in lesions.lesions if self.group(lesion) == group)
