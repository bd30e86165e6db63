"""The diameter and the contrast from which tumors are found: logistic regression on the logarithm of either."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.evaluation.cohort.statistics import LEAST_PATIENTS, LEVEL
from difftumor.evaluation.robustness.dimensions import Dimension
from difftumor.evaluation.robustness.scoring import TumorRow
from difftumor.seeding import numpy_generator

RESAMPLES = 1000
_POINTS = 81
# Fewer tumors give no curve.
_LEAST = 5
# Weight of slope² in the likelihood, in standard deviations of the logarithm: tiny, but enough to keep the slope finite
# if all tumors are found from some size on and none below.
_RIDGE = 0.02
_STEPS, _LONGEST_STEP, _LEAST_STEP = 60, 2.0, 1e-9
_LEAST_HU = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """Probability of detection over a quantity.

    Attributes:
        quantity: "diameter" or "contrast".
        unit: Unit of the quantity.
        tumors: Number of tumors.
        found: Number of tumors found.
        smallest: Least measured value.
        largest: Greatest measured value.
        half: Value at which half are found; None if it lies outside the measured range.
        half_low: Lower end of its 95 % interval by bootstrap over patients; None below the measured range.
        half_high: Upper end; None above the measured range.
        has_interval: Whether there are enough patients for an interval.
        why_not: Why ``half`` is None.
        x: Values of the quantity.
        probability: Probability of detection at ``x``.
        low: Lower ends of its intervals, or None.
        high: Upper ends.
        points: Level by level: mean of the quantity, tumors, tumors found.
    """

    quantity: str
    unit: str
    tumors: int
    found: int
    smallest: float
    largest: float
    half: float | None
    half_low: float | None
    half_high: float | None
    has_interval: bool
    why_not: str
    x: NDArray[np.float64]
    probability: NDArray[np.float64]
    low: NDArray[np.float64] | None
    high: NDArray[np.float64] | None
    points: tuple[tuple[float, int, int], ...]

    @property
    def sentence(self) -> str:
        """Where half of the tumors are found, in a sentence."""
        if self.half is None:
            return f"Half found by {self.quantity}: not reached, {self.why_not}."
        ends = self._end(self.half_low, "below", self.smallest), self._end(self.half_high, "above", self.largest)
        interval = f" (95 % interval: {ends[0]} to {ends[1]})" if self.has_interval else ""
        return f"Half of the tumors are found at a {self.quantity} of {self.put(self.half)}{interval}."

    def put(self, value: float) -> str:
        """Return a value with its unit: tenths of a millimeter, whole HU."""
        return f"{value:.{0 if self.unit == 'HU' else 1}f} {self.unit}"

    def _end(self, value: float | None, side: str, limit: float) -> str:
        return f"{side} {self.put(limit)}" if value is None else self.put(value)

    def to_plain(self) -> dict[str, Any]:
        """Return the numbers, for JSON."""
        names = ("quantity", "unit", "tumors", "found", "smallest", "largest", "half", "half_low", "half_high")
        return {
            **{name: getattr(self, name) for name in names},
            "has_interval": self.has_interval,
            "note": self.why_not,
        }


def diameter_curve(rows: Sequence[TumorRow], *, seed: int) -> Curve | None:
    """Return detection over diameter, from the tumors that vary in size; None for fewer than five."""
    return _curve([(row, row.diameter_mm) for row in rows if row.dimension == "size"], "diameter", "mm", seed)


def contrast_curve(rows: Sequence[TumorRow], intensity: Dimension, *, seed: int) -> Curve | None:
    """Return detection over absolute contrast, from the tumors that vary in intensity.

    Tumors requested on the other side of the organ's brightness than the mean (bright instead of dark ones) are another
    kind and left out. Those that merely ended up there count with the least contrast: they are the hardest to see.
    """
    sign = math.copysign(1.0, intensity.mean)
    pairs = [
        (row, max(sign * row.contrast_hu, _LEAST_HU))
        for row in rows
        if row.dimension == "intensity" and row.contrast_hu is not None and sign * row.value > 0
    ]
    return _curve(pairs, "contrast", "HU", seed)


def _curve(pairs: Sequence[tuple[TumorRow, float]], quantity: str, unit: str, seed: int) -> Curve | None:
    # Levels at the same limit share one tumor, which counts once.
    outermost_first = sorted(pairs, key=lambda pair: -abs(pair[0].level))
    pairs = list({(row.case, row.record): (row, value) for row, value in outermost_first}.values())
    if len(pairs) < _LEAST or len({value for _, value in pairs}) < 2:
        return None
    # Resamples must not depend on the order of scans.
    pairs = sorted(pairs, key=lambda pair: (pair[0].patient, pair[0].case, pair[0].level, pair[0].repeat))
    rows, values = [row for row, _ in pairs], np.array([value for _, value in pairs])
    found = np.array([row.found for row in rows], float)
    logs, limits = np.log(values), (float(values.min()), float(values.max()))
    grid = np.linspace(logs.min(), logs.max(), _POINTS)
    probability = _fitted(logs, found, np.ones((1, len(rows))), grid)[0]
    resamples = _resampled([row.patient for row in rows], seed)
    low = high = None
    ends: list[float] = []
    if resamples is not None:
        curves = _fitted(logs, found, resamples, grid)
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(curves, [tail, 1 - tail], axis=0)
        halves = np.array([_half(grid, curve) for curve in curves])
        ends = [
            float(np.quantile(halves, tail, method="lower")),
            float(np.quantile(halves, 1 - tail, method="higher")),
        ]
        ends = _widened(ends, logs, found)
    half = _half(grid, probability)
    shown = [None if not math.isfinite(end) else math.exp(end) for end in ends] or [None, None]
    levels = sorted({row.level for row in rows})
    return Curve(
        quantity=quantity, unit=unit, tumors=len(rows), found=int(found.sum()), smallest=limits[0], largest=limits[1],
        half=math.exp(half) if math.isfinite(half) else None, half_low=shown[0], half_high=shown[1],
        has_interval=resamples is not None, why_not=_why_not(probability, found, limits, quantity, unit),
        x=np.exp(grid), probability=probability, low=low, high=high,
        points=tuple(_point(rows, values, level) for level in levels),
    )  # fmt: skip


def _widened(ends: Sequence[float], logs: NDArray[np.float64], found: NDArray[np.float64]) -> list[float]:
    """Return the ends of an interval, extended over the gap between missed and found tumors if they do not overlap.

    Nobody knows where in the gap half are found: resamples hold tumors on both sides of it and agree by chance.
    """
    missed, seen = logs[found == 0], logs[found == 1]
    if not len(missed) or not len(seen) or missed.max() >= seen.min():
        return list(ends)
    return [min(ends[0], float(missed.max())), max(ends[1], float(seen.min()))]


def _point(rows: Sequence[TumorRow], values: NDArray[np.float64], level: int) -> tuple[float, int, int]:
    own = [index for index, row in enumerate(rows) if row.level == level]
    return float(values[own].mean()), len(own), sum(rows[index].found for index in own)


def _why_not(
    probability: NDArray[np.float64],
    found: NDArray[np.float64],
    limits: tuple[float, float],
    quantity: str,
    unit: str,
) -> str:
    """Return why a curve does not cross one half between the limits; empty if it does."""
    if found.all():
        return f"all were found, down to {limits[0]:.3g} {unit}"
    if not found.any():
        return f"none was found, up to {limits[1]:.3g} {unit}"
    if probability[-1] <= probability[0]:
        ends = (f"{p:.2f} at {limit:.3g} {unit}" for p, limit in zip(probability[[0, -1]], limits, strict=True))
        return f"detection does not rise with the {quantity} ({', '.join(ends)})"
    share = f"between {limits[0]:.3g} and {limits[1]:.3g} {unit}"
    if probability[0] > 0.5:
        return f"more than half are found everywhere {share}"
    return f"less than half are found everywhere {share}" if probability[-1] < 0.5 else ""


def _half(grid: NDArray[np.float64], probability: NDArray[np.float64]) -> float:
    """Return where a curve rises through one half; -inf if it is above, inf if it is below or falls."""
    rising = probability[-1] > probability[0]
    if not rising or probability[0] > 0.5 or probability[-1] < 0.5:
        return -math.inf if probability.mean() > 0.5 else math.inf
    return float(np.interp(0.5, probability, grid))


def _resampled(patients: Sequence[str], seed: int) -> NDArray[np.float64] | None:
    """Return (resamples, rows): how often each row occurs when patients are resampled; None for too few patients."""
    names = sorted(set(patients))
    if len(names) < LEAST_PATIENTS:
        return None
    generator = numpy_generator(seed, "detectability")
    counts = generator.multinomial(len(names), [1 / len(names)] * len(names), size=RESAMPLES)
    return counts[:, [names.index(patient) for patient in patients]].astype(float)


def _fitted(
    logs: NDArray[np.float64], found: NDArray[np.float64], weights: NDArray[np.float64], grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fit one curve per row of weights by Newton's method, and return its probabilities on a grid, (rows, points)."""
    middle, scale = logs.mean(), logs.std()
    z = (logs - middle) / scale
    intercept, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-(intercept[:, None] + slope[:, None] * z)))
        error, curvature = weights * (found - p), weights * p * (1 - p)
        g0, g1 = error.sum(1) - _RIDGE * intercept, (error * z).sum(1) - _RIDGE * slope
        h00, h01, h11 = curvature.sum(1) + _RIDGE, (curvature * z).sum(1), (curvature * z**2).sum(1) + _RIDGE
        determinant = h00 * h11 - h01**2
        steps = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        # Long steps overshoot on steep curves.
        shrink = np.minimum(1.0, _LONGEST_STEP / np.maximum(np.hypot(*steps), 1e-12))
        intercept, slope = intercept + shrink * steps[0], slope + shrink * steps[1]
        if np.hypot(*steps).max() < _LEAST_STEP:
            break
    on_grid: NDArray[np.float64] = (grid - middle) / scale
    result: NDArray[np.float64] = 1 / (1 + np.exp(-(intercept[:, None] + slope[:, None] * on_grid)))
    return result
