"""The picture that a phantom is painted on: HU with soft edges, labels with hard ones."""

import numpy as np
from numpy.typing import NDArray

from difftumor.datasets.phantom.fields import Array
from difftumor.datasets.phantom.solids import Solid, Space

AIR_HU = -1000.0


class Canvas:
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
        # A voxel is partly covered while its center is within half a voxel of the surface.
        self._edge_mm = float(np.mean(space.spacing_mm))

    def coverage(self, solid: Solid) -> Array:
        """Return the share (0 to 1) of each voxel of the solid's box that the solid fills."""
        return np.clip(np.float32(0.5) - solid.distance * np.float32(1.0 / self._edge_mm), 0.0, 1.0)

    def paint(self, solid: Solid, hu: float | Array, *, label: int | None = None, keep: int | None = None) -> None:
        """Paint a solid.

        Args:
            solid: What to paint.
            hu: Its attenuation, one value or one per voxel of its box.
            label: Label of its voxels; None leaves the labels as they are.
            keep: Label that must survive where it is already.
        """
        view = self.hu[solid.box]
        view += self.coverage(solid) * (np.asarray(hu, dtype=np.float32) - view)
        if label is not None:
            inside = solid.distance < 0
            labels = self.labels[solid.box]
            if keep is not None:
                inside &= labels != keep
            labels[inside] = label
