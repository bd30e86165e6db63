"""Organs that tumors are made in, and how public data sets number them.

An ``Organ`` holds what the published recipe fixes per organ. Label maps of any source become the standard one: 0
background, 1 organ, 2 tumor of that organ. A label is recognized by its name, so a source that has no names needs one
of ``CONVENTIONS``.
"""

from difftumor.scans.organs.conventions import (
    BACKGROUND,
    CONVENTIONS,
    ORGAN,
    PARTIAL_CONVENTIONS,
    TUMOR,
    get_convention,
)
from difftumor.scans.organs.labels import OrganLabels, resolve_labels
from difftumor.scans.organs.organ import SIZE_NAMES, Blend, Organ, normalized
from difftumor.scans.organs.registry import ORGANS, get_organ, is_unknown, organ_of, rules_of

__all__ = [
    "BACKGROUND",
    "CONVENTIONS",
    "ORGAN",
    "ORGANS",
    "PARTIAL_CONVENTIONS",
    "SIZE_NAMES",
    "TUMOR",
    "Blend",
    "Organ",
    "OrganLabels",
    "get_convention",
    "get_organ",
    "is_unknown",
    "normalized",
    "organ_of",
    "resolve_labels",
    "rules_of",
]
