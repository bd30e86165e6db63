"""Tumor records: every random decision about one tumor, drawn before anything is applied.

A record is frozen and JSON-able; floats survive the round trip exactly. Applying the same record to the same CT gives
the same tumor, bit by bit on the same device.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from difftumor.errors import ConfigError, SynthesisError
from difftumor.organs import SIZE_NAMES

RECORD_FORMAT_VERSION = 1
Triple = tuple[float, float, float]
Voxel = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class SizeClass:
    """How large tumors of one class are, and how strongly their ellipsoid is deformed.

    Args:
        name: One of ``organs.SIZE_NAMES``.
        radius_mm: Radius r of the class.
        half_axes: Each half-axis is U(low · r, high · r).
        deformation_mm: σe of the elastic deformation: a range ``(low, high)`` when ``continuous``, else the choices.
        continuous: Whether σe is drawn from the range or from the choices.
    """

    name: str
    radius_mm: float
    half_axes: tuple[float, float]
    deformation_mm: tuple[float, ...]
    continuous: bool = False

    def draw_deformation(self, generator: np.random.Generator) -> float:
        """Draw σe in mm."""
        if self.continuous:
            low, high = self.deformation_mm
            return float(generator.uniform(low, high))
        return float(generator.choice(self.deformation_mm))


_TINY, _SMALL, _MEDIUM, _LARGE = SIZE_NAMES
# Hu et al. 2023, section 3.1: half-axes U(0.75 r, 1.25 r); the published recipe lets those of large tumors reach 2 r.
SIZES: Mapping[str, SizeClass] = MappingProxyType(
    {
        size.name: size
        for size in (
            SizeClass(name=_TINY, radius_mm=4.0, half_axes=(0.75, 1.25), deformation_mm=(0.5, 1.0), continuous=True),
            SizeClass(name=_SMALL, radius_mm=8.0, half_axes=(0.75, 1.25), deformation_mm=(1, 2)),
            SizeClass(name=_MEDIUM, radius_mm=16.0, half_axes=(0.75, 1.25), deformation_mm=(3, 4, 5, 6)),
            SizeClass(name=_LARGE, radius_mm=32.0, half_axes=(0.75, 2.0), deformation_mm=(5, 6, 7, 8, 9, 10)),
        )
    }
)
# What a user may ask for: a class, or a group whose members have equal chance for each tumor.
SIZE_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {**{name: (name,) for name in SIZES}, "early": (_TINY, _SMALL), "late": (_MEDIUM, _LARGE)}
)


def sizes_of(size: str) -> tuple[str, ...]:
    """Return the size classes behind a class or group name.

    Raises:
        ConfigError: The name is unknown.
    """
    if size not in SIZE_GROUPS:
        raise ConfigError(f"Tumor size {size!r} is unknown: use one of {', '.join(SIZE_GROUPS)}.")
    return SIZE_GROUPS[size]


def stage_of_size(size: str) -> Literal["early", "late"]:
    """Return the stage whose diffusion model makes tumors of a size class or group: tiny and small ones are early.

    Raises:
        ConfigError: The name is unknown.
    """
    return "early" if set(sizes_of(size)) <= set(SIZE_GROUPS["early"]) else "late"


@dataclass(frozen=True, kw_only=True)
class TumorRecord:
    """All that is random about one tumor.

    Args:
        generator: Which generator makes the texture, for instance ``"diffusion"``.
        organ: Organ that hosts the tumor.
        size: Size class, a key of ``SIZES``.
        radius_mm: Radius of the size class.
        half_axes_mm: Half-axes of the ellipsoid along x, y, z.
        deformation_sigma_mm: Standard deviation of the elastic deformation's control displacements, 0 for none.
        shape_seed: Seed of the deformation.
        center_voxel: Center in voxels of the model-space array that the tumor was drawn for.
        center_mm: The same point in world coordinates (RAS).
        may_leave_organ: Whether the tumor is kept where it reaches beyond the organ.
        texture_seed: Seed of the texture's noise.
        blur_sigma_voxels: Standard deviation of the Gaussian that softens the rim, in model voxels.
        spacing_mm: Voxel size of the model space.
        format_version: Version of this layout.
    """

    generator: str
    organ: str
    size: str
    radius_mm: float
    half_axes_mm: Triple
    deformation_sigma_mm: float
    shape_seed: int
    center_voxel: Voxel
    center_mm: Triple
    may_leave_organ: bool
    texture_seed: int
    blur_sigma_voxels: float
    spacing_mm: Triple = (1.0, 1.0, 1.0)
    format_version: int = RECORD_FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("half_axes_mm", "spacing_mm", "center_voxel", "center_mm"):
            if len(getattr(self, name)) != 3:
                raise SynthesisError(f"{name} needs three numbers, one per axis: correct the record.")
        lengths = (*self.half_axes_mm, *self.spacing_mm)
        if not all(math.isfinite(length) and length > 0 for length in lengths):
            raise SynthesisError(f"half_axes_mm and spacing_mm must be positive, not {lengths}: correct the record.")
        for name in ("deformation_sigma_mm", "blur_sigma_voxels"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SynthesisError(f"{name} must be a number of at least 0, not {value}: correct the record.")

    def moved(self, offset: Iterable[int]) -> TumorRecord:
        """Return the record for an array whose first voxel lies ``-offset`` from the old one's; world is unchanged."""
        x, y, z = (int(c) + int(o) for c, o in zip(self.center_voxel, offset, strict=True))
        return replace(self, center_voxel=(x, y, z))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``json`` can write."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TumorRecord:
        """Build a record from plain values.

        Raises:
            SynthesisError: The format version is another, or a field is missing, unknown or out of range.
        """
        version = values.get("format_version")
        if version != RECORD_FORMAT_VERSION:
            raise SynthesisError(
                f"The tumor record has format_version {version}, not {RECORD_FORMAT_VERSION}: "
                "replay it with the release that wrote it."
            )
        known = {field.name for field in fields(cls)}
        wrong = sorted(known.symmetric_difference(values))
        if wrong:
            raise SynthesisError(f"The tumor record lacks or does not know the fields {wrong}: correct the record.")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise SynthesisError(f"A field of the tumor record has the wrong type ({error}): correct it.") from error

    def to_json(self) -> str:
        """Return the record as JSON text; ``from_json`` gives back an equal record."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> TumorRecord:
        """Parse what ``to_json`` wrote.

        Raises:
            SynthesisError: The text is not a record of this format version.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise SynthesisError(f"The tumor record is not JSON ({error}): correct it.") from error
        if not isinstance(values, dict):
            raise SynthesisError("The tumor record is not a JSON object: correct it.")
        return cls.from_dict(values)
