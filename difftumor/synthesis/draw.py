"""Drawing: all that is random about tumors, decided before anything is applied.

Tumors are drawn one after the other. Of each, first all but its center is drawn, then its center among those where its
shape fits; once it is accepted it takes its space from those that follow. Every decision has random numbers of its own,
which the seed and the tumor's keys give, so that no decision shifts the numbers of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from difftumor.errors import SynthesisError, counted
from difftumor.scans.distances import Mask
from difftumor.scans.grid import Box, Voxel, triple
from difftumor.seeding import Key, derive_seed, numpy_generator
from difftumor.synthesis.distributions import Distribution, fixed, uniform
from difftumor.synthesis.generators.copy_paste import NO_SOURCES, SourceTumors
from difftumor.synthesis.host import Host
from difftumor.synthesis.placement import Placement
from difftumor.synthesis.records import SourceRecord, TextureRecord, TumorRecord
from difftumor.synthesis.shapes import farthest_mm
from difftumor.synthesis.sizes import CUSTOM, SIZES, SizeClass, nearest_size, sizes_of
from difftumor.synthesis.spec import PAPER_COUNT, Location, TumorSpec

# Chance that a tumor which may leave its organ does (published: half of the medium and large kidney tumors).
LEAVING_CHANCE = 0.5
# Published as U(0, 4) voxels of 1 mm, and as σc in Hu et al. 2023, Table 1; in mm a rim is as soft at any spacing. A
# copied tumor has its rim already.
_BLUR_MM = {"diffusion": uniform(0.0, 4.0), "handcrafted": uniform(0.6, 1.2), "copy_paste": uniform(0.6, 1.2)}
# Chance that a copied tumor is turned, and that it is mirrored along each axis.
_TURNING_CHANCE = 0.5
# σb of Table 1.
_TEXTURE_BLUR_MM = 0.6
# Table 1: μt is U(30, μp - 10). If the organ is too dark for that, as without contrast agent, tumors are darker than it
# by 10 to 30 HU.
_LOWEST_HU, _DARKER_HU, _DARKEST_HU = 30.0, 10.0, 30.0
# How far a satellite may be from its distance, in voxels, so that there are places to choose from.
_RING_SLACK = 2.0
# After this many sizes and shapes that fit nowhere, no more are tried.
_MISSES = 3
_TOUCHING = fixed(0)

# Decides whether a tumor is kept: it is given the tumor, those that are kept already, and which of the wanted tumors it
# is, from 1. It returns the tumor to keep in its place, or None to have another one drawn.
Accept = Callable[[TumorRecord, Sequence[TumorRecord], int], TumorRecord | None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One tumor that is wanted.

    Args:
        spec: What it is to be.
        keys: With the seed, decide all that is random about it.
        parent: The tumor that it is a satellite of, and that tumor's number; None for none.
        gap_mm: Between the surfaces of that tumor and this one, if both were balls.
    """

    spec: TumorSpec
    keys: tuple[Key, ...]
    parent: tuple[TumorRecord, int] | None = None
    gap_mm: Distribution = _TOUCHING


@dataclass(frozen=True)
class Drawn:
    """Tumors that were drawn.

    Args:
        records: In order; satellites follow their tumor.
        shortfalls: What was asked for and is missing, in sentences.
    """

    records: tuple[TumorRecord, ...]
    shortfalls: tuple[str, ...] = ()


