"""Which scans have a healthy organ, by label maps that a model predicted (paper, E.1).

A scan counts as healthy if the whole organ is there, with a plausible volume and without a tumor. The paper asks for
the organ and for no tumor; the rest keeps out scans that are cut and predictions that have failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from difftumor.datasets.cases import Case, CaseList, structure_files
from difftumor.datasets.integrity import check_cases, in_threads
from difftumor.datasets.tumor_cases import read_organ
from difftumor.errors import ConfigError, OrganError, sentence_of
from difftumor.scans.components import find_components
from difftumor.scans.grid import Box, Grid
from difftumor.scans.hounsfield import organ_doubts, settle
from difftumor.scans.nifti import Volume, read_ct
from difftumor.scans.organs import TUMOR, Organ, OrganLabels, normalized, resolve_labels

# From half the mean of women to twice the mean of men, rounded, in 149 adults: liver 1411 and 1710 ml, pancreas 64 and
# 87 ml, a kidney 157 and 193 ml. Geraghty et al., Normal organ volume assessment from abdominal CT, Abdominal Imaging
# (2004), pages 482-490.
ADULT_VOLUME_ML: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"liver": (700.0, 3400.0), "pancreas": (32.0, 175.0), "kidney": (155.0, 770.0)}
)
PIECES: Mapping[str, int] = MappingProxyType({"kidney": 2})

# Status of a scan and its title in a table of counts. The first status that applies, in this order, counts.
STATUSES: Mapping[str, str] = MappingProxyType(
    {
        "healthy": "healthy",
        "failed": "cannot be used",
        "no_labels": "no label map",
        "no_ct": "no CT",
        "no_organ": "no {organ}",
        "unknown": "no label that could show {organ} tumors",
        "tumor": "{organ} tumor",
        "cut": "{organ} cut by the edge of the scan",
        "pieces": "{organ} in pieces",
        "too_small": "{organ} too small",
        "too_large": "{organ} too large",
    }
)
_ENDS = {
    "R": ("left", "right"), "L": ("right", "left"), "A": ("posterior", "anterior"), "P": ("anterior", "posterior"),
    "S": ("inferior", "superior"), "I": ("superior", "inferior"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HealthyRule:
    """What counts as a healthy organ.

    Attributes:
        min_volume_ml: Smallest volume of the organ.
        max_volume_ml: Largest volume.
        pieces: Separate pieces that the organ has, such as 2 for the kidneys.
        min_share: Part of the organ's volume that its ``pieces`` largest pieces hold at least; the smallest must
            hold half of what it would if all were equal.
        allow_cut: Whether these pieces may reach a face of the scan.
        max_tumor_mm3: Largest volume of tumor that still counts as none.

    Raises:
        ConfigError: A number is out of range.
    """

    min_volume_ml: float
    max_volume_ml: float
    pieces: int = 1
    min_share: float = 0.9
    allow_cut: bool = False
    max_tumor_mm3: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.min_volume_ml, self.max_volume_ml
        if not 0 <= low < high or not math.isfinite(high):
            raise ConfigError(f"The volume may lie between {low:g} and {high:g} ml: give a minimum below the maximum.")
        if not 0 < self.min_share <= 1 or self.pieces < 1:
            raise ConfigError(
                f"The organ has {self.pieces} pieces that hold {self.min_share:g} of it: give 1 or more, and a share "
                "above 0 and up to 1."
            )
        if not 0 <= self.max_tumor_mm3 < math.inf:
            raise ConfigError(f"The largest volume of tumor is {self.max_tumor_mm3:g} mm³: give 0 or more.")


@dataclass(frozen=True, kw_only=True)
class OrganMeasures:
    """What a label map says of an organ.

    Attributes:
        volume_ml: Volume, tumors included.
        shares: Part of the volume that each connected component (26-neighborhood) holds, the largest first.
        faces: Faces of the scan that its main pieces reach, such as ("right", "superior").
        tumor_mm3: Volume of its tumors.
    """

    volume_ml: float
    shares: tuple[float, ...]
    faces: tuple[str, ...]
    tumor_mm3: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a scan.

    Attributes:
        case: The scan.
        status: A key of ``STATUSES``.
        reasons: Why it is not healthy: parts of sentences that follow its id, all that apply.
        measures: What was measured; None if the organ is absent or nothing could be read.
    """

    case: Case
    status: str
    reasons: tuple[str, ...] = ()
    measures: OrganMeasures | None = None


