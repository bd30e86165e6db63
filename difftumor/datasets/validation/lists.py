"""The check of one or two lists: their cases, and the scans and patients that stand where they must not."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from difftumor.datasets.cases import Case, CaseList, read_case_list
from difftumor.datasets.integrity import SharedScan, shared_scans
from difftumor.datasets.label_folders import label_files, label_names_of, too_many
from difftumor.datasets.validation.case import CaseRules, CheckedCase, Finding, check_case, organs_of
from difftumor.errors import CaseListError, OrganError, counted, first_few
from difftumor.files.workers import KILLED, in_processes
from difftumor.scans.fingerprint import Fingerprint
from difftumor.scans.organs import CONVENTIONS, PARTIAL_CONVENTIONS, Organ, get_convention, resolve_labels


@dataclass(frozen=True)
class ListToCheck:
    """A list, and what its cases are judged by.

    Attributes:
        cases: The list.
        rules: For its cases.
        notes: What speaks against the list, in sentences.
    """

    cases: CaseList
    rules: CaseRules
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckedList:
    """A list after the check.

    Attributes:
        cases: The list, with the label names in use.
        checked: Its cases, in its order.
        notes: What speaks against the list, in sentences.
    """

    cases: CaseList
    checked: tuple[CheckedCase, ...]
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> tuple[CheckedCase, ...]:
        """Cases that can be used, perhaps with warnings."""
        return tuple(each for each in self.checked if each.status != "error")

    @property
    def counts(self) -> dict[str, int]:
        """Cases by status."""
        found = Counter(each.status for each in self.checked)
        return {status: found[status] for status in ("good", "warning", "error")}


@dataclass(frozen=True)
class SharedScans:
    """Which scans are the same or alike.

    Attributes:
        where: ``"within LIST"`` or ``"shared by LIST and LIST"``.
        pairs: Their files, in the order of the lists.
    """

    where: str
    pairs: tuple[SharedScan, ...]

    @property
    def certain(self) -> int:
        """How many pairs are the same scan; the others are suspected."""
        return sum(pair.certain for pair in self.pairs)


@dataclass(frozen=True)
class Validation:
    """What a check found.

    Attributes:
        lists: One or two lists.
        comparisons: Each list with itself, and the first with the second.
    """

    lists: tuple[CheckedList, ...]
    comparisons: tuple[SharedScans, ...]

    @property
    def sound(self) -> bool:
        """Whether no case has an error."""
        return not any(each.counts["error"] for each in self.lists)


def list_to_check(
    source: Path,
    *,
    labels: Path | None = None,
    convention: str | None = None,
    organ: Organ | None = None,
    accept_hu: bool = False,
    cache: Path | None = None,
) -> ListToCheck:
    """Read a list for a check; files that are missing are left for the check to find.

    Args:
        source: A CT, a folder or a list.
        labels: Folder of label maps named like the CTs; None if the list names them.
        convention: What the numbers of the label maps mean; by default what comes with them says so.
        organ: Organ that each case must have; None looks at all that the names hold.
        accept_hu: Whether values that cannot be HU are only warned of.
        cache: Folder of fingerprints, as for ``integrity.fingerprints``.

    Raises:
        CaseListError: The list or the folder cannot be used.
        OrganError: There is no such convention, or the names hold no such organ.
    """
    listed = read_case_list(source, check_files=False)
    notes: list[str] = []
    if labels is not None:
        listed, notes = _with_labels(listed, labels)
    if convention is not None:
        listed = replace(listed, label_names=dict(get_convention(convention)))
    if organ is not None:
        resolve_labels(listed.label_names, organ, source=listed.source)
        organs: tuple[Organ, ...] = (organ,)
    else:
        organs = ()
        try:
            organs = organs_of(listed.label_names, source=listed.source)
        except OrganError as error:
            notes.append(str(error))
    wanted = listed.source if organ is not None or any(case.labels is not None for case in listed.cases) else None
    rules = CaseRules(
        label_names=dict(listed.label_names), source=listed.source, organs=organs, required=organ is not None,
        complete=listed.label_names not in [CONVENTIONS[name] for name in PARTIAL_CONVENTIONS],
        labels_in=wanted if labels is None else labels,
        labels_required=organ is not None or labels is not None, accept_hu=accept_hu, cache=cache,
    )  # fmt: skip
    return ListToCheck(listed, rules, tuple(notes))


def _with_labels(listed: CaseList, folder: Path) -> tuple[CaseList, list[str]]:
    """Return a list with the label maps of a folder, and what speaks against the folder."""
    files = label_files(folder)
    known = {case.id for case in listed.cases}
    if known.isdisjoint(files):
        raise CaseListError(
            f"No CT of {listed.source} is named like a label map of {folder} ({min(known)} and {min(files)} are the "
            "first): name the label maps like their CTs."
        )
    notes = [too_many(several) for name, several in files.items() if name in known and len(several) > 1]
    if others := [several[0].name for name, several in files.items() if name not in known]:
        notes.append(f"{folder} holds {counted(len(others), 'label map')} without a CT ({first_few(others)}).")
    single = {name: several[0] for name, several in files.items() if len(several) == 1}
    cases = tuple(replace(case, labels=single.get(case.id)) for case in listed.cases)
    return replace(listed, cases=cases, label_names=label_names_of(folder) or listed.label_names), notes


def check_lists(lists: Sequence[ListToCheck], *, jobs: int = 1, done: Callable[[], None] | None = None) -> Validation:
    """Check every case of one or two lists, and compare their scans and patients.

    Of a scan or patient on both sides of a split the training side gets the error, so that what is held out stays; of
    a scan twice on one side, the later one; of one in both lists, the first list's.

    Args:
        lists: What to check.
        jobs: Processes, each of which holds one case. The result does not depend on it.
        done: Called after every case.
    """
    pieces = [(case, each.rules, number) for number, each in enumerate(lists) for case in each.cases.cases]
    alone = ((piece, _check_piece(*piece)) for piece in pieces)
    found: dict[tuple[int, str], CheckedCase] = {}
    for (case, _, number), checked in alone if jobs == 1 else in_processes(_check_piece, pieces, jobs=jobs):
        found[number, case.id] = CheckedCase(case, (Finding("error", KILLED),)) if checked is None else checked
        if done is not None:
            done()
    checked_lists = [
        CheckedList(each.cases, tuple(found[number, case.id] for case in each.cases.cases), each.notes)
        for number, each in enumerate(lists)
    ]
    comparisons = []
    for number, each in enumerate(checked_lists):
        checked_lists[number], pairs = _compared(each)
        comparisons.append(SharedScans(f"within {each.cases.source}", pairs))
    if len(checked_lists) == 2:
        one, other = checked_lists
        checked_lists[0], pairs = _compared_with(one, other)
        how = "held out" if _are_folds(one, other) else "shared"
        comparisons.append(SharedScans(f"{how} by {one.cases.source} and {other.cases.source}", pairs))
    return Validation(tuple(checked_lists), tuple(comparisons))


def _check_piece(case: Case, rules: CaseRules, _: int) -> CheckedCase:
    return check_case(case, rules)


def _compared(listed: CheckedList) -> tuple[CheckedList, tuple[SharedScan, ...]]:
    """Find scans that a list holds twice, and patients on both of its sides."""
    held_out = set(listed.cases.validation_ids)
    by_id = _by_id(listed)
    found = shared_scans(_fingerprints(by_id))
    more: dict[str, list[Finding]] = defaultdict(list)
    for pair in found:
        kept, lost = by_id[pair.one], by_id[pair.other]
        split = (pair.one in held_out) != (pair.other in held_out)
        damaged = kept.status == "error" and lost.status != "error"
        if pair.other in held_out if split else damaged:
            kept, lost = lost, kept
        _add_pair(more, lost.case, pair, f"{kept.case.image}{', which is held out for validation' * split}")
    theirs = _patients(each for each in listed.checked if each.case.id in held_out)
    for case in (each.case for each in listed.checked if each.case.id not in held_out):
        if others := theirs.get(case.patient):
            said = f"Its patient {case.patient!r} is held out for validation too ({_named(others)})"
            more[case.id].append(Finding("error", f"{said}: put all scans of a patient on one side."))
    return _with_findings(listed, more), _by_file(found, by_id, by_id)


def _compared_with(one: CheckedList, other: CheckedList) -> tuple[CheckedList, tuple[SharedScan, ...]]:
    """Find the scans and patients of a list that another one has too; of folds, those that both hold out."""
    folds = _are_folds(one, other)
    ones, others = _by_id(one, held_out=folds), _by_id(other, held_out=folds)
    found = shared_scans(_fingerprints(ones), _fingerprints(others))
    more: dict[str, list[Finding]] = defaultdict(list)
    where = f"{other.cases.source} {'holds out' if folds else 'has'}"
    for pair in found:
        _add_pair(more, ones[pair.one].case, pair, f"{others[pair.other].case.image}, which {where}")
    theirs = _patients(others.values())
    for case in (each.case for each in ones.values()):
        # Without a stated patient, a name that both lists use says nothing.
        stated = case.patient != case.id and any(their.patient != their.id for their in theirs.get(case.patient, ()))
        if stated and case.id not in more:
            said = f"Its patient {case.patient!r} is in {other.cases.source} too ({_named(theirs[case.patient])})"
            more[case.id].append(Finding("warning", f"{said}: is it the same person?"))
    return _with_findings(one, more), _by_file(found, ones, others)


def _are_folds(one: CheckedList, other: CheckedList) -> bool:
    """Whether two lists are of the same files, of which each holds some out, as folds of one split do."""
    files, theirs = ({os.path.realpath(each.case.image) for each in listed.checked} for listed in (one, other))
    return bool(one.cases.validation_ids and other.cases.validation_ids and files == theirs)


def _by_id(listed: CheckedList, *, held_out: bool = False) -> dict[str, CheckedCase]:
    kept = set(listed.cases.validation_ids)
    return {each.case.id: each for each in listed.checked if not held_out or each.case.id in kept}


def _add_pair(more: dict[str, list[Finding]], case: Case, pair: SharedScan, partner: str) -> None:
    """Add what a pair says against a case; of several certain pairs the first one is enough."""
    own = more[case.id]
    if not pair.certain:
        own.append(Finding("warning", f"{case.image} looks like {partner}: perhaps a crop of it; look at both."))
    elif not any(finding.level == "error" for finding in own):
        said = f"{case.image} is the same scan as {partner} ({pair.likeness}): keep one of them."
        own.append(Finding("error", said))


def _fingerprints(by_id: Mapping[str, CheckedCase]) -> dict[str, Fingerprint]:
    return {id_: each.fingerprint for id_, each in by_id.items() if each.fingerprint is not None}


def _patients(checked: Iterable[CheckedCase]) -> Mapping[str, list[Case]]:
    found: dict[str, list[Case]] = defaultdict(list)
    for each in checked:
        found[each.case.patient].append(each.case)
    return found


def _named(cases: Sequence[Case]) -> str:
    return first_few([case.id for case in cases[:6]])  # five are shown, and whether there are more


def _with_findings(listed: CheckedList, more: Mapping[str, Sequence[Finding]]) -> CheckedList:
    checked = tuple(replace(each, findings=(*each.findings, *more.get(each.case.id, ()))) for each in listed.checked)
    return replace(listed, checked=checked)


def _by_file(
    pairs: Sequence[SharedScan], ones: Mapping[str, CheckedCase], others: Mapping[str, CheckedCase]
) -> tuple[SharedScan, ...]:
    return tuple(
        SharedScan(str(ones[pair.one].case.image), str(others[pair.other].case.image), pair.likeness) for pair in pairs
    )
