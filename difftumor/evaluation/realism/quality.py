"""How alike real and synthetic tumors are: distances, each with a scale, an interval, and warnings.

The scale of a distance is its value between real tumors. Real patients are split into random halves A and B, many
times, and compared with a set S of as many synthetic tumors. Distances grow for small sets, so all three sets have one
size: A to B is compared with A to S. Patients are the unit of all sampling, since tumors of one patient are alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from difftumor.errors import counted
from difftumor.evaluation.cohort.statistics import FEW_PATIENTS, LEAST_PATIENTS
from difftumor.evaluation.realism.distances import (
    DistanceName,
    Distances,
    FeatureExtractor,
    Indices,
    Sample,
    all_distances,
)
from difftumor.seeding import Key, numpy_generator

# Fewer tumors or splits than these give numbers with a warning.
FEW_TUMORS, FEW_SPLITS = 20, 20
# Scans whose voxel sizes differ by more than this ratio differ in sharpness and noise, whatever the tumors.
VOXEL_RATIO = 1.5


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """How distances are put on a scale.

    Args:
        seed: Seed of splits and resamples.
        repeats: Number of splits into halves.
        resamples: Number of resamples of the patients, for intervals.
    """

    seed: int = 0
    repeats: int = 20
    resamples: int = 500


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Distances over splits: their median, and the range of 95 % of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class DistanceScale:
    """A distance between sets of equal size.

    Attributes:
        tumors: In each set, on average over the splits.
        real_real: Between halves of the real patients.
        real_synthetic: Between a half of them and synthetic tumors.
        farther: Share of the splits in which the synthetic tumors are farther from a half than the other half is;
            ties count half.
    """

    tumors: float
    real_real: Spread
    real_synthetic: Spread
    farther: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One distance.

    Attributes:
        name: What it is.
        value: Between all real and all synthetic tumors; NaN if nothing can be compared.
        interval: 95 % over resampled patients; None if it makes no sense or there are too few patients.
        scale: None if there are too few patients.
        warnings: Sentences that say why to distrust it.
    """

    name: DistanceName
    value: float
    interval: tuple[float, float] | None
    scale: DistanceScale | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Quality:
    """All distances between two sets.

    Attributes:
        measurements: In the order of the page.
        warnings: Sentences that concern all of them.
    """

    measurements: tuple[Measurement, ...]
    warnings: tuple[str, ...]

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """Every warning once, those of all distances first."""
        return tuple(dict.fromkeys([*self.warnings, *(text for m in self.measurements for text in m.warnings)]))


def measure_quality(
    real: Sequence[Sample],
    synthetic: Sequence[Sample],
    networks: Sequence[FeatureExtractor] = (),
    settings: QualitySettings | None = None,
) -> Quality:
    """Compare two sets of tumors.

    The order of the tumors does not matter, and the same seed gives the same result.

    Args:
        real: At least one tumor.
        synthetic: At least one tumor.
        networks: Networks whose features the samples have.
        settings: The defaults when None.

    Raises:
        ValueError: A set is empty.
    """
    if not real or not synthetic:
        raise ValueError("both sets need tumors")
    settings = settings or QualitySettings()
    sets = [sorted(tumors, key=_order) for tumors in (real, synthetic)]
    first, second = np.arange(len(real)), np.arange(len(synthetic)) + len(real)
    patients = [_by_patient(tumors, offset) for tumors, offset in zip(sets, (0, len(real)), strict=True)]
    splits = _splits(patients[0], patients[1], settings) if len(patients[0]) >= LEAST_PATIENTS else []
    resamples = _resamples(patients, settings) if min(map(len, patients)) >= LEAST_PATIENTS else []
    measurements: list[Measurement] = []
    for distances in all_distances([*sets[0], *sets[1]], networks):
        measurements += _measure(distances, first, second, splits, resamples)
    return Quality(measurements=tuple(measurements), warnings=tuple(_set_warnings(sets, patients, len(splits))))


# Indices of each patient's tumors, by name and in its order.
Patients = Mapping[str, Indices]
Split = tuple[Indices, Indices, Indices]


def _order(sample: Sample) -> tuple[str, str, int]:
    return sample.tumor.patient, sample.tumor.case, sample.tumor.number


def _by_patient(samples: Sequence[Sample], offset: int) -> Patients:
    """Return the indices of each patient's tumors; samples are sorted by patient."""
    names = [sample.tumor.patient for sample in samples]
    return {name: np.flatnonzero(np.array(names) == name) + offset for name in dict.fromkeys(names)}


def _splits(real: Patients, synthetic: Patients, settings: QualitySettings) -> list[Split]:
    """Return halves of the real patients, and synthetic tumors, as many of each.

    A half is never compared with synthetic tumors in its own patients, which have the same tissue around them.
    """
    found = []
    for repeat in range(settings.repeats):
        order = _shuffled(real, settings.seed, "halves", repeat)
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        strangers = [name for name in _shuffled(synthetic, settings.seed, "made", repeat) if name not in halves[0]]
        if not strangers:
            continue
        named = (real, halves[0]), (real, halves[1]), (synthetic, strangers)
        one, other, made = (np.concatenate([patients[name] for name in names]) for patients, names in named)
        count = min(len(one), len(other), len(made))
        found.append((one[:count], other[:count], made[:count]))
    return found


