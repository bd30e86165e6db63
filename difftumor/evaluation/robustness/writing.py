"""All results of a benchmark as files: tables, JSON, Markdown, figures and a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from difftumor import __version__
from difftumor.errors import ConfigError
from difftumor.evaluation.robustness.cells import CELL_COLUMNS, cell_row
from difftumor.evaluation.robustness.dimensions import LEVELS, level_name, plain_dimensions, varied
from difftumor.evaluation.robustness.figures import Measure, detectability_figure, heatmap
from difftumor.evaluation.robustness.report import report_page
from difftumor.evaluation.robustness.results import WORST_HEADER, Results, worst_row
from difftumor.evaluation.robustness.scan_run import TumorRow
from difftumor.evaluation.robustness.worst import WorstCase
from difftumor.files import folder_written_whole
from difftumor.reporting.plots import save_png
from difftumor.reporting.tables import Table, write_csv, write_json

# The models are compared by what they are.
_NOT_ASKED = ("model", "cases", "device")
JSON_FILE, WORST, PICTURES = "robustness.json", "worst", "pictures"


def check_worst(out: Path) -> None:
    """Refuse to replace a folder of worst tumors that no earlier command wrote.

    Args:
        out: Folder to write to; need not exist.

    Raises:
        ConfigError: It holds something that `JSON_FILE` does not name.
    """
    folder = out / WORST
    if folder.exists() and not _is_own(folder, out):
        raise ConfigError(
            f"{folder} is not what {JSON_FILE} names, and would be replaced: give another --out, or move it away."
        )


def check_request(out: Path, request: Mapping[str, Any]) -> None:
    """Refuse to replace results that were asked for in another way; of other scans they may be.

    Args:
        out: Folder to write to; need not exist.
        request: What `request_of` makes of the results to be.

    Raises:
        ConfigError: `JSON_FILE` is of another request.
    """
    if (out / JSON_FILE).exists() and request_of(read_earlier(out)) != request_of(json.loads(json.dumps(request))):
        raise ConfigError(
            f"{out / JSON_FILE} holds results that were asked for in another way: give another --out or --overwrite."
        )


def request_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the results, of all that `JSON_FILE` says; not where files lie, nor which scans there are."""
    settings = results.get("settings")
    plain = dict(settings) if isinstance(settings, Mapping) else {}
    asked = {name: value for name, value in plain.items() if name not in _NOT_ASKED}
    return {"organ": results.get("organ"), "dimensions": results.get("dimensions"), "settings": asked}


def remove_worst(out: Path) -> None:
    """Remove the worst tumors of an earlier command; a folder with anything else in it stays."""
    if (out / WORST).is_dir() and _is_own(out / WORST, out):
        shutil.rmtree(out / WORST)


def remove_drawn(out: Path, curve: str) -> None:
    """Remove the pictures of earlier worst tumors and an earlier curve, which need not be there again.

    Args:
        out: Folder that was written to.
        curve: File of the curve.
    """
    if read_earlier(out):
        (out / curve).unlink(missing_ok=True)
    for name in worst_names(out):
        (out / PICTURES / f"{name}.png").unlink(missing_ok=True)
    with suppress(OSError):  # pictures of others may be in it
        (out / PICTURES).rmdir()


def worst_names(out: Path) -> set[str]:
    """Return the names of the worst tumors that an earlier command has written."""
    try:
        return {Path(entry["folder"]).name for entry in read_earlier(out)["worst"]}
    except (TypeError, KeyError):
        return set()


def read_earlier(out: Path) -> Mapping[str, Any]:
    """Return the results of an earlier command; nothing where there are none that can be read."""
    try:
        content = json.loads((out / JSON_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_own(folder: Path, out: Path) -> bool:
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= worst_names(out)


CELLS_FILE, TUMORS_FILE, MARKDOWN_FILE = "cells.csv", "tumors.csv", "robustness.md"
REPORT_FILE, SCANS = "report.html", "scans"
FIGURES: Mapping[str, Measure] = {"heatmap_dsc.png": "dsc", "heatmap_found.png": "detection"}
CURVE_FILE = "detectability.png"
RESULT_FILES = (CELLS_FILE, TUMORS_FILE, JSON_FILE, MARKDOWN_FILE, REPORT_FILE, *FIGURES, CURVE_FILE)
FORMAT_VERSION = 1


def write_results(out: Path, results: Results, worst: Sequence[WorstCase], *, values: bool = True) -> None:
    """Write `RESULT_FILES` and the pictures of the worst tumors; `JSON_FILE` comes last.

    Args:
        out: Folder to write to; what else is in it stays, but for pictures of earlier results.
        results: At least one tumor.
        worst: The worst tumors, written before.
        values: Whether heatmaps say what levels are in HU, mm or the like.
    """
    with folder_written_whole(out, keep_others=True, last=JSON_FILE) as staging:
        write_csv(staging / CELLS_FILE, Table.of_records(CELL_COLUMNS, map(cell_row, results.cells)))
        columns = [field.name for field in fields(TumorRow)]
        rows = [{**asdict(row), "record": f"{SCANS}/{row.case}/{row.record}"} for row in results.rows]
        plain = [{name: int(v) if isinstance(v, bool) else v for name, v in row.items()} for row in rows]
        write_csv(staging / TUMORS_FILE, Table.of_records(columns, plain))
        for name, measure in FIGURES.items():
            save_png(heatmap(results.cells, measure, values=values), staging / name)
        if results.curves:
            save_png(detectability_figure(results.curves), staging / CURVE_FILE)
        (staging / PICTURES).mkdir()
        for case in worst:
            (staging / PICTURES / f"{case.name}.png").write_bytes(case.picture)
        (staging / MARKDOWN_FILE).write_text(_markdown(results, worst), encoding="utf-8")
        report_page(results, worst, values=values).write(staging / REPORT_FILE)
        write_json(staging / JSON_FILE, _plain(results, worst))
        remove_drawn(out, CURVE_FILE)


def _plain(results: Results, worst: Sequence[WorstCase]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "difftumor_version": __version__,
        "organ": results.organ,
        "settings": dict(results.settings),
        "dimensions": plain_dimensions(results.dimensions),
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


def _markdown(results: Results, worst: Sequence[WorstCase]) -> str:
    header = ["", *map(level_name, LEVELS)]
    parts = [f"# Robustness: {results.organ}", results.introduction, *results.warnings]
    parts += [
        "## Which dimension matters",
        *results.cell_notes,
        Table(("Dimension", "Lowest", "Highest", "Span"), results.ranges()).markdown(),
    ]
    for measure, title in (("dsc", "Mean DSC of the tumor"), ("detection", "Tumors found")):
        parts += [f"## {title}", Table(header, results.table(measure)).markdown()]  # type: ignore[arg-type]
    if results.curves:
        parts += ["## Detectability", *(curve.sentence for curve in results.curves)]
    if worst:
        parts += ["## Worst tumors", Table(WORST_HEADER, list(map(worst_row, worst))).markdown()]
    notes = [f"- {scan.case}: {note}" for scan in results.scans for note in scan.notes]
    if notes:
        parts += ["## Notes", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"
