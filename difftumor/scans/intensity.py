"""The HU window that networks see, and how values are scaled for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Values = TypeVar("Values", NDArray[np.floating[Any]], "torch.Tensor")
NormalizationKind = Literal["unit", "zscore"]


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


@dataclass(frozen=True)
class Scale:
    """What a scan's HU become before a segmenter sees them: clipped, then ``(hu - offset_hu) / scale_hu``.

    Attributes:
        window: HU beyond it are clipped.
        offset_hu: HU that becomes 0.
        scale_hu: HU that make 1; above 0.
    """

    window: IntensityWindow
    offset_hu: float
    scale_hu: float

    def __call__(self, hu: Values) -> Values:
        """Scale HU of any shape."""
        return (hu.clip(self.window.low_hu, self.window.high_hu) - self.offset_hu) / self.scale_hu

    @property
    def lowest(self) -> float:
        """What air becomes."""
        return (self.window.low_hu - self.offset_hu) / self.scale_hu


@dataclass(frozen=True)
class Normalization:
    """How a segmenter wants its scans: in [0, 1], or with zero mean and unit deviation over the whole scan.

    Attributes:
        window: HU that the network sees.
        kind: ``"unit"`` (DiffTumor, E.2) or ``"zscore"`` (Hu et al., section 4).

    Raises:
        ValueError: The kind is unknown.
    """

    window: IntensityWindow
    kind: NormalizationKind = "unit"

    def __post_init__(self) -> None:
        if self.kind not in get_args(NormalizationKind):
            raise ValueError(f"a normalization is one of {', '.join(get_args(NormalizationKind))}, not {self.kind!r}")

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any]) -> "Normalization":
        """Return what an artifact's ``preprocessing`` states; those that say nothing are of kind ``"unit"``."""
        low_hu, high_hu = preprocessing["window_hu"]
        return cls(IntensityWindow(float(low_hu), float(high_hu)), preprocessing.get("normalization", "unit"))

    def scale(self, hu: Values) -> Scale:
        """Return the scale of a scan, in model space and whole, of any shape."""
        if self.kind == "unit":
            return Scale(self.window, self.window.low_hu, self.window.width_hu)
        values = np.asarray(hu)

        def mean_of(term: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
            # Slice by slice, as a scan in float64 would take gigabytes.
            slices = (values[..., z].astype(np.float64) for z in range(values.shape[-1]))
            parts = (term(part.clip(self.window.low_hu, self.window.high_hu)).sum() for part in slices)
            return float(sum(parts)) / values.size

        mean = mean_of(lambda hu: hu)
        deviation = mean_of(lambda hu: (hu - mean) ** 2) ** 0.5
        # A scan of one value is 0 but for rounding after its mean is taken away, whatever it is divided by.
        return Scale(self.window, mean, deviation if deviation > 1e-6 else 1.0)
