"""Figures of an evaluation: sensitivity by size, scores case by case, the free-response curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from difftumor.errors import counted
from difftumor.evaluation.cohort.cases import FRACTIONS
from difftumor.evaluation.cohort.methods import Method
from difftumor.evaluation.metrics.froc import FrocCurve
from difftumor.reporting.plots import CURVE_COLORS, finish_axes, new_axes
from difftumor.scans.lesions import EARLY_DIAMETER_MM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR = 0.8  # of the distance between two groups


def sensitivity_figure(summaries: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot tumor-wise sensitivity by size with Wilson intervals, and the number of tumors below each group."""
    figure, (axes,) = new_axes(1, (8.2, 3.6), None)
    names: list[str] = []
    totals: list[list[int]] = []
    width = _BAR / len(summaries)
    for order, (method, summary) in enumerate(summaries.items()):
        detection = summary["detection"]
        rates = {
            "all": detection["sensitivity"],
            f"early\n(< {EARLY_DIAMETER_MM:g} mm)": detection["early_sensitivity"],
            **{f"radius\n{name}": rate for name, rate in detection["sensitivity_by_radius"].items()},
        }
        names = list(rates)
        totals.append([rate["total"] for rate in rates.values()])
        places = np.arange(len(rates)) + (order - (len(summaries) - 1) / 2) * width
        heights = [100 * (rate["value"] or 0.0) for rate in rates.values()]
        color = CURVE_COLORS[order % len(CURVE_COLORS)]
        axes.bar(places, heights, width * 0.92, color=color, alpha=0.75, label=method)
        for place, rate, height in zip(places, rates.values(), heights, strict=True):
            if rate["interval"] is None:
                axes.text(float(place), 2, "–", ha="center", fontsize=9, color=color)
                continue
            low, high = (100 * end for end in rate["interval"])
            axes.errorbar(
                float(place), height, [[height - low], [high - height]], color="#1c2329", capsize=2.5, linewidth=1
            )
    counts = [" / ".join(str(count) for count in dict.fromkeys(column)) for column in zip(*totals, strict=True)]
    groups = [f"{name}\nn = {count}" for name, count in zip(names, counts, strict=True)]
    axes.set_xticks(range(len(groups)), groups)
    axes.set(ylim=(0, 103), ylabel="tumor-wise sensitivity (%)")
    finish_axes(axes, legend=False)
    axes.grid(visible=False, axis="x")
    if len(summaries) > 1:
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def scores_figure(methods: Sequence[Method]) -> Figure:
    """Plot boxes of DSC and NSD with one dot per case: of tumors in cases with tumor, of organs in all."""
    figure, panels = new_axes(len(FRACTIONS), (9.6, 3.4), None)
    random = np.random.default_rng(0)  # shifts the dots sideways, the same way each time
    for axes, (score, label) in zip(panels, FRACTIONS.items(), strict=True):
        for order, method in enumerate(methods):
            values = [100 * value for case in method.cases if (value := case.score(score)) is not None]
            color = CURVE_COLORS[order % len(CURVE_COLORS)]
            if values:
                axes.boxplot(
                    [values], positions=[order], widths=0.55, showfliers=False, medianprops={"color": color, "lw": 2},
                    boxprops={"color": "#55616b"}, whiskerprops={"color": "#55616b"}, capprops={"color": "#55616b"},
                )  # fmt: skip
                places = order + random.uniform(-0.17, 0.17, len(values))
                axes.plot(places, values, "o", color=color, alpha=0.55, markersize=3.2, clip_on=False)
        axes.set(ylim=(0, 100), xlim=(-0.6, len(methods) - 0.4))
        axes.set_title(f"{label} (%)", fontsize=9)
        finish_axes(axes, legend=False)
        axes.set_xticks(range(len(methods)), [method.name for method in methods])
        _turn_long_names(axes, [method.name for method in methods])
    return figure


def froc_figure(curves: Mapping[str, FrocCurve]) -> Figure:
    """Plot free-response curves: sensitivity over false positives per scan; dots are the thresholds."""
    figure, (axes,) = new_axes(1, (5.4, 3.8), None)
    for order, (method, curve) in enumerate(curves.items()):
        color = CURVE_COLORS[order % len(CURVE_COLORS)]
        if curve.sensitivity is None:
            continue
        name = f"{method} ({counted(curve.scans, 'scan')}, {counted(curve.lesions, 'tumor')})"
        false, sensitivity = curve.false_positives_per_scan, 100 * curve.sensitivity
        axes.plot(false, sensitivity, "o-", color=color, markersize=3, linewidth=1.4, label=name, clip_on=False)
    axes.set(ylim=(0, 100), xlabel="false positives per scan", ylabel="tumor-wise sensitivity (%)")
    axes.set_xlim(left=0)
    finish_axes(axes, legend=len(curves) > 1)
    return figure


def _turn_long_names(axes: Any, names: Sequence[str]) -> None:
    if len(names) > 1 and sum(map(len, names)) > 16:
        axes.tick_params(axis="x", labelrotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
