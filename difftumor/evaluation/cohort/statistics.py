"""Intervals and paired tests: how far the numbers of an evaluation can be trusted.

Patients are independent, scans and tumors are not: scans of one patient are resampled, or swapped, together. All
randomness comes from a seed, so results repeat.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.errors import ConfigError
from difftumor.seeding import numpy_generator

Name = TypeVar("Name", bound=Hashable)
LEVEL = 0.95
RESAMPLES = 5000
PERMUTATIONS = 9999
# The signs of up to this many differences can be flipped in fewer ways than that.
_ALL_FLIPS = 13
# Fewer patients can be resampled or split in too few ways for an interval to say anything.
LEAST_PATIENTS = 4
# With fewer, intervals are too narrow, and a warning is due.
FEW_PATIENTS = 10


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Its lower end.
        high: Its upper end.
    """

    low: float
    high: float


def ends(interval: Interval | None) -> list[float] | None:
    """Return an interval for JSON."""
    return None if interval is None else [interval.low, interval.high]


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Comparison of two methods on the same patients.

    Attributes:
        patients: How many.
        first: Mean over the patients of the first method.
        second: Mean over the patients of the second method.
        difference: The second mean minus the first.
        interval: Of the difference; None for fewer than two patients.
        wilcoxon_p: Two-sided p of the Wilcoxon signed-rank test; zeros are ranked and left out (Pratt). Exact if
            at most 13 patients differ.
        permutation_p: Two-sided p of the test that swaps the methods patient by patient.
    """

    patients: int
    first: float
    second: float
    difference: float
    interval: Interval | None
    wilcoxon_p: float
    permutation_p: float


def wilson_interval(hits: int, total: int, *, level: float = LEVEL) -> Interval | None:
    """Return Wilson's interval of a proportion; None if the total is 0.

    Raises:
        ValueError: There are more hits than trials, or fewer than 0.
    """
    if not 0 <= hits <= total:
        raise ValueError(f"{hits} hits of {total} are not a proportion")
    if total == 0:
        return None
    found = scipy.stats.binomtest(hits, total).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


def bootstrap_mean(
    values: Sequence[float],
    patients: Sequence[Hashable] | None = None,
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Return the percentile interval of a mean over scans; whole patients are resampled.

    Args:
        values: One per scan, finite.
        patients: Whose scan it is; if None, each scan is a patient of its own.
        seed: The same seed gives the same interval, whatever the order of the scans.
        level: Share of the resampled means in the interval.
        resamples: How often patients are resampled.

    Returns:
        The interval; None for fewer than two patients, who say nothing about others.

    Raises:
        ValueError: Values and patients differ in number.
    """
    return bootstrap_ratio(values, [1.0] * len(values), patients, seed=seed, level=level, resamples=resamples)


def bootstrap_ratio(
    parts: Sequence[float],
    wholes: Sequence[float],
    patients: Sequence[Hashable] | None = None,
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Return the percentile interval of sum(parts) / sum(wholes) over scans; whole patients are resampled.

    Patients whose wholes sum to 0, such as those without tumors, do not count.

    Args:
        parts: One per scan.
        wholes: One per scan.
        patients: Whose scan it is; if None, each scan is a patient of its own.
        seed: The same seed gives the same interval, whatever the order of the scans.
        level: Share of the resampled ratios in the interval.
        resamples: How often patients are resampled.

    Returns:
        The interval; None for fewer than two patients that count.

    Raises:
        ValueError: Parts, wholes and patients differ in number.
    """
    owners = _owners(patients, len(parts))
    if len(parts) != len(wholes):
        raise ValueError(f"{len(parts)} parts and {len(wholes)} wholes differ in number")
    sums = np.zeros((2, max(owners, default=-1) + 1))
    for part, whole, owner in zip(parts, wholes, owners, strict=True):
        sums[:, owner] += part, whole
    sums = sums[:, sums[1] > 0]
    if sums.shape[1] < 2:
        return None
    sums = sums[:, np.lexsort(sums)]  # so that the order of the scans does not matter
    found = scipy.stats.bootstrap(
        (sums[0], sums[1]),
        lambda part, whole, axis: part.sum(axis) / whole.sum(axis),
        n_resamples=resamples,
        paired=True,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=numpy_generator(seed, "bootstrap"),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def paired_test(
    first: Sequence[float],
    second: Sequence[float],
    patients: Sequence[Hashable] | None = None,
    *,
    seed: int,
    level: float = LEVEL,
) -> PairedTest | None:
    """Test whether two methods differ on the same scans.

    Scans of one patient count as one, with their mean.

    Args:
        first: Scores of the first method, one per scan.
        second: Scores of the second method on the same scans.
        patients: Whose scan it is; if None, each scan is a patient of its own.
        seed: Of the interval and, for more than 13 patients, of the permutations; for fewer, all are tried.
        level: Of the interval.

    Returns:
        The tests; None without scans.

    Raises:
        ValueError: The numbers of values differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores are not of the same scans")
    if not first:
        return None
    owners = _owners(patients, len(first))
    before, after = (_patient_means(np.asarray(scores, np.float64), owners) for scores in (first, second))
    # Differences due to rounding alone are none.
    means = np.sort(np.round(after - before, 12))
    return PairedTest(
        patients=len(means),
        first=float(before.mean()),
        second=float(after.mean()),
        difference=float(means.mean()),
        interval=bootstrap_mean(means.tolist(), seed=seed, level=level),
        wilcoxon_p=_wilcoxon_p(means, seed),
        permutation_p=_permutation_p(means, seed),
    )


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Return p values adjusted for their number by Holm's step-down method, under the same names.

    The k-th smallest of m is multiplied by m − k + 1, and none may be smaller than the one before it.
    """
    adjusted: dict[Name, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def _wilcoxon_p(differences: NDArray[np.float64], seed: int) -> float:
    """Two-sided p of the signed ranks, exact if few differ: with zeros or ties SciPy would approximate it."""
    ranks = np.sign(differences) * scipy.stats.rankdata(np.abs(differences))
    ranks = ranks[ranks != 0]
    if len(ranks) <= _ALL_FLIPS:
        return _permutation_p(ranks, seed)
    return float(scipy.stats.wilcoxon(differences, zero_method="pratt").pvalue)


def _permutation_p(differences: NDArray[np.float64], seed: int) -> float:
    """Two-sided p of the mean when signs are flipped; all flips are tried if there are fewer than `PERMUTATIONS`."""
    if len(differences) < 2:  # Both signs are equally likely.
        return 1.0
    found = scipy.stats.permutation_test(
        (differences,),
        lambda values, axis: values.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=numpy_generator(seed, "permutations"),
    )
    return float(found.pvalue)


def _patient_means(values: NDArray[np.float64], owners: Sequence[int]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.bincount(owners, weights=values) / np.bincount(owners)
    return means


def _owners(patients: Sequence[Hashable] | None, count: int) -> list[int]:
    """Number the patients of scans, from 0."""
    if patients is None:
        return list(range(count))
    if len(patients) != count:
        raise ValueError(f"{count} values and {len(patients)} patients differ in number")
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    return [numbers[patient] for patient in patients]


def check_level(level: float) -> None:
    """Check a confidence level, once for all intervals.

    Raises:
        ConfigError: It is not between 0 and 1.
    """
    if not 0 < level < 1 or not math.isfinite(level):
        raise ConfigError(f"The confidence level is {level}: give a number between 0 and 1, such as 0.95.")
