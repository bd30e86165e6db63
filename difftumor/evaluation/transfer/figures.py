"""Figures of a study of transfer: heatmaps of source by target, all-stage detection, reduced annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from difftumor.evaluation.cohort.statistics import LEVEL
from difftumor.evaluation.cohort.tables import percent
from difftumor.evaluation.transfer.cells import MEASURES, Measure, PooledMeasure, TransferGrid
from difftumor.evaluation.transfer.tables import (
    KINDS,
    ROW_NAMES,
    ROWS,
    annotated_series,
    annotations_name,
    backbone_name,
    chosen,
    counts_of,
)
from difftumor.reporting.plots import CURVE_COLORS, finish_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Above it, text on a cell is white.
_DARK = 60.0
_BAR = 0.8  # of the distance between two organs


def transfer_heatmap(grid: TransferGrid, measure: Measure, *, level: float = LEVEL, seed: int = 0) -> Figure:
    """Show a measure by source and target: a row per backbone, a column per kind of tumors, with intervals."""
    shape = len(grid.backbones), len(ROWS)
    width, height = 0.9 + 1.05 * len(grid.targets), 0.75 + 0.75 * len(grid.sources)
    figure = new_figure((0.9 + width * shape[1], 0.5 + height * shape[0]), layout="constrained")
    panels = figure.subplots(*shape, squeeze=False, sharex=True, sharey=True)
    for backbone, line in zip(grid.backbones, panels, strict=True):
        for row, axes in zip(ROWS, line, strict=True):
            found = [
                [
                    _measured(grid, source, target, backbone, row, measure, level=level, seed=seed)
                    for target in grid.targets
                ]
                for source in grid.sources
            ]
            colors = _heatmap(axes, found)
            axes.set_xticks(range(len(grid.targets)), grid.targets, fontsize=8)
            axes.set_yticks(range(len(grid.sources)), grid.sources, fontsize=8)
            axes.set_title(f"{backbone_name(backbone)}, {ROW_NAMES[row]}", fontsize=9)
    figure.supxlabel("target", fontsize=9)
    figure.supylabel("source", fontsize=9)
    figure.suptitle(f"{MEASURES[measure]} (%)", fontsize=10)  # beside the bar it is too long for a single source
    figure.colorbar(colors, ax=panels, shrink=0.8, label="%")
    return figure


def _heatmap(axes: Axes, rows: Sequence[Sequence[PooledMeasure | None]]) -> AxesImage:
    values = [[np.nan if one is None or one.value is None else 100 * one.value for one in row] for row in rows]
    colors = axes.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_facecolor("#eeeeee")
    for y, row in enumerate(rows):
        for x, one in enumerate(row):
            if one is None or one.value is None:
                axes.text(x, y, "missing", ha="center", va="center", fontsize=7, color="#777777")
                continue
            ends = one.interval
            below = "" if ends is None else f"\n{percent(ends.low)}–{percent(ends.high)}"
            counts = f"\n{counts_of(one)}"
            color = "white" if 100 * one.value > _DARK else "#1c2329"
            axes.text(x, y, f"{percent(one.value)}{below}{counts}", ha="center", va="center", fontsize=7, color=color)
    return colors


def detection_figure(grid: TransferGrid, *, level: float = LEVEL, seed: int = 0) -> Figure:
    """Plot tumor-wise sensitivity at all stages of segmenters of each organ, by backbone (Figure 10 of DiffTumor)."""
    figure = new_figure((3.2 * len(grid.backbones) + 0.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(grid.backbones), squeeze=False, sharey=True)[0]
    width = _BAR / len(ROWS)
    for backbone, axes in zip(grid.backbones, panels, strict=True):
        for order, row in enumerate(ROWS):
            found = [_measured(grid, t, t, backbone, row, "all", level=level, seed=seed) for t in grid.targets]
            for number, one in enumerate(found):
                place = number + (order - (len(ROWS) - 1) / 2) * width
                if one is None or one.value is None:
                    axes.text(place, 2, "missing", ha="center", rotation=90, fontsize=7, color=CURVE_COLORS[order])
                    continue
                axes.bar(place, 100 * one.value, 0.92 * width, color=CURVE_COLORS[order], alpha=0.8)
                _whisker(axes, place, one)
        tumors = [max((one.tumors for row in ROWS if (one := _measured(grid, t, t, backbone, row, "all", level=level,
                  seed=seed)) is not None), default=0) for t in grid.targets]  # fmt: skip
        labels = [f"{target}\nn = {count}" for target, count in zip(grid.targets, tumors, strict=True)]
        axes.set_xticks(range(len(labels)), labels)
        axes.set(ylim=(0, 103), title=backbone_name(backbone), xlim=(-0.6, len(labels) - 0.4))
        axes.title.set_fontsize(9)
        finish_axes(axes, legend=False)
        axes.grid(visible=False, axis="x")
    panels[0].set_ylabel("tumor-wise sensitivity (%)", fontsize=9)
    handles: list[Any] = [panels[0].bar(0, 0, color=CURVE_COLORS[order], alpha=0.8) for order in range(len(ROWS))]
    figure.legend(
        handles, [ROW_NAMES[row] for row in ROWS], loc="outside upper center", ncols=3, frameon=False, fontsize=8
    )
    return figure


def annotations_figure(grid: TransferGrid, *, level: float = LEVEL, seed: int = 0) -> Figure | None:
    """Plot DSC and early sensitivity by the number of annotated tumors (Figure 5 of DiffTumor); None without any."""
    series = annotated_series(grid)
    if not series:
        return None
    figure = new_figure((8.0, 3.4), layout="constrained")
    panels: tuple[tuple[Measure, Axes], ...] = tuple(zip(("dsc", "early"), figure.subplots(1, 2), strict=True))
    numbers = {key.annotations for keys in series for key in keys}
    steps = sorted(numbers, key=lambda number: (number is None, number or 0))
    for measure, axes in panels:
        for order, keys in enumerate(series):
            color = CURVE_COLORS[order % len(CURVE_COLORS)]
            points = []
            for key in keys:
                group = grid.groups.get(key)
                one = None if group is None else group.measured(measure, level=level, seed=seed)
                if one is None or one.value is None:
                    continue
                place = steps.index(key.annotations) + 0.06 * (order - (len(series) - 1) / 2)
                points.append((place, 100 * one.value))
                _whisker(axes, place, one, color=color)
            first = keys[0]
            tumors = KINDS.get(first.tumors, first.tumors)
            name = f"{first.source} → {first.target}, {backbone_name(first.backbone)}, {tumors}"
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=4, linewidth=1.4, label=name)
        labels = [next(annotations_name(key) for keys in series for key in keys if key.annotations == n) for n in steps]
        axes.set_xticks(range(len(steps)), labels)
        axes.set(ylim=(0, 103), xlabel="annotated tumors", xlim=(-0.4, len(steps) - 0.6))
        axes.set_title(f"{MEASURES[measure]} (%)", fontsize=9)
        finish_axes(axes, legend=False)
    handles, names = panels[0][1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def _measured(
    grid: TransferGrid, source: str, target: str, backbone: str, row: str, measure: Measure, *, level: float, seed: int
) -> PooledMeasure | None:
    group, _ = chosen(grid, source, target, backbone, row)
    return None if group is None else group.measured(measure, level=level, seed=seed)


def _whisker(axes: Axes, place: float, one: PooledMeasure, *, color: str = "#1c2329") -> None:
    if one.interval is None or one.value is None:
        return
    low, high = 100 * (one.value - one.interval.low), 100 * (one.interval.high - one.value)
    errors = [[max(0.0, low)], [max(0.0, high)]]
    axes.errorbar(place, 100 * one.value, errors, color=color, capsize=2.5, linewidth=1)
