"""The endpoints of a group of cells, with intervals over patients and spread over seeds, and paired tests of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from difftumor.evaluation.cohort.statistics import (
    LEVEL,
    RESAMPLES,
    Interval,
    bootstrap_mean,
    holm,
    paired_test,
)
from difftumor.seeding import numpy_generator
from studies.evidence.records import CellScan, FoundBy

# The test scans of each seed; of all folds, in which a patient is tested once.
Runs = Mapping[int, Sequence[CellScan]]


@dataclass(frozen=True)
class Endpoint:
    """What is measured of a group.

    Args:
        name: In files.
        title: In tables.
        rate: False positives per scan at which the sensitivity is read; None for the mean tumor DSC.
        rule: When a tumor counts as found.
    """

    name: str
    title: str
    rate: float | None
    rule: FoundBy = "iou"


# Tests are of these.
PRIMARY = (
    Endpoint("sensitivity_0.5", "sensitivity at 0.5 FP per scan", 0.5),
    Endpoint("sensitivity_1", "sensitivity at 1 FP per scan", 1.0),
    Endpoint("tumor_dsc", "tumor DSC", None),
)
BESIDE = (
    Endpoint("any_overlap_0.5", "any overlap: at 0.5", 0.5, "overlap"),
    Endpoint("any_overlap_1", "any overlap: at 1", 1.0, "overlap"),
)


@dataclass(frozen=True, kw_only=True)
class EndpointValue:
    """An endpoint of a group.

    Args:
        value: Mean over the seeds; None if there is nothing to measure.
        interval: Of the mean, over patients; None for fewer than two.
        by_seed: The value of each seed; 0 where the operating point is not reached.
        unreached: Seeds that make more false positives per scan at every threshold.
        tumors: On which it rests.
        patients: On which it rests.
    """

    value: float | None
    interval: Interval | None
    by_seed: tuple[float, ...]
    unreached: int
    tumors: int
    patients: int

    def __str__(self) -> str:
        """Return value, interval and spread: ``0.42 [0.31, 0.53] ± 0.04``."""
        if self.value is None:
            return "–"
        if self.unreached == len(self.by_seed):
            return "not reached"
        text = f"{self.value:.2f}"
        if self.interval is not None:
            text += f" [{self.interval.low:.2f}, {self.interval.high:.2f}]"
        if len(self.by_seed) > 1:
            text += f" ± {stdev(self.by_seed):.2f}"
        return f"{text} (not reached by {self.unreached} of {len(self.by_seed)})" if self.unreached else text


def measured(runs: Runs, endpoint: Endpoint, *, seed: int = 0, level: float = LEVEL) -> EndpointValue:
    """Return an endpoint of a group.

    A sensitivity is read at the threshold that finds most at no more than the rate; the threshold is chosen anew in
    each resample of patients, as it was chosen by the same patients.

    Args:
        runs: Its scans.
        endpoint: What to measure.
        seed: Of the bootstrap.
        level: Of the interval.
    """
    first = next(iter(runs.values()))
    tumors, patients = sum(scan.tumors for scan in first), len({scan.patient for scan in first})
    if endpoint.rate is None:
        scores = per_patient(runs, endpoint)
        own = [per_patient({seed: scans}, endpoint) for seed, scans in runs.items()]
        by_seed = tuple(fmean(each.values()) for each in own if each)
        return EndpointValue(
            value=fmean(by_seed) if by_seed else None,
            interval=bootstrap_mean(list(scores.values()), seed=seed, level=level),
            by_seed=by_seed,
            unreached=0,
            tumors=tumors,
            patients=len(scores),
        )  # fmt: skip
    if not tumors:
        return EndpointValue(value=None, interval=None, by_seed=(), unreached=0, tumors=0, patients=patients)
    once = np.ones((1, patients))
    values = [_sensitivity(_counts(scans, endpoint.rule), once, endpoint.rate) for scans in runs.values()]
    by_seed = tuple(float(value[0]) for value, _ in values)
    interval = _interval(_resampled(runs, endpoint.rate, endpoint.rule, seed)[1:], level)
    return EndpointValue(
        value=fmean(by_seed),
        interval=interval,
        by_seed=by_seed,
        unreached=sum(not bool(reached[0]) for _, reached in values),
        tumors=tumors,
        patients=patients,
    )


def _resampled(runs: Runs, rate: float, rule: FoundBy, seed: int) -> NDArray[np.float64]:
    """Return the mean sensitivity of the seeds: as it is, then in each resample of patients, at thresholds of its own.

    Of one patient there is only the first. Groups of the same patients are resampled alike.
    """
    patients = len(_patients(runs))
    draws = numpy_generator(seed, "bootstrap").multinomial(patients, [1 / patients] * patients, size=RESAMPLES)
    weights_RP = np.concatenate([np.ones((1, patients)), draws[: RESAMPLES if patients > 1 else 0]])
    values = [_sensitivity(_counts(scans, rule), weights_RP, rate)[0] for scans in runs.values()]
    means: NDArray[np.float64] = np.mean(values, axis=0)
    return means


def _interval(values: NDArray[np.float64], level: float) -> Interval | None:
    """Return the percentiles of resampled values; None without any."""
    if not values.size:
        return None
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


@dataclass(frozen=True, eq=False)
class _Counts:
    """Counts of one seed: found and false at each threshold (P, T), tumors and scans (P,) of each patient."""

    found_PT: NDArray[np.float64]
    false_PT: NDArray[np.float64]
    tumors_P: NDArray[np.float64]
    scans_P: NDArray[np.float64]


def _counts(scans: Sequence[CellScan], rule: FoundBy) -> _Counts:
    """Sum over the scans of each patient, in the order of their names."""
    patients = sorted({scan.patient for scan in scans})
    own = [[scan for scan in scans if scan.patient == patient] for patient in patients]
    return _Counts(
        np.array([np.sum([scan.by(rule).froc_found for scan in some], axis=0) for some in own], np.float64),
        np.array([np.sum([scan.by(rule).froc_false for scan in some], axis=0) for some in own], np.float64),
        np.array([sum(scan.tumors for scan in some) for some in own], np.float64),
        np.array([len(some) for some in own], np.float64),
    )


def _sensitivity(
    counts: _Counts, weights_RP: NDArray[np.float64], rate: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the highest sensitivity at no more than the rate (R,), and whether any threshold has so few (R,)."""
    few_RT = np.asarray(weights_RP @ counts.false_PT <= rate * (weights_RP @ counts.scans_P)[:, None])
    tumors_R = weights_RP @ counts.tumors_P
    share_RT = (weights_RP @ counts.found_PT) / np.where(tumors_R > 0, tumors_R, np.nan)[:, None]
    best_R: NDArray[np.float64] = np.where(few_RT, share_RT, 0.0).max(axis=1)
    reached_R = np.asarray(few_RT.any(axis=1), np.bool_)
    return best_R, reached_R


