"""A whole benchmark: segmenters and scans in, a folder of tables, figures, a page and the worst tumors out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from glob import escape
from pathlib import Path
from typing import Any

import torch

from difftumor import __version__
from difftumor.datasets.cases import CaseList
from difftumor.errors import ConfigError, DiffTumorError
from difftumor.evaluation.robustness.dimensions import Dimension, plain_dimensions, varied
from difftumor.evaluation.robustness.plan import tumor_spec
from difftumor.evaluation.robustness.report import CURVE_FILE, HEATMAPS, markdown, render_figures, report_page
from difftumor.evaluation.robustness.results import CELL_COLUMNS, Results, cell_row
from difftumor.evaluation.robustness.scan_run import Benchmark, HealthyScan
from difftumor.evaluation.robustness.scoring import ScanResult, TumorRow
from difftumor.evaluation.robustness.worst import WorstCase, choose_worst, write_worst
from difftumor.files.results import ResultFolder
from difftumor.files.texts import read_json
from difftumor.files.writing import folder_written_whole
from difftumor.models.artifact import load_artifact
from difftumor.reporting.tables import Table, write_csv, write_json
from difftumor.scans.organs import Organ
from difftumor.segmentation.labels import LabelPredictor, seen_around_mm
from difftumor.segmentation.options import PredictionOptions
from difftumor.synthesis.scan.cohort import inputs_of
from difftumor.synthesis.scan.loading import load_synthesizer

FORMAT_VERSION = 1
JSON_FILE, CELLS_FILE, TUMORS_FILE, MARKDOWN_FILE = "robustness.json", "cells.csv", "tumors.csv", "robustness.md"
REPORT_FILE = "report.html"
RESULT_FILES = (CELLS_FILE, TUMORS_FILE, JSON_FILE, MARKDOWN_FILE, REPORT_FILE, *HEATMAPS, CURVE_FILE)
SCANS, WORST, PICTURES = "scans", "worst", "pictures"
# Settings that do not make results differ: models are compared by their identity.
_NOT_COMPARED = ("model", "cases", "device")


def load_benchmark(
    models: Sequence[Path],
    organ: Organ,
    prediction: PredictionOptions,
    *,
    device: torch.device,
    windows_per_batch: int,
    memory_bytes: int,
    organ_only: bool,
    allow_incomplete: bool,
    **settings: Any,
) -> Benchmark:
    """Load segmenters and return the benchmark that tests their average.

    Args:
        models: Artifacts of segmenters.
        organ: Where tumors are inserted.
        prediction: How the segmenters predict.
        device: Where they run.
        windows_per_batch: Windows predicted together.
        memory_bytes: For remembering the windows of a scan without a tumor.
        organ_only: Predict only the organ and one window around it.
        allow_incomplete: Also use a model whose training has not finished.
        **settings: The remaining arguments of `Benchmark`.

    Raises:
        ArtifactError: A model cannot be used.
        ConfigError: A model is for another organ.
    """
    artifacts = [load_artifact(m, kind="segmenter", device=device, allow_incomplete=allow_incomplete) for m in models]
    for model, artifact in zip(models, artifacts, strict=True):
        own = artifact.config.organ
        if own not in (None, organ.name):
            raise ConfigError(
                f"--model {model} finds tumors of the {own}, not of the {organ.name}: give --organ {own}."
            )
    return Benchmark(
        synthesizer=load_synthesizer(None, organ=organ),
        predict=LabelPredictor(artifacts, prediction, windows_per_batch=windows_per_batch, memory_bytes=memory_bytes),
        margin_mm=seen_around_mm(artifacts) if organ_only else None,
        about={
            "models": [artifact.config.identity for artifact in artifacts],
            "overlap": prediction.overlap,
            "organ_filter": prediction.organ_filter,
            "min_volume_mm3": prediction.min_volume_mm3,
        },
        **settings,
    )


def usable_scans(
    listed: CaseList, organ: Organ, *, organ_labels: tuple[int, ...], mask: bool, accept_hu: bool = False
) -> tuple[list[HealthyScan], list[ScanResult]]:
    """Return the scans of a list, and those that cannot be used as failed results.

    Args:
        listed: The list.
        organ: The organ.
        organ_labels: Its numbers in the label maps; empty if the list names its labels.
        mask: Whether the labels are masks of the organ alone.
        accept_hu: As for ``Scan``.
    """
    ready, unusable = [], []
    for case in listed.cases:
        try:
            inputs = inputs_of(case, listed, organ, organ_labels=organ_labels, mask=mask, accept_hu=accept_hu)
            ready.append(HealthyScan(case.id, case.patient, inputs))
        except DiffTumorError as error:
            unusable.append(ScanResult(case.id, "failed", notes=(str(error),)))
    return ready, unusable


def result_names(scans: Sequence[HealthyScan]) -> dict[str, list[str]]:
    """Return the files and folders that a benchmark writes for each scan, by case."""
    return {scan.case: [f"{SCANS}/{scan.case}", WORST, *RESULT_FILES] for scan in scans}


def run_benchmark(
    benchmark: Benchmark,
    scans: Sequence[HealthyScan],
    unusable: Sequence[ScanResult],
    out: Path,
    *,
    settings: Mapping[str, Any],
    worst: int,
    values: bool,
    overwrite: bool,
    done: Callable[[ScanResult], None],
) -> Results:
    """Run all scans and write the results, if any tumor was made.

    Args:
        benchmark: How every scan is run.
        scans: The scans.
        unusable: Scans of the list that cannot be used.
        out: Folder to write to.
        settings: Settings for the record that do not decide results, such as paths.
        worst: Number of the worst tumors to write with their scans.
        values: Whether heatmaps show the values of levels (mm, HU, …).
        overwrite: Rerun scans that were done before, and replace results of other settings.
        done: Called with the result of every scan.

    Raises:
        ConfigError: The folder holds results of other settings, or foreign files among the worst tumors.
    """
    plain = {
        **settings, "repeats": benchmark.repeats, "seed": benchmark.seed, "tolerance_mm": benchmark.tolerance_mm,
        "matching": str(benchmark.matching), **benchmark.about, "margin_mm": benchmark.margin_mm,
    }  # fmt: skip
    organ = benchmark.synthesizer.organ.name
    if worst:
        _worst_folder(out).check(out / WORST, remedy="give another --out, or move it away")
    if not overwrite:
        _check_request(out, {"organ": organ, **_asked(benchmark.dimensions), "settings": plain})
    results = list(unusable)
    for result in benchmark.run_all(scans, out / SCANS, overwrite=overwrite):
        results.append(result)
        done(result)
    found = Results(
        organ=organ, dimensions=benchmark.dimensions, scans=results, settings=plain, seed=benchmark.seed
    )  # fmt: skip
    if found.rows:
        cases: list[WorstCase] = []
        if chosen := choose_worst(found.rows, worst):
            inputs = {scan.case: scan.inputs for scan in scans}
            cases = write_worst(benchmark, chosen, inputs, scans=out / SCANS, out=out / WORST)
        elif _worst_folder(out).is_earlier(out / WORST):
            shutil.rmtree(out / WORST)
        write_results(out, found, cases, values=values)
    return found


def write_results(out: Path, results: Results, worst: Sequence[WorstCase], *, values: bool = True) -> None:
    """Write `RESULT_FILES` and the pictures of the worst tumors; `JSON_FILE` comes last.

    Args:
        out: Folder to write to; other files in it stay, except pictures of earlier results.
        results: At least one tumor.
        worst: The worst tumors, already written.
        values: Whether heatmaps show the values of levels.
    """
    with folder_written_whole(out, keep_others=True, last=JSON_FILE) as staging:
        write_csv(staging / CELLS_FILE, Table.of_records(CELL_COLUMNS, map(cell_row, results.cells)))
        columns = [field.name for field in fields(TumorRow)]
        rows = [{**asdict(row), "record": f"{SCANS}/{row.case}/{row.record}"} for row in results.rows]
        plain = [{name: int(v) if isinstance(v, bool) else v for name, v in row.items()} for row in rows]
        write_csv(staging / TUMORS_FILE, Table.of_records(columns, plain))
        figures = render_figures(results, values=values)
        for name, picture in figures.items():
            (staging / name).write_bytes(picture)
        (staging / PICTURES).mkdir()
        for case in worst:
            (staging / PICTURES / f"{case.name}.png").write_bytes(case.picture)
        (staging / MARKDOWN_FILE).write_text(markdown(results, worst), encoding="utf-8")
        report_page(results, worst, figures).write(staging / REPORT_FILE)
        write_json(staging / JSON_FILE, _record(results, worst))
        _remove_pictures(out)


def _record(results: Results, worst: Sequence[WorstCase]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "difftumor_version": __version__,
        "organ": results.organ,
        "settings": dict(results.settings),
        **_asked(results.dimensions),
        "varied": varied(results.dimensions),
        "tumors": results.tumors,
        "warnings": results.warnings,
        "cells": [dict(cell_row(cell)) for cell in results.cells],
        "detectability": [curve.to_plain() for curve in results.curves],
        "worst": [{"folder": f"{WORST}/{case.name}", **asdict(case.row)} for case in worst],
        "scans": [
            {"case": scan.case, "status": scan.status, "healthy_lesions": scan.healthy_lesions, "notes": scan.notes}
            for scan in results.scans
        ],
    }


def _asked(dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
    """Return what tumors are made, as plain values."""
    return {"dimensions": plain_dimensions(dimensions), "tumor": tumor_spec(dimensions).to_plain()}


def _check_request(out: Path, request: Mapping[str, Any]) -> None:
    """Refuse to replace results of other settings; other scans are fine.

    Raises:
        ConfigError: `JSON_FILE` holds such results.
    """
    if (out / JSON_FILE).exists() and _compared(_earlier(out)) != _compared(json.loads(json.dumps(request))):
        raise ConfigError(f"{out / JSON_FILE} holds results of other settings: give another --out or --overwrite.")


def _compared(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `JSON_FILE` that decides the results; not where files lie, nor which scans there are."""
    settings = results.get("settings")
    plain = dict(settings) if isinstance(settings, Mapping) else {}
    kept = {name: value for name, value in plain.items() if name not in _NOT_COMPARED}
    # Folders without "tumor" are of tumors with eq. (3) alone, which must not be mixed with others.
    return {name: results.get(name) for name in ("organ", "dimensions", "tumor")} | {"settings": kept}


def _remove_pictures(out: Path) -> None:
    """Remove an earlier curve and pictures of earlier worst tumors, which this run may not replace."""
    if _earlier(out):
        (out / CURVE_FILE).unlink(missing_ok=True)
    for name in _earlier_worst(out):
        (out / PICTURES / f"{name}.png").unlink(missing_ok=True)
    with suppress(OSError):  # it may hold pictures of others
        (out / PICTURES).rmdir()


def _earlier_worst(out: Path) -> set[str]:
    try:
        return {Path(entry["folder"]).name for entry in _earlier(out)["worst"]}
    except (TypeError, KeyError):
        return set()


def _earlier(out: Path) -> Mapping[str, Any]:
    """Return the results of an earlier command; nothing if there are none or the file is damaged."""
    try:
        content = read_json(out / JSON_FILE)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _worst_folder(out: Path) -> ResultFolder:
    """Return the kind of folder that holds the worst tumors which `JSON_FILE` names, and nothing else."""
    return ResultFolder(what="result", holds=tuple(f"{escape(name)}/**" for name in _earlier_worst(out)))
