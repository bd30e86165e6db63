"""What ``difftumor robustness`` does once its options are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from difftumor.robustness.results import Results
    from difftumor.robustness.scan_run import Benchmark, ScanResult
    from difftumor.synthesis.scan_inputs import ScanInputs

_COLUMNS = ("case", "status", "tumors", "found", "notes", "error")
Ready = Sequence[tuple[str, str, "ScanInputs"]]


def run_benchmark(
    benchmark: Benchmark,
    ready: Ready,
    unusable: Sequence[ScanResult],
    out: Path,
    settings: Mapping[str, Any],
    *,
    worst: int,
    values: bool,
    overwrite: bool,
) -> None:
    """Run all scans, say what became of each, and write the results.

    Args:
        benchmark: What is done with each.
        ready: Ids, patients and files.
        unusable: Scans that cannot be used.
        out: Folder to write to.
        settings: How it is done, for the results.
        worst: How many of the worst tumors are written with their scans.
        values: Whether heatmaps say what levels are in mm, HU or the like.
        overwrite: Do scans anew that were done before.

    Raises:
        CaseListError: Some scans failed, when the others are done; or no tumor was made.
        ConfigError: The folder holds results of another request, or the worst tumors' something else.
    """
    from difftumor.cli.many import summarized
    from difftumor.cli.progress import progress_bar
    from difftumor.errors import CaseListError
    from difftumor.robustness.dimensions import plain_dimensions
    from difftumor.robustness.earlier import check_request, check_worst
    from difftumor.robustness.results import Results
    from difftumor.robustness.writing import SCANS

    if worst:
        check_worst(out)
    organ, dimensions = benchmark.synthesizer.organ.name, benchmark.dimensions
    if not overwrite:
        check_request(out, {"organ": organ, "dimensions": plain_dimensions(dimensions), "settings": settings})
    scans = list(unusable)
    order = [result.case for result in unusable] + [case_id for case_id, _, _ in ready]
    with summarized(out, _COLUMNS, order) as rows:
        rows += map(_row, unusable)
        with progress_bar("Scans", len(ready)) as advance:
            for result in benchmark.run_all(ready, out / SCANS, overwrite=overwrite):
                scans.append(result)
                rows.append(_row(result))
                typer.echo(_described(result), err=result.status == "failed")
                advance()
        results = Results(
            organ=organ, dimensions=dimensions, scans=scans, settings=settings, seed=benchmark.seed,
        )  # fmt: skip
        if results.rows:
            _write(benchmark, results, ready, out, worst=worst, values=values)
    if not results.rows:
        raise CaseListError(f"No tumor was made in any scan: see {out / 'summary.csv'}.")


def _write(benchmark: Benchmark, results: Results, ready: Ready, out: Path, *, worst: int, values: bool) -> None:
    """Write results with their worst tumors, and say what they are."""
    from difftumor.robustness.earlier import WORST, remove_worst
    from difftumor.robustness.worst import choose_worst, write_worst
    from difftumor.robustness.writing import SCANS, write_results

    chosen = choose_worst(results.rows, worst)
    if chosen:
        inputs = {case_id: files for case_id, _, files in ready}
        shown = write_worst(benchmark, chosen, inputs, scans=out / SCANS, out=out / WORST)
    else:
        shown = []
        remove_worst(out)
    write_results(out, results, shown, values=values)
    for line in (results.introduction, *results.warnings, *(curve.sentence for curve in results.curves)):
        typer.echo(line)
    typer.echo(f"Results are in {out}: open report.html.")


def scans_of(
    source: Path, organ: str, masks: Path | None, organ_labels: tuple[int, ...], convention: str | None
) -> tuple[Ready, list[ScanResult]]:
    """Return ids, patients and files of the scans of a list, and those that cannot be used."""
    from difftumor.cli.cases import listed_cases
    from difftumor.errors import DiffTumorError
    from difftumor.organs import get_organ
    from difftumor.robustness.scan_run import ScanResult
    from difftumor.synthesis.cohort import inputs_of

    listed = listed_cases(source, masks, convention)
    ready, unusable = [], []
    for case in listed.cases:
        try:
            inputs = inputs_of(case, listed, get_organ(organ), organ_labels=organ_labels, mask=masks is not None)
            ready.append((case.id, case.patient, inputs))
        except DiffTumorError as error:
            unusable.append(ScanResult(case.id, "failed", notes=(str(error),)))
    return ready, unusable


def check_inputs(out: Path, given: Sequence[Path], ready: Ready) -> None:
    """Refuse results that would replace what is read.

    Raises:
        CaseListError: An id cannot name a folder.
        ConfigError: A result has the place of an input, or an input lies in a folder that is replaced as a whole.
    """
    from difftumor.cli.many import check_outputs
    from difftumor.errors import ConfigError
    from difftumor.robustness.earlier import WORST
    from difftumor.robustness.scan_run import RESULT_FILE
    from difftumor.robustness.writing import RESULT_FILES, SCANS

    files = [path for _, _, scan in ready for paths in scan.files.values() for path in paths]
    names = {case_id: [f"{SCANS}/{case_id}/{RESULT_FILE}", *RESULT_FILES] for case_id, _, _ in ready}
    inputs = [*given, *files]
    check_outputs(names, inputs, out)
    replaced = {(out / name).resolve() for name in (WORST, *(f"{SCANS}/{case_id}" for case_id in names))}
    for path in inputs:
        place = path.resolve()
        if taken := replaced & {place, *place.parents}:
            raise ConfigError(f"--out {out} would replace {taken.pop()} with the input {path}: give another folder.")


def check_organs(models: Sequence[Path], organs: Sequence[str | None], organ: str) -> None:
    """Refuse segmenters of another organ than the tumors'; some do not know theirs.

    Raises:
        ConfigError: A model is of another organ.
    """
    from difftumor.errors import ConfigError

    for model, own in zip(models, organs, strict=True):
        if own not in (None, organ):
            raise ConfigError(f"--model {model} finds tumors of the {own}, not of the {organ}: give --organ {own}.")


def _row(result: ScanResult) -> dict[str, Any]:
    notes = " ".join(result.notes)
    made = {row.record: row.found for row in result.rows}
    return {
        "case": result.case,
        "status": result.status,
        "tumors": len(made),
        "found": sum(made.values()),
        "notes": "" if result.status == "failed" else notes,
        "error": notes if result.status == "failed" else "",
    }


def _described(result: ScanResult) -> str:
    row = _row(result)
    if not result.rows:
        return f"{result.case}: {result.status}, {row['error'] or row['notes']}"
    before = ", done before" if result.status == "done before" else ""
    return f"{result.case}: {row['found']} of {row['tumors']} tumors found{before}"
