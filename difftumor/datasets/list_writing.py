"""Lists of cases as files that ``difftumor.datasets.cases.read_cases`` reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftumor.datasets.cases import Case, CaseList
from difftumor.files import written_whole


def write_case_list(file: Path, cases: CaseList, *, name: str, more: Mapping[str, Any] | None = None) -> None:
    """Write a list in the form of an MSD ``dataset.json``; whole or not at all.

    Paths inside the list's folder are relative to it, so that both can move together; others are absolute.

    Args:
        file: Where to.
        cases: The cases, what their labels mean, and which are set apart for validation.
        name: What the list is of.
        more: Further keys, which readers ignore.
    """
    parts: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for case in cases.cases:
        parts["validation" if case.id in cases.validation_ids else "training"].append(_entry(case, file.parent))
    content = {"name": name, "labels": dict(cases.label_names), **(more or {}), **parts}
    with written_whole(file) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _entry(case: Case, folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": case.id, "image": _stated(case.image, folder)}
    if case.labels is not None:
        entry["label"] = _stated(case.labels, folder)
    entry["patient"] = case.patient
    if case.tumor_organs is not None:
        entry["tumor_organs"] = list(case.tumor_organs)
    return entry


def _stated(path: Path, folder: Path) -> str:
    path, folder = path.absolute(), folder.absolute()  # what a link points to may bear another name
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
