"""Lesions of a label map: 26-connected components of tumor voxels, with their size and place."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from difftumor.scans.components import Components, equivalent_radius_mm, find_components
from difftumor.scans.grid import Grid

SizeGroup = Literal["early", "late"]
SIZE_GROUPS: tuple[SizeGroup, ...] = get_args(SizeGroup)

# Early-stage tumors are smaller than 2 cm.
EARLY_DIAMETER_MM = 20.0


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
    """

    components: Components
    lesions: tuple[Lesion, ...]

    @property
    def indices(self) -> NDArray[np.uint32]:
        """Map (X, Y, Z) of the lesions' indices, 0 where there is no tumor."""
        return self.components.indices


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
    return LesionMap(components=components, lesions=lesions)
