"""The host of tumors: an organ in model space, with its vessels and parenchyma and its place in the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.errors import SynthesisError
from difftumor.scans.components import find_components
from difftumor.scans.distances import Distance, Mask, distance_mm, eroded_in_slices
from difftumor.scans.grid import Box, Vector, Voxel, triple
from difftumor.scans.organs import Organ
from difftumor.synthesis.blending import TRUNCATE, blur_radius

# Tissue, gas and bone. Values beyond, such as metal, count as the limit, so that a clip does not outweigh an organ.
_TISSUE_HU = (-1000.0, 3000.0)
# The smoothing ends here, in standard deviations.
_TRUNCATE = 3.0
# Noise passes the threshold too, in specks; the paper means veins. This is 5 mm of a vein of 5 mm.
_LEAST_VESSEL_MM3 = 100.0

# Voxels this close to an organ's surface may hold other tissue too; with fewer voxels than that inside, they count.
_SURFACE_MM = 3.0
_LEAST_INSIDE = 1000

# Matrix entries below this share of the largest count as zero; over a scan that is less than a hundredth of a mm.
_ALIGNED = 1e-5

CT = NDArray[np.float32]
Matrix = NDArray[np.floating[Any]]
# Lower and upper ends of a box along the axes of the world, (3,) each, in millimeters.
Limits = tuple[Matrix, Matrix]


@dataclass(frozen=True)
class Parenchyma:
    """Brightness of an organ's tissue between its vessels.

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
        offset_hu: b of eq. (2): a vessel is at least this much brighter than the organ's mean.

    Returns:
        Mask of the same shape, inside the organ, without specks below 100 mm³.

    Raises:
        SynthesisError: The organ mask is empty.
    """
    organ_box = _organ_box(organ_XYZ)
    organ = organ_XYZ[organ_box.slices]
    values = _tissue(ct_hu_XYZ[organ_box.slices][organ])
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
    large = np.concatenate([[False], components.voxels >= least])
    vessels[box.slices] = large[components.indices]
    return vessels


def measure_parenchyma(ct_hu_XYZ: CT, organ_XYZ: Mask, vessels_XYZ: Mask) -> Parenchyma:
    """Measure the organ without its vessels, or the whole organ if vessels cover all of it.

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
    values = _tissue(ct_hu_XYZ[box][parenchyma if parenchyma.any() else organ])
    return Parenchyma(float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)))


def measure_noise(
    ct_hu_XYZ: CT, organ_XYZ: Mask, inside_XYZ: Mask, *, sigma_mm: float, spacing_mm: Sequence[float]
) -> float:
    """Measure the noise in an organ: the standard deviation of what a Gaussian takes away.

    Args:
        ct_hu_XYZ: CT in HU; values outside [-1000, 3000] count as the limit.
        organ_XYZ: Organ mask, same shape; the Gaussian sees no voxel outside of it.
        inside_XYZ: Where it is measured; a part of the organ.
        sigma_mm: σ of the Gaussian, above 0, cut as ``blending.TRUNCATE`` says.
        spacing_mm: Size of a voxel along each axis.

    Raises:
        SynthesisError: The organ mask is empty.
    """
    sigma = [sigma_mm / step for step in spacing_mm]
    box = _organ_box(organ_XYZ).padded([blur_radius(s) for s in sigma]).clipped(organ_XYZ.shape).slices
    organ, inside = organ_XYZ[box], inside_XYZ[box]
    values = np.where(organ, _tissue(ct_hu_XYZ[box]), np.float32(0))
    total, weight = (scipy.ndimage.gaussian_filter(x, sigma, truncate=TRUNCATE) for x in (values, organ.astype("f4")))
    return float((values[inside] - total[inside] / weight[inside]).std(dtype=np.float64))


def _tissue(ct_hu: CT) -> CT:
    return np.clip(ct_hu, *_TISSUE_HU).astype(np.float32, copy=False)


def _organ_box(organ_XYZ: Mask) -> Box:
    box = Box.around(organ_XYZ)
    if box.empty:
        raise SynthesisError("The organ mask holds no organ voxel, so nothing can be measured: give another mask.")
    return box


