"""Organs that tumors are made in, and how public data sets number them.

An ``Organ`` holds what the published recipe fixes per organ. Label maps of any source become the standard one: 0
background, 1 organ, 2 tumor of that organ. A label is recognized by its name, so a source that has no names needs one
of ``CONVENTIONS``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import OrganError

Blend = Literal["blurred", "decoded"]
SIZE_NAMES = ("tiny", "small", "medium", "large")

BACKGROUND, ORGAN, TUMOR = 0, 1, 2

_BACKGROUND_NAMES = frozenset({"background", "bg", "clear_label", "none"})
# What nnU-Net calls voxels of which nothing is known.
_IGNORE_NAMES = frozenset({"ignore", "ignore_label"})
_ANY_ORGAN = frozenset({"organ"})
_ANY_TUMOR = frozenset({"tumor", "tumour", "cancer", "lesion", "mass"})
_ANY_CYST = frozenset({"cyst"})
# Of these hold air; in the singular and plural.
_HOLLOW = frozenset({"lung", "lungs", "bowel", "colon", "rectum", "intestine", "stomach", "duodenum", "esophagus"})
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
        mean_hu: Between what its mean lies in CT, with contrast or without, healthy or ill; None if that is not known.
        label_names: Names that label maps give the organ or its parts.
        tumor_names: Names of its tumors, besides "<name>_tumor", "<name>_lesion" and the like.
        cyst_names: Names of benign findings in it that count as organ.

    Raises:
        OrganError: A field is out of range.
    """

    name: str
    minimum_radius_mm: float
    erosion_voxels: int = 0
    blend: Blend = "blurred"
    may_leave_organ: frozenset[str] = frozenset()
    centered: frozenset[str] = frozenset()
    mean_hu: tuple[float, float] | None = None
    label_names: frozenset[str] = frozenset()
    tumor_names: frozenset[str] = frozenset()
    cyst_names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        name = normalized(self.name)
        if not name or not self.minimum_radius_mm > 0 or self.erosion_voxels < 0:
            raise OrganError(f"Organ {self.name!r} needs a name, minimum_radius_mm > 0 and erosion_voxels >= 0.")
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
        if self.mean_hu is not None:
            low, high = self.mean_hu
            if not low < high:
                raise OrganError(f"Organ {name!r} has mean_hu {low:g} to {high:g}; give the lower number first.")
            object.__setattr__(self, "mean_hu", (float(low), float(high)))
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
        return self.mean_hu is None and not _HOLLOW.isdisjoint(self.name.split("_"))


def normalized(name: str) -> str:
    """Return a label name in lower case with underscores, so that "Liver Tumor" equals "liver_tumor"."""
    return "_".join(name.lower().replace("-", " ").replace("_", " ").split())


def _registered(*organs: Organ) -> Mapping[str, Organ]:
    return MappingProxyType({organ.name: organ for organ in organs})


ORGANS = _registered(
    Organ(
        name="liver",
        minimum_radius_mm=30,
        erosion_voxels=5,
        mean_hu=(-40, 260),
        tumor_names=frozenset({"hepatic_tumor", "hepatic_lesion"}),
        cyst_names=frozenset({"hepatic_cyst"}),
    ),
    Organ(
        name="pancreas",
        minimum_radius_mm=15,
        blend="decoded",
        centered=frozenset({"large"}),
        mean_hu=(-80, 260),
        label_names=frozenset({"pancreas_head", "pancreas_body", "pancreas_tail"}),
        tumor_names=frozenset({"pancreatic_tumor", "pancreatic_lesion", "pancreatic_cancer", "pancreatic_pdac"}),
        cyst_names=frozenset({"pancreatic_cyst"}),
    ),
    Organ(
        name="kidney",
        minimum_radius_mm=25,
        may_leave_organ=frozenset({"medium", "large"}),
        mean_hu=(-40, 350),
        label_names=frozenset({"kidneys", "kidney_right", "kidney_left", "right_kidney", "left_kidney"}),
        tumor_names=frozenset({"renal_tumor", "renal_lesion", "kidney_right_tumor", "kidney_left_tumor"}),
        cyst_names=frozenset({"renal_cyst", "kidney_cyst_right", "kidney_cyst_left"}),
    ),
)