def draw_tumors(
    host: Host,
    specs: Sequence[TumorSpec],
    *,
    seed: int,
    keys: tuple[Key, ...] = (),
    accept: Accept | None = None,
    attempts: int = 1,
    sources: SourceTumors = NO_SOURCES,
) -> Drawn:
    """Draw tumors for one organ; no network is needed.

    Args:
        host: The organ.
        specs: What is wanted.
        seed: With ``keys``, decides everything; the first tumors do not depend on how many follow.
        keys: For instance ``("epoch", 3, "sample", 17)``.
        accept: Which tumors to keep; by default all.
        attempts: How many tumors are drawn until one is accepted.
        sources: Real tumors to copy.

    Returns:
        The tumors, possibly none, with their centers in voxels of the scan's whole model space (``Host.start``).

    Raises:
        SynthesisError: The CT or a real tumor is needed and not given; or a point outside the organ, or an unknown
            segment, is asked for.
    """
    placement = Placement(host)
    records: list[TumorRecord] = []
    missing: list[tuple[Wanted, bool]] = []
    queue = wanted_tumors(specs, seed=seed, keys=keys)
    total = len(queue)
    while queue:
        wanted = queue.pop(0)
        number, fitted, record = total - len(queue), False, None
        for drawn in _drawn_tumors(placement, wanted, seed, attempts if accept else 1, sources):
            fitted = True
            record = drawn if accept is None else accept(drawn, records, number)
            if record is not None:
                break
        if record is None:
            missing.append((wanted, fitted))
            continue
        records.append(record)
        satellites = _satellites(wanted, record, len(records), seed)
        total += len(satellites)
        queue = satellites + queue
        if queue:  # the last one is in nobody's way
            center, rules = _in_host(host, record), _rules(record)
            placement.add(*placement.cut(sources.shape(record), center, **rules))
    return Drawn(tuple(records), _shortfalls(host, missing, total))


def wanted_tumors(specs: Sequence[TumorSpec], *, seed: int, keys: tuple[Key, ...] = ()) -> list[Wanted]:
    """Return the tumors that are wanted, one by one; satellites come once their tumor is known."""
    wanted: list[Wanted] = []
    for spec in specs:
        for mode, own in _modes(spec, seed, keys):
            for _ in range(_count(own, seed, (*keys, *mode))):
                wanted.append(Wanted(spec=own, keys=(*keys, "tumor", len(wanted))))
    return wanted


def draw_unplaced(
    host: Host, wanted: Wanted, *, seed: int, attempt: int = 0, sources: SourceTumors = NO_SOURCES
) -> TumorRecord:
    """Draw all of a tumor but its center, which is (0, 0, 0).

    Args:
        host: The organ.
        wanted: The tumor.
        seed: With the tumor's keys and the attempt, decides everything.
        attempt: Counts from 0; every attempt is another tumor.
        sources: Real tumors to copy.

    Raises:
        SynthesisError: A copy is wanted, and no real tumor has its size.
    """
    spec, keys, spacing_mm = wanted.spec, _keys(wanted, attempt), host.spacing_mm
    copied = spec.generator == "copy_paste"
    body = _copied_body(host, spec, seed, keys, sources) if copied else _ellipsoid(host, spec, seed, keys)
    contrast_hu = None if spec.contrast_hu is None else spec.contrast_hu.draw(seed, *keys, "contrast")
    clearance = spec.vessel_clearance_mm
    if spec.blur_share is not None:
        blur_mm = spec.blur_share.draw(seed, *keys, "blur") * math.prod(body["half_axes_mm"]) ** (1 / 3)
    else:
        blur_mm = (spec.blur_mm or _BLUR_MM[spec.generator]).draw(seed, *keys, "blur")
    parent = None if wanted.parent is None else wanted.parent[1]
    return TumorRecord(
        generator=spec.generator,
        organ=host.organ.name,
        **body,
        shape_seed=derive_seed(seed, *keys, "shape"),
        center_voxel=(0, 0, 0),
        center_mm=(0.0, 0.0, 0.0),
        texture_seed=derive_seed(seed, *keys, "texture"),
        blur_sigma_voxels=float(blur_mm / np.prod(spacing_mm) ** (1 / 3)),
        spacing_mm=spacing_mm,
        location=str(spec.location) if parent is None else f"around tumor {parent}",
        vessel_clearance_mm=None if clearance is None else clearance.draw(seed, *keys, "clearance"),
        contrast_hu=contrast_hu,
        may_overlap=spec.may_overlap,
        apart=not spec.may_overlap,
        satellite_of=parent,
        texture=_texture(host, spec, contrast_hu, seed, keys) if spec.generator == "handcrafted" else None,
        mass_effect=spec.mass_effect.draw(seed, *keys, "mass effect"),
        capsule_hu=spec.capsule_hu.draw(seed, *keys, "capsule"),
    )


