"""What the scores of a cohort add up to: means, detection, intervals, and tests of one method against another."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median, stdev
from typing import Any

from difftumor.evaluation.cohort.cases import FRACTIONS, SCORES, CaseResult, ScoredCase
from difftumor.evaluation.cohort.methods import Method
from difftumor.evaluation.cohort.statistics import (
    LEVEL,
    bootstrap_mean,
    bootstrap_ratio,
    ends,
    holm,
    paired_test,
    wilson_interval,
)
from difftumor.evaluation.metrics.detection import RADIUS_BINS_MM, Match, Rate, summarize_detection
from difftumor.scans.lesions import size_group

# What is tested of a case, None where it does not count: overlap scores, the share of its lesions that were found, and
# its false positives.
MEASURES = {**FRACTIONS, "sensitivity": "Share of a scan's tumors found", "false_positives": "False positives per scan"}
TESTS = ("wilcoxon", "permutation")


def summarize(
    results: Sequence[CaseResult],
    *,
    patients: Mapping[str, str] | None = None,
    unlabeled: Collection[str] = (),
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Any]:
    """Return the summary of a cohort for ``summary.json``; what is undefined is None.

    Scores are summarized over all cases and over those with tumor, since a healthy scan without a predicted tumor
    scores 1 and with one 0. Scans without labels count only in the detection.

    Args:
        results: One per scan.
        patients: The patient of each scan, by case; if None, each scan is a patient of its own.
        unlabeled: Ids of healthy scans without labels.
        seed: Of the intervals.
        level: Of the intervals.
    """
    labeled = [result for result in results if result.case not in unlabeled]
    ill = [result for result in labeled if not result.healthy]
    owners = {result.case: (patients or {}).get(result.case, result.case) for result in results}

    def scores(some: Sequence[CaseResult]) -> dict[str, dict[str, Any]]:
        return {name: _statistics(name, some, owners, seed=seed, level=level) for name in SCORES}

    return {
        "cases": len(results),
        "cases_with_tumor": len(ill),
        "healthy_cases": len(results) - len(ill),
        "unlabeled_cases": len(results) - len(labeled),
        "patients": len(set(owners.values())),
        "scores": {"all_cases": scores(labeled), "cases_with_tumor": scores(ill)},
        "detection": _detection(results, owners, seed=seed, level=level),
    }


def compare_methods(
    first: Method, others: Mapping[str, Method], *, seed: int = 0, level: float = LEVEL
) -> dict[str, dict[str, Any]]:
    """Test every other method against the first, on the scans that both have.

    Args:
        first: What the others are compared with.
        others: By name.
        seed: Of intervals and permutations.
        level: Of the intervals.

    Returns:
        By method and measure: ``cases``, ``patients``, ``first`` and ``second`` (means over the patients of the shared
        scans), ``difference`` (second minus first), its ``interval``, ``wilcoxon_p``, ``permutation_p``, and both
        adjusted by Holm over all methods and measures (``wilcoxon_holm``, ``permutation_holm``). A measure that no
        shared scan has is left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, other in others.items():
        mine, theirs = first.by_case(), other.by_case()
        shared = [(mine[case], theirs[case]) for case in mine if case in theirs]
        rows = {measure: _test(measure, shared, seed=seed, level=level) for measure in MEASURES}
        found[name] = {measure: row for measure, row in rows.items() if row is not None}
    for test in TESTS:
        p_values = {(name, measure): row[f"{test}_p"] for name, rows in found.items() for measure, row in rows.items()}
        for (name, measure), adjusted in holm(p_values).items():
            found[name][measure][f"{test}_holm"] = adjusted
    return found


def _test(
    measure: str, shared: list[tuple[ScoredCase, ScoredCase]], *, seed: int, level: float
) -> dict[str, Any] | None:
    pairs = [(_measured(measure, mine), _measured(measure, theirs), mine.pair.patient) for mine, theirs in shared]
    counted = [(a, b, patient) for a, b, patient in pairs if a is not None and b is not None]
    first, second = [a for a, _, _ in counted], [b for _, b, _ in counted]
    patients = [patient for _, _, patient in counted]
    found = paired_test(first, second, patients, seed=seed, level=level)
    if found is None:
        return None
    return {"cases": len(counted), **asdict(found), "interval": ends(found.interval)}


def _measured(measure: str, case: ScoredCase) -> float | None:
    detection = case.result.detection
    if measure == "false_positives":
        return float(len(detection.false_positives))
    if measure == "sensitivity":
        return None if case.healthy else detection.found / len(detection.matches)
    return case.score(measure)


def _statistics(
    score: str, results: Sequence[CaseResult], owners: Mapping[str, str], *, seed: int, level: float
) -> dict[str, Any]:
    part = score.split("_")[0]
    scored = [result for result in results if getattr(result, part) is not None]
    values = [value for result in scored if (value := result.scores[score]) is not None]
    patients = [owners[result.case] for result in scored]
    return {
        "mean": fmean(values) if values else None,
        "sd": stdev(values) if len(values) > 1 else None,
        "median": median(values) if values else None,
        "count": len(values),
        "interval": ends(bootstrap_mean(values, patients, seed=seed, level=level)),
        "by_rule": sum(getattr(result, part).empty != "neither" for result in scored),
    }


def _detection(results: Sequence[CaseResult], owners: Mapping[str, str], *, seed: int, level: float) -> dict[str, Any]:
    detections = [result.detection for result in results]
    summary = summarize_detection(detections, patients=owners)
    patients = [owners[result.case] for result in results]

    def ratio(parts: Sequence[int], wholes: Sequence[int]) -> list[float] | None:
        return ends(bootstrap_ratio(parts, wholes, patients, seed=seed, level=level))

    false = [len(detection.false_positives) for detection in detections]
    true = [len(detection.matches) for detection in detections]
    found = [detection.found for detection in detections]
    plain = {name: _jsonable(value, level) for name, value in vars(summary).items()}
    # Tumors of one patient are not independent, which Wilson's interval takes them for.
    plain["precision"]["patients_interval"] = ratio(found, [a + b for a, b in zip(found, false, strict=True)])
    groups = {name: (plain["sensitivity_by_radius"][name], limits) for name, limits in RADIUS_BINS_MM.items()}
    groups["all"] = (plain["sensitivity"], (0.0, math.inf))
    for rate, (low, high) in groups.values():
        some = [[match for match in each.matches if low < match.truth.radius_mm <= high] for each in detections]
        rate["patients_interval"] = ratio([_hits(matches) for matches in some], [len(matches) for matches in some])
    early = [[m for m in each.matches if size_group(m.truth.diameter_mm) == "early"] for each in detections]
    plain["early_sensitivity"]["patients_interval"] = ratio([_hits(m) for m in early], [len(m) for m in early])
    # 2 TP / (2 TP + FP + FN), the harmonic mean of sensitivity and precision.
    whole = [hits + lesions + wrong for hits, lesions, wrong in zip(found, true, false, strict=True)]
    plain["f1_interval"] = ratio([2 * hits for hits in found], whole)
    plain["false_positives_per_scan_interval"] = ratio(false, [1] * len(false))
    return plain


def _hits(matches: Sequence[Match]) -> int:
    return sum(match.prediction is not None for match in matches)


def _jsonable(value: Any, level: float) -> Any:
    if isinstance(value, Rate):
        interval = wilson_interval(value.hits, value.total, level=level)
        return {"value": value.value, "hits": value.hits, "total": value.total, "interval": ends(interval)}
    if isinstance(value, Mapping):
        return {name: _jsonable(entry, level) for name, entry in value.items()}
    return value
