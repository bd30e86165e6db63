"""Pictures of CT volumes as matplotlib figures.

Arrays are volumes (X, Y, Z) in RAS model space. Volumes are shown as radiologists look at them: the patient's right on
the left of the picture, anterior up (axial) or left (sagittal), head up. `difftumor.reporting.plots` has curves,
`to_png` and `save_png` for all figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from difftumor.reporting.picture_rows import AXIAL, LABEL_NAMES, PLANES, Panel, PictureRow, draw_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mask_center(mask: NDArray[Any]) -> tuple[int, int, int]:
    """Return the voxel of a mask (X, Y, Z) that lies nearest to its center of mass.

    Raises:
        ValueError: The mask is empty.
    """
    voxels = np.argwhere(mask)
    if len(voxels) == 0:
        raise ValueError("an empty mask has no center")
    x, y, z = (int(index) for index in voxels[np.argmin(((voxels - voxels.mean(0)) ** 2).sum(1))])
    return x, y, z


def reconstruction_planes(
    ct_hu: NDArray[Any],
    reconstruction_hu: NDArray[Any],
    *,
    window_hu: tuple[float, float],
    spacing_mm: Sequence[float],
    center: Sequence[int],
    difference_hu: float | None = None,
    column_inches: float = 2.6,
    title: str | None = None,
) -> Figure:
    """Show a CT, clipped to a window, beside its reconstruction and what the reconstruction adds to it.

    Args:
        ct_hu: (X, Y, Z).
        reconstruction_hu: (X, Y, Z).
        window_hu: HU that the autoencoder sees.
        spacing_mm: See `three_planes`, as for all that follow.
        center: See there.
        difference_hu: See there.
        column_inches: See there.
        title: See there.
    """
    seen = ct_hu.clip(*window_hu)
    panels = [
        Panel(title="CT", image=seen),
        Panel(title="Reconstruction", image=reconstruction_hu),
        Panel(title="Reconstruction − CT", image=reconstruction_hu - seen, kind="difference"),
    ]
    return three_planes(
        panels,
        spacing_mm=spacing_mm,
        center=center,
        window_hu=window_hu,
        difference_hu=difference_hu,
        column_inches=column_inches,
        title=title,
    )


def three_planes(
    panels: Sequence[Panel],
    *,
    spacing_mm: Sequence[float],
    center: Sequence[int] | None = None,
    window_hu: tuple[float, float] = (-160.0, 240.0),
    difference_hu: float | None = None,
    label_names: Mapping[int, str] = LABEL_NAMES,
    column_inches: float = 2.6,
    title: str | None = None,
) -> Figure:
    """Show volumes side by side in the three planes through one voxel, in radiological convention.

    Args:
        panels: Columns of the picture; all volumes share one shape.
        spacing_mm: Voxel size (x, y, z), for the right proportions.
        center: Voxel (x, y, z) through which the planes go; the middle of the volume when None.
        window_hu: Lowest (black) and highest (white) value of CT panels.
        difference_hu: Value at the ends of the color bar; the largest difference in the picture when None.
        label_names: Names for the legend; a label without a name is called by its number.
        column_inches: Width of a column; a page of the report holds about 11 inches.
        title: Text above the whole picture.

    Raises:
        ValueError: No panels, shapes that differ or are not 3-D, or a center outside the volume.
    """
    rows = [PictureRow(plane.name, plane, panels, center) for plane in PLANES]
    return draw_rows(
        rows,
        spacing_mm=spacing_mm,
        window_hu=window_hu,
        difference_hu=difference_hu,
        label_names=label_names,
        column_inches=column_inches,
        title=title,
    )


def axial_rows(
    rows: Mapping[str, Sequence[Panel]],
    *,
    centers: Sequence[Sequence[int]],
    spacing_mm: Sequence[float],
    window_hu: tuple[float, float],
    column_inches: float = 1.5,
) -> Figure:
    """Show several cases below each other, each in one axial slice, in radiological convention.

    Args:
        rows: By name, the columns of each case; volumes of one case share one shape.
        centers: Voxel (x, y, z) of each case through which its slice goes.
        spacing_mm: See `three_planes`, as for all that follow.
        window_hu: See there.
        column_inches: See there.

    Raises:
        ValueError: See there; or rows differ in length, or there are not as many centers.
    """
    drawn = [
        PictureRow(name, AXIAL, panels, center) for (name, panels), center in zip(rows.items(), centers, strict=True)
    ]
    return draw_rows(drawn, spacing_mm=spacing_mm, window_hu=window_hu, column_inches=column_inches)
