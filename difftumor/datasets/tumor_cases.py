"""Which cases have tumors in an organ, which are healthy, and how they are split into folds.

What the list states decides; where it states nothing, the label map does. Names of files never matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from difftumor.datasets.cases import Case, CaseList, folds, read_case_labels
from difftumor.errors import CaseListError
from difftumor.organs import TUMOR, Organ, OrganLabels, normalized, resolve_labels

CaseKind = Literal["tumor", "healthy"]


@dataclass(frozen=True)
class LeftOut:
    """A case that is of no use, and why.

    Args:
        case: The case.
        reason: Half a sentence that follows its id.
    """

    case: Case
    reason: str


@dataclass(frozen=True)
class SortedCases:
    """The cases of a list by what they are for one organ.

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

        Where the source states its validation cases, those are held out whatever the fold.

        The split depends on the patients with tumors alone, so that stages which see other healthy scans agree on it.

        Args:
            fold: Which fold validates, from 0; None holds nothing out.
            count: Number of folds.
            seed: Seed of the shuffle.
            stated: Validation cases of the source, with tumors or healthy; empty where it states none.

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


def sort_cases(cases: CaseList, organ: Organ, *, assume_healthy: bool = False, workers: int = 1) -> SortedCases:
    """Sort the cases of a list by whether they have tumors in an organ.

    Args:
        cases: What to sort.
        organ: Where tumors matter; tumors elsewhere do not.
        assume_healthy: Take a case for healthy where neither the list nor its label map could show tumors.
        workers: Threads that read label maps, of cases for which the list states nothing.

    Raises:
        OrganError: The label names do not hold the organ.
        VolumeError: A label map cannot be used.
    """
    labels = resolve_labels(cases.label_names, organ, source=cases.source)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        kinds = pool.map(lambda case: _kind(case, cases, organ, labels, assume_healthy), cases.cases)
        sorted_cases = list(zip(cases.cases, kinds, strict=True))
    return SortedCases(
        tumor=tuple(case for case, kind in sorted_cases if kind == "tumor"),
        healthy=tuple(case for case, kind in sorted_cases if kind == "healthy"),
        left_out=tuple(_reasons(sorted_cases)),
    )


def _reasons(sorted_cases: list[tuple[Case, str]]) -> Iterator[LeftOut]:
    for case, kind in sorted_cases:
        if kind not in ("tumor", "healthy"):
            yield LeftOut(case, kind)


def _kind(case: Case, cases: CaseList, organ: Organ, labels: OrganLabels, assume_healthy: bool) -> str:
    """Return ``"tumor"``, ``"healthy"``, or why the case is left out."""
    if case.labels is None:
        return "has no label map"
    if case.tumor_organs is not None:
        stated: CaseKind = "tumor" if organ.name in map(normalized, case.tumor_organs) else "healthy"
        if stated == "tumor" and not labels.tumor:
            raise CaseListError(
                f"{cases.source} states {organ.name} tumors for {case.id!r}, but none of its label names is one: "
                f"name the label, for instance '{organ.name}_tumor'."
            )
        return stated
    try:
        stored = read_case_labels(case, cases.label_names, only=(*labels.organ, *labels.tumor))
    except CaseListError:  # a folder with one file per structure, but none of these
        return f"holds no {organ.name}"
    standard = labels.to_standard(stored.data, source=case.labels, require_organ=False)
    if not standard.any():
        return f"holds no {organ.name}"
    if (standard == TUMOR).any():
        return "tumor"
    if labels.tumor or assume_healthy:
        return "healthy"
    return f"may have {organ.name} tumors, which neither the list states nor its label map marks"
