"""The organs that have rules of their own, and the rules of any other."""

from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from difftumor.errors import OrganError
from difftumor.files.fields import wanted_instead
from difftumor.scans.organs.conventions import CONVENTIONS
from difftumor.scans.organs.organ import BOWEL, LUNG, SIZE_NAMES, Organ, normalized

# How alike two names are of which one is likely misspelled, from 0 to 1.
_ALIKE = 0.8


def _registered(*organs: Organ) -> Mapping[str, Organ]:
    return MappingProxyType({organ.name: organ for organ in organs})


def _named(*beginnings: str) -> frozenset[str]:
    """Return the names in conventions that begin in one of some ways."""
    return frozenset(
        name for table in CONVENTIONS.values() for name in map(normalized, table) if name.startswith(beginnings)
    )


# `mean_hu` is wide: without contrast agent and in any of its phases, fatty or dense.
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
    Organ(
        name="spleen",
        minimum_radius_mm=20,
        erosion_voxels=5,
        mean_hu=(-20, 260),
        tumor_names=frozenset({"splenic_tumor", "splenic_lesion"}),
        cyst_names=frozenset({"splenic_cyst"}),
    ),
    Organ(
        name="adrenal_gland",
        minimum_radius_mm=5,
        may_leave_organ=frozenset(SIZE_NAMES),
        mean_hu=(-80, 260),
        tumor_sd_hu=12,  # that of the organ would be mostly that of the fat around it
        label_names=frozenset(
            {"adrenal_glands", "adrenal_gland_right", "adrenal_gland_left", "right_adrenal_gland", "left_adrenal_gland"}
        ),
        tumor_names=frozenset({"adrenal_tumor", "adrenal_lesion", "adrenal_adenoma"}),
    ),
    Organ(
        name="stomach_wall",
        may_leave_organ=frozenset(SIZE_NAMES),
        wall_mm=5,
        tumor_hu=(20, 70),
        tumor_sd_hu=12,
        label_names=frozenset({"stomach"}),
        tumor_names=frozenset({"stomach_tumor", "stomach_cancer", "gastric_tumor", "gastric_cancer", "gastric_lesion"}),
    ),
    Organ(
        name="uterus",
        minimum_radius_mm=15,
        erosion_voxels=3,
        mean_hu=(-20, 260),
        label_names=frozenset({"prostate/uterus"}),
        tumor_names=frozenset({"uterine_tumor", "uterine_lesion"}),
    ),
    Organ(
        name="prostate",
        minimum_radius_mm=12,
        mean_hu=(-20, 220),
        label_names=frozenset({"prostate/uterus"}),
        tumor_names=frozenset({"prostatic_tumor", "prostatic_lesion"}),
    ),
    Organ(
        name="bladder_wall",
        may_leave_organ=frozenset(SIZE_NAMES),
        wall_mm=4,
        tumor_hu=(20, 70),
        tumor_sd_hu=12,
        label_names=frozenset({"bladder", "urinary_bladder"}),
        tumor_names=frozenset({"bladder_tumor", "bladder_cancer", "bladder_lesion"}),
    ),
    Organ(
        name="muscle",
        minimum_radius_mm=15,
        erosion_voxels=5,
        mean_hu=(-60, 200),
        label_names=_named("gluteus_", "autochthon_", "iliopsoas_") | {"muscles", "skeletal_muscle"},
        tumor_names=frozenset({"sarcoma", "soft_tissue_sarcoma"}),
    ),
    Organ(
        name="lung",
        minimum_radius_mm=30,
        erosion_voxels=5,
        mean_hu=(-980, -350),
        tumor_hu=(-20, 60),
        tumor_sd_hu=20,
        label_names=_named("lung_") | {"lungs", "left_lung", "right_lung"},
        tumor_names=frozenset({"lung_nodule", "pulmonary_nodule", "pulmonary_tumor"}),
    ),
    Organ(
        name="body",
        minimum_radius_mm=30,
        erosion_voxels=5,
        mean_hu=(-280, 200),
        tumor_hu=(10, 70),
        tumor_sd_hu=15,
        label_names=frozenset({"body_trunc", "body_extremities"}),
    ),
    Organ(
        name="bone",
        mean_hu=(50, 1200),
        tumor_hu=(20, 120),
        tumor_sd_hu=15,
        label_names=_named("vertebrae_", "rib_", "humerus_", "scapula_", "clavicula_", "femur_", "hip_")
        | {"bones", "skeleton", "sacrum", "sternum", "skull"},
        tumor_names=frozenset({"bone_metastasis", "osteolysis"}),
    ),
)


