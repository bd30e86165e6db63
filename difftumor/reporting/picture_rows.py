"""Rows of pictures of CT volumes; `difftumor.reporting.pictures` says which rows.

Arrays are volumes (X, Y, Z) in RAS model space: the first axis grows towards the patient's right, the second towards
anterior, the third towards the head. The patient's right is on the left of the picture, anterior up (axial) or left
(sagittal), head up. Figures are made without pyplot, so nothing is kept in global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from difftumor.reporting.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.patches import Rectangle

# Left, bottom, width and height in inches from the lower left corner of the figure.
Cell = tuple[float, float, float, float]

# Bright enough on gray CT, and distinguishable with the common kinds of color blindness.
LABEL_COLORS = ("#4cc9f0", "#ff6b35", "#ffe14d", "#9bf06a", "#e07bff", "#ffffff")


class Style(TypedDict, total=False):
    """How a picture looks; every field has a default.

    Attributes:
        window_hu: Lowest (black) and highest (white) value of CT panels.
        difference_hu: Value at the ends of the color bar; by default the largest difference in the picture, or where
            few voxels differ by far more than the others, the one that 2 % of those that differ exceed.
        label_names: Names for the legend; a label without a name is called by its number.
        column_inches: Width of a column; a page of the report holds about 11 inches.
        title: Text above the whole picture.
    """

    window_hu: tuple[float, float]
    difference_hu: float | None
    label_names: Mapping[int, str]
    column_inches: float
    title: str | None


_DEFAULTS: Style = {
    "window_hu": (-160.0, 240.0), "difference_hu": None, "label_names": {1: "organ", 2: "tumor"}, "column_inches": 2.6,
    "title": None,
}  # fmt: skip


# A difference that few voxels exceed by far, as where bone becomes tumor, ends the scale.
_SHOWN_PERCENTILE, _FAR_MORE = 98, 1.5


@dataclass(frozen=True, eq=False, kw_only=True)
class Panel:
    """One picture of a row, or one column of all its rows.

    Args:
        title: Text above the column.
        image: (X, Y, Z), CT in HU, or a signed difference in HU.
        kind: "ct" is shown in gray, "difference" blue (negative) to red (positive) with white at zero.
        labels: (X, Y, Z) integers of the same shape, outlined over the image; 0 is left out.
        zoom_mm: Side of the cube around the center that this column shows; None for the whole volume.
    """

    title: str
    image: NDArray[Any]
    kind: Literal["ct", "difference"] = "ct"
    labels: NDArray[Any] | None = None
    zoom_mm: float | None = None


@dataclass(frozen=True)
class Plane:
    """Which array axes a plane shows, and the letters at the picture's left, right, top and bottom edge."""

    name: str
    through: int
    column: int
    row: int
    letters: str


# Columns and rows of the picture run against the array's axes, hence the flips in `_View.cut`.
AXIAL = Plane("Axial", 2, 0, 1, "RLAP")
PLANES = (AXIAL, Plane("Coronal", 1, 0, 2, "RLSI"), Plane("Sagittal", 0, 1, 2, "APSI"))


