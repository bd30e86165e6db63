"""What commands on many scans share: the check of result names, a summary, a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from difftumor.datasets.cases import Case

SUMMARY_FILE = "summary.csv"


def check_outputs(names: Mapping[str, Sequence[str]], inputs: Iterable[Path], out: Path) -> None:
    """Refuse ids that cannot name files, and results that would replace an input of any scan.

    Args:
        names: Files that will be written to ``out``, by the id of the case.
        inputs: Files that must stay.
        out: Folder to write to (``--out``).

    Raises:
        CaseListError: An id cannot name a file.
        ConfigError: The folder cannot be written to, or a result has the place of an input.
    """
    from difftumor.errors import CaseListError
    from difftumor.files.results import check_results, names_file

    for case_id in names:
        if not names_file(case_id):
            raise CaseListError(f"The case id {case_id!r} cannot name a result: give it one without slashes, not '..'.")
    files = (name for written in names.values() for name in written)
    check_results(out, (*files, SUMMARY_FILE), inputs=inputs, overwrite=True)


@contextmanager
def summarized(
    out: Path, columns: Sequence[str], order: Sequence[str], *, overwrite: bool = False
) -> Iterator[list[Mapping[str, Any]]]:
    """Yield a list for the rows of ``summary.csv``, which is written when the block ends, even with an error.

    Args:
        out: Folder to write to.
        columns: Names of the columns, among them ``case``, ``status`` and ``error``.
        order: Ids of the cases, in the order of the rows.
        overwrite: Whether a file of this name that is not such a summary may be replaced.

    Raises:
        ConfigError: There is one.
        CaseListError: The block ended without an error, but the status of some rows is "failed".
    """
    from difftumor.errors import CaseListError, ConfigError, first_few
    from difftumor.reporting.tables import Table, write_csv

    if not overwrite and not _is_summary(out / SUMMARY_FILE):
        raise ConfigError(
            f"out (--out) {out} already holds a {SUMMARY_FILE} that difftumor has not written: give another folder, or "
            "overwrite (--overwrite) it."
        )
    rows: list[Mapping[str, Any]] = []
    try:
        yield rows
    finally:
        places = {case_id: place for place, case_id in enumerate(order)}
        rows.sort(key=lambda row: places[str(row["case"])])
        if rows:
            write_csv(out / SUMMARY_FILE, Table.of_records(columns, rows))
    failed = [str(row["case"]) for row in rows if row["status"] == "failed"]
    if failed:
        raise CaseListError(
            f"{len(failed)} of {len(rows)} scans failed ({first_few(failed)}): see {out / SUMMARY_FILE}, fix them and "
            "rerun the command."
        )


def _is_summary(file: Path) -> bool:
    """Whether a file is a summary, or not there."""
    if not file.exists():
        return True
    with file.open(encoding="utf-8", errors="replace") as stream:
        return {"case", "status", "error"} <= set(stream.readline(1000).strip().split(","))


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar while the block runs, and yield a function that advances it; a total of None is unknown.

    The bar ends with the block, even with an exception. `rich.progress.track` does not: its generator stays alive with
    the traceback, and its thread deadlocks when the garbage collector finally closes it there.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Even a transient bar writes an empty line to a log file.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


def for_each_case(description: str, cases: Sequence[Case], measure: Callable[[Case], str]) -> dict[str, str]:
    """Measure cases one by one, print a line about each, and skip those whose files cannot be used.

    Args:
        description: Label of the progress bar.
        cases: The cases.
        measure: Measures a case and returns its line.

    Returns:
        Why cases were skipped, by id.

    Raises:
        ConfigError: A setting is wrong, which affects all cases.
    """
    from difftumor.errors import ConfigError, sentence_of

    failed: dict[str, str] = {}
    with progress_bar(description, len(cases)) as advance:
        for case in cases:
            try:
                typer.echo(measure(case))
            except ConfigError:
                raise
            except Exception as error:  # whatever is wrong with one scan
                failed[case.id] = sentence_of(error)
                typer.echo(f"Left out {case.id}: {failed[case.id]}", err=True)
            advance()
    return failed