def _ellipsoid(host: Host, spec: TumorSpec, seed: int, keys: tuple[Key, ...]) -> dict[str, Any]:
    """Draw the fields of a record that say how large a tumor is and what form it has."""
    generator = numpy_generator(seed, *keys)
    size = _size(spec, generator)
    radius_mm = size.radius_mm
    if spec.diameter_mm is not None:
        # Deformed in proportion to the class of that size, even if another class is named too.
        radius_mm = spec.diameter_mm.draw(seed, *keys, "diameter") / 2
        size = _by_generator(nearest_size(radius_mm), spec)
    shares = generator.uniform(*size.half_axes, size=3)
    # Drawn whether needed or not, so that one decision never shifts the numbers of the next.
    leaves = bool(generator.random() < _leaving_chance(host))
    sigma_mm = size.draw_deformation(generator) * radius_mm / size.radius_mm
    if spec.diameter_mm is not None:
        # Half-axes as irregular as the class's, and the volume that was asked for.
        shares /= np.prod(shares) ** (1 / 3)
    a, b, c = (float(radius_mm * share) for share in shares)
    return {
        "size": size.name if spec.diameter_mm is None else CUSTOM,
        "radius_mm": radius_mm,
        "half_axes_mm": (a, b, c),
        "deformation_sigma_mm": sigma_mm * spec.irregularity.draw(seed, *keys, "irregularity"),
        "may_leave_organ": leaves and size.name in host.organ.may_leave_organ,
    }


def _leaving_chance(host: Host) -> float:
    """Tumors of a wall are thicker than it."""
    return 1.0 if host.organ.wall_mm > 0 else LEAVING_CHANCE


def _copied_body(
    host: Host, spec: TumorSpec, seed: int, keys: tuple[Key, ...], sources: SourceTumors
) -> dict[str, Any]:
    """Draw the same fields of a copy, and what it is a copy of; all real tumors of a size have the same chance."""
    generator = numpy_generator(seed, *keys)
    size = _size_choice(spec, generator)
    tumors = sources.of_size(size)
    if not tumors:
        raise SynthesisError(f"There is no real tumor of size {size} to copy: give a source that has one.")
    tumor = tumors[int(generator.integers(len(tumors)))]
    leaves = bool(generator.random() < _leaving_chance(host))
    turned, x, y, z = (generator.random(4) < _TURNING_CHANCE).tolist()
    turned = turned and tumor.can_turn
    first, second, third = tumor.half_axes_mm
    return {
        "size": tumor.size,
        "radius_mm": tumor.radius_mm,
        "half_axes_mm": (second, first, third) if turned else (first, second, third),
        "deformation_sigma_mm": 0.0,
        "may_leave_organ": leaves and tumor.size in host.organ.may_leave_organ,
        "source": SourceRecord(
            case=tumor.case,
            tumor=tumor.number,
            sha256=tumor.sha256,
            turned=turned,
            flipped=(x, y, z),
            shift_hu=host.parenchyma.mean_hu - tumor.parenchyma_hu,
        ),
    }


def _drawn_tumors(
    placement: Placement, wanted: Wanted, seed: int, attempts: int, sources: SourceTumors
) -> Iterator[TumorRecord]:
    """Yield tumors, placed in the space that is left, of which one may be kept; none if nothing fits."""
    host, misses = placement.host, 0
    for attempt in range(attempts):
        record = draw_unplaced(host, wanted, seed=seed, attempt=attempt, sources=sources)
        center = _center(placement, wanted, record, sources.shape(record), seed, _keys(wanted, attempt))
        if center is not None:
            x, y, z = (float(value) for value in (host.to_world @ [*center, 1.0])[:3])
            placed = replace(record, center_voxel=center, center_mm=(x, y, z), attempts=attempt + 1)
            yield placed.moved(host.start)
        elif (misses := misses + 1) == _MISSES:  # until then another size or shape may fit
            return


