"""Summary of an evaluation, JSON-able, with intervals: means over cases, detection over lesions and patients, folds."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

from difftumor.errors import CaseListError
from difftumor.evaluation.case_scores import CaseResult
from difftumor.evaluation.detection import DetectionSummary, Rate, summarize_detection
from difftumor.evaluation.rows import SCORES, scores_of
from difftumor.evaluation.statistics import LEVEL, Interval, bootstrap_mean, bootstrap_ratio, wilson_interval


def summarize(
    results: Sequence[CaseResult], *, patients: Mapping[str, str] | None = None, seed: int = 0, level: float = LEVEL
) -> dict[str, Any]:
    """Return the summary of a cohort; what is undefined is None.

    Scores are summarized over all cases and over those with tumor, since a healthy scan without a predicted tumor
    scores 1 and with one 0. Scans without labels, whose organ has no scores, count in the detection alone.

    Args:
        results: One per scan.
        patients: The patient of each scan, by case; each scan a patient of its own when None.
        seed: Of the intervals.
        level: Of the intervals.
    """
    labeled = [result for result in results if result.organ is not None]
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
        folds: The fold of each scan, by case.

    Returns:
        ``names``, and by score: ``by_fold``, ``average`` (of the means of the folds), ``sd`` (of these means) and
        ``pooled`` (mean over all cases, whatever their fold).

    Raises:
        CaseListError: A case has no fold.
    """
    unknown = sorted(result.case for result in results if result.organ is not None and result.case not in folds)
    if unknown:
        raise CaseListError(f"The folds do not name the case {unknown[0]}: add it, or leave --folds out.")
    names = sorted({folds[result.case] for result in results if result.organ is not None}, key=fold_order)
    scores = {}
    for name in SCORES:
        values: dict[str, list[float]] = {fold: [] for fold in names}
        for result in results:
            score = scores_of(result)[name]
            if score is not None and result.organ is not None and not _left_out(name, result):
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
    return (not name.isdigit(), int(name) if name.isdigit() else 0, name)


def _statistics(
    score: str, results: Sequence[CaseResult], owners: Mapping[str, str], *, seed: int, level: float
) -> dict[str, Any]:
    values = [value for result in results if (value := scores_of(result)[score]) is not None]
    patients = [owners[result.case] for result in results]
    part = score.split("_")[0]
    return {
        "mean": fmean(values) if values else None,
        "sd": stdev(values) if len(values) > 1 else None,
        "median": median(values) if values else None,
        "count": len(values),
        "interval": _ends(bootstrap_mean(values, patients, seed=seed, level=level)),
        "by_rule": sum(getattr(result, part).empty != "neither" for result in results),
    }


def _detection(results: Sequence[CaseResult], owners: Mapping[str, str], *, seed: int, level: float) -> dict[str, Any]:
    summary: DetectionSummary = summarize_detection(result.detection for result in results)
    patients = [owners[result.case] for result in results]
    false = [float(len(result.detection.false_positives)) for result in results]
    found = [float(sum(match.prediction is not None for match in result.detection.matches)) for result in results]
    true = [float(len(result.detection.matches)) for result in results]
    # 2 TP / (2 TP + FP + FN), the harmonic mean of sensitivity and precision.
    whole = [hits + missed_or_hit + wrong for hits, missed_or_hit, wrong in zip(found, true, false, strict=True)]
    f1 = bootstrap_ratio([2 * hits for hits in found], whole, patients, seed=seed, level=level)
    return {
        **{name: _jsonable(value, level) for name, value in vars(summary).items()},
        "f1_interval": _ends(f1),
        "false_positives_per_scan_interval": _ends(bootstrap_mean(false, patients, seed=seed, level=level)),
    }


def _jsonable(value: Any, level: float) -> Any:
    if isinstance(value, Rate):
        interval = wilson_interval(value.hits, value.total, level=level)
        return {"value": value.value, "hits": value.hits, "total": value.total, "interval": _ends(interval)}
    if isinstance(value, Mapping):
        return {name: _jsonable(entry, level) for name, entry in value.items()}
    return value


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
