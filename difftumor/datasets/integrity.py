"""Check a list of cases before hours are spent on it: every problem at once, headers first."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from difftumor.datasets.cases import Case, CaseList, read_case_labels
from difftumor.errors import CaseListError, DiffTumorError
from difftumor.grids import compare_grids
from difftumor.organs import OrganLabels
from difftumor.volume import HIGHEST_MINIMUM_HU, is_nifti, read_ct, read_grid


@dataclass(frozen=True)
class Problem:
    """What is wrong with one case, in one sentence."""

    case_id: str
    message: str


@dataclass(frozen=True)
class IntegrityReport:
    """What a check found.

    Attributes:
        checked: Number of cases looked at.
        problems: In the order of the cases; a case may have several.
    """

    checked: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether no case has a problem."""
        return not self.problems

    def sound(self, cases: Sequence[Case]) -> tuple[Case, ...]:
        """Return the cases without a problem."""
        bad = {problem.case_id for problem in self.problems}
        return tuple(case for case in cases if case.id not in bad)

    def raise_if_any(self) -> None:
        """Raise one error that lists every problem, one per line.

        Raises:
            CaseListError: There is a problem.
        """
        if self.problems:
            count = len({problem.case_id for problem in self.problems})
            lines = "\n".join(f"  {problem.case_id}: {problem.message}" for problem in self.problems)
            raise CaseListError(f"{count} of {self.checked} cases cannot be used; mend or remove them:\n{lines}")


def check_cases(case_list: CaseList, *, labels: OrganLabels | None = None, voxels: bool = False) -> IntegrityReport:
    """Check every case: files readable, 3-D, image and labels on one grid, CT in HU as far as a slice can tell.

    Args:
        case_list: The cases.
        labels: Which labels a label map must hold some of; only looked at with ``voxels``.
        voxels: Also read all voxels: HU range, finite values, whole label numbers, the organ's presence. Slow.

    Returns:
        Every problem of every case. Nothing is raised for a bad file.
    """
    problems = []
    for case in case_list.cases:
        found = list(_header_problems(case))
        # Voxels of a file whose header is bad would only tell the same again.
        if voxels and not found:
            found = list(_voxel_problems(case, case_list, labels))
        problems += [Problem(case.id, message) for message in found]
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
    """Tell a CT that is not in HU; most show air in their first slice, which is proof enough and quickly read."""
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


def _voxel_problems(case: Case, case_list: CaseList, labels: OrganLabels | None) -> Iterator[str]:
    try:
        read_ct(case.image)
    except DiffTumorError as error:
        yield str(error)
    if case.labels is None:
        return
    try:
        volume = read_case_labels(case, case_list.label_names)
        if labels is not None:
            labels.to_standard(volume.data, source=volume.path)
    except DiffTumorError as error:
        yield str(error)


def _label_files(case: Case) -> list[Path]:
    if case.labels is None:
        return []
    if case.labels.is_dir():
        return sorted(file for file in case.labels.iterdir() if is_nifti(file))
    return [case.labels]