def get_organ(name: str | Organ) -> Organ:
    """Return an organ by its name: a registered one, a part of one such as "kidney_left", or any other.

    A part has the rules of the whole and is nothing but itself, a part of the bowel those of the stomach's wall; an
    organ that nobody knows has the defaults of `Organ`.
    An ``Organ`` is returned as it is.

    Raises:
        OrganError: The name is empty, or is likely a misspelling of a registered one, which the message gives.

    Example:
        >>> get_organ("kidney_left").may_leave_organ == ORGANS["kidney"].may_leave_organ
        True
        >>> get_organ("thymus").mean_hu is None
        True
    """
    if isinstance(name, Organ):
        return name
    wanted = normalized(name)
    if wanted in ORGANS:
        return ORGANS[wanted]
    words = set(wanted.split("_"))
    whole = next((organ for organ in ORGANS.values() if wanted in organ.label_names), None)
    if whole is None and words & (LUNG | BOWEL):
        whole = ORGANS["lung" if words & LUNG else "stomach_wall"]
    if whole is not None:
        return replace(whole, name=wanted, label_names=frozenset(), tumor_names=frozenset(), cyst_names=frozenset())
    # One word that is nearly another one; "gallbladder_wall" is an organ.
    if len(words) == 1 and (meant := get_close_matches(wanted, ORGANS, n=1, cutoff=_ALIKE)):
        raise OrganError(f"Organ {name!r} is not known: did you mean {meant[0]}?")
    return Organ(name=wanted)


def organ_of(values: Mapping[str, Any], *, name: str | None = None, source: Path | str) -> Organ:
    """Return an organ with some rules of its own, and for the rest those that `get_organ` gives.

    Args:
        values: Fields of `Organ`.
        name: Its name, if ``values`` has none.
        source: Where the values come from, for messages.

    Raises:
        OrganError: A field is unknown or out of range, or there are two names.
    """
    known = {field.name: str(field.type) for field in fields(Organ)}
    if unknown := sorted(set(map(str, values)) - set(known)):
        raise OrganError(f"{source} has {unknown[0]!r}, which no organ has: use {', '.join(sorted(known))}.")
    stated = values.get("name", name)
    if not isinstance(stated, str) or (name is not None and normalized(stated) != normalized(name)):
        raise OrganError(f"{source} names the organ {stated!r}, not {name!r}: give one name.")
    for field, value in values.items():
        if words := wanted_instead(value, known[field]):
            raise OrganError(f"{source} gives {field} the value {value!r}: give {words}.")
    return replace(_base(stated), **{**values, "name": stated})


def _base(name: str) -> Organ:
    """Return an organ whose rules are changed; with rules of its own any name is one."""
    try:
        return get_organ(name)
    except OrganError:
        return Organ(name=name)


def rules_of(organ: Organ) -> dict[str, Any]:
    """Return all fields of an organ as plain values, as `organ_of` reads them."""
    values = {field.name: getattr(organ, field.name) for field in fields(Organ)}
    return {
        name: sorted(value) if isinstance(value, frozenset) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def is_unknown(organ: Organ) -> bool:
    """Whether nothing is known of an organ but its name."""
    return organ == Organ(name=organ.name)
