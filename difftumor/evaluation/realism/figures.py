"""How tumors look, as a figure: contrast, texture and edge of sets of tumors side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from difftumor.reporting.plots import CURVE_COLORS, finish_axes, new_axes
from difftumor.scans.appearance import EDGE_BINS_MM, Appearance, mean_edge_hu

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def appearance_figure(sets: Mapping[str, Sequence[Appearance]], *, title: str | None = None) -> Figure:
    """Plot how named sets of tumors look, such as real and synthetic ones.

    The area between two curves of the first two axes is the distance that ``appearance_distance`` gives.

    Args:
        sets: Name to tumors; a set may be empty. The first is what the others are compared with: it is black, and
            around its mean edge profile lies a band of one standard deviation over its tumors.
        title: Text above the axes.
    """
    figure, (contrast, sd, edge) = new_axes(3, (12.0, 4.0), title)
    for number, (name, tumors) in enumerate(sets.items()):
        line = _line(number)
        _plot_cumulative(contrast, [tumor.contrast_hu for tumor in tumors], line)
        _plot_cumulative(sd, [tumor.sd_hu for tumor in tumors], line)
        _plot_profile(edge, tumors, line, label=f"{name} ({len(tumors)})", band=number == 0)
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
    """Return the look of a set's lines, unlike that of any other set."""
    if number == 0:
        return {"color": "#1c2329", "linestyle": "-", "linewidth": 2.0}
    dashes, color = divmod(number - 1, len(CURVE_COLORS))
    return {"color": CURVE_COLORS[color], "linestyle": ("-", "--", "-.", ":")[dashes % 4], "linewidth": 1.5}


def _plot_cumulative(axes: Axes, values: Sequence[float], line: Mapping[str, Any]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        axes.ecdf(finite, **line)
        axes.plot([float(np.median(finite))], [0.5], "o", color=line["color"], markersize=4)


def _plot_profile(axes: Axes, tumors: Sequence[Appearance], line: Mapping[str, Any], *, label: str, band: bool) -> None:
    mean = mean_edge_hu(tumors)
    edges = np.asarray(EDGE_BINS_MM)
    # Empty shells are bridged, as in coarse voxels.
    shown = np.isfinite(mean)
    middles, mean = (edges[:-1] + edges[1:])[shown] / 2, mean[shown]
    axes.plot(middles, mean, **line, marker="o", markersize=3, label=label)
    if band and shown.any():
        spread = np.nanstd(np.array([tumor.edge_hu for tumor in tumors])[:, shown], axis=0)
        axes.fill_between(middles, mean - spread, mean + spread, color=line["color"], alpha=0.15, lw=0)
