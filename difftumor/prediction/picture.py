"""A picture of a predicted scan, as a radiologist looks at it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from difftumor.components import largest_component
from difftumor.grids import Box
from difftumor.organs import BACKGROUND, TUMOR
from difftumor.picture_rows import Panel
from difftumor.pictures import mask_center, three_planes
from difftumor.spaces import ModelSpace
from difftumor.volume import Volume

# Sides of what is shown: the body, the neighborhood of a tumor at least, and an organ.
_BODY_MM, _TUMOR_MM, _ORGAN_MM = 400.0, 120.0, 250.0
# So many voxels of an organ say well enough where its middle is.
_ENOUGH = 200_000


def draw_prediction(
    ct: Volume, labels: NDArray[np.uint8], *, organ: str, window_hu: tuple[float, float], title: str
) -> Figure:
    """Draw three planes through the largest tumor, else through the organ, else through the middle of the scan.

    Args:
        ct: The scan.
        labels: (X, Y, Z) on its grid: 0 background, 1 organ, 2 tumor.
        organ: Name of the organ.
        window_hu: HU that are shown.
        title: Text above.
    """
    space = ModelSpace(ct.grid)
    spacing_mm = space.turned_spacing_mm
    image, outlined = space.turned(ct.data), space.turned(labels)
    tumor = largest_component(outlined == TUMOR)
    center: tuple[int, ...] | None = None
    zoom_mm = _ORGAN_MM
    if tumor.any():
        extent_mm = np.multiply(Box.around(tumor).shape, spacing_mm)
        center, zoom_mm = mask_center(tumor), max(_TUMOR_MM, 1.5 * float(extent_mm.max()))
    elif labels.any():
        center = _middle(outlined != BACKGROUND)
    panels = [Panel(title="Scan", image=image, labels=outlined, zoom_mm=_BODY_MM)]
    if center is not None:
        panels.append(Panel(title="Closer", image=image, zoom_mm=zoom_mm))
        panels.append(Panel(title="Prediction", image=image, labels=outlined, zoom_mm=zoom_mm))
    return three_planes(
        panels,
        spacing_mm=spacing_mm,
        center=center,
        window_hu=window_hu,
        label_names={1: organ, 2: "tumor"},
        column_inches=2.6 if center is not None else 5.2,  # a single column needs room for the title
        title=title,
    )


def _middle(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return a voxel of a mask near its center of mass, from some of its voxels where there are many."""
    step = int(np.ceil((np.count_nonzero(mask) / _ENOUGH) ** (1 / 3)))
    some: NDArray[Any] = mask[::step, ::step, ::step]
    return tuple(step * index for index in mask_center(some)) if some.any() else mask_center(mask)