# What the numbers mean in label maps that come without names.
CONVENTIONS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "standard": {"background": BACKGROUND, "organ": ORGAN, "tumor": TUMOR},
        "totalsegmentator": {
            "spleen": 1,
            "kidney_right": 2,
            "kidney_left": 3,
            "liver": 5,
            "pancreas": 7,
            "kidney_cyst_left": 23,
            "kidney_cyst_right": 24,
        },
        # Version 1 of TotalSegmentator, in which 7 is the aorta.
        "totalsegmentator_v1": {"spleen": 1, "kidney_right": 2, "kidney_left": 3, "liver": 5, "pancreas": 10},
        # The CLIP-Driven Universal Model, as its README numbers them.
        "universal_model": {
            "spleen": 1,
            "kidney_right": 2,
            "kidney_left": 3,
            "liver": 6,
            "pancreas": 11,
            "kidney_tumor": 26,
            "liver_tumor": 27,
            "pancreas_tumor": 28,
            "hepatic_vessel_tumor": 29,
            "kidney_cyst": 32,
        },
        "msd_liver": {"background": 0, "liver": 1, "cancer": 2},
        "msd_pancreas": {"background": 0, "pancreas": 1, "cancer": 2},
        "lits": {"background": 0, "liver": 1, "tumor": 2},
        "kits": {"background": 0, "kidney": 1, "tumor": 2, "cyst": 3},
    }
)
# Those that name only what matters here of what their label maps hold.
PARTIAL_CONVENTIONS = frozenset({"totalsegmentator", "totalsegmentator_v1", "universal_model"})


def get_organ(name: str) -> Organ:
    """Return a registered organ.

    Raises:
        OrganError: It is not registered; the message lists those that are and how to add one.
    """
    organ = ORGANS.get(normalized(name))
    if organ is None:
        known = ", ".join(ORGANS)
        raise OrganError(
            f"Organ {name!r} is not known ({known} are): choose one, or add it to ORGANS in difftumor/scans/organs.py "
            "(training alone also takes a file in configs/organ/)."
        )
    return organ


