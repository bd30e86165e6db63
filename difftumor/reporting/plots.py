"""Curves as matplotlib figures, and figures as PNG.

Figures are made without pyplot, so nothing is kept in global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from difftumor.files.writing import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE_COLORS = ("#1f6fb4", "#d1602a", "#2f8f5b", "#8a5bb5", "#b58b00", "#5f6b76")


def to_png(figure: Figure, *, dpi: int = 130) -> bytes:
    """Return a figure as PNG bytes, the same for the same figure (no date, no version in it)."""
    buffer = io.BytesIO()
    # The default level of compression takes twice the time and saves a sixth of the size.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
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
    """Plot named curves, such as losses over training steps.

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
        # A single point makes no line.
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
    """Give axes the look that all figures share."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8)
    if legend:
        axes.legend(frameon=False, fontsize=8)
