"""Small things that the synthesis tests share."""

from typing import Any

import numpy as np

from difftumor.synthesis.records import TumorRecord


def record(**changes: Any) -> TumorRecord:
    """Return a ball of 4 mm without deformation or blur, except for the changes."""
    values: dict[str, Any] = {
        "generator": "diffusion",
        "organ": "liver",
        "size": "tiny",
        "radius_mm": 4.0,
        "half_axes_mm": (4.0, 4.0, 4.0),
        "deformation_sigma_mm": 0.0,
        "shape_seed": 1,
        "center_voxel": (0, 0, 0),
        "center_mm": (0.0, 0.0, 0.0),
        "may_leave_organ": False,
        "texture_seed": 2,
        "blur_sigma_voxels": 0.0,
    }
    return TumorRecord(**{**values, **changes})


def ball(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    """Return a ball in the middle of an array."""
    offsets = [np.arange(n) - n // 2 for n in shape]
    x, y, z = np.meshgrid(*offsets, indexing="ij")
    mask: np.ndarray = x**2 + y**2 + z**2 <= radius**2
    return mask