def threshold_at(scans: Sequence[CellScan], rate: float, rule: FoundBy) -> int | None:
    """Return the number of the threshold at which a sensitivity is read; None if the rate is not reached.

    Of equal sensitivities it is that with the fewest false positives.
    """
    found = np.sum([scan.by(rule).froc_found for scan in scans], axis=0)
    false = np.sum([scan.by(rule).froc_false for scan in scans], axis=0)
    few = np.flatnonzero(false <= rate * len(scans))
    return int(min(few, key=lambda place: (-found[place], false[place]))) if few.size else None


def per_patient(runs: Runs, endpoint: Endpoint) -> dict[str, float]:
    """Return the endpoint of each patient with tumors, averaged over seeds: DSC, or the share of the tumors found.

    Every seed has the operating point that all its scans choose; where none is reached, nothing is found.
    """
    values: dict[str, list[float]] = {}
    for scans in runs.values():
        place = None if endpoint.rate is None else threshold_at(scans, endpoint.rate, endpoint.rule)
        for patient in dict.fromkeys(scan.patient for scan in scans if scan.tumors):
            own = [scan for scan in scans if scan.patient == patient and scan.tumors]
            if endpoint.rate is None:
                value = fmean(scan.tumor_dsc for scan in own if scan.tumor_dsc is not None)
            else:
                found = 0 if place is None else sum(scan.by(endpoint.rule).froc_found[place] for scan in own)
                value = found / sum(scan.tumors for scan in own)
            values.setdefault(patient, []).append(value)
    return {patient: fmean(each) for patient, each in values.items()}


@dataclass(frozen=True, kw_only=True)
class GroupTest:
    """A paired test of two groups.

    Args:
        first: The group that may find more.
        second: What it is compared with.
        endpoint: Of what.
        difference: Of the endpoint, the first less the second, on the patients that both have.
        interval: Of the difference; thresholds are chosen anew in each resample. None for fewer than two patients.
        patients: Of the test.
        p: Of the permutation of patients' values, at the thresholds that all patients have chosen.
        holm: Adjusted for all comparisons of the entry.
    """

    first: str
    second: str
    endpoint: Endpoint
    difference: float
    interval: Interval | None
    patients: int
    p: float
    holm: float


def compared(groups: Mapping[str, Runs], pairs: Sequence[tuple[str, str]], *, seed: int = 0) -> list[GroupTest]:
    """Test pairs of groups for all primary endpoints; pairs of which a group is missing are left out.

    Args:
        groups: By name.
        pairs: Names.
        seed: Of permutations and intervals.
    """
    found: dict[tuple[str, str, Endpoint], GroupTest] = {}
    for first, second in pairs:
        if first not in groups or second not in groups:
            continue
        patients = _patients(groups[first]) & _patients(groups[second])
        if not patients:
            continue
        both = [_only(groups[name], patients) for name in (first, second)]
        for endpoint in PRIMARY:
            ours, theirs = (per_patient(runs, endpoint) for runs in both)
            shared = sorted(ours)
            test = paired_test([theirs[name] for name in shared], [ours[name] for name in shared], seed=seed)
            if test is None:
                continue
            difference, interval = test.difference, test.interval
            if endpoint.rate is not None:
                mine, others = (_resampled(runs, endpoint.rate, endpoint.rule, seed) for runs in both)
                difference, interval = float(mine[0] - others[0]), _interval(mine[1:] - others[1:], LEVEL)
            found[first, second, endpoint] = GroupTest(
                first=first, second=second, endpoint=endpoint, difference=difference, interval=interval,
                patients=test.patients, p=test.permutation_p, holm=1.0,
            )  # fmt: skip
    adjusted = holm({name: test.p for name, test in found.items()})
    return [replace(test, holm=adjusted[name]) for name, test in found.items()]


def _patients(runs: Runs) -> set[str]:
    return {scan.patient for scans in runs.values() for scan in scans}


def _only(runs: Runs, patients: Collection[str]) -> Runs:
    return {seed: [scan for scan in scans if scan.patient in patients] for seed, scans in runs.items()}
