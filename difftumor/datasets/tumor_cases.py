"""Which cases have tumors in an organ, which are healthy, and how they are split into folds.

What the list states decides, unless the label map contradicts it; if it states nothing, the label map decides. File
names never matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from difftumor.datasets.cases import Case, CaseList, folds, read_case_labels
from difftumor.datasets.integrity import in_threads
from difftumor.errors import CaseListError
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import TUMOR, Organ, OrganLabels, normalized, resolve_labels
from difftumor.seeding import derive_seed


@dataclass(frozen=True)
class LeftOut:
    """A case that cannot be used, and why.

    Args:
        case: The case.
        reason: Half a sentence that follows its id.
    """

    case: Case
    reason: str


@dataclass(frozen=True, kw_only=True)
class AnnotatedTumor:
    """One tumor of a case.

    Args:
        case: Id of the case.
        index: Number of the tumor among the components of the case's label map in model space, from 1.
        center_mm: Right, anterior and superior of the scan's origin.
        radius_mm: Equivalent radius.
    """

    case: str
    index: int
    center_mm: tuple[float, float, float]
    radius_mm: float


TumorT = TypeVar("TumorT", bound=AnnotatedTumor)


def choose_tumors(tumors: Iterable[TumorT], count: int, *, seed: int) -> tuple[TumorT, ...]:
    """Choose a number of tumors, or all if there are fewer; a smaller choice is the beginning of a larger one.

    A tumor's rank depends only on the seed, its case and its index, so that neither the order of the cases nor a split
    into folds changes it.
    """
    ordered = sorted(tumors, key=lambda tumor: derive_seed(seed, "tumor", tumor.case, tumor.index))
    return tuple(ordered[:count])


@dataclass(frozen=True)
class SortedCases:
    """The cases of a list, by whether they have tumors in an organ.

    Args:
        tumor: With tumors in the organ.
        healthy: With the organ, free of tumors.
        left_out: The others.
    """

    tumor: tuple[Case, ...]
    healthy: tuple[Case, ...]
    left_out: tuple[LeftOut, ...] = ()

    def split(
        self, *, fold: int | None, count: int, seed: int, stated: Collection[Case] = ()
    ) -> tuple[SortedCases, tuple[Case, ...]]:
        """Hold out the tumor cases of a fold; the training part has no scan of their patients, healthy or not.

        If the source states its validation cases, those are held out whatever the fold.

        The split depends only on the patients with tumors, so that stages that see different healthy scans agree on it.

        Args:
            fold: Which fold validates, from 0; None holds nothing out.
            count: Number of folds.
            seed: Seed of the shuffle.
            stated: Validation cases of the source, with tumors or healthy; empty if it states none.

        Raises:
            ConfigError: The fold does not exist.
            CaseListError: There are fewer patients with tumors than folds.
        """
        if stated:
            train = tuple(case for case in self.tumor if case not in stated)
            validation = tuple(case for case in self.tumor if case in stated)
        elif fold is None:
            return self, ()
        else:
            train, validation = folds(self.tumor, count=count, fold=fold, seed=seed)
        held_out = {case.patient for case in (*validation, *stated)}
        healthy = tuple(case for case in self.healthy if case.patient not in held_out)
        return SortedCases(train, healthy, self.left_out), validation


def sort_cases(
    cases: CaseList,
    organ: Organ,
    *,
    assume_healthy: bool = False,
    workers: int = 1,
    look: Callable[[Case, Volume], None] | None = None,
    done: Callable[[], None] | None = None,
) -> SortedCases:
    """Sort the cases of a list by whether they have tumors in an organ; every label map is read once.

    Args:
        cases: What to sort.
        organ: Where tumors matter; tumors elsewhere do not.
        assume_healthy: Count a case as healthy if neither the list nor its label map could show tumors.
        workers: Threads that read label maps.
        look: Called, from the threads, with every case that has tumors and its labels of 0 background, 1 organ,
            2 tumor.
        done: Called after every case.

    Raises:
        OrganError: The label names do not hold the organ.
        VolumeError: A label map cannot be used.
        CaseListError: A case is stated to be free of tumors, but its label map marks one.
    """
    labels = resolve_labels(cases.label_names, organ, source=cases.source)

    def kind_of(case: Case) -> str:
        kind, standard = _kind(case, cases, organ, labels, assume_healthy)
        if look is not None and kind == "tumor" and standard is not None:
            look(case, standard)
        return kind

    kinds = in_threads(kind_of, cases.cases, workers=workers, done=done)
    sorted_cases = list(zip(cases.cases, kinds, strict=True))
    return SortedCases(
        tumor=tuple(case for case, kind in sorted_cases if kind == "tumor"),
        healthy=tuple(case for case, kind in sorted_cases if kind == "healthy"),
        left_out=tuple(_reasons(sorted_cases)),
    )


def read_organ(case: Case, cases: CaseList, labels: OrganLabels, *, beside: Iterable[Path] = ()) -> Volume | None:
    """Read the labels of a case as 0 background, 1 organ, 2 tumor; None if they hold neither organ nor tumor.

    Args:
        case: With labels.
        cases: The list it comes from, which says what its labels mean.
        labels: The organ's numbers in it.
        beside: Files that must lie on the labels' grid, of which headers are compared before voxels are read.

    Raises:
        DiffTumorError: The labels cannot be used.
    """
    try:
        stored = read_case_labels(case, cases.label_names, only=(*labels.organ, *labels.tumor), beside=beside)
    except CaseListError:  # a folder with one file per structure, but none of these
        return None
    standard = labels.to_standard(stored.data, source=case.labels, require_organ=False)
    return replace(stored, data=standard) if standard.any() else None


def _reasons(sorted_cases: list[tuple[Case, str]]) -> Iterator[LeftOut]:
    for case, kind in sorted_cases:
        if kind not in ("tumor", "healthy"):
            yield LeftOut(case, kind)


def _kind(
    case: Case, cases: CaseList, organ: Organ, labels: OrganLabels, assume_healthy: bool
) -> tuple[str, Volume | None]:
    """Return ``"tumor"``, ``"healthy"``, or why the case is left out, and its labels in standard numbers."""
    if case.labels is None:
        return "has no label map", None
    _states_tumor(case, organ, labels, cases.source)
    standard = read_organ(case, cases, labels)
    if standard is None:
        return f"holds no {organ.name}", None
    marked = bool((standard.data == TUMOR).any())
    if has_tumor(case, organ, labels, marked=marked, source=cases.source):
        return "tumor", standard
    if case.tumor_organs is not None or labels.tumor or assume_healthy:
        return "healthy", None
    return f"may have {organ.name} tumors, which neither the list states nor its label map marks", None


def has_tumor(case: Case, organ: Organ, labels: OrganLabels, *, marked: bool, source: Path) -> bool:
    """Whether a case has tumors in an organ: what its list states decides, or else its label map.

    Args:
        case: With labels.
        organ: The organ.
        labels: The organ's numbers in the list.
        marked: Whether its label map marks a tumor there.
        source: The list, for messages.

    Raises:
        CaseListError: The list states otherwise than the label map, or tumors for which it names no label.
    """
    stated = _states_tumor(case, organ, labels, source)
    if marked and stated is False:
        raise CaseListError(
            f"Case {case.id!r} is stated to be free of {organ.name} tumors, but {case.labels} marks one: "
            "correct its tumor_organs, or its labels."
        )
    return bool(stated or marked)


def _states_tumor(case: Case, organ: Organ, labels: OrganLabels, source: Path) -> bool | None:
    stated = None if case.tumor_organs is None else organ.name in map(normalized, case.tumor_organs)
    if stated and not labels.tumor:
        raise CaseListError(
            f"{source} states {organ.name} tumors for {case.id!r}, but none of its label names is one: "
            f"name the label, for instance '{organ.name}_tumor'."
        )
    return stated
