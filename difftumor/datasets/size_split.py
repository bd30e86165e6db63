"""Early and late tumors of label maps, written apart: label maps, a table of lesions, and lists for stage 2."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from difftumor.datasets.cases import Case, CaseList, read_cases, write_case_list
from difftumor.datasets.label_folders import holds_label_maps, label_maps, label_names_of
from difftumor.datasets.sources import case_id
from difftumor.datasets.tumor_cases import sort_cases
from difftumor.errors import NO_ROOM, CaseListError, ConfigError, OrganError, sentence_of
from difftumor.files.results import ResultFolder
from difftumor.files.writing import folder_written_whole
from difftumor.reporting.tables import Row, Table, write_csv
from difftumor.scans.lesions import SIZE_GROUPS, SizeGroup, SizeRule, find_lesions
from difftumor.scans.nifti import Volume, write_labels
from difftumor.scans.organs import BACKGROUND, ORGAN, ORGANS, TUMOR, Organ, resolve_labels
from difftumor.scans.stored.header import is_nifti

DATASET_FILE = "dataset.json"
LESIONS_FILE = "lesions.csv"
RESULT = ResultFolder(
    what="result",
    holds=(LESIONS_FILE, *(f"{group}/{name}" for group in SIZE_GROUPS for name in (DATASET_FILE, "*.nii", "*.nii.gz"))),
    mark=LESIONS_FILE,
)
# One row for each connected component of tumor voxels. ``stage`` is its size group, or "too_small"; its place is that
# of its middle voxel, from the scan's origin.
COLUMNS = (
    "case", "number", "stage", "voxels", "volume_mm3", "radius_mm", "right_mm", "anterior_mm", "superior_mm"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SplitCase:
    """What became of a case.

    Attributes:
        case: The case.
        rows: Its components as rows of ``COLUMNS``.
        left_out: Why nothing was written; half a sentence that follows its id, None if maps were written.
        error: Why it could not be read; None if it could.
    """

    case: Case
    rows: tuple[Row, ...] = ()
    left_out: str | None = None
    error: str | None = None

    @property
    def written(self) -> bool:
        """Whether there are label maps of it."""
        return self.left_out is None and self.error is None

    def count(self, group: str) -> int:
        """Return the number of components of a size group, or of those that are ``"too_small"``."""
        return sum(row["stage"] == group for row in self.rows)


def read_label_cases(labels: Path, names: Mapping[str, int] | None) -> tuple[CaseList, bool]:
    """Read a label map, a folder of label maps, or a list of cases with CTs.

    Args:
        labels: The file or folder.
        names: What the numbers of the label maps mean; by default what comes with them says so.

    Returns:
        The cases, and whether CTs come with them; without, the label map stands for the CT.

    Raises:
        CaseListError: There are no cases, or they are malformed.
    """
    if labels.is_file() and is_nifti(labels):
        maps, folder = {case_id(labels): labels}, labels.parent
    elif holds_label_maps(labels) or (
        labels.is_dir() and not (labels / DATASET_FILE).is_file() and not any(labels.glob("*/ct.nii*"))
    ):
        maps, folder = label_maps(labels), labels
    else:
        cases = read_cases(labels)
        return (cases if names is None else replace(cases, label_names=names)), True
    if names is None:
        names = label_names_of(folder)
    return CaseList(tuple(Case(name, path, path) for name, path in maps.items()), names, labels), False


def only_organ(cases: CaseList) -> Organ:
    """Return the only organ whose tumors the label names hold.

    Raises:
        ConfigError: There is none, or more than one.
    """
    found = [organ for organ in ORGANS.values() if _has_tumor_label(cases.label_names, organ)]
    if len(found) != 1:
        several = " or ".join(organ.name for organ in found) if found else "none that is known"
        raise ConfigError(
            f"--organ is not given, and the label names of {cases.source} leave it open ({several}): "
            f"give one of --organ {', '.join(ORGANS)}."
        )
    return found[0]


def split_by_size(
    cases: CaseList, organ: Organ, out: Path, rule: SizeRule, *, with_lists: bool, done: Callable[[SplitCase], None]
) -> tuple[SplitCase, ...]:
    """Write the early and the late tumors of all cases to a folder, which is replaced as a whole.

    Args:
        cases: With labels.
        organ: Where the tumors are.
        out: Folder of the results.
        rule: Which tumors are early.
        with_lists: Whether to write lists for stage 2 as well; needs cases with CTs.
        done: Called after every case.

    Returns:
        What became of each case, in order.

    Raises:
        CaseListError: No case has such tumors.
    """
    split: list[SplitCase] = []
    with folder_written_whole(out) as staging:
        for case in cases.cases:
            try:
                found = split_case(case, cases, organ, staging, rule)
            except ConfigError:  # wrong for all cases
                raise
            except Exception as error:  # whatever is wrong with one label map
                if isinstance(error, OSError) and error.errno in NO_ROOM:  # no case can be written
                    raise
                found = SplitCase(case=case, error=sentence_of(error))
            split.append(found)
            done(found)
        written = [each for each in split if each.written]
        if not written:
            failed = sum(each.error is not None for each in split)
            what = f"{failed} of {len(split)} could not be read" if failed else "all could be read"
            raise CaseListError(
                f"No case of {cases.source} has {organ.name} tumors ({what}): give label maps that mark them, another "
                "--organ, or say with --labels what the numbers mean."
            )
        write_csv(staging / LESIONS_FILE, Table.of_records(COLUMNS, [row for each in written for row in each.rows]))
        if with_lists:
            write_size_lists(staging, [each.case for each in written], organ, validation_ids=cases.validation_ids)
    return tuple(split)


def split_case(case: Case, cases: CaseList, organ: Organ, folder: Path, rule: SizeRule) -> SplitCase:
    """Write the label maps ``early/<case>.nii.gz`` and ``late/<case>.nii.gz`` of a case with tumors.

    Both are on the grid of its labels, with 0 background, 1 organ, 2 tumors of the group; other tumors count as organ.

    Args:
        case: With labels.
        cases: The list it comes from, which says what its labels mean.
        organ: Where the tumors are.
        folder: Where to write.
        rule: Which tumors are early.

    Raises:
        DiffTumorError: The labels cannot be used, or contradict the list.
        CaseListError: The case's id is not a file name.
    """
    if Path(case.id).name != case.id:
        raise CaseListError(f"Case id {case.id!r} of {cases.source} cannot name a file: give it one without slashes.")
    seen: list[Volume] = []
    found = sort_cases(replace(cases, cases=(case,)), organ, look=lambda _, labels: seen.append(labels))
    if not seen:
        reason = found.left_out[0].reason if found.left_out else f"has no {organ.name} tumor"
        return SplitCase(case=case, left_out=reason)
    (labels,) = seen
    lesions = find_lesions(labels.data == TUMOR, labels.grid)
    for group in SIZE_GROUPS:
        kept = [lesion.index for lesion in rule.choose(lesions, group)]
        write_labels(_map(folder, group, case), lesions.keep(kept, labels.data), labels)
    rows: list[Row] = []
    for lesion in lesions.lesions:
        size = (rule.group(lesion) or "too_small", lesion.voxels, lesion.volume_mm3, lesion.radius_mm)
        place_mm = labels.grid.position_mm(lesions.middle_voxel(lesion))
        rows.append(dict(zip(COLUMNS, (case.id, lesion.index, *size, *place_mm), strict=True)))
    return SplitCase(case=case, rows=tuple(rows))


def write_size_lists(folder: Path, cases: Sequence[Case], organ: Organ, *, validation_ids: Collection[str]) -> None:
    """Write ``early/dataset.json`` and ``late/dataset.json``, which stage 2 takes as ``data.root``.

    Both list all cases and state that they have tumors, so that a case without tumors of the group does not count as
    healthy, and folds are those of the list that the cases come from.

    Args:
        folder: Where ``split_case`` wrote the label maps.
        cases: The cases that it wrote.
        organ: Where the tumors are.
        validation_ids: Cases that are set apart for validation.
    """
    names = {"background": BACKGROUND, organ.name: ORGAN, f"{organ.name}_tumor": TUMOR}
    for group in SIZE_GROUPS:
        file = folder / group / DATASET_FILE
        grouped = [replace(case, labels=_map(folder, group, case), tumor_organs=(organ.name,)) for case in cases]
        listed = CaseList(tuple(grouped), names, file, tuple(validation_ids))
        write_case_list(file, listed, name=f"{group} {organ.name} tumors")


def _has_tumor_label(names: Mapping[str, int], organ: Organ) -> bool:
    try:
        return bool(resolve_labels(names, organ).tumor)
    except OrganError:
        return False


def _map(folder: Path, group: SizeGroup, case: Case) -> Path:
    return folder / group / f"{case.id}.nii.gz"
