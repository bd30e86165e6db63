"""The site: an organ in model space, and what is known of it before tumors are drawn."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import SynthesisError
from difftumor.organs import Organ
from difftumor.synthesis.parenchyma import Parenchyma, find_vessels, measure_parenchyma
from difftumor.synthesis.placement import Room, take_all
from difftumor.synthesis.records import Triple, Voxel

Mask = NDArray[np.bool_]


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
        spacing_mm: Triple,
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

    def voxel_at(self, point_mm: Triple) -> Voxel:
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
