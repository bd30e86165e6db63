"""The check of one case: what every reader would refuse of its files, and what speaks against them as a pair."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from difftumor.datasets.cases import Case, read_case_labels
from difftumor.datasets.integrity import cached_fingerprint, label_files_of
from difftumor.datasets.tumor_cases import has_tumor
from difftumor.errors import CaseListError, OrganError, sentence_of
from difftumor.scans.fingerprint import Fingerprint
from difftumor.scans.grid import Box, Grid, millimeters
from difftumor.scans.hounsfield import ScanWarning, ct_doubts, organ_doubts, settle, warn
from difftumor.scans.label_maps import label_boxes
from difftumor.scans.nifti import Volume, read_ct, read_grid
from difftumor.scans.organs import ORGAN, ORGANS, TUMOR, Organ, normalized, resolve_labels
from difftumor.scans.stored.header import compare_headers
from difftumor.scans.stored.readers import same_spacing, stated_spacing_mm

Level = Literal["error", "warning"]
# A tumor so far outside the box around its organ is perhaps none of this organ.
_ASTRAY_MM = 20.0
# Of lists that name no organ in particular: nothing is known of its HU.
_ANY_ORGAN = Organ(name="organ", minimum_radius_mm=1)


@dataclass(frozen=True)
class Finding:
    """What speaks against a case, in one sentence.

    Attributes:
        level: ``"error"``: the case cannot be used; ``"warning"``: it can, and may be wrong.
        message: The sentence.
    """

    level: Level
    message: str


@dataclass(frozen=True, kw_only=True)
class CaseRules:
    """What the cases of a list are judged by.

    Attributes:
        label_names: What the numbers of its label maps mean; empty if nothing says so.
        source: The list, for messages.
        organs: Whose labels are looked at; see ``organs_of``.
        required: Whether a label map without any of them is an error.
        complete: Whether the names are all that the label maps may hold.
        labels_in: Where each case should have a label map; None if it need not.
        labels_required: Whether one without is an error.
        accept_hu: Whether values that cannot be HU are only warned of.
        cache: Folder of fingerprints, as for ``integrity.fingerprints``.
    """

    label_names: Mapping[str, int]
    source: Path
    organs: tuple[Organ, ...]
    required: bool = False
    complete: bool = True
    labels_in: Path | None = None
    labels_required: bool = False
    accept_hu: bool = False
    cache: Path | None = None


@dataclass(frozen=True)
class CheckedCase:
    """What was found out about a case.

    Attributes:
        case: The case.
        findings: What speaks against it.
        tumors: Organs with tumors, as its list states or its label map marks; None if neither can tell.
        fingerprint: That of its CT; None if it cannot be read.
    """

    case: Case
    findings: tuple[Finding, ...] = ()
    tumors: tuple[str, ...] | None = None
    fingerprint: Fingerprint | None = field(default=None, compare=False, repr=False)

    def messages(self, level: Level) -> list[str]:
        """Return the findings of one level."""
        return [finding.message for finding in self.findings if finding.level == level]

    @property
    def status(self) -> Literal["good", "warning", "error"]:
        """The worst level of its findings."""
        levels = {finding.level for finding in self.findings}
        return "error" if "error" in levels else "warning" if levels else "good"


def organs_of(names: Mapping[str, int], *, source: Path) -> tuple[Organ, ...]:
    """Return the organs that label names hold and of which something is to be seen, or any one if they name none.

    An organ of which neither the HU are known nor tumors are labeled is left out.

    Raises:
        OrganError: A name could be a tumor of several of them.
    """
    words = {normalized(name) for name in names}
    named = [organ for organ in ORGANS.values() if words & organ.label_names]
    known = [organ for organ in named if resolve_labels(names, organ, source=source).tumor or organ.mean_hu is not None]
    with suppress(OrganError):
        if not named:
            resolve_labels(names, _ANY_ORGAN, source=source)
            return (_ANY_ORGAN,)
    return tuple(known)


def check_case(case: Case, rules: CaseRules) -> CheckedCase:
    """Read all of a case's files, headers first, and judge them; nothing is raised, whatever is wrong with them."""
    found: list[Finding] = []
    tumors: tuple[str, ...] | None = case.tumor_organs
    identity: Fingerprint | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ct = labels = grid = None
        with _noted(found):
            grid = read_grid(case.image)
        with _noted(found):
            if grid is not None:  # also files that no name in the list asks for, before any voxel is read
                compare_headers(case.image, grid, label_files_of(case))
            labels = _read_labels(case, rules)
        with _noted(found):
            if grid is not None:
                ct = read_ct(case.image, accept_hu=True)  # also what is not in HU may be in another list
        if ct is not None:
            with _noted(found):
                _check_ct(ct, accept_hu=rules.accept_hu)
            with _noted(found):
                identity = cached_fingerprint(case.image, cache=rules.cache, accept_hu=True, ct=ct)
                _check_fingerprint(case, identity)
        if labels is not None:
            with _noted(found):
                marked = _check_labels(case, ct, labels, rules, found)
                tumors = tuple(marked) if tumors is None and rules.organs else tumors
    for warning in caught:
        if issubclass(warning.category, ScanWarning):
            found.append(Finding("warning", str(warning.message)))
    return CheckedCase(case, tuple(dict.fromkeys(found)), tumors, identity)


