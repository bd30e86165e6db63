"""The site: an organ in model space, and what is known of it before tumors are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.errors import SynthesisError
from difftumor.scans.components import find_components
from difftumor.scans.grid import Box, Vector, Voxel
from difftumor.scans.organs import Organ
from difftumor.synthesis.placement import Room, take_all

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
    smooth = scipy.ndimage.gaussian_filter(_tissue(ct_hu_XYZ[box.slices]), sigma, truncate=_TRUNCATE)
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


class Site:
    """An organ that tumors are drawn for. What the CT is needed for is found when it is first asked for.

    Args:
        organ_XYZ: Organ mask in model space; any nonzero voxel counts.
        organ: Rules of placement.
        spacing_mm: Voxel size.
        ct_hu_XYZ: CT of the same shape; None where nothing is asked that needs it.
        segments_XYZ: Label map of segments of the same shape; None for none.
        taken_XYZ: Mask of tumors that are there already, of the same shape; None for none.
        affine: (4, 4), voxels to world mm; by default the spacing alone.
        open_border: Whether tumors may be cut by the array's border, as in a training crop.
    """

    def __init__(
        self,
        organ_XYZ: np.ndarray,
        *,
        organ: Organ,
        spacing_mm: Vector,
        ct_hu_XYZ: np.ndarray | None = None,
        segments_XYZ: np.ndarray | None = None,
        taken_XYZ: np.ndarray | None = None,
        affine: np.ndarray | None = None,
        open_border: bool = True,
    ) -> None:
        self.organ = organ
        self.spacing_mm = spacing_mm
        self.mask: Mask = organ_XYZ if organ_XYZ.dtype == np.bool_ else organ_XYZ != 0
        self.to_mm = np.diag([*spacing_mm, 1.0]) if affine is None else np.asarray(affine, dtype=np.float64)
        self.open_border = open_border
        self._segments_XYZ = segments_XYZ
        self._taken_XYZ = taken_XYZ
        self._ct_hu_XYZ = ct_hu_XYZ

    def room(self, *, vessels: bool = False) -> Room:
        """Return the room for tumors, empty yet.

        Args:
            vessels: Whether tumors may be asked to keep away from vessels.

        Raises:
            SynthesisError: The mask is empty, or the CT is needed and not given.
        """
        room = Room(
            self.mask,
            self.spacing_mm,
            erosion_voxels=self.organ.erosion_voxels,
            open_border=self.open_border,
            vessels_XYZ=self.vessels if vessels else None,
            to_world=self.to_mm,
        )
        take_all(room, self._taken_XYZ)
        return room

    @cached_property
    def vessels(self) -> Mask:
        """Vessels in the organ (Hu et al. 2023, eqs. 1 and 2)."""
        return find_vessels(self._hu, self.mask, spacing_mm=self.spacing_mm)

    @cached_property
    def parenchyma(self) -> Parenchyma:
        """Mean and standard deviation of the organ without its vessels."""
        return measure_parenchyma(self._hu, self.mask, self.vessels)

    def segment(self, number: int) -> Mask:
        """Return the organ's part that lies in a segment.

        Raises:
            SynthesisError: No segments are given, or the organ has no voxel in this one.
        """
        if self._segments_XYZ is None:
            raise SynthesisError(f"Segment {number} is asked for without a label map of segments: give --segments.")
        part: Mask = self.mask & (self._segments_XYZ == number)
        if not part.any():
            raise SynthesisError(f"The {self.organ.name} has no voxel in segment {number}: choose another segment.")
        return part

    def voxel_at(self, point_mm: Vector) -> Voxel:
        """Return the voxel at a point in world coordinates.

        Raises:
            SynthesisError: The point lies outside the organ; the message says how far.
        """
        position = (np.linalg.inv(self.to_mm) @ [*point_mm, 1.0])[:3]
        x, y, z = (int(v) for v in np.floor(position + 0.5))
        inside = all(0 <= v < n for v, n in zip((x, y, z), self.mask.shape, strict=True))
        if not (inside and self.mask[x, y, z]):
            distances = (np.argwhere(self.mask) - position) * self.spacing_mm
            away = float(np.sqrt((distances**2).sum(axis=1).min())) if self.mask.any() else float("inf")
            raise SynthesisError(
                f"The point {tuple(point_mm)} mm lies {away:.1f} mm from the {self.organ.name}: "
                "give a point inside it, in RAS millimeters."
            )
        return x, y, z

    @property
    def _hu(self) -> NDArray[np.float32]:
        if self._ct_hu_XYZ is None:
            raise SynthesisError(
                "Vessels and hand-crafted texture need the CT to be drawn: give ct_hu_XYZ with the organ mask."
            )
        return np.asarray(self._ct_hu_XYZ, dtype=np.float32)
