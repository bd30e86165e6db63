"""A benchmark as a page and as Markdown, with its figures: heatmaps over dimensions and levels, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from difftumor import __version__
from difftumor.evaluation.cohort.statistics import wilson_interval
from difftumor.evaluation.robustness.detectability import Curve
from difftumor.evaluation.robustness.dimensions import LEVELS, level_name
from difftumor.evaluation.robustness.results import Cell, Measure, Results
from difftumor.evaluation.robustness.worst import WORST_HEADER, WorstCase
from difftumor.reporting.plots import CURVE_COLORS, finish_axes, new_axes, to_png
from difftumor.reporting.report import Report
from difftumor.reporting.tables import Cell as Entry
from difftumor.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEATMAPS: Mapping[str, Measure] = {"heatmap_dsc.png": "dsc", "heatmap_found.png": "detection"}
CURVE_FILE = "detectability.png"
_TITLES: dict[Measure, str] = {"dsc": "Mean DSC of the tumor", "detection": "Share of tumors found"}
_READING = (
    "Every row varies one property of hand-crafted tumors and keeps everything else: shape, texture and place come "
    "from the same seeds. μ and σ are those of the distributions below. Location varies the place itself, from the "
    "shallowest to the deepest at which the whole tumor lies in the organ."
)
_SCORES = (
    "A tumor's DSC is that of the predicted lesions that touch it: lesions predicted elsewhere do not lower it. "
    "Intervals are 95 %: Wilson's for shares, which assumes independent tumors, and by bootstrap over patients for "
    "means (from four patients)."
)


def render_figures(results: Results, *, values: bool = True) -> dict[str, bytes]:
    """Return heatmaps and, if there are curves, detectability as PNG, by file name.

    Args:
        results: At least one tumor.
        values: Whether heatmaps show the values of levels.
    """
    rendered = {name: to_png(heatmap(results.cells, measure, values=values)) for name, measure in HEATMAPS.items()}
    if results.curves:
        rendered[CURVE_FILE] = to_png(detectability_figure(results.curves))
    return rendered


def report_page(results: Results, worst: Sequence[WorstCase], figures: Mapping[str, bytes]) -> Report:
    """Return the page of a benchmark.

    Args:
        results: At least one tumor.
        worst: The worst tumors.
        figures: Result of `render_figures`.
    """
    report = Report(f"Robustness: {results.organ}", subtitle=f"difftumor {__version__}, {date.today().isoformat()}")
    for sentence in results.sentences:
        report.paragraph(sentence)
    report.heading("Which dimension matters")
    for note in results.cell_notes:
        report.paragraph(note)
    report.table(Table(("Dimension", "Lowest mean DSC", "Highest mean DSC", "Span"), results.ranges()))
    report.heading("Heatmaps")
    report.paragraph(_READING)
    captions = ("Mean DSC of the tumor, by dimension and level.", "Share of tumors found.")
    for name, caption in zip(HEATMAPS, captions, strict=True):
        report.figure(figures[name], caption=caption)
    if CURVE_FILE in figures:
        report.heading("Detectability")
        caption = (
            "Probability of detection over diameter (tumors that vary in size) and over contrast (tumors that vary in "
            "intensity): logistic regression on the logarithm, with an interval by bootstrap over "
            "patients."
        )
        report.figure(figures[CURVE_FILE], caption=caption)
    _add_worst(report, worst)
    report.heading("All cells")
    report.paragraph(_SCORES)
    header = ("Dimension", "Level", "Value", "Tumors", "Found", "DSC", "NSD", "Diameter (mm)")
    report.table(Table(header, list(map(_cell_entries, results.cells))))
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
        "Lowest DSC first; among missed tumors, those near the mean before extreme ones. Their scans are in the folder "
        "worst: stage 3 trains on them with synthesis.offline. Do not test on scans that were trained on."
    )
    report.table(Table(WORST_HEADER, [case.cells for case in worst]))
    for case in worst:
        report.figure(case.picture, caption=f"{case.name}: CT, truth and prediction in three planes through the tumor.")


def _cell_entries(cell: Cell) -> list[Entry]:
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


def markdown(results: Results, worst: Sequence[WorstCase]) -> str:
    """Return the results, of at least one tumor, and the worst tumors as Markdown."""
    header = ["", *map(level_name, LEVELS)]
    parts = [f"# Robustness: {results.organ}", results.introduction, *results.warnings]
    parts += [
        "## Which dimension matters",
        *results.cell_notes,
        Table(("Dimension", "Lowest", "Highest", "Span"), results.ranges()).markdown(),
        "## Mean DSC of the tumor",
        Table(header, results.table("dsc")).markdown(),
        "## Tumors found",
        Table(header, results.table("detection")).markdown(),
    ]
    if results.curves:
        parts += ["## Detectability", *(curve.sentence for curve in results.curves)]
    if worst:
        parts += ["## Worst tumors", Table(WORST_HEADER, [case.cells for case in worst]).markdown()]
    notes = [f"- {scan.case}: {note}" for scan in results.scans for note in scan.notes]
    if notes:
        parts += ["## Notes", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def heatmap(cells: Sequence[Cell], measure: Measure, *, values: bool = True) -> Figure:
    """Plot a measure with dimensions as rows and levels as columns.

    Args:
        cells: As ``gather`` returns them.
        measure: What to plot.
        values: Write the value of each level (in HU, mm, …) below its number.
    """
    names = list(dict.fromkeys(cell.dimension.name for cell in cells))
    figure, (axes,) = new_axes(1, (9.2, 1.3 + 0.72 * len(names)), None)
    grid = np.full((len(names), len(LEVELS)), np.nan)
    for cell in cells:
        row, column = names.index(cell.dimension.name), LEVELS.index(cell.level)
        number = getattr(cell, measure)
        grid[row, column] = np.nan if number is None else number
        text = "no room" if number is None else f"{number:.2f}{'*' if cell.clamped else ''}"
        # White on the dark end of the colors, dark elsewhere.
        color = "white" if number is not None and number > 0.6 else "#1c2329"
        count = f"n = {len(cell.rows)}" if cell.fewer else ""
        second = "\n".join(filter(None, (cell.physical if values else "", count)))
        axes.text(column, row - (0.14 if second else 0), text, ha="center", va="center", color=color, fontsize=12)
        axes.text(column, row + 0.24, second, ha="center", va="center", color=color, fontsize=8)
    colors = axes.imshow(np.ma.masked_invalid(grid), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_facecolor("#eceff1")
    axes.set_xticks(range(len(LEVELS)), [level_name(level) for level in LEVELS])
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labelsize=11)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    _lines_between(axes, len(names))
    axes.set_title(_TITLES[measure], fontsize=12, weight="bold", loc="left", pad=10)
    bar = figure.colorbar(colors, ax=axes, fraction=0.03, pad=0.015, ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, length=0)
    notes = ["* held at a limit of the dimension"] if any(cell.clamped for cell in cells) else []
    if any(cell.fewer for cell in cells):
        notes.append("n: tumors, if some scans had no room")
    if notes:
        axes.set_xlabel("     ".join(notes), fontsize=9, loc="left", color="#4a555e", labelpad=6)
    return figure


def detectability_figure(curves: Sequence[Curve]) -> Figure:
    """Plot the probability of detection over diameter and over contrast, with the counts at each level."""
    figure, all_axes = new_axes(len(curves), (4.9 * len(curves), 4.0), None)
    for axes, curve in zip(all_axes, curves, strict=True):
        _plot_curve(axes, curve)
    all_axes[0].set_ylabel("share of tumors found", fontsize=10)
    handles = all_axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _plot_curve(axes: Axes, curve: Curve) -> None:
    color = CURVE_COLORS[0]
    axes.axhline(0.5, color="#8a949c", linewidth=0.8, linestyle=":")
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.18, linewidth=0, label="95 % interval")
    axes.plot(curve.x, curve.probability, color=color, linewidth=1.8, label="logistic regression")
    for number, (x, tumors, found) in enumerate(curve.points):
        interval = wilson_interval(found, tumors)
        assert interval is not None
        share = found / tumors
        ends: Any = [[max(0.0, share - interval.low)], [max(0.0, interval.high - share)]]
        label = "tumors of one level" if number == 0 else None
        axes.errorbar([x], [share], ends, fmt="o", color="#1c2329", markersize=4, linewidth=0.9, label=label)
    if curve.half is not None:
        axes.axvline(curve.half, color=CURVE_COLORS[1], linewidth=1.2, linestyle="--")
        place = {"transform": axes.transAxes, "ha": "left", "va": "top", "fontsize": 10, "color": CURVE_COLORS[1]}
        axes.text(0.02, 0.96, f"half found at {curve.put(curve.half)}", **place)  # type: ignore[arg-type]
    axes.set_xscale("log")
    ticks = _ticks(curve.smallest, curve.largest)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-0.04, 1.04)
    name = "diameter" if curve.quantity == "diameter" else "contrast to the organ, absolute"
    axes.set_xlabel(f"{name} ({curve.unit})", fontsize=10)
    finish_axes(axes, legend=False)


def _ticks(low: float, high: float) -> list[float]:
    # Fewer on a long axis, or they would overlap.
    digits = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 7)
    round_numbers = [digit * 10.0**power for power in range(-1, 4) for digit in digits]
    inside = [number for number in round_numbers if low * 0.98 <= number <= high * 1.02]
    return inside or [low, high]


def _lines_between(axes: Axes, rows: int) -> None:
    axes.set_xticks(np.arange(1, len(LEVELS)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
