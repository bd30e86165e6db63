"""Decisions: all that is random about one tumor, decided before anything is applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from difftumor.scans.grid import Box, Vector, Voxel, triple
from difftumor.seeding import Key, derive_seed, numpy_generator
from difftumor.synthesis.distributions import Distribution, fixed, uniform
from difftumor.synthesis.host import Mask, Site
from difftumor.synthesis.records import TextureRecord, TumorRecord
from difftumor.synthesis.shapes import tumor_shape
from difftumor.synthesis.sizes import CUSTOM, SIZES, SizeClass, nearest_size, sizes_of
from difftumor.synthesis.spec import Location, TumorSpec

# Chance that a tumor which may leave its organ does (published: half of the medium and large kidney tumors).
LEAVING_CHANCE = 0.5
# Published as U(0, 4) voxels of 1 mm, and as σc in Hu et al. 2023, Table 1; in mm a rim is as soft at any spacing.
_BLUR_MM = {"diffusion": uniform(0.0, 4.0), "handcrafted": uniform(0.6, 1.2)}
# σb of Table 1.
_TEXTURE_BLUR_MM = 0.6
# Table 1: μt is U(30, μp - 10). Where the organ is too dark for that, as without contrast agent, tumors are darker than
# it by 10 to 30 HU.
_LOWEST_HU, _DARKER_HU, _DARKEST_HU = 30.0, 10.0, 30.0
# How far a satellite may be from its distance, in voxels, so that there are places to choose from.
_RING_SLACK = 2.0
_TOUCHING = fixed(0)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One tumor that is wanted.

    Args:
        spec: What it is to be.
        keys: Decide, with the seed, all that is random about it.
        around: Tumor that it is a satellite of, and that tumor's number; None for none.
        gap_mm: Between the surfaces of that tumor and this one, were both balls.
    """

    spec: TumorSpec
    keys: tuple[Key, ...]
    around: tuple[TumorRecord, int] | None = None
    gap_mm: Distribution = _TOUCHING