def usual_rule(
    organ: Organ,
    *,
    min_volume_ml: float | None = None,
    max_volume_ml: float | None = None,
    pieces: int | None = None,
    min_share: float = 0.9,
    allow_cut: bool = False,
    max_tumor_mm3: float = 0.0,
) -> HealthyRule:
    """Return the rule for an organ; limits that are None are those of an adult.

    Raises:
        ConfigError: A limit is None and the organ has no known one, or a number is out of range.
    """
    low, high = ADULT_VOLUME_ML.get(organ.name, (None, None))
    low = low if min_volume_ml is None else min_volume_ml
    high = high if max_volume_ml is None else max_volume_ml
    if low is None or high is None:
        raise ConfigError(f"No usual volume of {organ.name} is known: give --min-volume-ml and --max-volume-ml.")
    return HealthyRule(
        min_volume_ml=low,
        max_volume_ml=high,
        pieces=PIECES.get(organ.name, 1) if pieces is None else pieces,
        min_share=min_share,
        allow_cut=allow_cut,
        max_tumor_mm3=max_tumor_mm3,
    )


def measure_organ(labels: Volume, *, pieces: int) -> OrganMeasures:
    """Measure an organ.

    Args:
        labels: 0 background, 1 organ, 2 tumor; not empty.
        pieces: Number of its largest pieces whose faces count.
    """
    found = sorted(find_components(labels.data).found, key=lambda piece: -piece.voxels)
    voxels = sum(piece.voxels for piece in found)
    faces = dict.fromkeys(face for piece in found[:pieces] for face in _faces(piece.box, labels.grid))
    voxel_mm3 = round(labels.grid.voxel_mm3, 9)  # a determinant misses the product of the spacing by a rounding error
    return OrganMeasures(
        volume_ml=voxels * voxel_mm3 / 1000,
        shares=tuple(piece.voxels / voxels for piece in found),
        faces=tuple(faces),
        tumor_mm3=int(np.count_nonzero(labels.data == TUMOR)) * voxel_mm3,
    )


def judge(measures: OrganMeasures, rule: HealthyRule, organ: str) -> dict[str, str]:
    """Return what speaks against a healthy organ: for each status that applies, a part of a sentence."""
    against = {}
    main, volume = measures.shares[: rule.pieces], measures.volume_ml
    if measures.tumor_mm3 > rule.max_tumor_mm3:
        against["tumor"] = f"has {_figures(measures.tumor_mm3)} mm³ of {organ} tumor"
    if measures.faces and not rule.allow_cut:
        against["cut"] = f"has its {organ} cut by the {' and '.join(measures.faces)} edge of the scan"
    # Sums of shares miss a round number by a rounding error.
    if len(main) < rule.pieces or sum(main) < rule.min_share - 1e-9 or min(main) < 0.5 / rule.pieces - 1e-9:
        count, held = len(measures.shares), " and ".join(f"{share:.1%}" for share in main)
        of = f", the largest with {held}" if count > 1 else ""
        against["pieces"] = f"has its {organ} in {count} piece{'s' if count > 1 else ''}, not {rule.pieces}{of}"
    if volume < rule.min_volume_ml:
        against["too_small"] = f"has {_figures(volume)} ml of {organ}, less than {rule.min_volume_ml:g}"
    if volume > rule.max_volume_ml:
        against["too_large"] = f"has {_figures(volume)} ml of {organ}, more than {rule.max_volume_ml:g}"
    return against


def select_healthy(
    cases: CaseList,
    organ: Organ,
    rule: HealthyRule,
    *,
    assume_healthy: bool = False,
    accept_hu: bool = False,
    workers: int = 1,
    done: Callable[[], None] | None = None,
) -> tuple[Verdict, ...]:
    """Judge every case of a list; a case that cannot be used does not stop the others.

    Args:
        cases: The scans and their label maps.
        organ: The organ that must be healthy.
        rule: What healthy means.
        assume_healthy: Accept cases whose tumors neither the list nor the label map could show.
        accept_hu: Accept CTs that cannot be in HU, as far as a scan and its organ tell.
        workers: Threads; each holds one label map at a time.
        done: Called after every case.

    Returns:
        One verdict for each case, in their order.

    Raises:
        OrganError: The label names do not hold the organ, or none of its tumors, so that no case could show any.
    """
    labels = resolve_labels(cases.label_names, organ, source=cases.source)
    if not assume_healthy:
        _check_tumors_named(cases, organ, labels)

    def verdict(case: Case) -> Verdict:
        try:
            found = _verdict(case, cases, organ, labels, rule, assume_healthy, accept_hu)
            return _in_hu(found, cases, organ, labels, accept_hu) if found.status == "healthy" else found
        except Exception as error:  # whatever is wrong with one scan
            return Verdict(case=case, status="failed", reasons=(f"cannot be used: {sentence_of(error)}",))

    return tuple(in_threads(verdict, cases.cases, workers=workers, done=done))


