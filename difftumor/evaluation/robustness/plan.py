"""The tumors of a scan, drawn before any is made: alike except for the one property that a dimension varies."""

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


class CandidateCenters:
    """The voxels of an organ as candidate centers of tumors.

    Args:
        host: The organ; not modified.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._box = host.organ_box
        self._organ = np.ascontiguousarray(host.mask[self._box.slices])

    def fitting(self, shape: Mask) -> NDArray[np.intp]:
        """Return the centers, (N, 3) voxels, at which a whole shape (of odd sizes) lies in the organ."""
        return np.argwhere(self._fits(shape)) + self._box.start

    def by_depth(self, shape: Mask, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return the same from the shallowest to the deepest, with random order at equal depth."""
        fits = np.argwhere(self._fits(shape))
        fits = fits[generator.permutation(len(fits))]
        fits += self._box.start
        depth_mm = self._host.depth_mm[tuple((fits - self._host.box.start).T)]
        return fits[np.argsort(depth_mm, kind="stable")]

    def depth_at(self, center: Voxel) -> float:
        """Return the distance of an organ voxel from the organ's surface, in mm; the scan's end counts as surface."""
        return float(self._host.depth_mm[tuple(np.subtract(center, self._host.box.start))])

    def _fits(self, shape: Mask) -> NDArray[np.bool_]:
        if any(n > m for n, m in zip(Box.around(shape).shape, self._organ.shape, strict=True)):
            return np.zeros_like(self._organ)
        # Number of the shape's voxels in the organ, for all centers at once; there is no organ beyond the box.
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
    """One tumor to make.

    Args:
        dimension: Dimension that is varied.
        level: Level in σ from the mean.
        value: Value of the dimension.
        clamped: Whether the value is held at a limit.
        repeat: Number of the varied tumor in its scan, from 0.
        depth_mm: Distance of its center from the organ's surface.
        record: Its record, in voxels of the scan's model space.
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
        variants: Dimension by dimension and level by level; several dimensions share one tumor at level 0.
        notes: Sentences on tumors without room.
    """

    variants: tuple[Variant, ...]
    notes: tuple[str, ...]


def tumor_spec(dimensions: Mapping[str, Dimension]) -> TumorSpec:
    """Return the specification of the tumor with the mean of every dimension."""
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
        seed: Seed of this scan.
        repeats: Number of tumors to vary, each with its own shape, texture and place.

    Raises:
        SynthesisError: The organ has no room for the tumor of the mean size.
    """
    centers = CandidateCenters(host)
    specs = [replace(tumor_spec(dimensions), count=fixed(repeats))]
    variants: list[Variant] = []
    notes: list[str] = []
    for repeat, wanted in enumerate(wanted_tumors(specs, seed=seed)):
        drawn = draw_unplaced(host, wanted, seed=seed)
        base = replace(drawn, deformation_sigma_mm=dimensions["shape"].mean * drawn.radius_mm, may_leave_organ=False)
        own = _Repeat(host, centers, dimensions, base, repeat, seed)
        variants += own.at_one_place(notes)
        if "location" in varied(dimensions):
            variants += own.elsewhere()
    return ScanPlan(tuple(sorted(variants, key=_order)), tuple(notes))


def vary(base: TumorRecord, dimension: str, value: float, host: Host) -> TumorRecord:
    """Return a tumor that differs from another in one dimension other than location.

    Args:
        base: The other one.
        dimension: ``"shape"``, ``"size"``, ``"texture"`` or ``"intensity"``.
        value: Value of the dimension.
        host: The organ, from whose brightness contrast is measured.
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
    """One tumor of a scan and its variants."""

    host: Host
    centers: CandidateCenters
    dimensions: Mapping[str, Dimension]
    base: TumorRecord
    repeat: int
    seed: int

    def at_one_place(self, notes: list[str]) -> list[Variant]:
        """Return the variants of all dimensions but location, at one center; note the sizes without room."""
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
        """Return the variants of the location: of all centers with room, ordered by depth, each level takes one."""
        generator = numpy_generator(self.seed, "repeat", self.repeat, "depth")
        by_depth = self.centers.by_depth(tumor_shape(self.base), generator)
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
        """Return a center with room for what is needed and as many larger ones as possible; the largest radius."""
        generator = numpy_generator(self.seed, "repeat", self.repeat, "place")
        for count in range(len(larger), -1, -1):
            kept = [*needed, *larger[:count]]
            found = self.centers.fitting(joined([tumor_shape(record) for record in dict.fromkeys(kept)]))
            if len(found):
                center = triple(found[int(generator.integers(len(found)))])
                return center, max(record.radius_mm for record in kept)
        raise SynthesisError(
            f"The {self.base.organ} has no room for a tumor of {2 * self.base.radius_mm:.3g} mm in all its shapes: "
            "give --dimensions with a smaller mean size."
        )

    def _variant(
        self, name: str, level: int, value: float, clamped: bool, record: TumorRecord, center: Voxel
    ) -> Variant:
        x, y, z = (float(v) for v in (self.host.to_world @ [*center, 1.0])[:3])
        placed = replace(record, center_voxel=center, center_mm=(x, y, z)).moved(self.host.start)
        depth_mm = self.centers.depth_at(center)
        return Variant(
            dimension=name, level=level, value=value, clamped=clamped, repeat=self.repeat, depth_mm=depth_mm,
            record=placed,
        )  # fmt: skip


def _radius(record: TumorRecord) -> float:
    return record.radius_mm


def _order(variant: Variant) -> tuple[int, int, int]:
    # In the order of the heatmap.
    return list(DEFAULTS).index(variant.dimension), variant.level, variant.repeat


def distinct(variants: Sequence[Variant]) -> Iterator[list[Variant]]:
    """Yield groups of variants that share one tumor, in order of first appearance."""
    groups: dict[TumorRecord, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(variant.record, []).append(variant)
    yield from groups.values()


def file_name(variant: Variant) -> str:
    """Return the file name of a record, such as ``size+2_0.json``; ``mean_0.json`` belongs to several cells."""
    kind = "mean" if is_mean(variant.dimension, variant.level) else f"{variant.dimension}{variant.level:+d}"
    return f"{kind}_{variant.repeat}.json"


def is_mean(dimension: str, level: int) -> bool:
    """Whether a tumor has the mean of every dimension and lies where all but the location's variants lie."""
    return level == 0 and dimension != "location"