class Drawing:
    """Draws tumors for one site, one after the other; each takes its place when it is accepted.

    Args:
        site: The organ; not modified.
        specs: All that will be asked for.
        seed: With ``keys``, decides everything.
        keys: For instance ``("epoch", 3, "sample", 17)``.

    Raises:
        SynthesisError: The organ is empty, or the CT is needed and not given.
    """

    def __init__(self, site: Site, specs: Sequence[TumorSpec], *, seed: int, keys: tuple[Key, ...] = ()) -> None:
        self._site, self._seed = site, seed
        self._room = site.room(vessels=any(spec.vessel_clearance_mm is not None for spec in specs))
        self._last: tuple[TumorRecord, Mask] | None = None
        self.wanted: list[Wanted] = []
        for spec in specs:
            for _ in range(self._count(spec, keys)):
                self.wanted.append(Wanted(spec=spec, keys=(*keys, "tumor", len(self.wanted))))

    def draw(self, wanted: Wanted, *, attempt: int = 0) -> TumorRecord | None:
        """Draw one tumor in the room that is left; None where it has no room.

        Args:
            wanted: The tumor.
            attempt: Counts from 0; every attempt is another tumor.

        Raises:
            SynthesisError: A point outside the organ, or an unknown segment, was asked for.
        """
        keys = wanted.keys if attempt == 0 else (*wanted.keys, "attempt", attempt)
        record = self.without_place(wanted, keys)
        self._last = record, tumor_shape(record)
        center = self._place(wanted, record, self._last[1], keys)
        if center is None:
            return None
        x, y, z = (float(value) for value in (self._site.to_mm @ [*center, 1.0])[:3])
        return replace(record, center_voxel=center, center_mm=(x, y, z), attempts=attempt + 1)

    def accept(self, record: TumorRecord) -> None:
        """Let a tumor take its place."""
        part = self._room.cut(
            self._shape_of(record),
            record.center_voxel,
            may_leave=record.may_leave_organ,
            may_overlap=record.may_overlap,
        )
        self._room.take(*part)

    def satellites(self, wanted: Wanted, record: TumorRecord, number: int) -> list[Wanted]:
        """Return the satellites that an accepted tumor is to have; ``number`` is its own, from 1."""
        if wanted.spec.satellites is None:
            return []
        spec = wanted.spec.of_satellites()
        keys = (*wanted.keys, "satellite")
        gap_mm = wanted.spec.satellites.distance_mm
        return [
            Wanted(spec=spec, keys=(*keys, index), around=(record, number), gap_mm=gap_mm)
            for index in range(self._count(spec, keys))
        ]

    def _shape_of(self, record: TumorRecord) -> Mask:
        """Return a tumor's shape, which mostly has just been made."""
        if self._last is not None and self._last[0].shape_seed == record.shape_seed:
            return self._last[1]
        return tumor_shape(record)

    def _count(self, spec: TumorSpec, keys: tuple[Key, ...]) -> int:
        if not isinstance(spec.count, str):
            return int(spec.count.draw(self._seed, *keys, "count"))
        generator = numpy_generator(self._seed, *keys, "count")
        fewest, most = self._size(spec, generator).counts
        return int(generator.integers(fewest, most, endpoint=True))

    def without_place(self, wanted: Wanted, keys: tuple[Key, ...]) -> TumorRecord:
        """Draw all but the center, which is (0, 0, 0).

        Args:
            wanted: The tumor.
            keys: Decide, with the seed; those of ``wanted`` for its first attempt.
        """
        spec, organ, spacing_mm = wanted.spec, self._site.organ, self._site.spacing_mm
        generator = numpy_generator(self._seed, *keys)
        size = self._size(spec, generator)
        radius_mm = size.radius_mm
        if spec.diameter_mm is not None:
            # Deformed in proportion to the class of that size, whatever class is named beside.
            radius_mm = spec.diameter_mm.draw(self._seed, *keys, "diameter") / 2
            size = _by_generator(nearest_size(radius_mm), spec)
        shares = generator.uniform(*size.half_axes, size=3)
        # Drawn whether needed or not, so that one decision never shifts the numbers of the next.
        leaves = bool(generator.random() < LEAVING_CHANCE)
        sigma_mm = size.draw_deformation(generator) * radius_mm / size.radius_mm
        if spec.diameter_mm is not None:
            # Half-axes as irregular as the class's, and the volume that was asked for.
            shares /= np.prod(shares) ** (1 / 3)
        a, b, c = (float(radius_mm * share) for share in shares)
        contrast_hu = None if spec.contrast_hu is None else spec.contrast_hu.draw(self._seed, *keys, "contrast")
        clearance = spec.vessel_clearance_mm
        blur_mm = (spec.blur_mm or _BLUR_MM[spec.generator]).draw(self._seed, *keys, "blur")
        return TumorRecord(
            generator=spec.generator,
            organ=organ.name,
            size=size.name if spec.diameter_mm is None else CUSTOM,
            radius_mm=radius_mm,
            half_axes_mm=(a, b, c),
            deformation_sigma_mm=sigma_mm * spec.irregularity.draw(self._seed, *keys, "irregularity"),
            shape_seed=derive_seed(self._seed, *keys, "shape"),
            center_voxel=(0, 0, 0),
            center_mm=(0.0, 0.0, 0.0),
            may_leave_organ=leaves and size.name in organ.may_leave_organ,
            texture_seed=derive_seed(self._seed, *keys, "texture"),
            blur_sigma_voxels=float(blur_mm / np.prod(spacing_mm) ** (1 / 3)),
            spacing_mm=spacing_mm,
            location=str(spec.location) if wanted.around is None else f"around tumor {wanted.around[1]}",
            vessel_clearance_mm=None if clearance is None else clearance.draw(self._seed, *keys, "clearance"),
            contrast_hu=contrast_hu,
            may_overlap=spec.may_overlap,
            satellite_of=None if wanted.around is None else wanted.around[1],
            texture=self._texture(spec, contrast_hu, keys) if spec.generator == "handcrafted" else None,
            mass_effect=spec.mass_effect.draw(self._seed, *keys, "mass effect"),
            capsule_hu=spec.capsule_hu.draw(self._seed, *keys, "capsule"),
        )

    def _size(self, spec: TumorSpec, generator: np.random.Generator) -> SizeClass:
        groups = list(spec.weights)
        weights = np.array(list(spec.weights.values()))
        names = sizes_of(groups[int(generator.choice(len(groups), p=weights / weights.sum()))])
        return _by_generator(SIZES[names[int(generator.integers(len(names)))]], spec)

    def _texture(self, spec: TumorSpec, contrast_hu: float | None, keys: tuple[Key, ...]) -> TextureRecord:
        parenchyma = self._site.parenchyma
        if contrast_hu is None:
            # Table 1: μt is U(30, μp - 10).
            high = parenchyma.mean_hu - _DARKER_HU
            low = _LOWEST_HU if high > _LOWEST_HU else parenchyma.mean_hu - _DARKEST_HU
            mean_hu = uniform(low, high).draw(self._seed, *keys, "mean")
        else:
            mean_hu = parenchyma.mean_hu + contrast_hu
        return TextureRecord(
            kind=spec.texture,
            mean_hu=mean_hu,
            sd_hu=parenchyma.sd_hu,
            grain=spec.grain.draw(self._seed, *keys, "grain"),
            blur_sigma_mm=_TEXTURE_BLUR_MM,
        )

    def _place(self, wanted: Wanted, record: TumorRecord, shape: Mask, keys: tuple[Key, ...]) -> Voxel | None:
        location, reach_mm = wanted.spec.location, max(record.half_axes_mm)
        clearance_mm = record.vessel_clearance_mm
        if clearance_mm is not None:
            # The deformation takes some of the surface beyond the half-axes.
            clearance_mm += max(0.0, _farthest_mm(shape, record.spacing_mm) - reach_mm)
        rules: dict[str, Any] = {
            "may_leave": record.may_leave_organ,
            "may_overlap": record.may_overlap,
            "vessel_clearance_mm": clearance_mm,
        }
        if location.point_mm is not None:
            center = self._site.voxel_at(location.point_mm)
            return center if self._room.fits_at(shape, center, reach_mm=reach_mm, **rules) else None
        return self._room.find_center(
            shape,
            reach_mm,
            numpy_generator(self._seed, *keys, "place"),
            centered=record.size in self._site.organ.centered and location == Location() and wanted.around is None,
            within=self._within(wanted, record),
            by_slice=wanted.spec.placement == "slice",
            **rules,
        )

    def _within(self, wanted: Wanted, record: TumorRecord) -> Mask | tuple[Box, Mask] | None:
        """Return where the center must be, within the organ."""
        location = wanted.spec.location
        if wanted.around is not None:
            return self._ring(wanted, record.equivalent_radius_mm)
        if location.segment is not None:
            return self._site.segment(location.segment)
        if location.region == "anywhere":
            return None
        box, depth_mm = self._room.box, self._room.depth_mm
        middle = np.median(depth_mm[self._site.mask[box.slices]])
        return box, (depth_mm >= middle if location.region == "central" else depth_mm < middle)

    def _ring(self, wanted: Wanted, radius_mm: float) -> tuple[Box, Mask]:
        """Return where a satellite's center gives the gap between it and its tumor, to a voxel or so."""
        assert wanted.around is not None
        parent, _ = wanted.around
        gap_mm = wanted.gap_mm.draw(self._seed, *wanted.keys, "gap")
        apart_mm = parent.equivalent_radius_mm + gap_mm + radius_mm
        slack_mm = _RING_SLACK * max(self._site.spacing_mm)
        half = [int((apart_mm + slack_mm) / step) + 1 for step in self._site.spacing_mm]
        whole = Box(parent.center_voxel, triple([c + 1 for c in parent.center_voxel])).padded(half)
        box = whole.clipped(self._site.mask.shape)
        x, y, z = (
            (np.arange(a, b) - c) * step
            for a, b, c, step in zip(box.start, box.stop, parent.center_voxel, self._site.spacing_mm, strict=True)
        )
        distance_mm = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
        return box, np.abs(distance_mm - apart_mm) <= slack_mm


