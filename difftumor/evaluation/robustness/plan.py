"""The tumors of a scan: drawn before any is made, alike but for the one field that a dimension varies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.errors import SynthesisError
from difftumor.evaluation.robustness.dimensions import DEFAULTS, LEVELS, Dimension, varied
from difftumor.scans.distances import Mask
from difftumor.scans.grid import Box, Voxel, triple
from difftumor.seeding import numpy_generator
from difftumor.synthesis.distributions import fixed
from difftumor.synthesis.draw import draw_unplaced, wanted_tumors
from difftumor.synthesis.host import Host
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.shapes import tumor_shape
from difftumor.synthesis.spec import TumorSpec


class Places:
    """The voxels of an organ as centers of tumors.

    Args:
        host: The organ; not modified.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._box = host.organ_box
        self._organ = np.ascontiguousarray(host.mask[self._box.slices])

    def fitting(self, shape: Mask) -> NDArray[np.intp]:
        """Return (N, 3) the voxels on which the middle of a shape, of odd sizes, can lie so that all of it is organ."""
        return np.argwhere(self._fits(shape)) + self._box.start

    def by_depth(self, shape: Mask, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return the same from the least to the most deep; the order of those of one depth is random."""
        fits = np.argwhere(self._fits(shape))
        fits = fits[generator.permutation(len(fits))]
        fits += self._box.start
        depth_mm = self._host.depth_mm[tuple((fits - self._host.box.start).T)]
        return fits[np.argsort(depth_mm, kind="stable")]

    def depth_at(self, center: Voxel) -> float:
        """Return how far an organ voxel is from the organ's surface, in mm; the end of the scan is one."""
        return float(self._host.depth_mm[tuple(np.subtract(center, self._host.box.start))])

    def _fits(self, shape: Mask) -> NDArray[np.bool_]:
        if any(n > m for n, m in zip(Box.around(shape).shape, self._organ.shape, strict=True)):
            return np.zeros_like(self._organ)
        # Voxels of the shape that lie in the organ, for every place at once; beyond the box there is none.
        turned = shape[::-1, ::-1, ::-1].astype(np.float32)
        inside = scipy.signal.fftconvolve(self._organ.astype(np.float32), turned, mode="same")
        fits: NDArray[np.bool_] = inside > np.count_nonzero(shape) - 0.5
        return fits


def joined(shapes: Sequence[Mask]) -> Mask:
    """Return what any of some shapes of odd sizes covers, with their middles on each other."""
    size = np.max([shape.shape for shape in shapes], axis=0)
    whole: Mask = np.zeros(size, bool)
    for shape in shapes:
        start = (size - shape.shape) // 2
        whole[tuple(slice(a, a + n) for a, n in zip(start, shape.shape, strict=True))] |= shape
    return whole


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One tumor that is to be made.

    Args:
        dimension: In which it is varied.
        level: So many σ from the mean.
        value: Of the dimension.
        clamped: Whether a limit has held the value back.
        repeat: Which tumor of the scan is varied, from 0.
        depth_mm: Distance of its center from the organ's surface.
        record: All that is random about it, in voxels of the scan's model space.
    """

    dimension: str
    level: int
    value: float
    clamped: bool
    repeat: int
    depth_mm: float
    record: TumorRecord


@dataclass(frozen=True)
class ScanPlan:
    """The tumors of one scan.

    Args:
        variants: Dimension by dimension and level by level; the levels 0 of several are one tumor.
        notes: What could not be had, in sentences.
    """

    variants: tuple[Variant, ...]
    notes: tuple[str, ...]


def tumor_spec(dimensions: Mapping[str, Dimension]) -> TumorSpec:
    """Return what the tumor is that has the mean of every dimension."""
    return TumorSpec(
        generator="handcrafted",
        diameter_mm=fixed(dimensions["size"].mean),
        contrast_hu=fixed(dimensions["intensity"].mean),
        grain=fixed(dimensions["texture"].mean),
    )


def plan_scan(host: Host, dimensions: Mapping[str, Dimension], *, seed: int, repeats: int) -> ScanPlan:
    """Draw all tumors of a scan.

    Args:
        host: The organ, with its CT; made with ``tumor_spec``.
        dimensions: All of ``dimensions.DEFAULTS``, as ``read_dimensions`` returns them.
        seed: Of this scan.
        repeats: How many tumors are varied, each with its own shape, texture and place.

    Raises:
        SynthesisError: The organ has no room for the tumor of the mean size.
    """
    places = Places(host)
    specs = [replace(tumor_spec(dimensions), count=fixed(repeats))]
    variants: list[Variant] = []
    notes: list[str] = []
    for repeat, wanted in enumerate(wanted_tumors(specs, seed=seed)):
        drawn = draw_unplaced(host, wanted, seed=seed)
        base = replace(drawn, deformation_sigma_mm=dimensions["shape"].mean * drawn.radius_mm, may_leave_organ=False)
        own = _Repeat(host, places, dimensions, base, repeat, seed)
        variants += own.at_one_place(notes)
        if "location" in varied(dimensions):
            variants += own.elsewhere()
    return ScanPlan(tuple(sorted(variants, key=_order)), tuple(notes))


def vary(base: TumorRecord, dimension: str, value: float, host: Host) -> TumorRecord:
    """Return a tumor that differs from another in one dimension, its place apart.

    Args:
        base: The other one.
        dimension: ``"shape"``, ``"size"``, ``"texture"`` or ``"intensity"``.
        value: Of the dimension.
        host: The organ, whose brightness a contrast is measured against.
    """
    assert base.texture is not None
    if dimension == "shape":
        return replace(base, deformation_sigma_mm=value * base.radius_mm)
    if dimension == "size":
        # The same shape, larger or smaller.
        factor = value / (2 * base.radius_mm)
        a, b, c = (axis * factor for axis in base.half_axes_mm)
        sigma_mm = base.deformation_sigma_mm * factor
        return replace(base, radius_mm=value / 2, half_axes_mm=(a, b, c), deformation_sigma_mm=sigma_mm)
    if dimension == "texture":
        return replace(base, texture=replace(base.texture, grain=value))
    mean_hu = host.parenchyma.mean_hu + value
    return replace(base, contrast_hu=value, texture=replace(base.texture, mean_hu=mean_hu))


@dataclass(frozen=True)
class _Repeat:
    """One tumor of a scan, and what it becomes."""

    host: Host
    places: Places
    dimensions: Mapping[str, Dimension]
    base: TumorRecord
    repeat: int
    seed: int

    def at_one_place(self, notes: list[str]) -> list[Variant]:
        """Return all but the location's, where the largest of them has room; sizes without room are noted."""
        found = [
            (name, level, *self.dimensions[name].at(level))
            for name in varied(self.dimensions)
            if name != "location"
            for level in LEVELS
        ]
        records = [self._record(name, value) for name, _, value, _ in found]
        # Texture and intensity have the base's shape.
        shapes = [r for (name, *_), r in zip(found, records, strict=True) if name in ("shape", "size")]
        larger = sorted([r for r in shapes if r.radius_mm > self.base.radius_mm], key=_radius)
        center, fitting = self._place([self.base, *(r for r in shapes if r not in larger)], larger)
        kept = []
        for (name, level, value, clamped), record in zip(found, records, strict=True):
            if record.radius_mm > fitting:
                notes.append(f"No room for tumor {self.repeat + 1} at {value:.3g} mm ({level:+d}σ).")
            else:
                kept.append(self._variant(name, level, value, clamped, record, center))
        return kept

    def elsewhere(self) -> list[Variant]:
        """Return the location's: all places where the tumor has room, by their depth, of which each level takes one."""
        generator = numpy_generator(self.seed, "repeat", self.repeat, "depth")
        by_depth = self.places.by_depth(tumor_shape(self.base), generator)
        variants = []
        for level in LEVELS:
            value, clamped = self.dimensions["location"].at(level)
            center = triple(by_depth[round(value * (len(by_depth) - 1))])
            variants.append(self._variant("location", level, value, clamped, self.base, center))
        return variants

    def _record(self, dimension: str, value: float) -> TumorRecord:
        same = value == self.dimensions[dimension].mean
        return self.base if same else vary(self.base, dimension, value, self.host)

    def _place(self, needed: Sequence[TumorRecord], larger: Sequence[TumorRecord]) -> tuple[Voxel, float]:
        """Return a center where all that is needed has room, and as many of the larger ones as can; their radius."""
        generator = numpy_generator(self.seed, "repeat", self.repeat, "place")
        for count in range(len(larger), -1, -1):
            kept = [*needed, *larger[:count]]
            centers = self.places.fitting(joined([tumor_shape(record) for record in dict.fromkeys(kept)]))
            if len(centers):
                center = triple(centers[int(generator.integers(len(centers)))])
                return center, max(record.radius_mm for record in kept)
        raise SynthesisError(
            f"The {self.base.organ} has no room for a tumor of {2 * self.base.radius_mm:.3g} mm in all its shapes: "
            "give --dimensions with a smaller mean of the size."
        )

    def _variant(
        self, name: str, level: int, value: float, clamped: bool, record: TumorRecord, center: Voxel
    ) -> Variant:
        x, y, z = (float(v) for v in (self.host.to_world @ [*center, 1.0])[:3])
        placed = replace(record, center_voxel=center, center_mm=(x, y, z)).moved(self.host.start)
        depth_mm = self.places.depth_at(center)
        return Variant(
            dimension=name, level=level, value=value, clamped=clamped, repeat=self.repeat, depth_mm=depth_mm,
            record=placed,
        )  # fmt: skip


def _radius(record: TumorRecord) -> float:
    return record.radius_mm


def _order(variant: Variant) -> tuple[int, int, int]:
    # The order of the file is that of the heatmap.
    return list(DEFAULTS).index(variant.dimension), variant.level, variant.repeat


def distinct(variants: Sequence[Variant]) -> Iterator[list[Variant]]:
    """Yield the variants that are one tumor together, in the order in which they first come."""
    groups: dict[TumorRecord, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(variant.record, []).append(variant)
    yield from groups.values()


def file_name(variant: Variant) -> str:
    """Return the name of a tumor's record, such as ``size+2_0.json``; ``mean_0.json`` is in several cells."""
    kind = "mean" if is_mean(variant.dimension, variant.level) else f"{variant.dimension}{variant.level:+d}"
    return f"{kind}_{variant.repeat}.json"


def is_mean(dimension: str, level: int) -> bool:
    """Whether a tumor has the mean of every dimension, at the place of all but those that differ in location."""
    return level == 0 and dimension != "location"
