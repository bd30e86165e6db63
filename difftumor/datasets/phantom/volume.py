"""The HU and labels of a phantom: solids are painted with soft edges in HU and with hard ones in the labels."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from difftumor.datasets.phantom.solids import Array, Solid, Space

AIR_HU = -1000.0


class PhantomVolume:
    """HU and labels of one phantom; what is painted later lies on top.

    Args:
        space: The grid.

    Attributes:
        hu: (X, Y, Z) float32.
        labels: (X, Y, Z) uint8.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.hu: Array = np.full(space.shape, AIR_HU, dtype=np.float32)
        self.labels: NDArray[np.uint8] = np.zeros(space.shape, dtype=np.uint8)

    def coverage(self, solid: Solid) -> Array:
        """Return the share (0 to 1) of each voxel of the solid's box that the solid fills."""
        return coverage_of(solid.distance, self.space.spacing_mm)

    def paint(self, solid: Solid, hu: float | Array, *, label: int | None = None, keep: int | None = None) -> None:
        """Paint a solid.

        Args:
            solid: What to paint.
            hu: Its attenuation, one value or one per voxel of its box.
            label: Label of its voxels; None leaves the labels as they are.
            keep: Label whose voxels keep it.
        """
        view = self.hu[solid.box]
        view += self.coverage(solid) * (np.asarray(hu, dtype=np.float32) - view)
        if label is not None:
            inside = solid.distance < 0
            labels = self.labels[solid.box]
            if keep is not None:
                inside &= labels != keep
            labels[inside] = label


def coverage_of(distance: Array, spacing_mm: tuple[float, float, float], *, softness_mm: float = 0.0) -> Array:
    """Return the share (0 to 1) of each voxel that lies inside a surface.

    A voxel is partly covered while its center is within half a voxel of the surface, along the surface's normal.

    Args:
        distance: (X, Y, Z) signed distance to the surface in mm, negative inside.
        spacing_mm: Voxel size.
        softness_mm: Added to the width of the edge.
    """
    mean = float(np.mean(spacing_mm))
    inverse: Array | np.float32 = np.float32(1.0 / (mean + softness_mm))
    if max(spacing_mm) > 1.001 * min(spacing_mm):
        # Beyond half the widest edge a voxel is full or empty whatever the normal.
        near = np.flatnonzero(np.abs(distance) < 0.5 * (max(spacing_mm) + softness_mm))
        inverse = np.full(distance.shape, inverse, dtype=np.float32)
        inverse.reshape(-1)[near] = 1.0 / (_voxel_along_normal(distance, near, spacing_mm) + np.float32(softness_mm))
    return np.clip(np.float32(0.5) - distance * inverse, 0.0, 1.0)


def _voxel_along_normal(distance: Array, places: NDArray[np.intp], spacing_mm: tuple[float, float, float]) -> Array:
    """Return the size of a voxel along the gradient of the distance, mm, at flat indices.

    For a unit normal n and voxel size s it is √Σ (nᵢ sᵢ)², the width of the slab whose coverage varies as that of the
    voxel. Where the gradient vanishes, as in the middle of a thin layer, it is the mean size.
    """
    flat, mean = distance.reshape(-1), float(np.mean(spacing_mm))
    # A little weight of the mean size, which matters only where there is no gradient.
    weight = np.full(places.shape, 1e-3, dtype=np.float32)
    squared = weight * np.float32(mean**2)
    stride = 1
    for size, spacing in zip(distance.shape[::-1], spacing_mm[::-1], strict=True):
        index = places // stride % size
        before = np.where(index > 0, stride, 0)
        after = np.where(index < size - 1, stride, 0)
        steps = np.maximum((before + after) // stride, 1) * np.float32(spacing)
        slope = np.square((flat[places + after] - flat[places - before]) / steps.astype(np.float32))
        weight += slope
        squared += slope * np.float32(spacing**2)
        stride *= size
    return np.sqrt(squared / weight)


BACKGROUND = 0
LIVER = 1
PANCREAS = 2
KIDNEY_RIGHT = 3
KIDNEY_LEFT = 4
SPLEEN = 5

LABEL_NAMES: Mapping[str, int] = {
    "background": BACKGROUND,
    "liver": LIVER,
    "pancreas": PANCREAS,
    "kidney_right": KIDNEY_RIGHT,
    "kidney_left": KIDNEY_LEFT,
    "spleen": SPLEEN,
    "liver_tumor": 6,
    "pancreas_tumor": 7,
    "kidney_tumor": 8,
}

# Organ that a user may ask tumors for -> labels that it may grow in.
TUMOR_ORGANS: Mapping[str, tuple[int, ...]] = {
    "liver": (LIVER,),
    "pancreas": (PANCREAS,),
    "kidney": (KIDNEY_RIGHT, KIDNEY_LEFT),
}


def tumor_label(organ: str) -> int:
    """Return the label of the tumors of an organ."""
    return LABEL_NAMES[f"{organ}_tumor"]
