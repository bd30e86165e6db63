"""Two methods on the same scans: differences, intervals and tests."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from difftumor.evaluation.cohort.methods import Method, ScoredCase
from difftumor.evaluation.cohort.rows import FRACTIONS, scores_of
from difftumor.evaluation.cohort.statistics import LEVEL, ends, holm, paired_test

# What is tested of a case, None where it does not count: scores in cases with tumor (of the organ in all), the share of
# its lesions that were found, and its false positives.
MEASURES = {**FRACTIONS, "sensitivity": "Share of a scan's tumors found", "false_positives": "False positives per scan"}
TESTS = ("wilcoxon", "permutation")


def compare_methods(
    first: Method, others: Mapping[str, Method], *, seed: int = 0, level: float = LEVEL
) -> dict[str, dict[str, Any]]:
    """Test every other method against the first, on the scans that both have.

    Args:
        first: What the others are held against.
        others: By name.
        seed: Of intervals and permutations.
        level: Of the intervals.

    Returns:
        By method and measure: ``cases``, ``patients``, ``first`` and ``second`` (means over the patients of the shared
        scans), ``difference`` (second less first), its ``interval``, ``wilcoxon_p``, ``permutation_p``,
        and both adjusted by Holm over all methods and measures (``wilcoxon_holm``, ``permutation_holm``). A measure
        that no shared scan has is left out.
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
    value_of = _value_of(measure)
    pairs = [(value_of(mine), value_of(theirs), mine.pair.patient) for mine, theirs in shared]
    counted = [(a, b, patient) for a, b, patient in pairs if a is not None and b is not None]
    first, second = [a for a, _, _ in counted], [b for _, b, _ in counted]
    patients = [patient for _, _, patient in counted]
    found = paired_test(first, second, patients, seed=seed, level=level)
    if found is None:
        return None
    return {"cases": len(counted), **asdict(found), "interval": ends(found.interval)}


def _value_of(measure: str) -> Callable[[ScoredCase], float | None]:
    def value(case: ScoredCase) -> float | None:
        detection = case.result.detection
        if measure == "false_positives":
            return float(len(detection.false_positives))
        if measure == "sensitivity":
            return None if case.healthy else detection.found / len(detection.matches)
        if not case.labeled or (measure.startswith("tumor_") and case.healthy):
            return None
        return scores_of(case.result)[measure]

    return value