def _keys(wanted: Wanted, attempt: int) -> tuple[Key, ...]:
    return wanted.keys if attempt == 0 else (*wanted.keys, "attempt", attempt)


def _modes(spec: TumorSpec, seed: int, keys: tuple[Key, ...]) -> list[tuple[tuple[Key, ...], TumorSpec]]:
    """Return a spec whose count is the paper's by the modes of Hu et al. 2023, Table 6, with keys of their own.

    All tumors of a scan are of one size, or there are some of every size ("mix").
    """
    weights = spec.weights
    if spec.count != PAPER_COUNT or (len(weights) == 1 and "mix" not in weights):
        return [((), spec)]
    chances = np.array(list(weights.values()))
    generator = numpy_generator(seed, *keys, "mode")
    size = list(weights)[int(generator.choice(len(weights), p=chances / chances.sum()))]
    if size != "mix":
        return [((), replace(spec, size=size))]
    return [(("mode", name), replace(spec, size=name)) for name in sizes_of(size)]


def _count(spec: TumorSpec, seed: int, keys: tuple[Key, ...]) -> int:
    if not isinstance(spec.count, str):
        return int(spec.count.draw(seed, *keys, "count"))
    generator = numpy_generator(seed, *keys, "count")
    fewest, most = _size(spec, generator).counts
    return int(generator.integers(fewest, most, endpoint=True))


def _size_choice(spec: TumorSpec, generator: np.random.Generator) -> str:
    groups = list(spec.weights)
    weights = np.array(list(spec.weights.values()))
    return groups[int(generator.choice(len(groups), p=weights / weights.sum()))]


def _size(spec: TumorSpec, generator: np.random.Generator) -> SizeClass:
    names = sizes_of(_size_choice(spec, generator))
    return _by_generator(SIZES[names[int(generator.integers(len(names)))]], spec)


def _by_generator(size: SizeClass, spec: TumorSpec) -> SizeClass:
    return size.handcrafted if spec.generator == "handcrafted" else size


def _texture(host: Host, spec: TumorSpec, contrast_hu: float | None, seed: int, keys: tuple[Key, ...]) -> TextureRecord:
    parenchyma, rules = host.parenchyma, host.organ
    if contrast_hu is None and rules.tumor_hu is not None:
        mean_hu = uniform(*rules.tumor_hu).draw(seed, *keys, "mean")
    elif contrast_hu is None:
        # Table 1: μt is U(30, μp - 10).
        high = parenchyma.mean_hu - _DARKER_HU
        low = _LOWEST_HU if high > _LOWEST_HU else parenchyma.mean_hu - _DARKEST_HU
        mean_hu = uniform(low, high).draw(seed, *keys, "mean")
    else:
        mean_hu = parenchyma.mean_hu + contrast_hu
    noise_mm = 0.0 if spec.host_noise_mm is None else spec.host_noise_mm.draw(seed, *keys, "host noise")
    sd_hu = host.tissue_sd_hu if spec.scale_texture else parenchyma.sd_hu
    if rules.tumor_sd_hu is not None:
        sd_hu = rules.tumor_sd_hu
    if noise_mm > 0:
        # Texture and noise are independent: their variances add up to that of the tissue.
        sd_hu = math.sqrt(max(0.0, sd_hu**2 - host.noise_sd_hu(noise_mm) ** 2))
    return TextureRecord(
        kind=spec.texture,
        mean_hu=mean_hu,
        sd_hu=sd_hu,
        grain=spec.grain.draw(seed, *keys, "grain"),
        blur_sigma_mm=_TEXTURE_BLUR_MM,
        scaled=spec.scale_texture,
        host_noise_mm=noise_mm,
    )