def _check_tumors_named(cases: CaseList, organ: Organ, labels: OrganLabels) -> None:
    if labels.tumor or all(case.tumor_organs is not None for case in cases.cases):
        return
    names = [name for name in cases.label_names if name != "background"]
    listed = ", ".join(names[:8] + ["…"] * (len(names) > 8))
    raise OrganError(
        f"The labels of {cases.source} ({listed}) name no {organ.name} tumor, so they cannot tell which "
        f"{organ.name} is healthy: give label maps that mark tumors under a name like '{organ.name}_tumor', or "
        "--assume-healthy if you know that there are none."
    )


def _verdict(
    case: Case,
    cases: CaseList,
    organ: Organ,
    labels: OrganLabels,
    rule: HealthyRule,
    assume_healthy: bool,
    accept_hu: bool,
) -> Verdict:
    if case.labels is None:
        return Verdict(case=case, status="no_labels", reasons=("has no label map",))
    # Stage 3 would refuse the whole list because of these.
    problems = check_cases(CaseList((case,), cases.label_names, cases.source), accept_hu=accept_hu).problems
    if problems:
        return Verdict(case=case, status="failed", reasons=(f"cannot be used: {problems[0].message}",))
    standard = read_organ(case, cases, labels)
    if standard is None:
        return Verdict(case=case, status="no_organ", reasons=(f"holds no {organ.name}",))
    measures = measure_organ(standard, pieces=rule.pieces)
    against = _stated(case, cases, organ, labels, assume_healthy) | judge(measures, rule, organ.name)
    status = next((status for status in STATUSES if status in against), "healthy")
    return Verdict(case=case, status=status, reasons=tuple(against.values()), measures=measures)


def _in_hu(healthy: Verdict, cases: CaseList, organ: Organ, labels: OrganLabels, accept_hu: bool) -> Verdict:
    """Return the verdict on a healthy scan with what speaks against its HU.

    Raises:
        VolumeError: It cannot be in HU, and that is not accepted.
    """
    case = healthy.case
    standard = read_organ(case, cases, labels, beside=[case.image])
    ct = read_ct(case.image, accept_hu=accept_hu)
    assert standard is not None
    found = organ_doubts(ct.data, standard.data, organ, ct=str(case.image), mask=str(case.labels))
    return replace(healthy, reasons=(*healthy.reasons, *ct.doubts, *settle(found, accept=accept_hu)))


def _stated(case: Case, cases: CaseList, organ: Organ, labels: OrganLabels, assume_healthy: bool) -> dict[str, str]:
    """Return what the list, and the files that there are, say against a healthy organ."""
    if case.tumor_organs is not None:
        tumor = organ.name in map(normalized, case.tumor_organs)
        return {"tumor": f"is stated to have {organ.name} tumors"} if tumor else {}
    folder = case.labels is not None and case.labels.is_dir()
    shown = bool(structure_files(case, cases.label_names, labels.tumor) if folder else labels.tumor)
    if shown or assume_healthy:
        return {}
    return {"unknown": f"may have {organ.name} tumors, for which it has no label file"}


def _figures(number: float) -> str:
    return f"{number:.0f}" if number >= 1000 else f"{number:.4g}"


def _faces(box: Box, grid: Grid) -> Sequence[str]:
    """Return the faces of a grid that a box reaches, by the direction they lie in."""
    faces = []
    for code, start, stop, size in zip(grid.axcodes, box.start, box.stop, grid.shape, strict=True):
        first, last = _ENDS[code]
        faces += [first] * (start == 0) + [last] * (stop == size)
    return faces
