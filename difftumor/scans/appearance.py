"""How tumors look in CT: contrast, inner variation and edge, their usual ranges, and the distance of two sets.

The CT is clipped to the HU window, since the networks see and make nothing beyond. A tumor's *surroundings* are the
voxels of its organ, without other tumors, whose distance from its surface lies in ``SURROUNDINGS_MM``: beyond its rim,
but close enough to be the tissue it grows in. Distances are negative inside. What cannot be measured is NaN, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.scans.grid import Box

if TYPE_CHECKING:  # artifacts are described without torch, which it needs
    from difftumor.scans.intensity import IntensityWindow

SURROUNDINGS_MM = (5.0, 15.0)
# The edge profile: shells of 1 mm; in coarse voxels some of them are empty.
EDGE_BINS_MM = tuple(float(edge) for edge in range(-8, 9))
# Nothing farther from a tumor's surface counts.
REACH_MM = max(SURROUNDINGS_MM[1], -EDGE_BINS_MM[0], EDGE_BINS_MM[-1])
# A tumor, its surroundings or a shell with fewer voxels is not measured.
LEAST_VOXELS = 8
# The step at the edge is measured between the shells within this distance on either side.
EDGE_STEP_MM = 2.0
# Usual ranges are stored as these percentiles.
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
# Quantities with a usual range, and the attribute of an appearance that holds each.
QUANTITIES: Mapping[str, str] = {"contrast": "contrast_hu", "texture": "sd_hu", "edge": "edge_step_hu"}
# Values this close to the median of real tumors are usual, even if there is only one: abdominal CT is about this noisy.
LEAST_REACH_HU = 10.0


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """How one tumor looks.

    Attributes:
        contrast_hu: Mean inside the tumor, less the mean of its surroundings.
        sd_hu: Standard deviation inside the tumor.
        edge_hu: Mean of each shell between ``EDGE_BINS_MM``, less the mean of the surroundings; shells outside the
            tumor count voxels of the organ alone.
        voxels: Voxels of the tumor.
    """

    contrast_hu: float
    sd_hu: float
    edge_hu: tuple[float, ...]
    voxels: int

    @property
    def edge_step_hu(self) -> float:
        """Change of the mean across the tumor's surface, from ``EDGE_STEP_MM`` inside to outside, in HU.

        Positive for a tumor darker than its surroundings. Shells that were not measured are left out; NaN if a side
        has none.
        """
        surface = EDGE_BINS_MM.index(0.0)
        first, last = EDGE_BINS_MM.index(-EDGE_STEP_MM), EDGE_BINS_MM.index(EDGE_STEP_MM)
        sides = self.edge_hu[first:surface], self.edge_hu[surface:last]
        inside, outside = ([value for value in side if math.isfinite(value)] for side in sides)
        return float(np.mean(outside) - np.mean(inside)) if inside and outside else math.nan

    def to_row(self) -> tuple[float, ...]:
        """Return all numbers in one row, for ``from_row``."""
        return self.contrast_hu, self.sd_hu, float(self.voxels), *self.edge_hu

    @classmethod
    def from_row(cls, row: Sequence[float]) -> Appearance:
        """Return the appearance of a row of ``to_row``."""
        contrast_hu, sd_hu, voxels, *edge_hu = (float(value) for value in row)
        return cls(contrast_hu=contrast_hu, sd_hu=sd_hu, edge_hu=tuple(edge_hu), voxels=int(voxels))


@dataclass(frozen=True, kw_only=True)
class AppearanceRanges:
    """How the real tumors behind a model look: ``PERCENTILES`` of each quantity; None if no tumor has it.

    Attributes:
        tumors: Number of tumors, including those that lack a quantity.
        contrast_hu: Percentiles of ``Appearance.contrast_hu``.
        sd_hu: Percentiles of ``Appearance.sd_hu``.
        edge_step_hu: Percentiles of ``Appearance.edge_step_hu``.
    """

    tumors: int
    contrast_hu: tuple[float, ...] | None
    sd_hu: tuple[float, ...] | None
    edge_step_hu: tuple[float, ...] | None

    @classmethod
    def of(cls, appearances: Sequence[Appearance]) -> AppearanceRanges:
        """Return the percentiles, interpolated between tumors, over those that have a quantity."""
        values = {name: [getattr(each, name) for each in appearances] for name in QUANTITIES.values()}
        finite = {name: [value for value in found if math.isfinite(value)] for name, found in values.items()}
        percentiles = {
            name: tuple(np.percentile(found, PERCENTILES).tolist()) if found else None for name, found in finite.items()
        }
        return cls(tumors=len(appearances), **percentiles)

    def limits_hu(self, quantity: str) -> tuple[float, float] | None:
        """Return the usual range of one of ``QUANTITIES``; None if no tumor has it.

        It reaches from the 1st to the 99th percentile. With few tumors these are close to the observed extremes, so
        each end moves out by half of the interquartile range divided by √tumors, and is at least ``LEAST_REACH_HU``
        from the median.
        """
        values = getattr(self, QUANTITIES[quantity])
        if values is None:
            return None
        at = dict(zip(PERCENTILES, values, strict=True))
        more = (at[75] - at[25]) / 2 / math.sqrt(max(1, self.tumors))
        return min(at[1] - more, at[50] - LEAST_REACH_HU), max(at[99] + more, at[50] + LEAST_REACH_HU)

    def outside(self, appearance: Appearance) -> tuple[str, ...]:
        """Return the ``QUANTITIES`` of a tumor outside ``limits_hu``; unknown ones do not count."""
        found = []
        for quantity, name in QUANTITIES.items():
            value, limits = getattr(appearance, name), self.limits_hu(quantity)
            if limits is not None and (value < limits[0] or value > limits[1]):  # NaN is neither
                found.append(quantity)
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able mapping, for ``from_dict``."""
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"percentiles": list(PERCENTILES), **listed}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> AppearanceRanges:
        """Return the ranges of a mapping of ``to_dict``.

        Raises:
            ValueError: The mapping is not of this form.
        """
        names = {"percentiles", "tumors", *QUANTITIES.values()}
        if set(content) != names:
            raise ValueError(f"it has {sorted(content)}, not {sorted(names)}")
        if content["percentiles"] != list(PERCENTILES):
            raise ValueError(f"its percentiles are {content['percentiles']!r}, not {list(PERCENTILES)}")
        tumors = content["tumors"]
        if not isinstance(tumors, int) or isinstance(tumors, bool) or tumors < 0:
            raise ValueError(f"tumors is {tumors!r}, not a number of tumors")
        return cls(tumors=tumors, **{name: _percentiles(name, content[name]) for name in QUANTITIES.values()})