@contextmanager
def _noted(found: list[Finding]) -> Iterator[None]:
    """Make an error of the block a finding: one thing that is wrong must not hide another, nor end the check."""
    try:
        yield
    except Exception as error:
        found.append(Finding("error", sentence_of(error)))


def _read_labels(case: Case, rules: CaseRules) -> Volume | None:
    if case.labels is not None:
        return read_case_labels(case, rules.label_names)
    if rules.labels_in is not None:
        said = f"{case.id} has no label map in {rules.labels_in}: add it, or leave the case out."
        if rules.labels_required:
            raise CaseListError(said)
        warn([said])
    return None


def _check_ct(ct: Volume, *, accept_hu: bool) -> None:
    stated_mm = stated_spacing_mm(ct.path)
    if ct.header["sform_code"] and not same_spacing(stated_mm, ct.grid.spacing_mm):
        said = f"{millimeters(stated_mm)} mm (pixdim), and of {millimeters(ct.grid.spacing_mm)} mm by its sform"
        warn([f"{ct.path} states voxels of {said}, which counts: other programs may take the first."])
    if ct.doubts:
        warn(settle(ct_doubts(ct.data, str(ct.path)), accept=accept_hu))


def _check_fingerprint(case: Case, identity: Fingerprint) -> None:
    stated = Fingerprint.from_text(case.fingerprint)
    if stated is not None and stated.content != identity.content:
        raise CaseListError(
            f"{case.image} is not the scan whose fingerprint the list states: correct the path, or remove the "
            "fingerprint."
        )


def _check_labels(case: Case, ct: Volume | None, labels: Volume, rules: CaseRules, found: list[Finding]) -> list[str]:
    """Judge a label map and return the organs with tumors; what is wrong with one organ does not hide the next."""
    boxes = label_boxes(labels.data)
    if not boxes:
        warn([f"{labels.path} marks nothing: it holds background alone."])
    unnamed = sorted(set(boxes) - set(rules.label_names.values())) if rules.label_names and rules.complete else []
    if unnamed:
        listed = ", ".join(map(str, unnamed[:12])) + ", …" * (len(unnamed) > 12)
        what = f"{'labels' if len(unnamed) > 1 else 'label'} {listed}"
        warn([f"{labels.path} holds {what}, which {rules.source} does not name: it counts as background."])
    marked = []
    for organ in rules.organs:
        with _noted(found):
            marked += [organ.name] * _holds_tumor(case, ct, labels, boxes, organ, rules)
    return marked


def _holds_tumor(
    case: Case, ct: Volume | None, labels: Volume, boxes: Mapping[int, Box], organ: Organ, rules: CaseRules
) -> bool:
    """Judge an organ of a label map, of which the boxes of all numbers are known; return whether it has tumors."""
    numbers = resolve_labels(rules.label_names, organ, source=rules.source)
    box = Box.joined([boxes[number] for number in (*numbers.organ, *numbers.tumor) if number in boxes])
    judged = Box.whole(labels.grid.shape) if box.empty or not numbers.named else box  # for what is refused
    standard = numbers.to_standard(labels.data[judged.slices], source=case.labels, require_organ=rules.required)
    marked = not box.empty and bool((standard == TUMOR).any())
    if not box.empty:
        if ct is not None:
            doubts = organ_doubts(ct.data, standard, organ, ct=str(ct.path), mask=str(case.labels), box=judged)
            warn(settle(doubts, accept=rules.accept_hu))
        _warn_astray(standard, labels.grid, organ, case.labels)
    if organ == _ANY_ORGAN:
        return marked
    tumor = has_tumor(case, organ, numbers, marked=marked, source=rules.source)
    if tumor and not marked:
        warn([f"{case.labels} marks no {organ.name} tumor, although {rules.source} states one for {case.id!r}."])
    return tumor


def _warn_astray(standard: NDArray[np.uint8], grid: Grid, organ: Organ, path: Path | None) -> None:
    """Warn of tumors far from their organ, which another organ may have."""
    margin = np.ceil(np.divide(_ASTRAY_MM, grid.spacing_mm)).astype(int).tolist()
    near = Box.around(standard == ORGAN).padded(margin).clipped(standard.shape)
    tumor = standard == TUMOR
    total, inside = np.count_nonzero(tumor), np.count_nonzero(tumor[near.slices])
    if inside < total and (standard == ORGAN).any():
        warn(
            [
                f"{path} marks {(total - inside) / total:.1%} of its {organ.name} tumor more than {_ASTRAY_MM:g} mm "
                f"outside the box around the {organ.name}: is it of another organ?"
            ]
        )
