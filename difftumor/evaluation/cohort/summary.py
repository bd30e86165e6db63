"""Summary of an evaluation, JSON-able, with intervals: means over cases, detection over lesions and patients, folds."""

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

from difftumor.evaluation.cohort.methods import CaseResult
from difftumor.evaluation.cohort.rows import SCORES, scores_of
from difftumor.evaluation.cohort.statistics import LEVEL, bootstrap_mean, bootstrap_ratio, ends, wilson_interval
from difftumor.evaluation.metrics.detection import (
    EARLY_DIAMETER_MM,
    DetectionSummary,
    Match,
    Rate,
    radius_bins,
    summarize_detection,
)


def summarize(
    results: Sequence[CaseResult],
    *,
    patients: Mapping[str, str] | None = None,
    unlabeled: Collection[str] = (),
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Any]:
    """Return the summary of a cohort; what is undefined is None.

    Scores are summarized over all cases and over those with tumor, since a healthy scan without a predicted tumor
    scores 1 and with one 0. Scans without labels count in the detection alone.

    Args:
        results: One per scan.
        patients: The patient of each scan, by case; each scan a patient of its own when None.
        unlabeled: Ids of healthy scans without labels.
        seed: Of the intervals.
        level: Of the intervals.
    """
    labeled = [result for result in results if result.case not in unlabeled]
    ill = [result for result in labeled if not result.detection.healthy]
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


def summarize_folds(results: Sequence[CaseResult], folds: Mapping[str, str]) -> dict[str, Any]:
    """Return means by fold: tumor scores over cases with tumor, organ scores over all with labels.

    Args:
        results: One per scan.
        folds: The fold of each scan, by case. Scans without one, as healthy ones without labels, do not count.

    Returns:
        ``names``, and by score: ``by_fold``, ``average`` (of the means of the folds), ``sd`` (of these means) and
        ``pooled`` (mean over all cases, whatever their fold).
    """
    known = [result for result in results if result.case in folds]
    names = sorted({folds[result.case] for result in known}, key=fold_order)
    scores = {}
    for name in SCORES:
        values: dict[str, list[float]] = {fold: [] for fold in names}
        for result in known:
            score = scores_of(result)[name]
            if score is not None and not _left_out(name, result):
                values[folds[result.case]].append(score)
        means = {fold: fmean(some) for fold, some in values.items() if some}
        pooled = [score for some in values.values() for score in some]
        scores[name] = {
            "by_fold": {fold: means.get(fold) for fold in names},
            "average": fmean(means.values()) if means else None,
            "sd": stdev(means.values()) if len(means) > 1 else None,
            "pooled": fmean(pooled) if pooled else None,
        }
    return {"names": names, "scores": scores}


def _left_out(score: str, result: CaseResult) -> bool:
    return score.startswith("tumor_") and result.detection.healthy


def fold_order(name: str) -> tuple[bool, int, str]:
    """Return a key that sorts folds: numbers by their size, before names."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _statistics(
    score: str, results: Sequence[CaseResult], owners: Mapping[str, str], *, seed: int, level: float
) -> dict[str, Any]:
    part = score.split("_")[0]
    scored = [result for result in results if getattr(result, part) is not None]
    values = [value for result in scored if (value := scores_of(result)[score]) is not None]
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
    summary: DetectionSummary = summarize_detection(detections, patients=owners)
    patients = [owners[result.case] for result in results]

    def ratio(parts: Sequence[int], wholes: Sequence[int]) -> list[float] | None:
        return ends(bootstrap_ratio(parts, wholes, patients, seed=seed, level=level))

    false = [len(detection.false_positives) for detection in detections]
    true = [len(detection.matches) for detection in detections]
    found = [detection.found for detection in detections]
    plain = {name: _jsonable(value, level) for name, value in vars(summary).items()}
    # Tumors of one patient are not independent, which Wilson's interval takes them for.
    plain["precision"]["patients_interval"] = ratio(found, [a + b for a, b in zip(found, false, strict=True)])
    groups = {name: (plain["sensitivity_by_radius"][name], limits) for name, limits in radius_bins().items()}
    groups["all"] = (plain["sensitivity"], (0.0, math.inf))
    for rate, (low, high) in groups.values():
        some = [[match for match in each.matches if low < match.truth.radius_mm <= high] for each in detections]
        rate["patients_interval"] = ratio([_hits(matches) for matches in some], [len(matches) for matches in some])
    early = [[m for m in each.matches if m.truth.diameter_mm < EARLY_DIAMETER_MM] for each in detections]
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