def _center(
    placement: Placement, wanted: Wanted, record: TumorRecord, shape: Mask, seed: int, keys: tuple[Key, ...]
) -> Voxel | None:
    """Draw the center of a tumor of a given shape, in voxels of the host; None if it fits nowhere."""
    host, location = placement.host, wanted.spec.location
    reach_mm, clearance_mm = max(record.half_axes_mm), record.vessel_clearance_mm
    if clearance_mm is not None:
        # The deformation takes some of the surface beyond the half-axes.
        clearance_mm += max(0.0, farthest_mm(shape, record.spacing_mm) - reach_mm)
    rules = {**_rules(record), "vessel_clearance_mm": clearance_mm}
    if location.point_mm is not None:
        center = host.voxel_at(location.point_mm)
        return center if placement.fits_at(shape, center, reach_mm=reach_mm, **rules) else None
    return placement.find_center(
        shape,
        reach_mm,
        numpy_generator(seed, *keys, "place"),
        centered=record.size in host.organ.centered and location == Location() and wanted.parent is None,
        within=_within(host, wanted, record, seed),
        by_slice=wanted.spec.placement == "slice",
        **rules,
    )


def _rules(record: TumorRecord) -> dict[str, Any]:
    return {"may_leave": record.may_leave_organ, "may_overlap": record.may_overlap}


def _within(host: Host, wanted: Wanted, record: TumorRecord, seed: int) -> Mask | tuple[Box, Mask] | None:
    """Return where the center must be, within the organ."""
    location = wanted.spec.location
    if wanted.parent is not None:
        gap_mm = wanted.gap_mm.draw(seed, *wanted.keys, "gap")
        return _ring(host, wanted.parent[0], record, gap_mm)
    if location.segment is not None:
        return host.segment(location.segment)
    if location.region == "anywhere":
        return None
    middle_mm = np.median(host.depth_mm[host.boxed])
    return host.box, (host.depth_mm >= middle_mm if location.region == "central" else host.depth_mm < middle_mm)


def _ring(host: Host, parent: TumorRecord, record: TumorRecord, gap_mm: float) -> tuple[Box, Mask]:
    """Return where a tumor's center gives a gap, to a voxel or so, between it and another tumor, if both are balls."""
    apart_mm = parent.equivalent_radius_mm + gap_mm + record.equivalent_radius_mm
    center, slack_mm = _in_host(host, parent), _RING_SLACK * max(host.spacing_mm)
    half = [int((apart_mm + slack_mm) / step) + 1 for step in host.spacing_mm]
    box = Box(center, triple(np.add(center, 1))).padded(half).clipped(host.mask.shape)
    x, y, z = (
        (np.arange(a, b) - c) * step for a, b, c, step in zip(box.start, box.stop, center, host.spacing_mm, strict=True)
    )
    distance_mm = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
    return box, np.abs(distance_mm - apart_mm) <= slack_mm


def _in_host(host: Host, record: TumorRecord) -> Voxel:
    return triple(np.subtract(record.center_voxel, host.start))


def _satellites(wanted: Wanted, record: TumorRecord, number: int, seed: int) -> list[Wanted]:
    """Return the satellites of an accepted tumor; ``number`` is its own, from 1."""
    if wanted.spec.satellites is None:
        return []
    spec, keys = wanted.spec.of_satellites(), (*wanted.keys, "satellite")
    gap_mm = wanted.spec.satellites.distance_mm
    return [
        Wanted(spec=spec, keys=(*keys, index), parent=(record, number), gap_mm=gap_mm)
        for index in range(_count(spec, seed, keys))
    ]


def _shortfalls(host: Host, missing: Sequence[tuple[Wanted, bool]], total: int) -> tuple[str, ...]:
    name, sentences = host.organ.name, []
    crowded = [wanted for wanted, fitted in missing if not fitted]
    if crowded:
        kept_apart = any(wanted.spec.vessel_clearance_mm is not None for wanted in crowded)
        apart = " away from its vessels" if kept_apart else ""
        sentences.append(f"The {name} had room{apart} for {total - len(crowded)} of {counted(total, 'tumor')}.")
    rejected = len(missing) - len(crowded)
    if rejected:
        sentences.append(
            f"{rejected} of {counted(total, 'tumor')} could not be made: all that were tried were rejected."
        )
    return tuple(sentences)
