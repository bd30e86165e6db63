"""Free-response operating characteristic (FROC) of tumor probabilities: lesions found against false positives per scan.

At each threshold the predicted lesions are the components of the voxels whose probability reaches it. They are matched
with the true lesions like those of a label map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import ConfigError
from difftumor.evaluation.metrics.detection import Matching, assign
from difftumor.scans.components import find_components
from difftumor.scans.grid import Box, Grid

# False positives per scan at which sensitivities are read and averaged (doi 10.1016/j.media.2017.06.015).
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
THRESHOLDS = (0.99, 0.975, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.025, 0.01)
# Probabilities are often stored as integers with a slope, so that 1 may be read as a little more.
_ROUNDING = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseFroc:
    """Counts of one scan at each threshold.

    Attributes:
        case: Id of the scan.
        thresholds: Falling, (T,).
        found: True lesions found, (T,).
        false_positives: Predicted lesions without a match, (T,).
        lesions: True lesions.
    """

    case: str
    thresholds: NDArray[np.float64]
    found: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    lesions: int


@dataclass(frozen=True, kw_only=True, eq=False)
class FrocCurve:
    """Counts over all scans at each threshold.

    Attributes:
        thresholds: Falling, (T,).
        found: True lesions found, (T,).
        false_positives: Predicted lesions without a match, (T,).
        lesions: True lesions.
        scans: Number of scans.
    """

    thresholds: NDArray[np.float64]
    found: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    lesions: int
    scans: int

    @property
    def sensitivity(self) -> NDArray[np.float64] | None:
        """Fraction of the true lesions found at each threshold, (T,); None if there are none."""
        return self.found / self.lesions if self.lesions else None

    @property
    def false_positives_per_scan(self) -> NDArray[np.float64]:
        """False positives per scan at each threshold, (T,)."""
        return self.false_positives / self.scans

    def sensitivity_at(self, rates: Sequence[float] = RATES) -> NDArray[np.float64] | None:
        """Return the highest sensitivity at no more than some numbers of false positives per scan.

        Nothing is interpolated: each value is reached at one of the thresholds. So it never falls from one rate to the
        next, although the curve itself may, where lesions merge. Below the first point of the curve it is 0, as if
        nothing were predicted; beyond the last point it stays at the highest value of the curve.

        Args:
            rates: False positives per scan, (R,).

        Returns:
            (R,); None without true lesions.
        """
        if self.sensitivity is None:
            return None
        reached = self.false_positives_per_scan <= np.asarray(rates, np.float64)[:, None]
        return np.where(reached, self.sensitivity, 0.0).max(axis=1)

    def mean_sensitivity(self, rates: Sequence[float] = RATES) -> float | None:
        """Return the mean of `sensitivity_at`; None without true lesions."""
        at = self.sensitivity_at(rates)
        return None if at is None else float(at.mean())


def falling_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Return thresholds once each, falling.

    Raises:
        ConfigError: One is not above 0 and at most 1.
    """
    if not all(0 < threshold <= 1 for threshold in thresholds):
        raise ConfigError(f"The thresholds {tuple(thresholds)} are not all above 0 and at most 1; correct them.")
    return tuple(sorted(set(map(float, thresholds)), reverse=True))


def case_froc(
    case: str,
    truth_tumor: NDArray[Any],
    probability: NDArray[Any],
    grid: Grid,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    matching: Matching = Matching(),  # noqa: B008 (frozen)
) -> CaseFroc:
    """Count lesions of one scan at each threshold.

    Args:
        case: Id of the scan.
        truth_tumor: Nonzero in true tumors, (X, Y, Z).
        probability: Of tumor, in [0, 1], (X, Y, Z).
        grid: Where the voxels lie.
        thresholds: At least one, as `falling_thresholds` returns them.
        matching: When a predicted lesion finds a true one.

    Raises:
        ValueError: An array is not on the grid, or a probability is not in [0, 1].
    """
    for array in (truth_tumor, probability):
        if array.shape != grid.shape:
            raise ValueError(f"an array {array.shape} is not on the grid {grid.shape}")
    if not (probability.min() >= -_ROUNDING and probability.max() <= 1 + _ROUNDING):
        raise ValueError(f"probabilities from {probability.min()} to {probability.max()} are not in [0, 1]")
    # Nothing is found or matched outside the box around the truth and what the lowest threshold finds.
    box = Box.joined([Box.around(probability >= thresholds[-1]), Box.around(truth_tumor)])
    truth, likely = find_components(truth_tumor[box.slices]), probability[box.slices]
    found, false = [], []
    for threshold in thresholds:
        predicted = find_components(likely >= threshold)
        matched = len(assign(truth, predicted, matching).truth)
        found.append(matched)
        false.append(len(predicted.voxels) - matched)
    return CaseFroc(
        case=case,
        thresholds=np.array(thresholds, np.float64),
        found=np.array(found, np.int64),
        false_positives=np.array(false, np.int64),
        lesions=len(truth.voxels),
    )


def froc_curve(cases: Sequence[CaseFroc]) -> FrocCurve:
    """Sum the counts of scans; in a bootstrap, a scan counts as often as it was drawn.

    Raises:
        ValueError: There are no scans, or their thresholds differ.
    """
    if not cases:
        raise ValueError("a curve needs at least one scan")
    thresholds = cases[0].thresholds
    if not all(np.array_equal(case.thresholds, thresholds) for case in cases):
        raise ValueError("the thresholds of the scans differ")
    return FrocCurve(
        thresholds=thresholds,
        found=np.sum([case.found for case in cases], axis=0),
        false_positives=np.sum([case.false_positives for case in cases], axis=0),
        lesions=sum(case.lesions for case in cases),
        scans=len(cases),
    )
