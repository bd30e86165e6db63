"""Tumor records: every random decision about one tumor, drawn before anything is applied.

A record is frozen and JSON-able; floats survive the round trip exactly. Applying the same record to the same CT gives
the same tumor, bit by bit on the same device.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from difftumor.errors import SynthesisError
from difftumor.files.fields import wanted_instead
from difftumor.files.texts import parse_json
from difftumor.scans.grid import Vector, Voxel
from difftumor.scans.lesions import SizeGroup, size_group

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RECORD_FORMAT_VERSION = 2
GeneratorName = Literal["diffusion", "handcrafted", "copy_paste"]
TextureKind = Literal["gaussian", "salt"]
# Fields that records lack which were written before there were any; then they have their defaults.
_LATER_FIELDS = frozenset({"source", "apart", "mask"})
# No tumor of a patient comes near; larger ones would take all memory.
_LONGEST_MM = 1000.0


def _check_types(record: DataclassInstance) -> None:
    """Refuse values of another type, and numbers that are not finite; what a field alone allows it checks itself."""
    for field in fields(record):
        value = getattr(record, field.name)
        if words := wanted_instead(value, str(field.type)):
            raise SynthesisError(f"{field.name} must be {words}, not {value!r}: correct the record.")


@dataclass(frozen=True, kw_only=True)
class TextureRecord:
    """All that is random about a hand-crafted texture, but its seed.

    Args:
        kind: "gaussian" (Hu et al. 2023) or "salt" (the workshop paper).
        mean_hu: μt, mean of the texture.
        sd_hu: Standard deviation of the texture; of Gaussian noise before scaling and blur if it is not ``scaled``.
        grain: η, 1 or more: how many mm lie between independent values.
        blur_sigma_mm: σb of the blur; Table 1: 0.6.
        scaled: Whether Gaussian noise is scaled to ``sd_hu`` after scaling and blur, which eq. (3) does not do. Older
            records lack it, and are not.
        host_noise_mm: σ of the Gaussian whose residual of the CT, its noise, stays under the texture; 0 for none.

    Raises:
        SynthesisError: A value is out of range.
    """

    kind: TextureKind
    mean_hu: float
    sd_hu: float
    grain: float
    blur_sigma_mm: float
    scaled: bool = False
    host_noise_mm: float = 0.0

    def __post_init__(self) -> None:
        _check_types(self)
        if self.kind not in get_args(TextureKind):
            raise SynthesisError(f"The texture's kind must be gaussian or salt, not {self.kind!r}: correct the record.")
        for name, least in (("sd_hu", 0), ("grain", 1), ("blur_sigma_mm", 0), ("host_noise_mm", 0)):
            value = getattr(self, name)
            if value < least:
                raise SynthesisError(f"{name} must be a number of at least {least}, not {value}: correct the record.")


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """The real tumor that a copy was made of, and how the copy differs.

    Args:
        case: Id of its case.
        tumor: Its number among the components of the case's tumor mask, from 1.
        sha256: Of the case's CT.
        turned: Whether the copy is turned by 90 degrees in the axial plane, before it is mirrored.
        flipped: Along which of x, y, z it is mirrored.
        shift_hu: What is added to its HU, so that it keeps the contrast to its parenchyma.

    Raises:
        SynthesisError: A value is out of range.
    """

    case: str
    tumor: int
    sha256: str
    turned: bool
    flipped: tuple[bool, bool, bool]
    shift_hu: float

    def __post_init__(self) -> None:
        _check_types(self)
        if self.tumor < 1:
            raise SynthesisError(f"A source needs a tumor from 1, not {self.tumor}: correct the record.")


@dataclass(frozen=True, kw_only=True)
class MaskRecord:
    """The mask that a tumor has its shape and place of.

    Args:
        sha256: Of the mask: `difftumor.synthesis.shapes.given.mask_identity`.
        component: Which of its components, from 1.

    Raises:
        SynthesisError: A value is out of range.
    """

    sha256: str
    component: int

    def __post_init__(self) -> None:
        _check_types(self)
        if self.component < 1:
            raise SynthesisError("A mask needs a component from 1: correct the record.")


@dataclass(frozen=True, kw_only=True)
class TumorRecord:
    """All that is random about one tumor.

    Args:
        generator: What makes the texture: ``"diffusion"`` or ``"handcrafted"``; with ``"copy_paste"`` texture and shape
            are those of a real tumor.
        organ: Organ that hosts the tumor.
        size: Size class, a key of ``sizes.SIZES``, or ``sizes.CUSTOM``.
        radius_mm: Radius of the size class, or the one asked for.
        half_axes_mm: Half-axes of the ellipsoid along x, y, z; of a copied tumor those of an ellipsoid with its volume
            and the proportions of its box.
        deformation_sigma_mm: Standard deviation of the elastic deformation's control displacements, 0 for none.
        shape_seed: Seed of the deformation.
        center_voxel: Center in voxels of the model-space array that the tumor was drawn for.
        center_mm: The same point in world coordinates (RAS).
        may_leave_organ: Whether the part of the tumor beyond the organ is kept.
        texture_seed: Seed of the texture's noise.
        blur_sigma_voxels: Standard deviation of the Gaussian that softens the rim, in model voxels.
        spacing_mm: Voxel size of the model space.
        location: Requested location, in words.
        vessel_clearance_mm: Least distance that was asked for from its surface to vessels; None if they did not matter.
        contrast_hu: Requested contrast; None for any.
        may_overlap: Whether it may overlap other tumors; otherwise they cut it.
        apart: Whether a voxel of the scan stays between it and other tumors, so that each is a component of its own.
        satellite_of: Number of the tumor that it is a satellite of, from 1; None for none.
        texture: Its hand-crafted texture; None for other generators.
        mass_effect: How strongly it pushes its surroundings apart, I in [0, 100] of Hu et al. 2023, eq. (5).
        capsule_hu: How much brighter its capsule is, d of eq. (8); 0 for no capsule.
        source: The real tumor that it is a copy of; None for other generators.
        mask: The mask that gives its shape; None for a drawn one.
        attempts: Number of tumors and textures that were tried until this one was accepted.
        format_version: Version of this layout.
    """

    generator: GeneratorName
    organ: str
    size: str
    radius_mm: float
    half_axes_mm: Vector
    deformation_sigma_mm: float
    shape_seed: int
    center_voxel: Voxel
    center_mm: Vector
    may_leave_organ: bool
    texture_seed: int
    blur_sigma_voxels: float
    spacing_mm: Vector = (1.0, 1.0, 1.0)
    location: str = "anywhere"
    vessel_clearance_mm: float | None = None
    contrast_hu: float | None = None
    may_overlap: bool = False
    apart: bool = False
    satellite_of: int | None = None
    texture: TextureRecord | None = None
    mass_effect: float = 0.0
    capsule_hu: float = 0.0
    source: SourceRecord | None = None
    mask: MaskRecord | None = None
    attempts: int = 1
    format_version: int = RECORD_FORMAT_VERSION

    def __post_init__(self) -> None:
        _check_types(self)
        lengths = (*self.half_axes_mm, *self.spacing_mm)
        if not all(0 < length <= _LONGEST_MM for length in lengths):
            raise SynthesisError(
                f"half_axes_mm and spacing_mm must be above 0 and at most {_LONGEST_MM:g}, not {lengths}: correct the "
                "record."
            )
        for name in ("deformation_sigma_mm", "blur_sigma_voxels"):
            if not 0 <= (value := getattr(self, name)) <= _LONGEST_MM:
                raise SynthesisError(f"{name} must be from 0 to {_LONGEST_MM:g}, not {value}: correct the record.")
        if not 0 <= self.mass_effect <= 100:
            raise SynthesisError(f"mass_effect must be in [0, 100], not {self.mass_effect}: correct the record.")
        needed = {"diffusion": (False, False), "handcrafted": (True, False), "copy_paste": (False, True)}
        if needed.get(self.generator) != (self.texture is not None, self.source is not None):
            raise SynthesisError(
                "A record needs the generator diffusion, handcrafted with its texture, or copy_paste with its source, "
                f"not {self.generator!r}: correct the record."
            )

    @property
    def size_group(self) -> SizeGroup:
        """Early or late, which decides whose diffusion model makes the tumor."""
        return size_group(2 * self.radius_mm)

    @property
    def equivalent_radius_mm(self) -> float:
        """Radius of the ball of the ellipsoid's volume."""
        return math.prod(self.half_axes_mm) ** (1 / 3)

    def moved(self, offset: Iterable[int]) -> TumorRecord:
        """Return the record for an array whose first voxel lies ``-offset`` voxels away in the same scan."""
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
        wrong = sorted(known.symmetric_difference({*values, *_LATER_FIELDS}))
        if wrong:
            raise SynthesisError(f"The tumor record lacks or does not know the fields {wrong}: correct the record.")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            if arguments["texture"] is not None:
                arguments["texture"] = TextureRecord(**arguments["texture"])
            if (source := arguments.get("source")) is not None:
                arguments["source"] = SourceRecord(**{**source, "flipped": tuple(source["flipped"])})
            if (mask := arguments.get("mask")) is not None:
                arguments["mask"] = MaskRecord(**mask)
            return cls(**arguments)
        except (TypeError, KeyError, OverflowError) as error:
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
            values = parse_json(text)
        except ValueError as error:
            raise SynthesisError(f"The tumor record is not JSON ({error}): correct it.") from error
        if not isinstance(values, dict):
            raise SynthesisError("The tumor record is not a JSON object: correct it.")
        return cls.from_dict(values)
