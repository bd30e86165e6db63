"""What a check of lists leaves behind: all findings as JSON or CSV, and a list of the cases that can be used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from difftumor import __version__
from difftumor.datasets.cases import write_case_list
from difftumor.datasets.validation.lists import CheckedList, Validation
from difftumor.errors import CaseListError, ConfigError, printable
from difftumor.files.results import MADE_BY, check_file
from difftumor.files.texts import read_json
from difftumor.reporting.tables import Table, write_csv, write_json

COLUMNS = ("list", "case", "status", "image", "labels", "patient", "tumors", "errors", "warnings")
# What the JSON files are, under MADE_BY.
_FINDINGS, _FIX_LIST = "check", "fix list"


def check_places(out: Path | None, fix_list: Path | None, *, inputs: Iterable[Path], overwrite: bool) -> None:
    """Refuse places for results that are badly named, or hold anything but an earlier result of the same kind.

    Args:
        out: Of the findings (``--out``).
        fix_list: Of the list of good cases (``--fix-list``).
        inputs: Files that must stay.
        overwrite: Whether any file may be replaced but inputs.

    Raises:
        ConfigError: A result may not be written there.
    """
    if out is not None and out.suffix.lower() not in (".csv", ".json"):
        raise ConfigError(f"--out is {out}: give a file that ends in .csv or .json.")
    if fix_list is not None and fix_list.suffix.lower() != ".json":
        raise ConfigError(f"--fix-list is {fix_list}: give a file that ends in .json.")
    if out is not None and fix_list is not None and out.resolve() == fix_list.resolve():
        raise ConfigError(f"--out and --fix-list are both {out}: give two files.")
    files = list(inputs)
    if out is not None:
        check_file(out, option="--out", is_own=_holds_findings, inputs=files, overwrite=overwrite)
    if fix_list is not None:
        check_file(fix_list, option="--fix-list", is_own=_is_fix_list, inputs=files, overwrite=overwrite)


def _holds_findings(file: Path) -> bool:
    if file.suffix.lower() == ".json":
        return _result_of(file) == _FINDINGS
    with file.open("rb") as stream:
        return stream.readline(1000).strip() == ",".join(COLUMNS).encode()


def _is_fix_list(file: Path) -> bool:
    return _result_of(file) == _FIX_LIST


def _result_of(file: Path) -> str | None:
    try:
        return str(read_json(file)[MADE_BY]["result"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_findings(file: Path, found: Validation) -> None:
    """Write every case with its findings: as CSV, or as JSON, which also holds pairs of scans and notes on lists."""
    if file.suffix.lower() == ".csv":
        rows = [{**row, **{name: "; ".join(row[name] or ()) for name in COLUMNS[-3:]}} for row in _rows(found)]
        write_csv(file, Table.of_records(COLUMNS, rows))
        return
    lists = [
        {"source": str(each.cases.source), "counts": each.counts, "notes": list(each.notes)} for each in found.lists
    ]
    pairs = [
        {"where": comparison.where, **asdict(pair)} for comparison in found.comparisons for pair in comparison.pairs
    ]
    write_json(file, {MADE_BY: _made_by(_FINDINGS), "lists": lists, "pairs": pairs, "cases": list(_rows(found))})


def _rows(found: Validation) -> Iterator[dict[str, Any]]:
    for listed in found.lists:
        for each in listed.checked:
            yield {
                "list": str(listed.cases.source),
                "case": each.case.id,
                "status": each.status,
                "image": str(each.case.image),
                "labels": None if each.case.labels is None else str(each.case.labels),
                "patient": each.case.patient,
                "tumors": None if each.tumors is None else list(each.tumors),
                "errors": each.messages("error"),
                "warnings": each.messages("warning"),
            }


def write_fix_list(file: Path, listed: CheckedList) -> None:
    """Write the cases of a list that can be used as a list of its own, with the reasons why the others are left out.

    Raises:
        CaseListError: There are none.
    """
    good = listed.good
    if not good:
        raise CaseListError(f"No case of {listed.cases.source} can be used, so {file} was not written: fix them first.")
    cases = tuple(
        replace(each.case, fingerprint="" if each.fingerprint is None else str(each.fingerprint)) for each in good
    )
    kept = {case.id for case in cases}
    validation = tuple(id_ for id_ in listed.cases.validation_ids if id_ in kept)
    more = {
        MADE_BY: _made_by(_FIX_LIST),
        "source": str(listed.cases.source),
        "left_out": [
            {"id": each.case.id, "image": str(each.case.image), "reasons": each.messages("error")}
            for each in listed.checked
            if each.status == "error"
        ],
    }
    name = f"cases of {listed.cases.source.name} that can be used"
    write_case_list(file, replace(listed.cases, cases=cases, validation_ids=validation), name=name, more=more)


def _made_by(result: str) -> dict[str, str]:
    return {"version": __version__, "result": result}


def findings_table(listed: CheckedList) -> Sequence[tuple[str, str, str]]:
    """Return case, status and what is said against it, as a terminal may show it; worst first, without good cases.

    The list's folder is written "…" where a path begins with it, so that the sentences stay short.
    """
    source = listed.cases.source
    folder = source if source.is_dir() else source.parent
    # No path begins with "." or "/" alone and a separator.
    begin = re.compile(rf"(?<![^\s'\"(]){re.escape(str(folder))}/") if folder.name else None
    rows = []
    for status in ("error", "warning"):
        for each in listed.checked:
            if each.status == status:
                said = (*each.messages("error"), *each.messages("warning"))
                short = said if begin is None else [begin.sub("…/", message) for message in said]
                lines = [printable(message, lines=False) for message in short]
                rows.append((printable(each.case.id, lines=False), status, "\n".join(lines)))
    return rows
