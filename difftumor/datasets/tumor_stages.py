"""Early and late tumors: which lesions of a label map a diffusion model is trained on.

A lesion is a 26-connected component of tumor voxels; its equivalent radius is that of a ball of the same volume.
Early lesions have a radius of at most 10 mm (a diameter of 2 cm); late ones (mid and late stage) are larger.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from difftumor.errors import ConfigError
from difftumor.scans.components import Component, equivalent_radius_mm, find_components
from difftumor.scans.grid import Grid, triple
from difftumor.scans.organs import ORGAN, TUMOR

TumorStage = Literal["early", "late"]
TUMOR_STAGES: tuple[TumorStage, ...] = get_args(TumorStage)

EARLY_RADIUS_MM = 10.0
# Components below this are stray voxels of the annotation, not lesions that a texture can be learned from.
MINIMUM_VOXELS = 8


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One connected component of tumor voxels.

    Args:
        index: Value of its voxels in ``TumorSplit.lesions``, from 1.
        stage: ``"early"`` or ``"late"``, or None for a component too small to count as a lesion.
        voxels: Number of voxels.
        radius_mm: Equivalent radius.
        center: Voxel of the lesion that lies nearest to its centroid, (x, y, z).
    """

    index: int
    stage: TumorStage | None
    voxels: int
    radius_mm: float
    center: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class TumorSplit:
    """All components of one label map.

    Args:
        lesions: uint32 map (X, Y, Z), 0 where there is no tumor.
        found: The components in order of their index.
    """

    lesions: np.ndarray
    found: tuple[Lesion, ...]

    def of_stage(self, stage: TumorStage) -> tuple[Lesion, ...]:
        """Return the lesions of one stage."""
        return tuple(lesion for lesion in self.found if lesion.stage == stage)


def split_tumors(
    labels_XYZ: np.ndarray,
    spacing_mm: tuple[float, float, float],
    *,
    voxel_mm3: float | None = None,
    early_radius_mm: float = EARLY_RADIUS_MM,
    minimum_voxels: int = MINIMUM_VOXELS,
) -> TumorSplit:
    """Find the lesions of a label map and sort them by stage.

    Args:
        labels_XYZ: 0 background, 1 organ, 2 tumor.
        spacing_mm: Size of a voxel along each axis.
        voxel_mm3: Volume of a voxel, where the axes may be tilted; by default that of square ones.
        early_radius_mm: Largest equivalent radius of an early lesion.
        minimum_voxels: Smaller components belong to no stage.

    Raises:
        ConfigError: A size is not positive.
    """
    if not early_radius_mm > 0 or not min(spacing_mm) > 0:
        raise ConfigError(
            f"early_radius_mm ({early_radius_mm}) and spacing_mm ({tuple(spacing_mm)}) must be positive; correct them."
        )
    if voxel_mm3 is None:
        voxel_mm3 = math.prod(spacing_mm)
    components = find_components(labels_XYZ == TUMOR)
    found = []
    for component in components.found:
        radius_mm = equivalent_radius_mm(component.voxels * voxel_mm3)
        stage: TumorStage | None = "early" if radius_mm <= early_radius_mm else "late"
        if component.voxels < minimum_voxels:
            stage = None
        center = _nearest_voxel(components.indices, component, spacing_mm)
        lesion = Lesion(index=component.index, stage=stage, voxels=component.voxels, radius_mm=radius_mm, center=center)
        found.append(lesion)
    return TumorSplit(lesions=components.indices, found=tuple(found))


def keep_lesions(labels_XYZ: np.ndarray, split: TumorSplit, lesions: Iterable[Lesion]) -> np.ndarray:
    """Return a copy of the labels in which every component of tumor voxels but ``lesions`` counts as organ."""
    kept = np.zeros(len(split.found) + 1, dtype=bool)
    kept[[lesion.index for lesion in lesions]] = True
    labels = labels_XYZ.copy()
    labels[(split.lesions > 0) & ~kept[split.lesions]] = ORGAN
    return labels


def center_mm(lesion: Lesion, grid: Grid) -> tuple[float, float, float]:
    """Return where the center of a lesion lies: right, anterior and superior of the scan's origin.

    Args:
        lesion: Of a label map on the grid.
        grid: Where the voxels of that map lie.
    """
    x, y, z = (float(value) for value in grid.affine[:3, :3] @ lesion.center + grid.affine[:3, 3])
    return x, y, z


def _nearest_voxel(
    indices: np.ndarray, component: Component, spacing_mm: tuple[float, float, float]
) -> tuple[int, int, int]:
    """Return the voxel of a component nearest to its centroid, which may itself lie outside."""
    voxels = np.argwhere(indices[component.box.slices] == component.index) + component.box.start
    distances_mm = np.linalg.norm((voxels - component.centroid) * np.asarray(spacing_mm), axis=1)
    return triple(voxels[int(np.argmin(distances_mm))])
