"""``difftumor synthesize --cases``: tumors in many scans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from difftumor.datasets.cases import CaseList
    from difftumor.synthesis.scan.cohort import Outcome
    from difftumor.synthesis.scan.setup import Setup

UNTESTED = "contrast, texture and edge are not tested."
_COLUMNS = ("case", "status", "tumors", "rejected", "warnings", "error")


def synthesize_cases(
    set_up: Setup,
    source: Path,
    *,
    masks: Path | None,
    maps: Path | None,
    organ_labels: tuple[int, ...],
    convention: str | None,
    out: Path,
    jobs: int,
    overwrite: bool,
) -> None:
    """Make tumors in all scans of a list, and say what became of each.

    Args:
        set_up: Makes what is needed.
        source: The list, or a folder of CTs.
        masks: Folder of masks of the organ with the names of the CTs; None for none.
        maps: Folder of label maps with the names of the CTs; None where the list names them.
        organ_labels: The organ's numbers in the label maps; none where their names say it, or they are masks.
        convention: What the numbers mean, where no list says it.
        out: Every case gets a folder in here.
        jobs: Processes.
        overwrite: Make anew what was made before.

    Raises:
        CaseListError: The list cannot be used; or some of its scans failed, when the others are done.
    """
    from difftumor.cli.many import check_outputs, progress_bar, summarized
    from difftumor.errors import DiffTumorError
    from difftumor.files import check_folder
    from difftumor.scans.organs import get_organ
    from difftumor.synthesis.scan.cohort import Outcome, inputs_of, synthesize_cohort
    from difftumor.synthesis.scan.files import FILES

    check_folder(out, option="--out")
    for path in set_up.untested():
        typer.echo(f"Warning: {path} does not say how real tumors look: {UNTESTED}", err=True)
    organ, listed = get_organ(set_up.organ), listed_cases(source, masks or maps, convention)
    unusable: list[Outcome] = []
    ready = []
    for case in listed.cases:
        try:
            ready.append((case.id, inputs_of(case, listed, organ, organ_labels=organ_labels, mask=masks is not None)))
        except DiffTumorError as error:
            unusable.append(Outcome(case.id, "failed", error=str(error)))
    given = [path for _, inputs in ready for paths in inputs.files.values() for path in paths]
    names = {case_id: [f"{case_id}/{name}" for name in FILES] for case_id, _ in ready}
    check_outputs(names, [listed.source, *given], out)
    with summarized(out, _COLUMNS, [case.id for case in listed.cases]) as rows:
        rows += map(_row, unusable)
        with progress_bar("Making tumors", len(ready)) as advance:
            for outcome in synthesize_cohort(set_up, ready, out=out, jobs=jobs, overwrite=overwrite):
                rows.append(_row(outcome))
                typer.echo(_described(outcome), err=outcome.status == "failed")
                advance()
    typer.echo(f"Results are in {out}.")


def listed_cases(source: Path, maps: Path | None, convention: str | None) -> CaseList:
    """Read a list, and put what options say in place of what it says of its labels.

    Args:
        source: The list, or a folder of CTs.
        maps: Folder of masks or label maps with the names of the CTs; None where the list names them.
        convention: What the numbers mean; None where the list says it.

    Raises:
        CaseListError: The list cannot be used, or a CT has no file in ``maps``.
    """
    from difftumor.cli.options import read_case_list
    from difftumor.datasets.label_folders import label_maps
    from difftumor.errors import CaseListError
    from difftumor.scans.organs import get_convention

    listed = read_case_list(source)
    if maps is not None:
        found = label_maps(maps)
        missing = [case.id for case in listed.cases if case.id not in found]
        if missing:
            raise CaseListError(f"{maps} holds no {missing[0]}.nii.gz: name the files like their CTs.")
        listed = replace(listed, cases=tuple(replace(case, labels=found[case.id]) for case in listed.cases))
    return listed if convention is None else replace(listed, label_names=get_convention(convention))


def _described(outcome: Outcome) -> str:
    if outcome.report is None:
        return f"{outcome.id}: {outcome.status}{f', {outcome.error}' if outcome.error else ''}"
    count, warnings = len(outcome.report.tumors), len(outcome.report.warnings)
    more = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    return f"{outcome.id}: {count} tumor{'' if count == 1 else 's'}{more}"


def _row(outcome: Outcome) -> dict[str, Any]:
    report = outcome.report
    return {
        "case": outcome.id,
        "status": outcome.status,
        "tumors": None if report is None else len(report.tumors),
        "rejected": None if report is None else report.rejected,
        "warnings": "" if report is None else " ".join(report.warnings),
        "error": outcome.error,
    }