@dataclass(frozen=True, eq=False)
class PictureRow:
    """One row: volumes of one shape, each seen in the same plane through the same voxel.

    Args:
        name: Text at its left.
        plane: Which plane.
        panels: Its pictures, from left to right; the titles of the first row stand above the columns.
        center: Voxel (x, y, z) through which the plane goes; the middle of the volumes when None.
    """

    name: str
    plane: Plane
    panels: Sequence[Panel]
    center: Sequence[int] | None = None

    @property
    def middle(self) -> tuple[int, ...]:
        """The voxel through which the plane goes.

        Raises:
            ValueError: It lies outside the volumes, or their shapes differ or are not 3-D.
        """
        shape = self.panels[0].image.shape
        for panel in self.panels:
            for array in (panel.image, panel.labels):
                if array is not None and (array.ndim != 3 or array.shape != shape):
                    raise ValueError(f"panel {panel.title!r} has shape {array.shape}, expected one 3-D shape, {shape}")
        middle = tuple(size // 2 for size in shape) if self.center is None else tuple(int(i) for i in self.center)
        if len(middle) != 3 or not all(0 <= index < size for index, size in zip(middle, shape, strict=True)):
            raise ValueError(f"center {middle} lies outside a volume of shape {shape}")
        return middle


@dataclass(frozen=True, eq=False)
class _View:
    """What is seen of a panel."""

    panel: Panel
    plane: Plane
    position: int  # of the slice, along plane.through
    columns: slice  # voxels shown, in array order
    rows: slice
    width_mm: float
    height_mm: float

    def cut(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return the picture (rows, columns), turned so that row 0 is the top and column 0 the left."""
        index: list[Any] = [slice(None)] * 3
        index[self.plane.through], index[self.plane.column], index[self.plane.row] = (
            self.position, self.columns, self.rows,
        )  # fmt: skip
        return np.asarray(volume[tuple(index)]).T[::-1, ::-1]


@dataclass(frozen=True)
class _Layout:
    """Places of all pictures, in inches from the lower left corner of the figure."""

    size: tuple[float, float]
    top: float  # upper edge of the first row
    cells: tuple[tuple[Cell, ...], ...]  # [row][column]
    column_centers: tuple[float, ...]
    row_centers: tuple[float, ...]


_LETTER_PLACES = (
    (0.02, 0.5, "left", "center"),
    (0.98, 0.5, "right", "center"),
    (0.5, 0.97, "center", "top"),
    (0.5, 0.03, "center", "bottom"),
)
# Inches. The foot holds the legend, and above it the window if the picture is too narrow for both in a line.
_TITLE_IN, _LEFT_IN, _GAP_IN, _BAR_IN, _FOOT_IN, _NARROW_IN = 0.32, 0.34, 0.08, 0.95, 0.36, 5.0


def render_rows(rows: Sequence[PictureRow], *, spacing_mm: Sequence[float], **style: Unpack[Style]) -> Figure:
    """Render rows of as many pictures each.

    Args:
        rows: From top to bottom.
        spacing_mm: Voxel size (x, y, z), for the right proportions.
        **style: Fields of `Style`.

    Raises:
        ValueError: No rows or panels, rows of different lengths, shapes that differ within a row, or a center outside.
    """
    style = {**_DEFAULTS, **style}
    title, window_hu, column_inches = style["title"], style["window_hu"], style["column_inches"]
    if not rows or not rows[0].panels or len({len(row.panels) for row in rows}) != 1:
        raise ValueError("a picture needs rows of at least one panel, as many in each")
    views = [[_view(row.plane, panel, row.middle, spacing_mm) for panel in row.panels] for row in rows]
    shown = [view for some in views for view in some]
    has_bar = any(view.panel.kind == "difference" for view in shown)
    layout = _lay_out(views, column_inches, has_title=title is not None, has_bar=has_bar)
    width, height = layout.size
    figure = new_figure(layout.size)
    # One axes over the whole figure, in inches: one for each picture takes longer than all that is drawn in them.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    limit, extended = (style["difference_hu"], False) if style["difference_hu"] else _difference_limit(shown)
    bar_artist = None
    for row, views_of_row, cells, y in zip(rows, views, layout.cells, layout.row_centers, strict=True):
        for column, (view, cell) in enumerate(zip(views_of_row, cells, strict=True)):
            is_difference = view.panel.kind == "difference"
            artist = _render(axes, view, cell, (-limit, limit) if is_difference else window_hu)
            artist.set_label(f"{row.name} {column}")
            bar_artist = artist if is_difference else bar_artist
        name = _fitted(row.name, max(h for *_, h in cells))
        axes.text(0.16, y, name, rotation=90, ha="center", va="center", fontsize=9)
    for panel, x in zip(rows[0].panels, layout.column_centers, strict=True):
        axes.text(x, layout.top + 0.07, _fitted(panel.title, column_inches), ha="center", va="bottom", fontsize=10)
    if bar_artist is not None:
        _add_color_bar(figure, bar_artist, layout, extended=extended)
    if title is not None:
        axes.text(width / 2, height - 0.1, title, ha="center", va="top", fontsize=12, weight="bold")
    _add_foot(axes, shown, style["label_names"], window_hu)
    return figure


def _view(plane: Plane, panel: Panel, center: Sequence[int], spacing_mm: Sequence[float]) -> _View:
    ranges = []
    for axis in (plane.column, plane.row):
        size = panel.image.shape[axis]
        count = size if panel.zoom_mm is None else min(size, max(1, round(panel.zoom_mm / spacing_mm[axis])))
        # Near a border the box is moved inwards, so that all zoomed pictures keep their size.
        start = min(max(center[axis] - count // 2, 0), size - count)
        ranges.append((slice(start, start + count), count * float(spacing_mm[axis])))
    (columns, width_mm), (rows, height_mm) = ranges
    return _View(panel, plane, center[plane.through], columns, rows, width_mm, height_mm)


def _lay_out(views: Sequence[Sequence[_View]], column_inches: float, *, has_title: bool, has_bar: bool) -> _Layout:
    """Scale every column so that its widest plane fills it; a row is as high as its highest picture."""
    count = len(views[0])
    inches_per_mm = [column_inches / max(row[column].width_mm for row in views) for column in range(count)]
    heights = [max(view.height_mm * scale for view, scale in zip(row, inches_per_mm, strict=True)) for row in views]
    width = _LEFT_IN + count * (column_inches + _GAP_IN) + (_BAR_IN if has_bar else 0.0)
    foot = _FOOT_IN + (0.2 if width < _NARROW_IN else 0.0)
    top = foot + sum(heights) + (len(views) - 1) * _GAP_IN
    centers = tuple(_LEFT_IN + column * (column_inches + _GAP_IN) + column_inches / 2 for column in range(count))
    cells, row_centers = [], []
    for row, views_of_row in enumerate(views):
        y = top - sum(heights[:row]) - row * _GAP_IN - heights[row] / 2
        row_centers.append(y)
        sizes = [(v.width_mm * s, v.height_mm * s) for v, s in zip(views_of_row, inches_per_mm, strict=True)]
        cells.append(tuple((x - w / 2, y - h / 2, w, h) for x, (w, h) in zip(centers, sizes, strict=True)))
    height = top + _TITLE_IN * (2 if has_title else 1)
    return _Layout((width, height), top, tuple(cells), centers, tuple(row_centers))


def _render(axes: Axes, view: _View, cell: Cell, limits: tuple[float, float]) -> AxesImage:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    left, bottom, width, height = cell
    panel, extent = view.panel, (left, left + width, bottom, bottom + height)
    picture, colors = view.cut(panel.image).astype(np.float32), "RdBu_r" if panel.kind == "difference" else "gray"
    style: dict[str, Any] = {"cmap": colors, "vmin": limits[0], "vmax": limits[1], "interpolation": "bilinear"}
    artist = axes.imshow(picture, extent=extent, aspect="auto", **style)
    frame = Rectangle((left, bottom), width, height, fill=False, linewidth=0.8, zorder=3)  # above outlines
    axes.add_patch(frame)
    if panel.labels is not None:
        _outline(axes, view.cut(panel.labels), cell, frame)
    stroke = [withStroke(linewidth=1.6, foreground="black")]
    for letter, (x, y, ha, va) in zip(view.plane.letters, _LETTER_PLACES, strict=True):
        style = {"color": "white", "fontsize": 8, "path_effects": stroke, "ha": ha, "va": va}
        axes.text(left + x * width, bottom + y * height, letter, **style)
    return artist


def _outline(axes: Axes, labels: NDArray[Any], cell: Cell, frame: Rectangle) -> None:
    left, bottom, width, height = cell
    for value in np.unique(labels[labels != 0]):
        # A rim of zeros closes outlines that reach the picture's edge.
        padded = np.pad(labels == value, 1).astype(np.float32)
        rows, columns = labels.shape
        x = left + (np.arange(columns + 2) - 0.5) * (width / columns)
        y = bottom + height - (np.arange(rows + 2) - 0.5) * (height / rows)
        lines = axes.contour(x, y, padded, levels=[0.5], colors=[_color(value)], linewidths=1.1)
        lines.set_clip_path(frame)


def _color(label: int) -> str:
    return LABEL_COLORS[(int(label) - 1) % len(LABEL_COLORS)]


def _difference_limit(views: Sequence[_View]) -> tuple[float, bool]:
    """Return the ends of a scale for the differences seen in the picture, and whether some lie beyond.

    Returns:
        1 HU if there is none, for a scale that is not empty.
    """
    images = [np.abs(view.cut(view.panel.image)).ravel() for view in views if view.panel.kind == "difference"]
    seen = np.concatenate(images) if images else np.zeros(0)
    seen = seen[np.isfinite(seen) & (seen > 0)]
    if not seen.size:
        return 1.0, False
    usual, largest = float(np.percentile(seen, _SHOWN_PERCENTILE)), float(seen.max())
    return (usual, True) if largest > _FAR_MORE * usual else (largest, False)


def _add_color_bar(figure: Figure, artist: Any, layout: _Layout, *, extended: bool) -> None:
    width, height = layout.size
    length = min(layout.top - _FOOT_IN, 3.0)
    bottom = (layout.top + _FOOT_IN - length) / 2
    axes = figure.add_axes(((width - _BAR_IN + 0.05) / width, bottom / height, 0.13 / width, length / height))
    bar = figure.colorbar(artist, cax=axes, extend="both" if extended else "neither")
    bar.ax.tick_params(labelsize=8)
    beyond = f"; {100 - _SHOWN_PERCENTILE} % of what differs lies beyond" if extended else ""
    bar.set_label(f"Difference (HU{beyond})", fontsize=9)


def _fitted(text: str, inches: float) -> str:
    """Shorten a text that would run into its neighbor (about 0.085 inch per letter at 10 points)."""
    most = max(4, int(inches / 0.085))
    return text if len(text) <= most else text[: most - 1] + "…"


def _add_foot(axes: Axes, views: Sequence[_View], names: Mapping[int, str], window_hu: tuple[float, float]) -> None:
    """Add the legend of the labels that are seen, and the window."""
    from matplotlib.lines import Line2D

    seen = [np.unique(view.cut(view.panel.labels)) for view in views if view.panel.labels is not None]
    handles = [
        Line2D([], [], color=_color(value), linewidth=2.5, label=names.get(value, f"label {value}"))
        for value in sorted({int(value) for values in seen for value in values if value != 0})
    ]
    if handles:
        place = {"loc": "lower left", "bbox_to_anchor": (0.01, 0.0), "borderaxespad": 0.3}
        axes.legend(handles=handles, ncols=len(handles), frameon=False, fontsize=9, **place)
    if any(view.panel.kind == "ct" for view in views):
        text = f"window {window_hu[0]:g} to {window_hu[1]:g} HU".replace("-", "−")
        width = axes.get_xlim()[1]
        style: dict[str, Any] = {"ha": "right", "va": "baseline", "fontsize": 8, "color": "#444444"}
        axes.text(0.99 * width, 0.36 if width < _NARROW_IN else 0.14, text, **style)
