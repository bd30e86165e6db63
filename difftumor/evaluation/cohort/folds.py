"""Folds of a cross-validation: which case is in which, and the means of each."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from difftumor.errors import CaseListError
from difftumor.evaluation.cohort.cases import SCORES, CaseResult
from difftumor.files.texts import read_json, read_table

_FORMATS = "a splits_final.json of nnU-Net, or a CSV file with the columns case and fold"


def read_folds(path: Path) -> dict[str, str]:
    """Return the fold of each case, by its id.

    Args:
        path: A ``splits_final.json`` of nnU-Net, in which a fold predicts its validation cases, or a CSV file with the
            columns ``case`` and ``fold``.

    Raises:
        CaseListError: The file is missing or malformed, or a case is in several folds.
    """
    try:
        pairs = _json(read_json(path)) if path.suffix.lower() == ".json" else _csv(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaseListError(f"folds (--folds) {path} cannot be read ({error}): give {_FORMATS}.") from error
    found: dict[str, str] = {}
    for case, fold in pairs:
        if found.setdefault(case, fold) != fold:
            raise CaseListError(
                f"folds (--folds) {path} puts {case} into the folds {found[case]} and {fold}: keep one."
            )
    if not found:
        raise CaseListError(f"folds (--folds) {path} names no case: give {_FORMATS}.")
    return found


def check_folds(folds: Mapping[str, str], cases: Iterable[str], path: Path) -> None:
    """Check that every case is in a fold.

    Raises:
        CaseListError: The message names a case that is not.
    """
    if unknown := sorted(set(cases) - folds.keys()):
        raise CaseListError(f"folds (--folds) {path} does not name the case {unknown[0]}: add it, or omit folds.")


def summarize_folds(results: Sequence[CaseResult], folds: Mapping[str, str]) -> dict[str, Any]:
    """Return means by fold: tumor scores over cases with tumor, organ scores over all with labels.

    Args:
        results: One per scan.
        folds: The fold of each scan, by case. Scans without a fold, such as healthy ones without labels, do not count.

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
            score = result.scores[name]
            if score is not None and not (name.startswith("tumor_") and result.healthy):
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


def fold_order(name: str) -> tuple[bool, int, str]:
    """Return a key that sorts folds: numbers by their size, before names."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _json(splits: Any) -> list[tuple[str, str]]:
    return [(str(case), str(number)) for number, split in enumerate(splits) for case in split["val"]]


def _csv(path: Path) -> list[tuple[str, str]]:
    names, rows = read_table(path)
    if not {"case", "fold"} <= set(names):
        raise ValueError("it has no columns case and fold")
    pairs = []
    for line, row in rows:
        if not row.get("case") or not row.get("fold"):
            raise ValueError(f"line {line} has no case or no fold")
        pairs.append((row["case"].strip(), row["fold"].strip()))
    return pairs
