"""Predictions on other grids than their labels."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from difftumor.errors import VolumeError
from difftumor.grids import Array, Grid
from difftumor.volume import Volume


def resampled(labels: Volume, like: Volume) -> Volume:
    """Carry a label map to another grid by nearest neighbor; what lies outside of it is background.

    Raises:
        VolumeError: The grids do not overlap.
    """
    return replace(labels, data=carried(labels.data, labels.grid, labels.path, like, order=0), grid=like.grid)


def carried(data: Array, grid: Grid, path: Path, like: Volume, *, order: Literal[0, 1]) -> Array:
    """Carry an array to another grid, with 0 outside of its own.

    Args:
        data: (X, Y, Z).
        grid: Its grid.
        path: Its file, for messages.
        like: What has the grid wanted.
        order: 0 for labels (nearest neighbor), 1 for probabilities (linear).

    Raises:
        VolumeError: The grids do not overlap.
    """
    to_data = np.linalg.inv(grid.affine) @ like.grid.affine
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in like.grid.shape], indexing="ij")).reshape(3, -1)
    seen = to_data[:3, :3] @ corners + to_data[:3, 3:]
    if (seen.max(1) < -0.5).any() or (seen.min(1) > np.array(grid.shape) - 0.5).any():
        raise VolumeError(f"{path} and {like.path} do not overlap in space: give the prediction of this scan.")
    return ndimage.affine_transform(
        data,
        to_data[:3, :3],
        to_data[:3, 3],
        like.grid.shape,
        order=order,
        mode="grid-constant",  # up to the outer faces of the outermost voxels, not to their centers
        output=data.dtype,
    )
