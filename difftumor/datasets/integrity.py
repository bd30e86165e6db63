"""Check a list of cases before hours are spent on it: every problem at once, from headers."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np

from difftumor.datasets.cases import Case, CaseList
from difftumor.errors import CaseListError, DiffTumorError
from difftumor.scans.grid import compare_grids
from difftumor.scans.nifti import HIGHEST_MINIMUM_HU, is_nifti, read_ct, read_grid


@dataclass(frozen=True)
class Problem:
    """What is wrong with one case, in one sentence."""

    case_id: str
    message: str


@dataclass(frozen=True)
class IntegrityReport:
    """What a check found.

    Attributes:
        checked: Number of cases checked.
        problems: In the order of the cases; a case may have several.
    """

    checked: int
    problems: tuple[Problem, ...]

    def raise_if_any(self) -> None:
        """Raise one error that lists every problem, one per line.

        Raises:
            CaseListError: There is a problem.
        """
        if self.problems:
            count = len({problem.case_id for problem in self.problems})
            lines = "\n".join(f"  {problem.case_id}: {problem.message}" for problem in self.problems)
            raise CaseListError(f"{count} of {self.checked} cases cannot be used; fix or remove them:\n{lines}")


def check_cases(case_list: CaseList) -> IntegrityReport:
    """Check every case: files readable, 3-D, image and labels on one grid, CT in HU as far as a slice can tell.

    Args:
        case_list: The cases.

    Returns:
        Every problem of every case. Nothing is raised for a bad file.
    """
    problems = [Problem(case.id, message) for case in case_list.cases for message in _header_problems(case)]
    return IntegrityReport(len(case_list.cases), tuple(problems))


def _header_problems(case: Case) -> Iterator[str]:
    grid = None
    try:
        grid = read_grid(case.image)
    except DiffTumorError as error:
        yield str(error)
    else:
        yield from _scale_problems(case)
    for file in _label_files(case):
        try:
            labels_grid = read_grid(file)
            if grid is not None:
                compare_grids(grid, labels_grid, case.image, file)
        except DiffTumorError as error:
            yield str(error)


def _scale_problems(case: Case) -> Iterator[str]:
    """Recognize a CT that is not in HU; most show air in their first slice, which is proof enough and quick to read."""
    try:
        first = np.asanyarray(nib.load(case.image).dataobj[..., :1])
        in_hu = bool((first < HIGHEST_MINIMUM_HU).any())
    except (OSError, EOFError, ValueError, zlib.error):
        in_hu = False  # damaged: reading all of it will say so
    if in_hu:
        return
    try:
        read_ct(case.image)
    except DiffTumorError as error:
        yield str(error)


def _label_files(case: Case) -> list[Path]:
    if case.labels is None:
        return []
    if case.labels.is_dir():
        return sorted(file for file in case.labels.iterdir() if is_nifti(file))
    return [case.labels]


T = TypeVar("T")


def for_each_case(
    look: Callable[[Case], T], cases: Sequence[Case], *, workers: int, done: Callable[[], None] | None = None
) -> list[T]:
    """Return what ``look`` makes of each case, in order; its first error stops the others.

    Args:
        look: Called from the threads.
        cases: The cases.
        workers: Threads.
        done: Called after every case.
    """
    results = []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        try:
            for result in pool.map(look, cases):
                results.append(result)
                if done is not None:
                    done()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # one bad case is enough; the others need not be read
            raise
    return results