def get_convention(name: str) -> Mapping[str, int]:
    """Return the label names of a public data set.

    Raises:
        OrganError: The convention is not known; the message lists those that are.
    """
    if normalized(name) not in CONVENTIONS:
        raise OrganError(f"Label convention {name!r} is not known; choose one of {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[normalized(name)]


@dataclass(frozen=True)
class OrganLabels:
    """Which numbers of a label map mean an organ, and which its tumors.

    Attributes:
        organ: Numbers that count as organ, benign findings included.
        tumor: Numbers that count as tumor of this organ; empty if the map has none.
        ignore: Numbers of voxels of which nothing is known; background in standard label maps.
        name: The organ's name, for messages.
        named: Whether label names say so; without, the numbers are assumed, and any above 2 is refused.

    Raises:
        OrganError: No organ number, a number below 1, or one that means both.
    """

    organ: tuple[int, ...]
    tumor: tuple[int, ...] = ()
    name: str = "organ"
    named: bool = True
    ignore: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "organ", tuple(sorted({int(value) for value in self.organ})))
        object.__setattr__(self, "tumor", tuple(sorted({int(value) for value in self.tumor})))
        if not self.organ or min(self.organ + self.tumor) < 1 or set(self.organ) & set(self.tumor):
            raise OrganError(
                f"Labels of {self.name} need separate numbers from 1 up, at least one for organ; got {self}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what decides standard label maps, as plain values."""
        return {"organ": self.organ, "tumor": self.tumor, "name": self.name, "named": self.named}

    def to_standard(
        self, labels: NDArray[Any], *, source: Path | None = None, require_organ: bool = True
    ) -> NDArray[np.uint8]:
        """Return a label map with 0 background, 1 organ, 2 tumor of this organ.

        Args:
            labels: Non-negative integers of any shape.
            source: The file the labels come from, for messages.
            require_organ: Refuse a map that holds neither organ nor tumor.

        Raises:
            OrganError: The organ is absent, or there is a number above 2 and no label names; the message names the
                file and the labels found.
            ValueError: The labels are not non-negative integers.
        """
        if labels.dtype.kind not in "bui" or (labels.size and int(labels.min()) < 0):
            raise ValueError(f"labels must be non-negative integers, got {labels.dtype}")
        # In another convention 1 and 2 need not be this organ and its tumors either, so nothing can be kept.
        if not self.named and int(labels.max(initial=0)) > TUMOR:
            raise OrganError(
                f"{source or 'The label map'} holds labels {_listed(labels)} and no label names come with it, so "
                "only 0 background, 1 organ and 2 tumor can be understood; give a dataset.json with 'labels', or name "
                f"the convention ({', '.join(CONVENTIONS)}) with data.labels= in training, --convention or --labels in "
                "commands."
            )
        known = (*self.organ, *self.tumor)
        if require_organ and not np.isin(labels, known).any():
            raise OrganError(
                f"{source or 'The label map'} holds no {self.name} (labels found: {_listed(labels)}; looked for: "
                f"{', '.join(map(str, known))}); leave the case out or correct the label names of its data set."
            )
        # Numbers go up to 2**32; one row past the known ones stands for all higher.
        highest = max(known) + 1
        if labels.max(initial=0) > highest:
            labels = np.minimum(labels, highest)
        table = np.zeros(highest + 1, np.uint8)
        table[list(self.organ)] = ORGAN
        table[list(self.tumor)] = TUMOR
        return table[labels.view(np.uint8) if labels.dtype.kind == "b" else labels]


def resolve_labels(label_names: Mapping[str, int], organ: Organ, *, source: Path | None = None) -> OrganLabels:
    """Find an organ and its tumors among the label names of a data set.

    Tumors of other organs are background. A tumor that does not say of which organ ("cancer") belongs to this one if
    the data set labels no other. Cysts count as organ. Without any names, as for a bare list of files, the standard
    convention is assumed, and ``OrganLabels.to_standard`` refuses maps with a number above 2.

    Args:
        label_names: Name to number, as in a ``dataset.json`` or ``CONVENTIONS``.
        organ: The organ to find.
        source: Where the names come from, for messages.

    Raises:
        OrganError: The organ is not among the names, or a tumor could be of several organs.
    """
    names = {normalized(name): int(value) for name, value in (label_names or CONVENTIONS["standard"]).items()}
    names = {name: value for name, value in names.items() if value != BACKGROUND and name not in _BACKGROUND_NAMES}
    organs = _numbers(names, organ.label_names | _ANY_ORGAN)
    if not organs:
        raise OrganError(
            f"{source or 'The label names'} hold no {organ.name} (names found: {', '.join(names) or 'none'}); "
            f"name its label one of {', '.join(sorted(organ.label_names))}, or choose another organ."
        )
    tumors, cysts = _numbers(names, organ.tumor_names), _numbers(names, organ.cyst_names)
    own = organ.label_names | organ.tumor_names | organ.cyst_names | _ANY_ORGAN | _ANY_TUMOR | _ANY_CYST
    others = [name for name in names if name not in own | _IGNORE_NAMES]
    unclear = [name for name in names if name in _ANY_TUMOR | _ANY_CYST]
    if unclear and others:
        raise OrganError(
            f"{source or 'The label names'} do not say of which organ {unclear[0]!r} is, beside {', '.join(others)}; "
            f"rename it, for instance to '{organ.name}_{unclear[0]}'."
        )
    tumors += _numbers(names, _ANY_TUMOR)
    cysts += _numbers(names, _ANY_CYST)
    ignore = tuple(_numbers(names, _IGNORE_NAMES))
    return OrganLabels((*organs, *cysts), tuple(tumors), organ.name, named=bool(label_names), ignore=ignore)


def _listed(labels: NDArray[Any]) -> str:
    found = [str(value) for value in np.unique(labels)]
    return ", ".join(found[:12] + ["…"] * (len(found) > 12)) or "nothing"


def _numbers(names: Mapping[str, int], wanted: Iterable[str]) -> list[int]:
    chosen = set(wanted)
    return [value for name, value in names.items() if name in chosen]
