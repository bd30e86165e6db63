"""What tumors a user asks for: the content of a ``--tumors`` file, checked before anything is read or drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from difftumor.errors import ConfigError
from difftumor.files.texts import read_yaml
from difftumor.scans.grid import Vector
from difftumor.scans.lesions import SizeGroup, size_group
from difftumor.synthesis.distributions import Distribution, fixed, uniform
from difftumor.synthesis.records import GeneratorName, TextureKind
from difftumor.synthesis.sizes import size_groups_of, sizes_of

PlacementRule = Literal["uniform", "slice"]
Preset = Literal["training", "reader"]
# A number, a distribution, or a mapping from the kind of a distribution to its numbers.
Quantity = Distribution | float | Mapping[str, Sequence[float]]
# Number of tumors as in Hu et al. 2023, Table 6, by size.
PAPER_COUNT = "paper"

_REGIONS = ("anywhere", "central", "peripheral")
_LOCATIONS = f"{', '.join(_REGIONS)}, {{point_mm: [x, y, z]}} or {{segment: N}}"
# Most tumors that one entry may ask for: more is likely a typing error.
_MOST = 1000


@dataclass(frozen=True)
class Location:
    """Where in an organ tumors may be.

    Args:
        region: ``"anywhere"``, ``"central"`` (deeper than half of the organ's voxels) or ``"peripheral"`` (less deep).
        point_mm: Center in world coordinates (RAS); None for a random one.
        segment: Number in a label map of segments; None for the whole organ.

    Example:
        >>> import difftumor as dt
        >>> tumor = dt.TumorSpec(location=dt.Location(point_mm=(12, -30, 5)))
        >>> print(tumor.location)
        point (12, -30, 5) mm
    """

    region: str = "anywhere"
    point_mm: Vector | None = None
    segment: int | None = None

    @classmethod
    def of(cls, value: Any, *, name: str) -> Location:
        """Read what a user wrote.

        Raises:
            ConfigError: It is not a location.
        """
        if isinstance(value, Location):
            return value
        if value in _REGIONS:
            return cls(value)
        if isinstance(value, Mapping) and len(value) == 1:
            ((kind, content),) = value.items()
            if kind == "point_mm" and _is_point(content):
                x, y, z = (float(v) for v in content)
                return cls(point_mm=(x, y, z))
            if kind == "segment" and isinstance(content, int) and not isinstance(content, bool) and content > 0:
                return cls(segment=content)
        raise ConfigError(f"{name} is {value!r}: give {_LOCATIONS}.")

    def to_plain(self) -> Any:
        """Return what ``of`` reads."""
        if self.point_mm is not None:
            return {"point_mm": list(self.point_mm)}
        return self.region if self.segment is None else {"segment": self.segment}

    def __str__(self) -> str:
        if self.point_mm is not None:
            return "point ({:g}, {:g}, {:g}) mm".format(*self.point_mm)
        return self.region if self.segment is None else f"segment {self.segment}"


_ANYWHERE = Location()
_SIZE = "early"
_ONE, _ZERO = fixed(1), fixed(0)
# η of Hu et al. 2023, Table 1.
_GRAIN = uniform(1.1, 1.5)


@dataclass(frozen=True, kw_only=True)
class Satellites:
    """Small tumors around a large one (Hu et al. 2023, section 3.2).

    Args:
        count: How many.
        size: Size classes and groups to their weights.
        diameter_mm: Instead of a size: the diameter of a ball of their volume.
        distance_mm: Gap between the surfaces of tumor and satellite, were both balls.
    """

    count: Distribution = field(default_factory=lambda: Distribution("integers", (2.0, 5.0)))
    size: Mapping[str, float] = field(default_factory=lambda: {"tiny": 1.0})
    diameter_mm: Distribution | None = None
    distance_mm: Distribution = field(default_factory=lambda: uniform(3.0, 15.0))


@dataclass(frozen=True, kw_only=True)
class TumorSpec:
    """Some tumors of one kind.

    Args:
        generator: What makes their texture: ``"diffusion"`` or ``"handcrafted"``; ``"copy_paste"`` copies real tumors
            with texture and shape.
        count: How many; ``"paper"`` for Table 6 of Hu et al. 2023.
        size: A size class or group, or a mapping of them to weights.
        diameter_mm: Instead of a size: the diameter of a ball of their volume.
        irregularity: Factor on the deformation of the size class; 0 for ellipsoids.
        location: Where in the organ.
        placement: ``"uniform"``: anywhere allowed, with equal chance. ``"slice"``: the published recipe, a slice in the
            middle of the organ first.
        vessel_clearance_mm: Least distance of a tumor's surface from vessels; None if they do not matter.
        contrast_hu: Mean of a tumor less the organ's; by default Table 1's for the hand-crafted generator, and free for
            the diffusion model.
        blur_mm: σ of the Gaussian that softens the rim; by default U(0, 4) for the diffusion generator and U(0.6, 1.2)
            for the others (σc).
        blur_share: Instead of ``blur_mm``: σ as a share of the radius of a ball of the tumor's volume.
        texture: Of the hand-crafted generator: ``"gaussian"`` (CVPR 2023) or ``"salt"`` (NeurIPS workshop 2022).
        grain: Of the hand-crafted generator: η of its texture, from 1.
        scale_texture: Likewise: whether it varies as the organ's tissue; eq. (3) by itself takes 60 % of that away.
        host_noise_mm: Likewise: what a Gaussian with this σ takes from the CT, its noise, stays under the tumor, and
            the texture makes up for the rest of the deviation; None replaces it.
        mass_effect: I of eq. (5), 0 for none to 100.
        capsule_hu: d of eq. (8), 0 for none.
        may_overlap: Whether tumors may lie over each other.
        satellites: Around each of them; None for none.

    Raises:
        ConfigError: A field is unknown, of the wrong type or out of range; the message names it.

    Example:
        >>> import difftumor as dt
        >>> tumors = dt.TumorSpec(generator="handcrafted", count=3, diameter_mm={"uniform": (8, 15)}, capsule_hu=120)
        >>> tumors.diameter_mm.limits
        (8.0, 15.0)
    """

    generator: GeneratorName = "diffusion"
    count: Distribution | Literal["paper"] = _ONE
    size: str | Mapping[str, float] = _SIZE
    diameter_mm: Distribution | None = None
    irregularity: Distribution = _ONE
    location: Location = _ANYWHERE
    placement: PlacementRule = "uniform"
    vessel_clearance_mm: Distribution | None = None
    contrast_hu: Distribution | None = None
    blur_mm: Distribution | None = None
    blur_share: Distribution | None = None
    texture: TextureKind = "gaussian"
    grain: Distribution = _GRAIN
    scale_texture: bool = True
    host_noise_mm: Distribution | None = None
    mass_effect: Distribution = _ZERO
    capsule_hu: Distribution = _ZERO
    may_overlap: bool = False
    satellites: Satellites | None = None

    if TYPE_CHECKING:
        # What may be given; __post_init__ turns it into what the fields say.
        def __init__(
            self,
            *,
            generator: GeneratorName = ...,
            count: Quantity | Literal["paper"] = ...,
            size: str | Mapping[str, float] = ...,
            diameter_mm: Quantity | None = ...,
            irregularity: Quantity = ...,
            location: Location | str | Mapping[str, Any] = ...,
            placement: PlacementRule = ...,
            vessel_clearance_mm: Quantity | None = ...,
            contrast_hu: Quantity | None = ...,
            blur_mm: Quantity | None = ...,
            blur_share: Quantity | None = ...,
            texture: TextureKind = ...,
            grain: Quantity = ...,
            scale_texture: bool = ...,
            host_noise_mm: Quantity | None = ...,
            mass_effect: Quantity = ...,
            capsule_hu: Quantity = ...,
            may_overlap: bool = ...,
            satellites: Satellites | Mapping[str, Any] | None = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        _choice("generator", self.generator, get_args(GeneratorName))
        _choice("placement", self.placement, get_args(PlacementRule))
        _choice("texture", self.texture, get_args(TextureKind))
        for name in ("scale_texture", "may_overlap"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name} is {value!r}: give true or false.")
        if self.blur_mm is not None and self.blur_share is not None:
            raise ConfigError("blur_mm and blur_share both say how soft the rim is: give one of them.")
        if self.count != PAPER_COUNT:
            self._take("count", low=1, high=_MOST, whole=True)
        elif self.diameter_mm is not None:
            raise ConfigError("count: paper goes by the size, and diameter_mm is given: give a number.")
        object.__setattr__(self, "size", _weights(self.size, name="size"))
        if self.diameter_mm is not None and self.size != _weights(_SIZE, name="size"):
            raise ConfigError("size and diameter_mm contradict each other: give one of them.")
        object.__setattr__(self, "location", Location.of(self.location, name="location"))
        self._take("diameter_mm", low=1, high=400)
        self._take("irregularity", low=0, high=3)
        self._take("vessel_clearance_mm", low=0, high=200)
        self._take("contrast_hu", low=-500, high=500)
        self._take("blur_mm", low=0, high=20)
        self._take("blur_share", low=0, high=1)
        self._take("grain", low=1, high=20)
        self._take("host_noise_mm", low=0, high=10)
        self._take("mass_effect", low=0, high=100)
        self._take("capsule_hu", low=-500, high=500)
        if self.satellites is not None:
            object.__setattr__(self, "satellites", _satellites(self.satellites))
        if self.generator == "copy_paste":
            self._check_copied()

    @property
    def weights(self) -> Mapping[str, float]:
        """Size classes and groups to their weights."""
        return _weights(self.size, name="size")

    @property
    def needs_hu(self) -> bool:
        """Whether drawing needs the CT besides the organ mask."""
        return self.generator != "diffusion" or self.vessel_clearance_mm is not None

    @property
    def chosen_radii_mm(self) -> list[float]:
        """Largest radii of tumors and satellites whose diameter is chosen."""
        chosen = (self.diameter_mm, None if self.satellites is None else self.satellites.diameter_mm)
        return [diameter.limits[1] / 2 for diameter in chosen if diameter is not None]

    @property
    def size_groups(self) -> frozenset[SizeGroup]:
        """Size groups of the tumors that can be drawn, whose diffusion models may be needed."""
        return _size_groups(self.weights, self.diameter_mm) | (
            frozenset() if self.satellites is None else _size_groups(self.satellites.size, self.satellites.diameter_mm)
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> TumorSpec:
        """Read one entry of a ``--tumors`` file.

        Args:
            values: Fields, and ``preset``, whose fields they replace or complement.
            where: The entry, for messages; empty for the options of a command line.

        Raises:
            ConfigError: A field is unknown or wrong.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where} is {values!r}: give fields such as generator, size and count.")
        given = dict(values)
        preset = given.pop("preset", "training")
        unknown = sorted(set(map(str, given)) - {f.name for f in fields(cls)})
        if unknown:
            known = ", ".join(["preset", *(f.name for f in fields(cls))])
            raise ConfigError(f"{where or 'The tumor'} has the unknown field {unknown[0]!r}: known are {known}.")
        try:
            return cls(**{**preset_fields(preset), **given})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}" if where else str(error)) from error

    def to_plain(self) -> dict[str, Any]:
        """Return what ``from_dict`` reads, with every field."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def of_satellites(self) -> TumorSpec:
        """Return the spec of the satellites: the tumor's, but with their count and size, and without effects."""
        assert self.satellites is not None
        diameter_mm = self.satellites.diameter_mm
        size = self.satellites.size if diameter_mm is None else _SIZE
        return replace(
            self, count=self.satellites.count, size=size, diameter_mm=diameter_mm,
            location=Location(), placement="uniform", mass_effect=fixed(0), capsule_hu=fixed(0), satellites=None,
        )  # fmt: skip

    def _check_copied(self) -> None:
        """Refuse what would change a copied tumor."""
        chosen = {
            "diameter_mm": self.diameter_mm,
            "contrast_hu": self.contrast_hu,
            "irregularity": None if self.irregularity == _ONE else self.irregularity,
            "satellites.diameter_mm": None if self.satellites is None else self.satellites.diameter_mm,
        }
        given = next((name for name, value in chosen.items() if value is not None), None)
        if given is not None:
            raise ConfigError(f"{given} does not go with generator copy_paste, whose tumors stay as they are: omit it.")

    def _take(self, name: str, *, low: float, high: float, whole: bool = False) -> None:
        """Read a number or distribution and check that it stays in range."""
        value = getattr(self, name)
        if value is None and fields_by_name(type(self))[name].default is None:
            return
        object.__setattr__(self, name, Distribution.within(low, high, value, field=name, whole=whole))


