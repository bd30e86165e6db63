"""Curves as matplotlib figures, and figures as PNG.

Figures are made without pyplot, so nothing is kept in global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from difftumor.files import written_whole
from difftumor.scans.appearance import EDGE_BINS_MM, Appearance, mean_edge_hu

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE_COLORS = ("#1f6fb4", "#d1602a", "#2f8f5b", "#8a5bb5", "#b58b00", "#5f6b76")


def to_png(figure: Figure, *, dpi: int = 130) -> bytes:
    """Return a figure as PNG bytes, the same for the same figure (no date, no version in it)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: Path, *, dpi: int = 130) -> Path:
    """Write a figure as PNG; the file is whole or absent. Makes the folder if needed."""
    with written_whole(path) as temporary:
        temporary.write_bytes(to_png(figure, dpi=dpi))
    return path


def curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    x_label: str = "step",
    y_label: str = "loss",
    log: bool = False,
    smoothing: float = 0.0,
    title: str | None = None,
    inches: tuple[float, float] = (7.0, 3.6),
) -> Figure:
    """Draw named curves, such as losses over training steps.

    Args:
        series: Name to (x values, y values), each of one length. Values that are not finite are left out, and with
            `log` those that are not positive too.
        x_label: Name of the horizontal axis, with its unit.
        y_label: Name of the vertical axis, with its unit.
        log: Logarithmic vertical axis.
        smoothing: Weight in [0, 1) of an exponential moving average; above 0 the raw curve is shown faintly behind it.
            Curves of fewer than 50 points, such as validation losses, are left as they are: the average would lag.
        title: Text above the axes.
        inches: Width and height of the figure.

    Raises:
        ValueError: x and y of a curve differ in length, or smoothing is out of range.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing {smoothing} is not in [0, 1)")
    figure, (axes,) = new_axes(1, inches, title)
    for number, (name, (x_values, y_values)) in enumerate(series.items()):
        x, y = np.asarray(x_values, np.float64), np.asarray(y_values, np.float64)
        if x.shape != y.shape or x.ndim != 1:
            raise ValueError(f"curve {name!r} has x of shape {x.shape} and y of shape {y.shape}")
        keep = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))
        x, y = x[keep], y[keep]
        color = CURVE_COLORS[number % len(CURVE_COLORS)]
        # A single point draws no line.
        marker = "o" if len(x) == 1 else None
        if smoothing > 0 and len(y) >= 50:
            axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
            y = _smoothed(y, smoothing)
        axes.plot(x, y, color=color, linewidth=1.5, label=name, marker=marker, markersize=4)
    if log:
        axes.set_yscale("log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter("{x:g}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    finish_axes(axes, legend=bool(series))
    return figure


def _smoothed(values: Sequence[float] | Any, weight: float) -> Any:
    """Exponential moving average, corrected for its start at zero."""
    average, out = 0.0, np.empty(len(values))
    for index, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        out[index] = average / (1 - weight ** (index + 1))
    return out


def new_figure(inches: tuple[float, float], *, layout: Literal["constrained"] | None = None) -> Figure:
    """Return an empty white figure that is rendered without a display."""
    # Here, because matplotlib takes half a second to load: a command that fails before it plots does not wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def new_axes(count: int, inches: tuple[float, float], title: str | None) -> tuple[Figure, list[Axes]]:
    """Return an empty figure with so many axes side by side, and a title above them."""
    figure = new_figure(inches, layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    if title is not None:
        figure.suptitle(title, fontsize=11)
    return figure, axes


def finish_axes(axes: Axes, *, legend: bool) -> None:
    """Give drawn axes the look that all figures share."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8)
    if legend:
        axes.legend(frameon=False, fontsize=8)


def appearance_figure(sets: Mapping[str, Sequence[Appearance]], *, title: str | None = None) -> Figure:
    """Draw named sets of tumors, such as real and synthetic ones.

    The area between two steps of the first two axes is the distance that ``appearance_distance`` gives.

    Args:
        sets: Name to tumors; a set may be empty. The first is what the others are held against: it is black, and around
            its mean edge profile lies a band of one standard deviation over its tumors.
        title: Text above the axes.
    """
    figure, (contrast, sd, edge) = new_axes(3, (12.0, 4.0), title)
    for number, (name, tumors) in enumerate(sets.items()):
        line = _line(number)
        _draw_cumulative(contrast, [tumor.contrast_hu for tumor in tumors], line)
        _draw_cumulative(sd, [tumor.sd_hu for tumor in tumors], line)
        _draw_profile(edge, tumors, line, label=f"{name} ({len(tumors)})", band=number == 0)
    contrast.set(xlabel="contrast to the surroundings (HU)", ylabel="share of tumors")
    sd.set(xlabel="standard deviation inside (HU)", ylabel="share of tumors")
    edge.set(xlabel="distance from the surface (mm), inside negative", ylabel="mean − surroundings (HU)")
    edge.axvline(0.0, color="#444444", linewidth=0.8, linestyle=":")
    for axes in (contrast, sd):
        axes.set_ylim(-0.03, 1.03)
    for axes in (contrast, sd, edge):
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
        finish_axes(axes, legend=False)
    if sets:
        figure.legend(*edge.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _line(number: int) -> dict[str, Any]:
    """Return how the lines of a set look, unlike those of all others."""
    if number == 0:
        return {"color": "#1c2329", "linestyle": "-", "linewidth": 2.0}
    dashes, color = divmod(number - 1, len(CURVE_COLORS))
    return {"color": CURVE_COLORS[color], "linestyle": ("-", "--", "-.", ":")[dashes % 4], "linewidth": 1.5}


def _draw_cumulative(axes: Axes, values: Sequence[float], line: Mapping[str, Any]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        axes.ecdf(finite, **line)
        axes.plot([float(np.median(finite))], [0.5], "o", color=line["color"], markersize=4)


def _draw_profile(axes: Axes, tumors: Sequence[Appearance], line: Mapping[str, Any], *, label: str, band: bool) -> None:
    mean = mean_edge_hu(tumors)
    edges = np.asarray(EDGE_BINS_MM)
    # Empty shells are bridged, as in coarse voxels.
    shown = np.isfinite(mean)
    middles, mean = (edges[:-1] + edges[1:])[shown] / 2, mean[shown]
    axes.plot(middles, mean, **line, marker="o", markersize=3, label=label)
    if band and shown.any():
        spread = np.nanstd(np.array([tumor.edge_hu for tumor in tumors])[:, shown], axis=0)
        axes.fill_between(middles, mean - spread, mean + spread, color=line["color"], alpha=0.15, lw=0)