@dataclass(frozen=True, kw_only=True)
class AppearanceDistance:
    """The distance of two sets of tumors, in HU; NaN if a set has nothing to compare.

    Attributes:
        contrast_hu: Wasserstein-1 distance of the contrasts, the area between their cumulative distributions.
        sd_hu: The same of the standard deviations.
        edge_hu: Mean absolute difference of the two mean edge profiles, over the shells that both have.
    """

    contrast_hu: float
    sd_hu: float
    edge_hu: float


def measure_appearance(
    ct_hu_XYZ: NDArray[np.floating],
    tumor_XYZ: NDArray[np.bool_],
    organ_XYZ: NDArray[np.bool_],
    *,
    spacing_mm: Sequence[float],
    window: IntensityWindow,
) -> Appearance:
    """Measure one tumor.

    Args:
        ct_hu_XYZ: (X, Y, Z) HU.
        tumor_XYZ: Mask of the tumor.
        organ_XYZ: Mask of the organ without other tumors; voxels of this tumor may belong to it or not.
        spacing_mm: Voxel size along X, Y, Z.
        window: HU window.

    Raises:
        ValueError: The shapes differ or are not 3-D.
    """
    if ct_hu_XYZ.ndim != 3 or not ct_hu_XYZ.shape == tumor_XYZ.shape == organ_XYZ.shape:
        raise ValueError(
            f"CT {ct_hu_XYZ.shape}, tumor {tumor_XYZ.shape} and organ {organ_XYZ.shape} must be of one 3-D shape"
        )
    box = Box.around(tumor_XYZ).padded(reach_voxels(spacing_mm)).clipped(ct_hu_XYZ.shape).slices
    tumor = np.asarray(tumor_XYZ[box], bool)
    if not tumor.any():
        return Appearance(contrast_hu=math.nan, sd_hu=math.nan, edge_hu=(math.nan,) * (len(EDGE_BINS_MM) - 1), voxels=0)
    outside = np.asarray(organ_XYZ[box], bool) & ~tumor
    ct_hu = np.asarray(ct_hu_XYZ[box], np.float64).clip(window.low_hu, window.high_hu)
    distance_mm = surface_distance_mm(tumor, spacing_mm)
    near_mm, far_mm = SURROUNDINGS_MM
    around_hu = _mean(ct_hu[outside & (near_mm <= distance_mm) & (distance_mm <= far_mm)])
    shells = np.where(tumor | outside, np.digitize(distance_mm, EDGE_BINS_MM), 0)
    inside_hu = ct_hu[tumor]
    return Appearance(
        contrast_hu=_mean(inside_hu) - around_hu,
        sd_hu=float(inside_hu.std()) if inside_hu.size >= LEAST_VOXELS else math.nan,
        edge_hu=tuple(_mean(ct_hu[shells == shell]) - around_hu for shell in range(1, len(EDGE_BINS_MM))),
        voxels=inside_hu.size,
    )


