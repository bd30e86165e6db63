"""One case of a phantom cohort: anatomy, tumors, noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from difftumor.datasets.phantom.frame import paint_frame
from difftumor.datasets.phantom.person import Person
from difftumor.datasets.phantom.solids import Array, Axes, correlated_noise
from difftumor.datasets.phantom.tumors import LateTumors, PhantomTumor, paint_tumors
from difftumor.datasets.phantom.vessels import paint_great_vessels, paint_liver_veins, paint_portal_system
from difftumor.datasets.phantom.viscera import (
    paint_bowel,
    paint_gallbladder,
    paint_kidneys,
    paint_liver,
    paint_pancreas,
    paint_spleen,
)
from difftumor.datasets.phantom.volume import LABEL_NAMES, TUMOR_ORGANS, PhantomVolume
from difftumor.errors import ConfigError
from difftumor.seeding import numpy_generator


def paint_anatomy(volume: PhantomVolume, person: Person) -> None:
    """Paint a healthy abdomen: HU without noise, and the labels of the organs."""
    frame = paint_frame(volume, person)
    paint_bowel(volume, person, frame)
    paint_great_vessels(volume, person)
    right, left = paint_kidneys(volume, person)
    spleen = paint_spleen(volume, person, frame, neighbors=(left,))
    gallbladder = paint_gallbladder(volume, person)
    pancreas = paint_pancreas(volume, person, neighbors=(right, left, spleen))
    liver = paint_liver(volume, person, frame, neighbors=(right, spleen, gallbladder, pancreas))
    paint_portal_system(volume, person)
    paint_liver_veins(volume, person, liver)


FIELD_OF_VIEW_MM = 320.0
# Width of the kernel that makes neighboring voxels' noise alike, as a soft-tissue reconstruction does.
_NOISE_SIGMA_MM = 1.3
_SMALLEST_SHAPE = 16
_HU_RANGE = (-1024, 3071)


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """How the cases of a cohort are made.

    Args:
        shape: Voxels to the right, forward, up; at least 16 each.
        spacing_mm: Voxel size; by default such that the field of view is 320 mm, enough for the whole trunk.
        healthy: Share of the cases without tumors, 0 to 1, spread evenly over the cohort.
        tumor_radius_mm: Smallest and largest radius of a tumor; small ones are more frequent.
        tumor_contrast_hu: Smallest and largest distance of a tumor's mean below the parenchyma.
        noise_hu: Standard deviation of the noise.
        late_tumors: Whether tumors of 2 cm and more look alike in all organs, as smaller ones do, or ``"distinct"``: in
            the pancreas twice as dark, in the kidney brighter than the parenchyma.

    Raises:
        ConfigError: If a value is out of range.
    """

    shape: tuple[int, int, int] = (128, 128, 128)
    spacing_mm: tuple[float, float, float] | None = None
    healthy: float = 0.25
    tumor_radius_mm: tuple[float, float] = (4.0, 20.0)
    tumor_contrast_hu: tuple[float, float] = (20.0, 60.0)
    noise_hu: float = 12.0
    late_tumors: LateTumors = "alike"

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < _SMALLEST_SHAPE:
            raise ConfigError(f"shape {self.shape} is not possible: give three sizes of at least {_SMALLEST_SHAPE}.")
        if not all(0.1 <= spacing <= 20.0 for spacing in self.voxel_mm):
            raise ConfigError(f"spacing_mm {self.voxel_mm} is not possible: give sizes from 0.1 to 20 mm.")
        if not 0.0 <= self.healthy <= 1.0:
            raise ConfigError(f"healthy is {self.healthy}: give a share from 0 to 1.")
        if not 0.0 <= self.noise_hu <= 500.0:
            raise ConfigError(f"noise_hu is {self.noise_hu}: give a standard deviation from 0 to 500 HU.")
        if self.late_tumors not in get_args(LateTumors):
            raise ConfigError(f"late_tumors is {self.late_tumors!r}: give one of {', '.join(get_args(LateTumors))}.")
        for name, (low, high), limit in (
            ("tumor_radius_mm", self.tumor_radius_mm, 100.0),
            ("tumor_contrast_hu", self.tumor_contrast_hu, 300.0),
        ):
            if not 0.0 < low <= high <= limit:
                raise ConfigError(f"{name} is {low}, {high}: give two rising values above 0, up to {limit:g}.")

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Voxel size, whether given or derived from the shape."""
        if self.spacing_mm is not None:
            return self.spacing_mm
        x, y, z = (FIELD_OF_VIEW_MM / size for size in self.shape)
        return x, y, z


