"""Shapes that are masks: of real tumors, and of tumors that a user asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.scans.components import equivalent_radius_mm
from difftumor.scans.distances import Mask
from difftumor.scans.grid import Box, Vector
from difftumor.synthesis.sizes import size_of


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskShape:
    """A tumor's shape, in model space.

    Args:
        mask: (X, Y, Z) bool with odd sizes, the middle of its box in the middle.
        spacing_mm: Voxel size.
    """

    mask: Mask
    spacing_mm: Vector

    @cached_property
    def radius_mm(self) -> float:
        """Radius of the ball of its volume."""
        return equivalent_radius_mm(np.count_nonzero(self.mask) * math.prod(self.spacing_mm))

    @property
    def size(self) -> str:
        """Its size class."""
        return size_of(self.radius_mm).name

    @cached_property
    def half_axes_mm(self) -> Vector:
        """Half-axes of an ellipsoid with its volume and the proportions of its box."""
        sides = np.multiply(Box.around(self.mask).shape, self.spacing_mm)
        x, y, z = (float(axis) for axis in self.radius_mm * sides / np.prod(sides) ** (1 / 3))
        return x, y, z


def odd_sized(array: NDArray[Any]) -> NDArray[Any]:
    """Pad an array at the ends of its axes, so that a voxel is its middle."""
    return np.pad(array, [(0, 1 - size % 2) for size in array.shape])