def reach_voxels(spacing_mm: Sequence[float]) -> list[int]:
    """Return the margin around a tumor's box that its appearance depends on, in voxels along X, Y, Z."""
    return [math.ceil(REACH_MM / step) + 1 for step in spacing_mm]


def surface_distance_mm(
    mask_XYZ: NDArray[np.bool_], spacing_mm: Sequence[float], *, reach_mm: float = REACH_MM
) -> NDArray[np.float64]:
    """Return the distance of each voxel's center from a mask's surface, negative inside.

    The distance is to the nearest voxel on the other side, taken as a box: at 1 mm, the voxels on both sides of a face
    are half a millimeter from it. Infinite beyond the reach, or if there is no other side.

    Args:
        mask_XYZ: Boolean mask.
        spacing_mm: Voxel size along X, Y, Z.
        reach_mm: Largest distance that is measured.
    """
    mask = np.asarray(mask_XYZ, bool)
    distance_mm = _distance_mm(mask, spacing_mm, reach_mm)
    # For a voxel of the mask, the nearest voxel outside lies in the mask's box or next to it.
    box = Box.around(mask).padded(1).clipped(mask.shape).slices
    inside_mm = _distance_mm(~mask[box], spacing_mm, reach_mm)
    distance_mm[box] = np.where(mask[box], -inside_mm, distance_mm[box])
    return distance_mm


def appearance_distance(one: Sequence[Appearance], other: Sequence[Appearance]) -> AppearanceDistance:
    """Return the distance of two sets of tumors; every tumor counts the same, whatever its size."""
    profiles = np.abs(mean_edge_hu(one) - mean_edge_hu(other))
    measured = np.isfinite(profiles)
    return AppearanceDistance(
        contrast_hu=_wasserstein([t.contrast_hu for t in one], [t.contrast_hu for t in other]),
        sd_hu=_wasserstein([t.sd_hu for t in one], [t.sd_hu for t in other]),
        edge_hu=float(profiles[measured].mean()) if measured.any() else math.nan,
    )


def mean_edge_hu(tumors: Sequence[Appearance]) -> NDArray[np.float64]:
    """Return the mean edge profile of a set, shell by shell over the tumors that have it; NaN if none has."""
    profiles = np.array([tumor.edge_hu for tumor in tumors], np.float64).reshape(-1, len(EDGE_BINS_MM) - 1)
    counts = np.isfinite(profiles).sum(axis=0)
    return np.where(counts > 0, np.nansum(profiles, axis=0) / np.maximum(counts, 1), np.nan)


def _distance_mm(target: NDArray[np.bool_], spacing_mm: Sequence[float], reach_mm: float) -> NDArray[np.float64]:
    """Return the distance of each voxel's center to the nearest target voxel, a box; infinite beyond the reach."""
    reaches = [math.ceil(reach_mm / step + 0.5) for step in spacing_mm]
    # Voxels beyond the reach are infinite, and so is, along axes not yet processed, all outside the target's box.
    own = Box.around(target)
    near = own.padded(reaches).clipped(target.shape)
    square = np.where(target[own.slices], 0.0, math.inf)
    # Axis by axis, since boxes are products of their sides; the first axis, where slicing is fast, moves to the end.
    # SciPy's transform only knows centers: with thick slices, the nearest center is often not that of the nearest box.
    for axis, (step, reach) in enumerate(zip(spacing_mm, reaches, strict=True)):
        room = (own.start[axis] - near.start[axis], near.stop[axis] - own.stop[axis])
        before = np.pad(square, (room, (0, 0), (0, 0)), constant_values=math.inf)
        after = before.copy()
        for offset in range(1, min(reach, len(before) - 1) + 1):
            gap = ((offset - 0.5) * step) ** 2
            np.minimum(after[offset:], before[:-offset] + gap, out=after[offset:])
            np.minimum(after[:-offset], before[offset:] + gap, out=after[:-offset])
        square = np.ascontiguousarray(np.moveaxis(after, 0, -1))
    within = np.sqrt(square)
    distance = np.full(target.shape, math.inf)
    distance[near.slices] = np.where(within <= reach_mm, within, math.inf)
    return distance


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size >= LEAST_VOXELS else math.nan


def _percentiles(name: str, values: Any) -> tuple[float, ...] | None:
    """Check percentiles that were read."""
    if values is None:
        return None
    numbers = isinstance(values, list) and all(isinstance(each, int | float) and math.isfinite(each) for each in values)
    if not numbers or len(values) != len(PERCENTILES) or sorted(values) != values:
        raise ValueError(f"{name} is {values!r}, not {len(PERCENTILES)} numbers that rise")
    return tuple(float(value) for value in values)


def _wasserstein(one: Sequence[float], other: Sequence[float]) -> float:
    sets = [[value for value in values if math.isfinite(value)] for values in (one, other)]
    return float(scipy.stats.wasserstein_distance(*sets)) if all(sets) else math.nan