def _shuffled(patients: Patients, seed: int, *keys: Key) -> list[str]:
    names = list(patients)
    return [names[place] for place in numpy_generator(seed, *keys).permutation(len(names))]


def _resamples(sets: Sequence[Patients], settings: QualitySettings) -> list[tuple[Indices, Indices]]:
    """Resample the patients of each set with replacement; two sets of the same patients get the same resamples."""
    found = []
    paired = sets[0].keys() == sets[1].keys()
    for repeat in range(settings.resamples):
        chosen = []
        for name, patients in zip(("real", "real" if paired else "synthetic"), sets, strict=True):
            places = numpy_generator(settings.seed, "resample", name, repeat).integers(
                len(patients), size=len(patients)
            )
            groups = list(patients.values())
            chosen.append(np.concatenate([groups[place] for place in places]))
        found.append((chosen[0], chosen[1]))
    return found


def _measure(
    distances: Distances,
    real: Indices,
    synthetic: Indices,
    splits: Sequence[Split],
    resamples: Sequence[tuple[Indices, Indices]],
) -> list[Measurement]:
    values = distances.between(real, synthetic)
    halves = np.array([distances.between(one, other) for one, other, _ in splits]).reshape(-1, len(values))
    against = np.array([distances.between(one, made) for one, _, made in splits]).reshape(-1, len(values))
    resampled = np.array([distances.between(*pair) for pair in resamples if distances.resampled]).reshape(
        -1, len(values)
    )
    tumors = float(np.mean([len(one) for one, _, _ in splits])) if splits else 0.0
    found = []
    for column, (name, value) in enumerate(zip(distances.names, values, strict=True)):
        measurement = Measurement(
            name=name,
            value=value,
            interval=_interval(value, resampled[:, column]),
            scale=_scale(tumors, halves[:, column], against[:, column]),
            warnings=_warnings(distances, name, value, min(len(real), len(synthetic))),
        )
        found.append(measurement)
    return found


def _interval(value: float, resampled: np.ndarray) -> tuple[float, float] | None:
    """Return the pivotal interval, which subtracts from the value as much as resampling adds to it.

    Only a kernel distance may be negative, and then its value or that of a resample is.
    """
    known = resampled[np.isfinite(resampled)]
    # A resample may by chance hold no tumor with this quantity; if most do, there is no interval.
    if 2 * len(known) <= len(resampled) or not math.isfinite(value):
        return None
    low, high = (2 * value - float(edge) for edge in np.percentile(known, (97.5, 2.5)))
    least = 0.0 if min(value, known.min()) >= 0 else -math.inf
    return max(low, least), max(high, least)


def _scale(tumors: float, halves: np.ndarray, against: np.ndarray) -> DistanceScale | None:
    known = np.isfinite(halves) & np.isfinite(against)
    if not known.any():
        return None
    # By signs, so that ties count half.
    farther = float((1 + np.sign(against[known] - halves[known])).mean() / 2)
    return DistanceScale(
        tumors=tumors, real_real=_spread(halves[known]), real_synthetic=_spread(against[known]), farther=farther
    )


def _spread(values: np.ndarray) -> Spread:
    low, median, high = (float(value) for value in np.percentile(values, (2.5, 50, 97.5)))
    return Spread(median=median, low=low, high=high)


def _warnings(distances: Distances, name: DistanceName, value: float, tumors: int) -> tuple[str, ...]:
    if not math.isfinite(value):
        return (f"{name.label} cannot be computed: in one of the lists no tumor has this quantity.",)
    vectors = tumors * distances.vectors
    if not distances.dimensions or vectors > distances.dimensions:
        return ()
    what = f"{vectors} slices of {counted(tumors, 'tumor')}" if distances.vectors > 1 else counted(tumors, "tumor")
    return (
        f"FID with {name.network}: the smaller list has {what}, not more than {distances.dimensions} feature "
        "dimensions, which makes it far too high. Only compare sets of equal size, and prefer the kernel distance.",
    )


def _set_warnings(sets: Sequence[Sequence[Sample]], patients: Sequence[Patients], splits: int) -> list[str]:
    found = []
    few = [f"{len(s)} {side}" for side, s in zip(("real", "synthetic"), sets, strict=True) if len(s) < FEW_TUMORS]
    if few:
        found.append(f"Only {' and '.join(few)} tumors: all distances but the kernel's are too high by chance.")
    for side, groups in zip(("real", "synthetic"), patients, strict=True):
        if len(groups) < LEAST_PATIENTS:
            without = "no scale and no intervals" if side == "real" else "no intervals"
            found.append(f"Only {counted(len(groups), f'{side} patient')}: there are {without}.")
        elif len(groups) < FEW_PATIENTS:
            found.append(f"Only {len(groups)} {side} patients: intervals are too narrow.")
    if 0 < splits < FEW_SPLITS:
        found.append(
            f"Only {splits} splits: even if nothing differs, many distances are farther in all of them by chance."
        )
    voxels = [np.median([sample.tumor.voxel_mm for sample in samples], axis=0) for samples in sets]
    ratio = np.maximum(voxels[0] / voxels[1], voxels[1] / voxels[0])
    if (ratio > VOXEL_RATIO).any():
        sizes = [" × ".join(f"{step:.2g}" for step in voxel) for voxel in voxels]
        found.append(
            f"The scans differ in voxel size ({sizes[0]} mm real, {sizes[1]} mm synthetic, medians): sharpness, noise "
            "and texture compare the scans, not the tumors."
        )
    return found
