"""Pairs of predictions and truth: what is refused, and when."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from difftumor.errors import CaseListError, GridMismatchError, VolumeError
from difftumor.evaluation.pairs import evaluate_pair, find_pairs
from difftumor.organs import get_organ

LIVER = get_organ("liver")


def save(path: Path, highest: int, *, shift_mm: float = 0.0) -> Path:
    path.parent.mkdir(exist_ok=True)
    affine = np.eye(4)
    affine[0, 3] = shift_mm
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1:4, 1:4, 1:4] = np.minimum(1, highest)
    labels[2, 2, 2] = highest
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Predictions and truth of the cases a and b."""
    for case in ("a", "b"):
        save(tmp_path / "predictions" / f"{case}.nii.gz", 2)
        save(tmp_path / "labels" / f"{case}.nii.gz", 2)
    return tmp_path / "predictions", tmp_path / "labels"


def test_pairs_come_in_the_order_of_their_ids(folders):
    assert [pair.case for pair in find_pairs(*folders, LIVER).pairs] == ["a", "b"]


def test_grids_are_compared_before_voxels_are_read(folders):
    predictions, labels = folders
    save(predictions / "b.nii.gz", 2, shift_mm=3)
    with pytest.raises(GridMismatchError, match=r"b\.nii\.gz"):
        find_pairs(predictions, labels, LIVER)


def test_grids_are_compared_again_when_voxels_are_read(folders):
    predictions, labels = folders
    cohort = find_pairs(predictions, labels, LIVER)
    save(predictions / "a.nii.gz", 2, shift_mm=3)
    with pytest.raises(GridMismatchError, match=r"a\.nii\.gz"):
        evaluate_pair(cohort.pairs[0], cohort)


@pytest.mark.parametrize("part", [0, 1])
def test_labels_over_two_are_refused(folders, part):
    save(folders[part] / "a.nii.gz", 3)
    cohort = find_pairs(*folders, LIVER)
    with pytest.raises(VolumeError, match=r"a\.nii\.gz holds label 3"):
        evaluate_pair(cohort.pairs[0], cohort)


def test_two_files_of_one_case_are_refused(folders):
    predictions, labels = folders
    save(predictions / "a_0000.nii", 2)
    with pytest.raises(CaseListError, match=r"keep one of them"):
        find_pairs(predictions, labels, LIVER)
