"""A benchmark as a page: heatmaps, curves, the worst tumors, and how it was done."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from difftumor import __version__
from difftumor.evaluation.robustness.cells import Cell
from difftumor.evaluation.robustness.dimensions import level_name
from difftumor.evaluation.robustness.figures import detectability_figure, heatmap
from difftumor.evaluation.robustness.results import WORST_HEADER, Results, worst_row
from difftumor.evaluation.robustness.worst import WorstCase
from difftumor.reporting.report import Report
from difftumor.reporting.tables import Cell as Entry
from difftumor.reporting.tables import Table

_READING = (
    "Every row varies one property of hand-crafted tumors and leaves everything else as it is: shape, texture and "
    "place come from the same seeds. μ and σ are those of the distributions below. Location has its own places, from "
    "the least to the most deep one at which the tumor lies wholly in the organ."
)
_SCORES = (
    "A tumor's DSC is that of the predicted lesions that touch it: what is predicted elsewhere does not lower it. "
    "Intervals are 95 %: Wilson's for shares, which takes tumors for independent, and by bootstrap over patients for "
    "means, where there are four patients or more."
)


def report_page(results: Results, worst: Sequence[WorstCase], *, values: bool = True) -> Report:
    """Return the page of a benchmark; arguments as for ``write_results``."""
    report = Report(f"Robustness: {results.organ}", subtitle=f"difftumor {__version__}, {date.today().isoformat()}")
    report.paragraph(results.introduction)
    for warning in results.warnings:
        report.paragraph(warning)
    for curve in results.curves:
        report.paragraph(curve.sentence)
    report.heading("Which dimension matters")
    for note in results.cell_notes:
        report.paragraph(note)
    report.table(Table(("Dimension", "Lowest mean DSC", "Highest mean DSC", "Span"), results.ranges()))
    report.heading("Heatmaps")
    report.paragraph(_READING)
    report.figure(
        heatmap(results.cells, "dsc", values=values), caption="Mean DSC of the tumor, by dimension and level."
    )
    report.figure(heatmap(results.cells, "detection", values=values), caption="Share of tumors that were found.")
    if results.curves:
        report.heading("Detectability")
        caption = (
            "Probability of detection over the diameter of the tumors that differ in size, and over the contrast of "
            "those that differ in intensity: logistic regression on the logarithm, with an interval by bootstrap over "
            "patients."
        )
        report.figure(detectability_figure(results.curves), caption=caption)
    _add_worst(report, worst)
    report.heading("All cells")
    report.paragraph(_SCORES)
    header = ("Dimension", "Level", "Value", "Tumors", "Found", "DSC", "NSD", "Diameter (mm)")
    report.table(Table(header, list(map(_cells, results.cells))))
    report.heading("Scans")
    scans = [(s.case, s.status, len(s.rows) or None, s.healthy_lesions, " ".join(s.notes)) for s in results.scans]
    report.table(Table(("Scan", "Status", "Tumors in cells", "Lesions without a tumor", "Notes"), scans))
    report.heading("How it was done")
    distributions = [
        (name, one.mean, f"factor {one.sd:.3g}" if one.log else one.sd, one.low, one.high)
        for name, one in results.dimensions.items()
    ]
    report.table(Table(("Dimension", "μ", "σ", "From", "To"), distributions))
    report.key_values({name.replace("_", " "): _said(value) for name, value in results.settings.items()})
    return report


def _add_worst(report: Report, worst: Sequence[WorstCase]) -> None:
    if not worst:
        return
    report.heading("Worst tumors")
    report.paragraph(
        "Lowest DSC first; of those that were missed, usual ones before extreme ones. Their scans are in the folder "
        "worst: stage 3 trains on them with synthesis.offline. Scans that are trained on are no test scans any more."
    )
    report.table(Table(WORST_HEADER, list(map(worst_row, worst))))
    for case in worst:
        report.figure(case.picture, caption=f"{case.name}: CT, truth and prediction in three planes through the tumor.")


def _cells(cell: Cell) -> list[Entry]:
    level = level_name(cell.level)
    if not cell.rows or cell.detection_interval is None:
        return [cell.dimension.name, level, cell.physical, "no room", None, None, None, None]
    found = f"{cell.found} ({cell.detection_interval.low:.2f} to {cell.detection_interval.high:.2f})"
    diameter = sum(row.diameter_mm for row in cell.rows) / len(cell.rows)
    numbers = [
        f"{mean:.2f}" if interval is None else f"{mean:.2f} ({interval.low:.2f} to {interval.high:.2f})"
        for mean, interval in ((cell.dsc, cell.dsc_interval), (cell.nsd, cell.nsd_interval))
    ]
    star = "*" if cell.clamped else ""
    return [cell.dimension.name, level, f"{cell.physical}{star}", len(cell.rows), found, *numbers, f"{diameter:.1f}"]


def _said(value: object) -> Entry:
    if isinstance(value, list | tuple):
        return ", ".join(str(_said(each)) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {each}" for name, each in value.items())
    return value if value is None or isinstance(value, str | int | float) else str(value)
