"""Pictures of CT volumes as matplotlib figures.

Arrays are volumes (X, Y, Z) in RAS model space. Volumes are shown as radiologists view them: the patient's right on the
left of the picture, anterior up (axial) or left (sagittal), head up. `difftumor.reporting.plots` has curves,
`to_png` and `save_png` for all figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from difftumor.reporting.picture_rows import AXIAL, PLANES, Panel, PictureRow, Style, render_rows

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


def three_planes(
    panels: Sequence[Panel],
    *,
    spacing_mm: Sequence[float],
    center: Sequence[int] | None = None,
    **style: Unpack[Style],
) -> Figure:
    """Show volumes side by side in the three planes through one voxel, in radiological convention.

    Args:
        panels: Columns of the picture; all volumes share one shape.
        spacing_mm: Voxel size (x, y, z), for the right proportions.
        center: Voxel (x, y, z) through which the planes go; the middle of the volume when None.
        **style: Fields of `Style`.

    Raises:
        ValueError: No panels, shapes that differ or are not 3-D, or a center outside the volume.
    """
    rows = [PictureRow(plane.name, plane, panels, center) for plane in PLANES]
    return render_rows(rows, spacing_mm=spacing_mm, **style)


def reconstruction_planes(
    ct_hu: NDArray[Any],
    reconstruction_hu: NDArray[Any],
    *,
    spacing_mm: Sequence[float],
    center: Sequence[int],
    **style: Unpack[Style],
) -> Figure:
    """Show a CT, clipped to a window, its reconstruction, and their difference, in three planes through one voxel.

    Args:
        ct_hu: (X, Y, Z).
        reconstruction_hu: (X, Y, Z).
        spacing_mm: Voxel size (x, y, z).
        center: Voxel (x, y, z).
        **style: Fields of `Style`, of which ``window_hu`` is needed: what the autoencoder sees.
    """
    seen = ct_hu.clip(*style["window_hu"])
    panels = [
        Panel(title="CT", image=seen),
        Panel(title="Reconstruction", image=reconstruction_hu),
        Panel(title="Reconstruction − CT", image=reconstruction_hu - seen, kind="difference"),
    ]
    return three_planes(panels, spacing_mm=spacing_mm, center=center, **style)


def axial_rows(
    rows: Mapping[str, Sequence[Panel]],
    *,
    centers: Sequence[Sequence[int]],
    spacing_mm: Sequence[float],
    **style: Unpack[Style],
) -> Figure:
    """Show several cases below each other, each in one axial slice, in radiological convention.

    Args:
        rows: By name, the columns of each case; volumes of one case share one shape.
        centers: Voxel (x, y, z) of each case through which its slice goes.
        spacing_mm: Voxel size (x, y, z).
        **style: Fields of `Style`; columns are narrower by default.

    Raises:
        ValueError: No rows, shapes that differ or are not 3-D, a center outside its volume, or rows that differ in
            length, or not as many centers.
    """
    cases = [
        PictureRow(name, AXIAL, panels, center) for (name, panels), center in zip(rows.items(), centers, strict=True)
    ]
    style.setdefault("column_inches", 1.5)
    return render_rows(cases, spacing_mm=spacing_mm, **style)
