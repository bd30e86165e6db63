"""An organ, and the rules for tumors in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from difftumor.errors import OrganError

Blend = Literal["blurred", "decoded"]
SIZE_NAMES = ("tiny", "small", "medium", "large")
# Of these hold air; in the singular and plural.
LUNG = frozenset({"lung", "lungs"})
BOWEL = frozenset({"bowel", "colon", "rectum", "intestine", "stomach", "duodenum", "esophagus"})
# Set between two words, as in "liver_tumor"; adjectives are listed by the organ itself.
_TUMOR_WORDS = ("tumor", "tumour", "cancer", "lesion", "mass")


@dataclass(frozen=True, kw_only=True)
class Organ:
    """An organ and the rules for tumors in it. Lists are accepted for the collections, as a config gives them.

    Attributes:
        name: Singular, lower case, such as "liver".
        minimum_radius_mm: A crop is usable when it holds as much organ as a ball of this radius.
        erosion_voxels: Side of the square that erodes the organ in each axial slice before a tumor is placed; 0: none.
        blend: "blurred": the tumor fades into the CT along its blurred mask. "decoded": the decoded patch as it is.
        may_leave_organ: Tumor sizes that may grow beyond the organ.
        centered: Tumor sizes that sit on the organ's center.
        wall_mm: In a scan tumors grow in the outer layer so thick of what is marked, its wall; 0: in all of it.
        mean_hu: Between what its mean lies in CT, with contrast or without, healthy or ill; None if that is not known.
        tumor_hu: Between what the mean of hand-crafted tumors lies; None: darker than the organ, as in Hu et al. 2023.
        tumor_sd_hu: Standard deviation of their texture; None: that of the organ.
        label_names: Names that label maps give the organ or its parts.
        tumor_names: Names of its tumors, besides "<name>_tumor", "<name>_lesion" and the like.
        cyst_names: Names of benign findings in it that count as organ.

    Raises:
        OrganError: A field is out of range.
    """

    name: str
    minimum_radius_mm: float = 10
    erosion_voxels: int = 0
    blend: Blend = "blurred"
    may_leave_organ: frozenset[str] = frozenset()
    centered: frozenset[str] = frozenset()
    wall_mm: float = 0
    mean_hu: tuple[float, float] | None = None
    tumor_hu: tuple[float, float] | None = None
    tumor_sd_hu: float | None = None
    label_names: frozenset[str] = frozenset()
    tumor_names: frozenset[str] = frozenset()
    cyst_names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        name = normalized(self.name)
        if not name or not self.minimum_radius_mm > 0 or self.erosion_voxels < 0 or not self.wall_mm >= 0:
            raise OrganError(
                f"Organ {self.name!r} needs a name, minimum_radius_mm > 0, erosion_voxels >= 0 and wall_mm >= 0."
            )
        if self.tumor_sd_hu is not None and not self.tumor_sd_hu >= 0:
            raise OrganError(f"Organ {name!r} has tumor_sd_hu {self.tumor_sd_hu}; give a number from 0, or null.")
        if self.blend not in get_args(Blend):
            raise OrganError(f"Organ {name!r} has blend {self.blend!r}; choose one of {', '.join(get_args(Blend))}.")
        for field in ("may_leave_organ", "centered"):
            sizes = frozenset(getattr(self, field))
            if not sizes <= set(SIZE_NAMES):
                unknown = ", ".join(sorted(sizes - set(SIZE_NAMES)))
                raise OrganError(
                    f"Organ {name!r} has unknown sizes in {field}: {unknown}; known: {', '.join(SIZE_NAMES)}."
                )
            object.__setattr__(self, field, sizes)
        for field in ("mean_hu", "tumor_hu"):
            if (limits := getattr(self, field)) is not None:
                low, high = limits
                if not low < high:
                    raise OrganError(f"Organ {name!r} has {field} {low:g} to {high:g}; give the lower number first.")
                object.__setattr__(self, field, (float(low), float(high)))
        tumors = {f"{name}_{word}" for word in _TUMOR_WORDS}
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "label_names", frozenset({name, *map(normalized, self.label_names)}))
        object.__setattr__(self, "tumor_names", frozenset({*tumors, *map(normalized, self.tumor_names)}))
        object.__setattr__(self, "cyst_names", frozenset({f"{name}_cyst", *map(normalized, self.cyst_names)}))

    @property
    def minimum_volume_mm3(self) -> float:
        """Volume of the ball that a usable crop must hold."""
        return 4 / 3 * np.pi * self.minimum_radius_mm**3

    @property
    def holds_air(self) -> bool:
        """Whether any mean is right, as in lung and bowel."""
        return self.mean_hu is None and not (LUNG | BOWEL).isdisjoint(self.name.split("_"))


def normalized(name: str) -> str:
    """Return a label name in lower case with underscores, so that "Liver Tumor" equals "liver_tumor"."""
    return "_".join(name.lower().replace("-", " ").replace("_", " ").split())
