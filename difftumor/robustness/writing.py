"""All results of a benchmark as files: tables, JSON, Markdown, figures and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from difftumor import __version__
from difftumor.files import folder_written_whole
from difftumor.plots import save_png
from difftumor.robustness.cells import CELL_COLUMNS, cell_row
from difftumor.robustness.dimensions import LEVELS, level_name, plain_dimensions, varied
from difftumor.robustness.earlier import JSON_FILE, PICTURES, WORST, remove_drawn
from difftumor.robustness.figures import Measure, detectability_figure, heatmap
from difftumor.robustness.report import report_page
from difftumor.robustness.results import WORST_HEADER, Results, worst_row
from difftumor.robustness.scan_run import TumorRow
from difftumor.robustness.worst import WorstCase
from difftumor.tables import markdown_table, write_csv, write_json

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
        write_csv(staging / CELLS_FILE, CELL_COLUMNS, map(cell_row, results.cells))
        columns = [field.name for field in fields(TumorRow)]
        rows = [{**asdict(row), "record": f"{SCANS}/{row.case}/{row.record}"} for row in results.rows]
        plain = [{name: int(v) if isinstance(v, bool) else v for name, v in row.items()} for row in rows]
        write_csv(staging / TUMORS_FILE, columns, plain)
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
        markdown_table(("Dimension", "Lowest", "Highest", "Span"), results.ranges()),
    ]
    for measure, title in (("dsc", "Mean DSC of the tumor"), ("detection", "Tumors found")):
        parts += [f"## {title}", markdown_table(header, results.table(measure))]  # type: ignore[arg-type]
    if results.curves:
        parts += ["## Detectability", *(curve.sentence for curve in results.curves)]
    if worst:
        parts += [
            "## Worst tumors",
            markdown_table(WORST_HEADER, [[str(cell) for cell in row] for row in map(worst_row, worst)]),
        ]
    notes = [f"- {scan.case}: {note}" for scan in results.scans for note in scan.notes]
    if notes:
        parts += ["## Notes", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"
