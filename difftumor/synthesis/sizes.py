"""Size classes of tumors, and the groups that a user may ask for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from difftumor.errors import ConfigError
from difftumor.scans.lesions import SizeGroup, size_group
from difftumor.scans.organs import SIZE_NAMES

# Of a tumor whose diameter the user has chosen.
CUSTOM = "custom"


@dataclass(frozen=True, kw_only=True)
class SizeClass:
    """How large tumors of one class are, how strongly their ellipsoid is deformed, and how many come together.

    Args:
        name: One of ``organs.SIZE_NAMES``.
        radius_mm: Radius r of the class.
        half_axes: Each half-axis is U(low · r, high · r).
        deformation_mm: σe of the elastic deformation: a range ``(low, high)`` when ``continuous``, else the choices.
        continuous: Whether σe is drawn from the range or from the choices.
        counts: Fewest and most tumors of this size in a scan (Hu et al. 2023, Table 6: N).
    """

    name: str
    radius_mm: float
    half_axes: tuple[float, float]
    deformation_mm: tuple[float, ...]
    continuous: bool = False
    counts: tuple[int, int]

    def draw_deformation(self, generator: np.random.Generator) -> float:
        """Draw σe in mm."""
        if self.continuous:
            low, high = self.deformation_mm
            return float(generator.uniform(low, high))
        return float(generator.choice(self.deformation_mm))

    @property
    def handcrafted(self) -> "SizeClass":
        """The class as Hu et al. 2023 have it: section 3.1 and Table 6, where DiffTumor's recipe departs from them."""
        low, high = min(self.deformation_mm), max(self.deformation_mm)
        return replace(self, half_axes=(0.75, 1.25), deformation_mm=(low, high), continuous=True)


_TINY, _SMALL, _MEDIUM, _LARGE = SIZE_NAMES
# Hu et al. 2023, section 3.1: half-axes U(0.75 r, 1.25 r); DiffTumor's recipe lets those of large tumors reach 2 r, and
# draws σe from whole numbers.
SIZES: Mapping[str, SizeClass] = MappingProxyType(
    {
        size.name: size
        for size in (
            SizeClass(
                name=_TINY, radius_mm=4.0, half_axes=(0.75, 1.25), deformation_mm=(0.5, 1.0), continuous=True,
                counts=(3, 10),
            ),
            SizeClass(name=_SMALL, radius_mm=8.0, half_axes=(0.75, 1.25), deformation_mm=(1, 2), counts=(3, 10)),
            SizeClass(name=_MEDIUM, radius_mm=16.0, half_axes=(0.75, 1.25), deformation_mm=(3, 4, 5, 6), counts=(2, 5)),
            SizeClass(
                name=_LARGE, radius_mm=32.0, half_axes=(0.75, 2.0), deformation_mm=(5, 6, 7, 8, 9, 10), counts=(1, 3)
            ),
        )
    }
)  # fmt: skip
# What a user may ask for: a class, or a group whose members have equal chance for each tumor. "mix" is the fifth mode
# of Hu et al. 2023, Table 6, which combines all.
SIZE_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {**{name: (name,) for name in SIZES}, "early": (_TINY, _SMALL), "late": (_MEDIUM, _LARGE), "mix": tuple(SIZES)}
)


def sizes_of(size: str) -> tuple[str, ...]:
    """Return the size classes behind a class or group name.

    Raises:
        ConfigError: The name is unknown.
    """
    if size not in SIZE_CHOICES:
        raise ConfigError(f"Tumor size {size!r} is unknown: use one of {', '.join(SIZE_CHOICES)}.")
    return SIZE_CHOICES[size]


def size_groups_of(size: str) -> frozenset[SizeGroup]:
    """Return the size groups of the tumors behind a class or group name: tiny and small ones are early.

    Raises:
        ConfigError: The name is unknown.
    """
    return frozenset(size_group(2 * SIZES[name].radius_mm) for name in sizes_of(size))


def size_of(radius_mm: float) -> SizeClass:
    """Return the class of a real tumor: of those of its size group, so that early ones are below 2 cm, the nearest."""
    group = size_group(2 * radius_mm)
    own = [size for size in SIZES.values() if size_group(2 * size.radius_mm) == group]
    return min(own, key=lambda size: abs(np.log(size.radius_mm / radius_mm)))


def nearest_size(radius_mm: float) -> SizeClass:
    """Return the class whose radius is nearest, by ratio."""
    return min(SIZES.values(), key=lambda size: abs(np.log(size.radius_mm / radius_mm)))
