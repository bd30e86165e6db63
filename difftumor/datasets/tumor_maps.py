"""Label maps that hold the tumors of one stage each, and lists of them that stage 2 can be trained from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from difftumor.datasets.cases import Case, CaseList
from difftumor.datasets.list_writing import write_case_list
from difftumor.datasets.tumor_cases import sort_cases
from difftumor.datasets.tumor_stages import TUMOR_STAGES, TumorStage, center_mm, keep_lesions, split_tumors
from difftumor.errors import CaseListError
from difftumor.organs import BACKGROUND, ORGAN, TUMOR, Organ
from difftumor.volume import Volume, write_labels

DATASET_FILE = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class StagedTumor:
    """One connected component of tumor voxels, as a row of a table.

    Args:
        case: Id of the case.
        number: Among the components of the case, from 1.
        stage: ``"too_small"`` for a component that is no tumor.
        voxels: Number of voxels.
        volume_mm3: Volume.
        radius_mm: Equivalent radius.
        right_mm: Where its center is, from the scan's origin; the center is the voxel nearest to the centroid.
        anterior_mm: As ``right_mm``.
        superior_mm: As ``right_mm``.
    """

    case: str
    number: int
    stage: TumorStage | Literal["too_small"]
    voxels: int
    volume_mm3: float
    radius_mm: float
    right_mm: float
    anterior_mm: float
    superior_mm: float


@dataclass(frozen=True, kw_only=True)
class SplitCase:
    """What became of a case.

    Args:
        case: The case.
        tumors: Its components, in order of their numbers.
        left_out: Why nothing was written; half a sentence that follows its id, None where maps were written.
    """

    case: Case
    tumors: tuple[StagedTumor, ...] = ()
    left_out: str | None = None

    def count(self, stage: str) -> int:
        """Return the number of components of a stage."""
        return sum(tumor.stage == stage for tumor in self.tumors)


def split_case(
    case: Case, cases: CaseList, organ: Organ, folder: Path, *, early_radius_mm: float, minimum_voxels: int
) -> SplitCase:
    """Write the label maps ``early/<case>.nii.gz`` and ``late/<case>.nii.gz`` of a case with tumors.

    Both are on the grid of its labels, with 0 background, 1 organ, 2 tumors of the stage; other tumors count as organ.

    Args:
        case: With labels.
        cases: The list it is of, which says what its labels mean.
        organ: Where the tumors are.
        folder: Where to write.
        early_radius_mm: Largest equivalent radius of an early tumor.
        minimum_voxels: Smaller components are no tumors.

    Raises:
        DiffTumorError: The labels cannot be used, or contradict the list.
        CaseListError: The id of the case is no file name.
    """
    if Path(case.id).name != case.id:
        raise CaseListError(f"Case id {case.id!r} of {cases.source} cannot name a file: give it one without slashes.")
    seen: list[Volume] = []
    found = sort_cases(replace(cases, cases=(case,)), organ, look=lambda _, labels: seen.append(labels))
    if not seen:
        reason = found.left_out[0].reason if found.left_out else f"has no {organ.name} tumor"
        return SplitCase(case=case, left_out=reason)
    (labels,) = seen
    split = split_tumors(
        labels.data,
        labels.grid.spacing_mm,
        voxel_mm3=labels.grid.voxel_mm3,
        early_radius_mm=early_radius_mm,
        minimum_voxels=minimum_voxels,
    )
    for stage in TUMOR_STAGES:
        write_labels(_map(folder, stage, case), keep_lesions(labels.data, split, split.of_stage(stage)), labels)
    tumors = []
    for lesion in split.found:
        right_mm, anterior_mm, superior_mm = center_mm(lesion, labels.grid)
        tumor = StagedTumor(
            case=case.id,
            number=lesion.index,
            stage=lesion.stage or "too_small",
            voxels=lesion.voxels,
            volume_mm3=lesion.voxels * labels.grid.voxel_mm3,
            radius_mm=lesion.radius_mm,
            right_mm=right_mm,
            anterior_mm=anterior_mm,
            superior_mm=superior_mm,
        )
        tumors.append(tumor)
    return SplitCase(case=case, tumors=tuple(tumors))


def write_stage_lists(folder: Path, cases: Sequence[Case], organ: Organ, *, validation_ids: Collection[str]) -> None:
    """Write ``early/dataset.json`` and ``late/dataset.json``, which stage 2 takes for ``data.root``.

    Both list all cases and state that they have tumors, so that none is taken for healthy for want of a tumor of the
    stage, and folds are those of the list that the cases come from.

    Args:
        folder: Where ``split_case`` has written.
        cases: Those that it has written.
        organ: Where the tumors are.
        validation_ids: Cases that are set apart for validation.
    """
    names = {"background": BACKGROUND, organ.name: ORGAN, f"{organ.name}_tumor": TUMOR}
    for stage in TUMOR_STAGES:
        file = folder / stage / DATASET_FILE
        staged = [replace(case, labels=_map(folder, stage, case), tumor_organs=(organ.name,)) for case in cases]
        listed = CaseList(tuple(staged), names, file, tuple(validation_ids))
        write_case_list(file, listed, name=f"{stage} {organ.name} tumors")


def _map(folder: Path, stage: TumorStage, case: Case) -> Path:
    return folder / stage / f"{case.id}.nii.gz"
