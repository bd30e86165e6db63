"""Sets of tumors side by side: how their contrasts and variations are distributed, and their mean edge profiles."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from difftumor.evaluation.appearance import EDGE_BINS_MM, Appearance, mean_edge_hu
from difftumor.plots import CURVE_COLORS, finish_axes, new_axes


def appearance_figure(sets: Mapping[str, Sequence[Appearance]], *, title: str | None = None) -> Figure:
    """Draw named sets of tumors, such as real and synthetic ones.

    The area between two steps of the first two axes is the distance that ``appearance_distance`` gives. Around the mean
    edge profile lies a band of one standard deviation over the tumors.

    Args:
        sets: Name to tumors; a set may be empty.
        title: Text above the axes.
    """
    figure, (contrast, sd, edge) = new_axes(3, (12.0, 3.8), title)
    for number, (name, tumors) in enumerate(sets.items()):
        color = CURVE_COLORS[number % len(CURVE_COLORS)]
        label = f"{name} ({len(tumors)})"
        _draw_cumulative(contrast, [tumor.contrast_hu for tumor in tumors], color, label)
        _draw_cumulative(sd, [tumor.sd_hu for tumor in tumors], color, label)
        _draw_profile(edge, tumors, color, label)
    contrast.set(xlabel="contrast to the surroundings (HU)", ylabel="share of tumors")
    sd.set(xlabel="standard deviation inside (HU)", ylabel="share of tumors")
    edge.set(xlabel="distance from the surface (mm), inside negative", ylabel="mean − surroundings (HU)")
    edge.axvline(0.0, color="#444444", linewidth=0.8, linestyle=":")
    for axes in (contrast, sd):
        axes.set_ylim(-0.03, 1.03)
    for axes in (contrast, sd, edge):
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
        finish_axes(axes, legend=axes is edge and bool(sets))
    return figure


def _draw_cumulative(axes: Axes, values: Sequence[float], color: str, label: str) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        axes.ecdf(finite, color=color, linewidth=1.5, label=label)
        axes.plot([float(np.median(finite))], [0.5], "o", color=color, markersize=4)


def _draw_profile(axes: Axes, tumors: Sequence[Appearance], color: str, label: str) -> None:
    mean = mean_edge_hu(tumors)
    profiles = np.array([tumor.edge_hu for tumor in tumors], np.float64).reshape(-1, len(mean))
    edges = np.asarray(EDGE_BINS_MM)
    middles = (edges[:-1] + edges[1:]) / 2
    # Empty shells are bridged, as in coarse voxels.
    shown = np.isfinite(mean)
    spread = np.array([np.std(column[np.isfinite(column)]) for column in profiles.T[shown]])
    axes.plot(middles[shown], mean[shown], color=color, linewidth=1.5, marker="o", markersize=3, label=label)
    if len(tumors) > 1 and shown.any():
        axes.fill_between(middles[shown], mean[shown] - spread, mean[shown] + spread, color=color, alpha=0.15, lw=0)
