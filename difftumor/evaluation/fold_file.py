"""Which case was predicted in which fold, as a file says."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from difftumor.errors import CaseListError

_FORMATS = "a splits_final.json of nnU-Net, or a CSV file with the columns case and fold"


def read_folds(path: Path) -> dict[str, str]:
    """Return the fold of each case, by its id.

    Args:
        path: A ``splits_final.json`` of nnU-Net, whose validation cases are those that a fold has predicted, or a CSV
            file with the columns ``case`` and ``fold``.

    Raises:
        CaseListError: The file is missing or malformed, or a case is in several folds.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # as spreadsheets write it
        pairs = _json(json.loads(text)) if path.suffix.lower() == ".json" else _csv(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaseListError(f"--folds {path} cannot be read ({error}): give {_FORMATS}.") from error
    found: dict[str, str] = {}
    for case, fold in pairs:
        if found.setdefault(case, fold) != fold:
            raise CaseListError(
                f"--folds {path} puts {case} into the folds {found[case]} and {fold}: keep one of them."
            )
    if not found:
        raise CaseListError(f"--folds {path} names no case: give {_FORMATS}.")
    return found


def _json(splits: Any) -> list[tuple[str, str]]:
    return [(str(case), str(number)) for number, split in enumerate(splits) for case in split["val"]]


def _csv(text: str) -> list[tuple[str, str]]:
    reader = csv.DictReader(text.splitlines())
    if not {"case", "fold"} <= set(reader.fieldnames or ()):
        raise ValueError("it has no columns case and fold")
    pairs = []
    for row in reader:
        if not row["case"] or not row["fold"]:
            raise ValueError(f"line {reader.line_num} has no case or no fold")
        pairs.append((row["case"].strip(), row["fold"].strip()))
    return pairs


def check_folds(folds: Mapping[str, str], cases: Iterable[str], path: Path) -> None:
    """Refuse folds that lack a case.

    Raises:
        CaseListError: They do; the message names it.
    """
    if unknown := sorted(set(cases) - folds.keys()):
        raise CaseListError(f"--folds {path} does not name the case {unknown[0]}: add it, or leave --folds out.")