@dataclass(frozen=True, eq=False)
class PhantomCase:
    """One scan with its labels.

    Args:
        ct_hu: (X, Y, Z) int16, RAS.
        labels: (X, Y, Z) uint8, see ``label_names``.
        lesions: (X, Y, Z) uint16, 0 or the number of a tumor.
        affine: (4, 4) voxel to RAS world mm; the world's origin is the middle of the field of view.
        tumor_organs: Organs that hold a tumor; empty for a healthy case.
        tumors: What was grown.
        label_names: Label of each name.
    """

    ct_hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    lesions: NDArray[np.uint16]
    affine: NDArray[np.float64]
    tumor_organs: tuple[str, ...]
    tumors: tuple[PhantomTumor, ...]
    label_names: Mapping[str, int] = field(default_factory=lambda: dict(LABEL_NAMES))


def make_case(*, seed: int, index: int, config: PhantomConfig, organs: Sequence[str]) -> PhantomCase:
    """Make one case.

    The anatomy follows from (seed, index) alone, whatever grid samples it. An organ's tumors are drawn from a stream
    of (seed, index, organ), so that they do not depend on other cases nor, beyond keeping clear of each other, on the
    tumors of other organs; but their centers are drawn among voxels, and the noise is drawn per voxel, so that another
    grid gives other tumors and other noise.

    Args:
        seed: Seed of the cohort.
        index: Number of the case, from 0.
        config: Grid, noise and tumors.
        organs: Organs that get tumors if they fit, unless the case is healthy; keys of ``TUMOR_ORGANS``.

    Raises:
        ConfigError: An organ is unknown.
        SynthesisError: An organ is not in the field of view.
    """
    check_organs(organs)
    person = Person(seed, index)
    axes = _axes(config)
    volume = PhantomVolume(person.space(axes, config.voxel_mm))
    paint_anatomy(volume, person)
    lesions = np.zeros(config.shape, dtype=np.uint16)
    tumors: list[PhantomTumor] = []
    # In an order of our own, so that the order of the option changes nothing.
    wanted = [] if is_healthy(seed, index, config.healthy) else [organ for organ in TUMOR_ORGANS if organ in organs]
    for organ in wanted:
        tumors += paint_tumors(
            volume,
            lesions,
            person,
            organ=organ,
            radius_mm=config.tumor_radius_mm,
            contrast_hu=config.tumor_contrast_hu,
            late=config.late_tumors,
        )
    affine = np.diag((*config.voxel_mm, 1.0))
    affine[:3, 3] = [axis[0] for axis in axes]
    ct_hu = _with_noise(volume.hu, person, config)
    # Of those made, not those requested: some may not have fitted.
    grown = tuple(organ for organ in wanted if any(tumor.organ == organ for tumor in tumors))
    return PhantomCase(ct_hu, volume.labels, lesions, affine, grown, tuple(tumors))


def check_organs(organs: Sequence[str]) -> None:
    """Refuse organs that the phantom cannot grow tumors in."""
    unknown = [organ for organ in organs if organ not in TUMOR_ORGANS]
    if unknown:
        raise ConfigError(f"The phantom has no tumors in {unknown[0]!r}: choose from {', '.join(TUMOR_ORGANS)}.")


def is_healthy(seed: int, index: int, share: float) -> bool:
    """Return whether a case has no tumor; of any stretch of a cohort, ``share`` of the cases are healthy."""
    start = float(numpy_generator(seed, "phantom", "healthy").random())
    return int(np.floor((index + 1) * share + start)) > int(np.floor(index * share + start))


def _axes(config: PhantomConfig) -> Axes:
    x, y, z = (
        ((np.arange(size) - (size - 1) / 2) * spacing).astype(np.float32)
        for size, spacing in zip(config.shape, config.voxel_mm, strict=True)
    )
    return x, y, z


def _with_noise(hu: Array, person: Person, config: PhantomConfig) -> NDArray[np.int16]:
    sigma = tuple(_NOISE_SIGMA_MM / spacing for spacing in config.voxel_mm)
    noise = correlated_noise(hu.shape, sigma_voxels=sigma, generator=person.generator("noise"))
    return np.clip(np.rint(hu + np.float32(config.noise_hu) * noise), *_HU_RANGE).astype(np.int16)
