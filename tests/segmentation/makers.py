"""Small scans and segmenters for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from difftumor.models.artifact import save_artifact
from difftumor.models.segmenters import build_segmenter
from tests.nifti import write_nifti

SHAPE = (24, 20, 16)
AFFINE = np.array([[-1.0, 0, 0, 40], [0, -1.5, 0, 30], [0, 0, 2.0, -10], [0, 0, 0, 1]])


def organ() -> np.ndarray:
    """Return a mask of a box."""
    data = np.zeros(SHAPE, np.uint8)
    data[4:20, 4:16, 4:12] = 1
    return data


def scan(path: Path, seed: int = 0, **options: Any) -> Path:
    """Write a CT of the box in air."""
    noise = np.random.default_rng(seed).normal(0, 40, SHAPE)
    return write_nifti(path, np.where(organ() > 0, 60 + noise, -1000).astype(np.int16), AFFINE, **options)


def mask(path: Path, data: np.ndarray | None = None) -> Path:
    """Write a mask, by default that of the box."""
    return write_nifti(path, organ() if data is None else data, AFFINE)


def make_segmenter(path: Path, seed: int = 0, *, organ: str = "liver", spacing_mm: float = 2.0, crop: int = 16) -> Path:
    """Write the artifact of a small untrained network."""
    torch.manual_seed(seed)
    arguments = {"channels": [4, 8], "residual_units": 1}
    return save_artifact(
        path,
        kind="segmenter",
        architecture={"name": "unet", **arguments},
        network=build_segmenter("unet", **arguments),
        preprocessing={"spacing_mm": [spacing_mm] * 3, "window_hu": [-175, 250], "crop": [crop] * 3},
        organ=organ,
    )
