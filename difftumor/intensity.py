"""The HU window that networks see, and its two scalings."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Values = TypeVar("Values", NDArray[np.floating[Any]], torch.Tensor)


@dataclass(frozen=True)
class IntensityWindow:
    """A window of HU, mapped to [0, 1] ("unit") or [-1, 1] ("signed").

    All four methods take and return a NumPy array or a torch tensor of floats, of any shape. Going in clips to the
    window; coming back is its inverse inside the window, to rounding, and does not clip.

    Attributes:
        low_hu: HU that becomes 0 (unit) or -1 (signed).
        high_hu: HU that becomes 1.

    Raises:
        ValueError: The window is empty.
    """

    low_hu: float = -175.0
    high_hu: float = 250.0

    def __post_init__(self) -> None:
        if not self.low_hu < self.high_hu:
            raise ValueError(f"a window needs low_hu < high_hu, got {self.low_hu} and {self.high_hu}")

    @property
    def width_hu(self) -> float:
        """Width of the window."""
        return self.high_hu - self.low_hu

    def to_unit(self, hu: Values) -> Values:
        """Map HU to [0, 1]."""
        return (hu.clip(self.low_hu, self.high_hu) - self.low_hu) / self.width_hu

    def from_unit(self, unit: Values) -> Values:
        """Map [0, 1] to HU."""
        return unit * self.width_hu + self.low_hu

    def to_signed(self, hu: Values) -> Values:
        """Map HU to [-1, 1]."""
        return self.to_unit(hu) * 2.0 - 1.0

    def from_signed(self, signed: Values) -> Values:
        """Map [-1, 1] to HU."""
        return self.from_unit((signed + 1.0) / 2.0)
