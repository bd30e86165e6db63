"""Heatmaps over dimensions and levels, and curves of detectability, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from difftumor.evaluation.cohort.statistics import wilson_interval
from difftumor.evaluation.robustness.cells import Cell
from difftumor.evaluation.robustness.detectability import Curve
from difftumor.evaluation.robustness.dimensions import LEVELS, level_name
from difftumor.reporting.plots import CURVE_COLORS, finish_axes, new_axes

Measure = Literal["dsc", "detection"]
_TITLES = {"dsc": "Mean DSC of the tumor", "detection": "Share of tumors found"}


def heatmap(cells: Sequence[Cell], measure: Measure, *, values: bool = True) -> Figure:
    """Draw dimensions as rows and levels as columns.

    Args:
        cells: As ``gather`` returns them.
        measure: What is drawn.
        values: Write below each number what the level is in HU, mm or the like.
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
        notes.append("n: tumors, where some scans had no room")
    if notes:
        axes.set_xlabel("     ".join(notes), fontsize=9, loc="left", color="#4a555e", labelpad=6)
    return figure


def detectability_figure(curves: Sequence[Curve]) -> Figure:
    """Draw the probability of detection over diameter and over contrast, with what was counted at each level."""
    figure, all_axes = new_axes(len(curves), (4.9 * len(curves), 4.0), None)
    for axes, curve in zip(all_axes, curves, strict=True):
        _draw_curve(axes, curve)
    all_axes[0].set_ylabel("share of tumors found", fontsize=10)
    handles = all_axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw_curve(axes: Axes, curve: Curve) -> None:
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
    # Fewer of them where they would run into each other.
    digits = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 7)
    round_numbers = [digit * 10.0**power for power in range(-1, 4) for digit in digits]
    inside = [number for number in round_numbers if low * 0.98 <= number <= high * 1.02]
    return inside or [low, high]


def _lines_between(axes: Axes, rows: int) -> None:
    axes.set_xticks(np.arange(1, len(LEVELS)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