def _by_generator(size: SizeClass, spec: TumorSpec) -> SizeClass:
    return size.handcrafted if spec.generator == "handcrafted" else size


def _farthest_mm(shape: Mask, spacing_mm: Vector) -> float:
    """Return how far a shape reaches from its middle voxel."""
    offsets_mm = (np.argwhere(shape) - np.array(shape.shape) // 2) * spacing_mm
    return float(np.sqrt((offsets_mm**2).sum(axis=1).max()))


# Where so many sizes and shapes had no room, no more are tried.
_MISSES = 3


@dataclass(frozen=True)
class Drawn:
    """Tumors that were drawn.

    Args:
        records: In order; satellites follow their tumor.
        shortfalls: What could not be had, in sentences.
    """

    records: tuple[TumorRecord, ...]
    shortfalls: tuple[str, ...] = ()


class Choose(Protocol):
    """Decides which of the drawn tumors are kept."""

    def begin(self, wanted: int) -> None:
        """Forget what was tried for the tumor before; ``wanted`` counts all that are wanted, from 1."""
        ...

    def __call__(self, record: TumorRecord, accepted: Sequence[TumorRecord]) -> TumorRecord | None:
        """Return the tumor to keep in the place of one that was drawn, or None to have another drawn.

        Args:
            record: The tumor.
            accepted: Those that are kept already, in order.
        """
        ...


def draw_tumors(
    site: Site,
    specs: Sequence[TumorSpec],
    *,
    seed: int,
    keys: tuple[Key, ...] = (),
    choose: Choose | None = None,
    attempts: int = 1,
) -> Drawn:
    """Draw tumors for one organ; no network is needed.

    Args:
        site: The organ.
        specs: What is wanted.
        seed: With ``keys``, decides everything; the first tumors do not depend on how many follow.
        keys: For instance ``("epoch", 3, "sample", 17)``.
        choose: Which tumors to keep; by default all.
        attempts: How often a tumor that is not kept is drawn anew.

    Returns:
        The tumors, possibly none.

    Raises:
        SynthesisError: The mask is empty, or the CT is needed and not given.
    """
    drawing = Drawing(site, specs, seed=seed, keys=keys)
    records: list[TumorRecord] = []
    missing: list[tuple[Wanted, bool]] = []
    queue = list(drawing.wanted)
    total = len(queue)
    while queue:
        wanted = queue.pop(0)
        if choose is not None:
            choose.begin(total - len(queue))
        record, had_room = _kept(drawing, wanted, records, choose, attempts)
        if record is None:
            missing.append((wanted, had_room))
            continue
        records.append(record)
        satellites = drawing.satellites(wanted, record, len(records))
        total += len(satellites)
        queue = satellites + queue
        if queue:  # the last one is in nobody's way
            drawing.accept(record)
    return Drawn(tuple(records), _shortfalls(site, missing, total))


def _kept(
    drawing: Drawing, wanted: Wanted, accepted: Sequence[TumorRecord], choose: Choose | None, attempts: int
) -> tuple[TumorRecord | None, bool]:
    """Return the tumor that is kept, and whether there was room for any."""
    had_room, misses = False, 0
    for attempt in range(attempts if choose is not None else 1):
        record = drawing.draw(wanted, attempt=attempt)
        if record is None:
            misses += 1
            if misses == _MISSES:
                break
            continue  # another size or shape may fit
        had_room = True
        kept = record if choose is None else choose(record, accepted)
        if kept is not None:
            return kept, True
    return None, had_room


def _shortfalls(site: Site, missing: Sequence[tuple[Wanted, bool]], total: int) -> tuple[str, ...]:
    if not missing:
        return ()
    name = site.organ.name
    sentences = []
    crowded = [wanted for wanted, had_room in missing if not had_room]
    if crowded:
        kept_apart = any(wanted.spec.vessel_clearance_mm is not None for wanted in crowded)
        apart = " away from its vessels" if kept_apart else ""
        sentences.append(f"The {name} had room{apart} for {total - len(crowded)} of {total} tumors.")
    rejected = len(missing) - len(crowded)
    if rejected:
        sentences.append(f"{rejected} of {total} tumors were not made, since none that was tried was good enough.")
    return tuple(sentences)
