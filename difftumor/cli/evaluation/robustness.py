"""``difftumor robustness``: how well a segmenter finds tumors that differ in one respect at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from difftumor.cli.options import Rule, iou_option, read_matching, rule_option

TUMORS, SCANS, MODEL, RESULTS = "Which tumors", "Scans and organ", "Segmenter", "Results"


def robustness(
    model: Annotated[
        list[Path],
        typer.Option(
            help="Segmenter artifact; give several, such as folds, to average their probabilities.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ],
    cases: Annotated[
        Path,
        typer.Option(
            help="Healthy scans with labels of the organ: a folder, a dataset.json, or a CSV or JSON list. Scans with "
            "tumors in the organ are left out.",
            show_default=False,
            rich_help_panel=SCANS,
        ),
    ],
    organ: Annotated[str, typer.Option(help="liver, pancreas or kidney.", show_default=False, rich_help_panel=SCANS)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False, rich_help_panel=RESULTS)],
    organ_mask: Annotated[
        Path | None,
        typer.Option(
            help="Folder of organ masks with the names of the CTs, where the list names no labels.",
            show_default=False,
            rich_help_panel=SCANS,
        ),
    ] = None,
    organ_label: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N]", help="The organ's numbers in the label maps.", show_default=False, rich_help_panel=SCANS
        ),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            help="What the numbers of the label maps mean, such as totalsegmentator; by default as the list says.",
            show_default=False,
            rich_help_panel=SCANS,
        ),
    ] = None,
    dimensions: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with other means, standard deviations and limits, such as 'size: {mean: 15, factor: 1.3}'.",
            show_default=False,
            rich_help_panel=TUMORS,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Vary these alone: shape, size, texture, intensity, location; by default all.",
            show_default=False,
            rich_help_panel=TUMORS,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Tumors of each scan that are varied, one at a time.", min=1, rich_help_panel=TUMORS)
    ] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same tumors.", rich_help_panel=TUMORS)] = 0,
    tolerance_mm: Annotated[
        float, typer.Option(help="Tolerance of the normalized surface distance.", min=0.0, rich_help_panel=RESULTS)
    ] = 2.0,
    matching: Annotated[Rule, rule_option(RESULTS)] = "overlap",
    minimum_iou: Annotated[float | None, iou_option(RESULTS)] = None,
    overlap: Annotated[
        float, typer.Option(help="Part of a window that its neighbor shares.", rich_help_panel=MODEL)
    ] = 0.75,
    organ_filter: Annotated[
        Literal["predicted", "none"],
        typer.Option(help="Drop tumor outside of the predicted organ, or nothing.", rich_help_panel=MODEL),
    ] = "none",
    min_volume_mm3: Annotated[
        float, typer.Option(help="Drop smaller tumors from predictions.", min=0.0, rich_help_panel=MODEL)
    ] = 0.0,
    organ_only: Annotated[
        bool,
        typer.Option(
            "--organ-only",
            help="Predict the organ and a window around it, not the whole scan: faster, but windows lie elsewhere than "
            "in difftumor predict.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    memory_gib: Annotated[
        float,
        typer.Option(
            help="Memory for what windows gave without a tumor: then only windows that see a tumor are computed.",
            min=0.0,
            rich_help_panel=MODEL,
        ),
    ] = 4.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MODEL)] = "auto",
    windows_per_batch: Annotated[
        int, typer.Option(help="Windows predicted together.", min=1, rich_help_panel=MODEL)
    ] = 1,
    allow_incomplete: Annotated[
        bool,
        typer.Option(
            "--allow-incomplete", help="Also use a model whose training has not finished.", rich_help_panel=MODEL
        ),
    ] = False,
    worst: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Write the scans of the N worst tumors to the folder worst, for stage 3 to train on, and show them.",
            min=0,
            rich_help_panel=RESULTS,
        ),
    ] = 6,
    values: Annotated[
        bool,
        typer.Option(
            "--values/--no-values",
            help="Write into heatmaps what levels are in mm, HU or the like.",
            rich_help_panel=RESULTS,
        ),
    ] = True,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Do scans anew that are in the folder, and replace results of another request.",
            rich_help_panel=RESULTS,
        ),
    ] = False,
) -> None:
    """Measure a segmenter on tumors that differ in one respect at a time.

    Makes hand-crafted tumors in healthy scans, whose shape, size, texture, intensity and location are at μ, μ ± σ,
    μ ± 2σ and μ ± 3σ while everything else stays as it is (Hu et al. 2023, section 5.5). Writes
    [bold]report.html[/bold], heatmaps, cells.csv, tumors.csv, robustness.json and robustness.md; a record of every
    tumor, for [bold]difftumor synthesize --replay[/bold]; and scans with the worst tumors. The same command goes on
    where it stopped.
    """
    from difftumor.cli.evaluation.robustness import check_inputs, check_organs, run_benchmark, scans_of
    from difftumor.cli.synthesis.options import Files
    from difftumor.evaluation.robustness.dimensions import DEFAULTS, read_dimensions
    from difftumor.evaluation.robustness.scan_run import Benchmark
    from difftumor.files import check_folder
    from difftumor.models.artifact import load_artifact, pick_device
    from difftumor.scans.organs import get_organ
    from difftumor.segmentation.inference import PredictionOptions
    from difftumor.segmentation.labels import LabelPredictor, seen_around_mm
    from difftumor.synthesis.scan.loading import load_synthesizer

    host = get_organ(organ)
    found_by = read_matching(matching, minimum_iou)
    chosen = read_dimensions(dimensions, _names(only, list(DEFAULTS)))
    options = PredictionOptions(overlap=overlap, organ_filter=organ_filter, min_volume_mm3=min_volume_mm3)
    check_folder(out, option="--out")
    files = Files(None, organ_mask, None, organ_label, convention, None)
    ready, unusable = scans_of(cases, host.name, organ_mask, files.numbers(), convention)
    check_inputs(out, [cases, *model], ready)
    on = pick_device(device)
    artifacts = [load_artifact(m, kind="segmenter", device=on, allow_incomplete=allow_incomplete) for m in model]
    check_organs(model, [artifact.config.organ for artifact in artifacts], host.name)
    about = {
        "models": [artifact.config.identity for artifact in artifacts],
        "overlap": overlap,
        "organ_filter": organ_filter,
        "min_volume_mm3": min_volume_mm3,
    }
    benchmark = Benchmark(
        synthesizer=load_synthesizer(None, organ=host),
        predict=LabelPredictor(
            artifacts, options, windows_per_batch=windows_per_batch, memory_bytes=int(memory_gib * 2**30)
        ),
        dimensions=chosen,
        seed=seed,
        repeats=repeats,
        margin_mm=seen_around_mm(artifacts) if organ_only else None,
        tolerance_mm=tolerance_mm,
        matching=found_by,
        about=about,
    )
    settings = {
        "model": [str(m) for m in model],
        "cases": str(cases),
        "device": str(on),
        "repeats": repeats,
        "seed": seed,
    }
    settings |= {"tolerance_mm": tolerance_mm, "matching": str(found_by), **about, "margin_mm": benchmark.margin_mm}
    run_benchmark(benchmark, ready, unusable, out, settings, worst=worst, values=values, overwrite=overwrite)


def _names(text: str | None, known: Sequence[str]) -> tuple[str, ...]:
    from difftumor.cli.options import parse_names

    return () if text is None else parse_names(text, option="--only", known=known)


if TYPE_CHECKING:
    from difftumor.evaluation.robustness.results import Results
    from difftumor.evaluation.robustness.scan_run import Benchmark, ScanResult
    from difftumor.synthesis.scan.inputs import ScanInputs

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
    from difftumor.cli.many import progress_bar, summarized
    from difftumor.errors import CaseListError
    from difftumor.evaluation.robustness.dimensions import plain_dimensions
    from difftumor.evaluation.robustness.results import Results
    from difftumor.evaluation.robustness.writing import SCANS, check_request, check_worst

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
    from difftumor.evaluation.robustness.worst import choose_worst, write_worst
    from difftumor.evaluation.robustness.writing import SCANS, WORST, remove_worst, write_results

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
    from difftumor.cli.synthesis.cases import listed_cases
    from difftumor.errors import DiffTumorError
    from difftumor.evaluation.robustness.scan_run import ScanResult
    from difftumor.scans.organs import get_organ
    from difftumor.synthesis.scan.cohort import inputs_of

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
    from difftumor.evaluation.robustness.scan_run import RESULT_FILE
    from difftumor.evaluation.robustness.writing import RESULT_FILES, SCANS, WORST

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