class Host:
    """An organ that hosts tumors, in model space; nothing modifies it. What needs the CT is computed when first used.

    Args:
        organ_XYZ: Organ mask; any nonzero voxel counts. Not copied if it is boolean and C-contiguous.
        organ: Rules of placement.
        spacing_mm: Voxel size.
        ct_hu_XYZ: CT of the same shape; None if nothing that is used needs it.
        segments_XYZ: Label map of segments of the same shape; None for none.
        tumors_XYZ: Mask of tumors that are there already, of the same shape; None for none.
        affine: (4, 4), voxels to world millimeters (RAS), so that a scan's tumors do not depend on the grid that it is
            stored on; by default the spacing alone.
        open_border: Whether the organ is taken to continue beyond the array, as it does beyond a training crop;
            otherwise tumors keep away from the border as from the organ's surface.
        start: First voxel of the arrays in the scan's whole model space, in which records give centers.

    Attributes:
        mask: The organ.
        organ_box: Box of the organ.
        box: The same and one voxel around it, inside the array: enough to see the organ's surface.
        to_world: (4, 4), voxels to millimeters.
        to_voxel: (4, 4), millimeters to voxels.

    Raises:
        SynthesisError: The mask is empty.
    """

    def __init__(
        self,
        organ_XYZ: np.ndarray,
        *,
        organ: Organ,
        spacing_mm: Vector,
        ct_hu_XYZ: np.ndarray | None = None,
        segments_XYZ: np.ndarray | None = None,
        tumors_XYZ: np.ndarray | None = None,
        affine: np.ndarray | None = None,
        open_border: bool = True,
        start: Voxel = (0, 0, 0),
    ) -> None:
        if organ_XYZ.ndim != 3 or not organ_XYZ.any():
            raise SynthesisError("The organ mask holds no organ voxel, so no tumor can be placed: give another mask.")
        self.organ = organ
        self.spacing_mm = spacing_mm
        self.mask: Mask = np.ascontiguousarray(organ_XYZ if organ_XYZ.dtype == np.bool_ else organ_XYZ != 0)
        self.tumors_XYZ = tumors_XYZ
        self.open_border = open_border
        self.start = start
        self.to_world: Matrix = np.diag([*spacing_mm, 1.0]) if affine is None else np.asarray(affine, dtype=np.float64)
        self.to_voxel: Matrix = np.linalg.inv(self.to_world)
        self.organ_box = Box.around(self.mask)
        self.box = self.organ_box.padded(1).clipped(self.mask.shape)
        self._segments_XYZ = segments_XYZ
        self._ct_hu_XYZ = ct_hu_XYZ

    @cached_property
    def vessels(self) -> Mask:
        """Vessels in the organ (Hu et al. 2023, eqs. 1 and 2)."""
        return find_vessels(self._hu, self.mask, spacing_mm=self.spacing_mm)

    @cached_property
    def vessel_free(self) -> Mask:
        """Where there is no vessel, inside the organ and outside."""
        return np.ascontiguousarray(~self.vessels)

    @cached_property
    def parenchyma(self) -> Parenchyma:
        """Mean and standard deviation of the organ without its vessels."""
        return measure_parenchyma(self._hu, self.mask, self.vessels)

    @cached_property
    def inside(self) -> Mask:
        """The parenchyma away from the surface, where voxels hold other tissue too; all of it in a thin organ."""
        inside = np.zeros_like(self.mask)
        inside[self.box.slices] = self.boxed & ~self.vessels[self.box.slices] & (self.depth_mm > _SURFACE_MM)
        if inside.sum() < _LEAST_INSIDE:
            inside = self.mask & ~self.vessels
        return inside if inside.any() else self.mask

    @cached_property
    def tissue_sd_hu(self) -> float:
        """Standard deviation of the parenchyma away from the surface."""
        return float(_tissue(self._hu[self.inside]).std(dtype=np.float64))

    def noise_sd_hu(self, sigma_mm: float) -> float:
        """Return the same of what a Gaussian takes away, as ``blending.smoothed_tissue``; its σ is above 0."""
        return measure_noise(self._hu, self.mask, self.inside, sigma_mm=sigma_mm, spacing_mm=self.spacing_mm)

    @property
    def boxed(self) -> Mask:
        """The organ in ``box``."""
        return self.mask[self.box.slices]

    @cached_property
    def depth_mm(self) -> Distance:
        """Exact distance of each voxel of ``box`` to the nearest voxel outside the organ; 0 outside the organ."""
        # A closed border of the box changes nothing where the box ends inside the array.
        return distance_mm(self.boxed, self.spacing_mm, closed=not self.open_border)

    @cached_property
    def eroded(self) -> Mask:
        """The organ in ``box``, eroded in each axial slice as the organ's rules say; all of it if nothing is left."""
        if self.organ.erosion_voxels <= 1:
            return self.boxed
        eroded = eroded_in_slices(self.boxed, self.organ.erosion_voxels)
        return eroded if eroded.any() else self.boxed

    @cached_property
    def middle(self) -> Voxel:
        """The organ voxel nearest to the organ's centroid."""
        counts = [self.boxed.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
        centroid = np.array([np.average(np.arange(len(n)), weights=n) for n in counts])
        nearest = triple(np.rint(centroid))
        if not self.boxed[nearest]:
            voxels = np.argwhere(self.boxed)
            nearest = triple(voxels[np.argmin((((voxels - centroid) * self.spacing_mm) ** 2).sum(axis=1))])
        return triple(np.add(nearest, self.box.start))

    @cached_property
    def limits_mm(self) -> Limits:
        """Ends of the organ's box along the axes of the world."""
        return limits_mm(self.mask, self.to_world, self.organ_box)

    def segment(self, number: int) -> Mask:
        """Return the part of the organ that lies in a segment.

        Raises:
            SynthesisError: No segments are given, or the organ has no voxel in this one.
        """
        if self._segments_XYZ is None:
            raise SynthesisError(
                f"Segment {number} is asked for without a label map of segments: give segments (--segments)."
            )
        part: Mask = self.mask & (self._segments_XYZ == number)
        if not part.any():
            raise SynthesisError(f"The {self.organ.name} has no voxel in segment {number}: choose another segment.")
        return part

    def voxel_at(self, point_mm: Vector) -> Voxel:
        """Return the voxel at a point in world coordinates.

        Raises:
            SynthesisError: The point lies outside the organ; the message says how far.
        """
        position = (self.to_voxel @ [*point_mm, 1.0])[:3]
        x, y, z = (int(v) for v in np.floor(position + 0.5))
        inside = all(0 <= v < n for v, n in zip((x, y, z), self.mask.shape, strict=True))
        if not (inside and self.mask[x, y, z]):
            distances = (np.argwhere(self.mask) - position) * self.spacing_mm
            away = float(np.sqrt((distances**2).sum(axis=1).min()))
            raise SynthesisError(
                f"The point {tuple(point_mm)} mm lies {away:.1f} mm from the {self.organ.name}: "
                "give a point inside it, in RAS millimeters."
            )
        return x, y, z

    @property
    def _hu(self) -> CT:
        if self._ct_hu_XYZ is None:
            raise SynthesisError(
                "Vessels and hand-crafted texture need the CT to be drawn: give ct_hu_XYZ with the organ mask."
            )
        return np.asarray(self._ct_hu_XYZ, dtype=np.float32)


def limits_mm(mask_XYZ: Mask, to_world: Matrix, box: Box | None = None) -> Limits:
    """Return the lower and upper ends, (3,) each, of the box along world axes around the cells of a mask's voxels.

    Args:
        mask_XYZ: At least one voxel.
        to_world: (4, 4), voxel indices to millimeters.
        box: The mask's box if it is known.
    """
    box = Box.around(mask_XYZ) if box is None else box
    matrix = to_world[:3, :3]
    if (np.abs(matrix) > _ALIGNED * np.abs(matrix).max()).sum() == 3:
        voxels = np.array([box.start, np.subtract(box.stop, 1)])
    else:
        # Along a line a linear function is largest at one of the ends.
        part = mask_XYZ[box.slices]
        x, y = np.nonzero(part.any(axis=2))
        rows = part[x, y]
        first, last = rows.argmax(axis=1), rows.shape[1] - 1 - rows[:, ::-1].argmax(axis=1)
        voxels = np.concatenate([np.stack([x, y, z], axis=1) for z in (first, last)]) + box.start
    points_mm = transformed(voxels, to_world)
    half_cell_mm = np.abs(matrix).sum(axis=1) / 2
    return points_mm.min(axis=0) - half_cell_mm, points_mm.max(axis=0) + half_cell_mm


def transformed(points: NDArray[Any], affine: Matrix) -> Matrix:
    """Apply an affine to points (N, 3)."""
    moved: Matrix = points @ affine[:3, :3].T + affine[:3, 3]
    return moved