# Hu et al. 2023, Figure 3: training goes without vessels, mass effect and capsule; the Visual Turing Test has them all.
_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"training": {}, "reader": {"vessel_clearance_mm": 0, "mass_effect": 30, "capsule_hu": 120}}
)


def preset_fields(name: str) -> Mapping[str, Any]:
    """Return the fields that a preset sets: ``"training"`` or ``"reader"``.

    Raises:
        ConfigError: The name is unknown.
    """
    _choice("preset", name, tuple(_PRESETS))
    return _PRESETS[name]


def fields_by_name(kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass by name."""
    return {f.name: f for f in fields(kind)}


def _weights(size: Any, *, name: str) -> dict[str, float]:
    if not isinstance(size, Mapping | str):
        raise ConfigError(f"{name} is {size!r}: give a size such as tiny, or {{tiny: 2, small: 1}} with weights.")
    weights = dict(size) if isinstance(size, Mapping) else {size: 1.0}
    for group, weight in weights.items():
        sizes_of(str(group))
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ConfigError(f"{name}.{group} is {weight!r}: give a weight of 0 or more.")
    if not sum(weights.values()) > 0:
        raise ConfigError(f"{name} has no weight above 0: give one to a size.")
    return {str(group): float(weight) for group, weight in weights.items()}


def _satellites(value: Any) -> Satellites:
    if isinstance(value, Satellites):
        value = {f.name: getattr(value, f.name) for f in fields(Satellites)}
    known = fields_by_name(Satellites)
    if not isinstance(value, Mapping) or not set(value) <= set(known):
        raise ConfigError(f"satellites is {value!r}: give {', '.join(known)}.")
    given = dict(value)
    limits = {"count": (0, 100, True), "diameter_mm": (1, 400, False), "distance_mm": (0, 200, False)}
    for name, (low, high, whole) in limits.items():
        if name in given and not (given[name] is None and known[name].default is None):
            given[name] = Distribution.within(low, high, given[name], field=f"satellites.{name}", whole=whole)
    if "size" in given:
        given["size"] = _weights(given["size"], name="satellites.size")
    return Satellites(**given)


def _size_groups(weights: Mapping[str, float], diameter_mm: Distribution | None) -> frozenset[SizeGroup]:
    if diameter_mm is not None:
        return frozenset(size_group(limit) for limit in diameter_mm.limits)
    return frozenset().union(*(size_groups_of(size) for size, weight in weights.items() if weight > 0))


def _plain(value: Any) -> Any:
    if isinstance(value, Distribution | Location):
        return value.to_plain()
    if isinstance(value, Satellites):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return dict(value) if isinstance(value, Mapping) else value


def _choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}: choose {' or '.join(known)}.")


def _is_point(content: Any) -> bool:
    numbers = isinstance(content, Sequence) and not isinstance(content, str) and len(content) == 3
    return numbers and all(isinstance(v, int | float) and math.isfinite(v) for v in content)


@dataclass(frozen=True)
class TumorPlan:
    """The content of a ``--tumors`` file.

    Args:
        tumors: The entries, in order.
        seed: Seed that the file states; None for none.
    """

    tumors: tuple[TumorSpec, ...]
    seed: int | None = None


def read_plan(path: Path) -> TumorPlan:
    """Read a ``--tumors`` file: YAML with ``tumors``, a list of entries, and optionally ``seed``.

    Raises:
        ConfigError: The file is missing, is not YAML, or has an unknown or wrong field; the message names both.
    """
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tumors {path} cannot be read ({error}): give a YAML file.") from error
    entries = content.get("tumors") if isinstance(content, Mapping) else content
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise ConfigError(f"--tumors {path} has no list of tumors: write 'tumors:' and entries that begin with '-'.")
    extra = sorted(set(map(str, content)) - {"tumors", "seed"}) if isinstance(content, Mapping) else []
    if extra:
        raise ConfigError(f"--tumors {path} has the unknown field {extra[0]!r}: known are seed and tumors.")
    seed = content.get("seed") if isinstance(content, Mapping) else None
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise ConfigError(f"--tumors {path}: seed is {seed!r}: give a whole number.")
    try:
        specs = [TumorSpec.from_dict(entry, where=f"tumors[{i}]") for i, entry in enumerate(entries)]
    except ConfigError as error:
        raise ConfigError(f"--tumors {path}: {error}") from error
    return TumorPlan(tuple(specs), seed)
