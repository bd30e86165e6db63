"""Which numbers of a label map are an organ and its tumors, found by their names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import OrganError
from difftumor.scans.organs.conventions import BACKGROUND, CONVENTIONS, ORGAN, TUMOR
from difftumor.scans.organs.organ import Organ, normalized

_BACKGROUND_NAMES = frozenset({"background", "bg", "clear_label", "none"})
# What nnU-Net calls voxels of which nothing is known.
_IGNORE_NAMES = frozenset({"ignore", "ignore_label"})
_ANY_ORGAN = frozenset({"organ"})
_ANY_TUMOR = frozenset({"tumor", "tumour", "cancer", "lesion", "mass"})
_ANY_CYST = frozenset({"cyst"})


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
            f"{source or 'The label names'} hold no {organ.name} (names found: {_some(names)}); "
            f"name its label one of {_some(sorted(organ.label_names))}, or choose another organ."
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


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:12] + ["…"] * (len(listed) > 12)) or "none"


def _listed(labels: NDArray[Any]) -> str:
    found = [str(value) for value in np.unique(labels)]
    return ", ".join(found[:12] + ["…"] * (len(found) > 12)) or "nothing"


def _numbers(names: Mapping[str, int], wanted: Iterable[str]) -> list[int]:
    chosen = set(wanted)
    return [value for name, value in names.items() if name in chosen]
