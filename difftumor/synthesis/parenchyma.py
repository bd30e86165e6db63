"""Parenchyma: where an organ's vessels are, and how bright the rest of it is.

Hu et al. 2023, section 3.1, eqs. (1) and (2): what is brighter than the organ, once smoothed, is a vessel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from difftumor.components import find_components
from difftumor.errors import SynthesisError
from difftumor.grids import Box

# Tissue, gas and bone; what lies beyond, such as metal, counts as the limit, so that a clip outweighs no organ.
_TISSUE_HU = (-1000.0, 3000.0)
# The smoothing ends here, in standard deviations.
_TRUNCATE = 3.0
# Noise passes the threshold too, in specks; the paper means veins. So much is 5 mm of a vein of 5 mm.
_LEAST_VESSEL_MM3 = 100.0

Mask = NDArray[np.bool_]
CT = NDArray[np.float32]


@dataclass(frozen=True)
class Parenchyma:
    """Brightness of an organ without its vessels.

    Attributes:
        mean_hu: μp.
        sd_hu: σp.
    """

    mean_hu: float
    sd_hu: float


def find_vessels(ct_hu_XYZ: CT, organ_XYZ: Mask, *, spacing_mm: Sequence[float], offset_hu: float = 15.0) -> Mask:
    """Find an organ's vessels: eqs. (1) and (2).

    Args:
        ct_hu_XYZ: CT in HU; values outside [-1000, 3000] count as the limit.
        organ_XYZ: Organ mask, same shape.
        spacing_mm: Size of a voxel along each axis.
        offset_hu: b of eq. (2): how much brighter than the organ's mean a vessel is at least.

    Returns:
        Mask of the same shape, inside the organ, without specks below 100 mm³.

    Raises:
        SynthesisError: The organ mask is empty.
    """
    organ_box = _organ_box(organ_XYZ)
    organ = organ_XYZ[organ_box.slices]
    values = _tissue(ct_hu_XYZ[organ_box.slices])[organ]
    # Table 1: σa = 0.5 + 0.025 σp, in voxels of about 1 mm, so taken in mm. σp, the parenchyma's, is not known before
    # the vessels are: the standard deviation of the whole organ stands in, a little more where vessels are bright.
    sigma_mm = 0.5 + 0.025 * float(values.std(dtype=np.float64))
    sigma = [sigma_mm / step for step in spacing_mm]
    reach = [int(np.ceil(_TRUNCATE * s)) for s in sigma]
    box = organ_box.padded(reach).clipped(ct_hu_XYZ.shape)
    smooth = gaussian_filter(_tissue(ct_hu_XYZ[box.slices]), sigma, truncate=_TRUNCATE)
    threshold = float(values.mean(dtype=np.float64)) + offset_hu  # eq. (2)
    vessels = np.zeros(organ_XYZ.shape, dtype=np.bool_)
    bright = (smooth > threshold) & organ_XYZ[box.slices]  # eq. (1)
    components = find_components(bright)
    least = _LEAST_VESSEL_MM3 / float(np.prod(spacing_mm))
    large = np.array([False, *(component.voxels >= least for component in components.found)])
    vessels[box.slices] = large[components.indices]
    return vessels


def measure_parenchyma(ct_hu_XYZ: CT, organ_XYZ: Mask, vessels_XYZ: Mask) -> Parenchyma:
    """Measure the organ without its vessels; the whole organ where vessels cover all of it.

    Args:
        ct_hu_XYZ: CT in HU; values outside [-1000, 3000] count as the limit.
        organ_XYZ: Organ mask, same shape.
        vessels_XYZ: As ``find_vessels`` returned them.

    Raises:
        SynthesisError: The organ mask is empty.
    """
    box = _organ_box(organ_XYZ).slices
    organ = organ_XYZ[box]
    parenchyma = organ & ~vessels_XYZ[box]
    values = _tissue(ct_hu_XYZ[box])[parenchyma if parenchyma.any() else organ]
    return Parenchyma(float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)))


def _tissue(ct_hu: CT) -> CT:
    return np.clip(ct_hu, *_TISSUE_HU).astype(np.float32, copy=False)


def _organ_box(organ_XYZ: Mask) -> Box:
    box = Box.around(organ_XYZ)
    if box.empty:
        raise SynthesisError("The organ mask holds no organ voxel, so nothing can be measured: give another mask.")
    return box
