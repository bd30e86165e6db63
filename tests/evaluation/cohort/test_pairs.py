"""Pairs of predictions and truth: which cases are refused, and that the others are evaluated."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from difftumor.datasets.label_folders import label_maps
from difftumor.errors import CaseListError, GridMismatchError, OrganError, VolumeError
from difftumor.evaluation.cohort.cases import NO_ORGAN, RESAMPLED, Rules, score_pair
from difftumor.evaluation.cohort.methods import evaluate_method
from difftumor.evaluation.cohort.pairs import find_pairs, read_pair, read_truth
from difftumor.scans.grid import Grid
from difftumor.scans.label_maps import resampled
from difftumor.scans.nifti import read_labels
from difftumor.scans.organs import get_organ

LIVER = get_organ("liver")


def save(path: Path, highest: float, *, shift_mm: float = 0.0, dtype: type = np.uint8) -> Path:
    path.parent.mkdir(exist_ok=True)
    affine = np.eye(4)
    affine[0, 3] = shift_mm
    labels = np.zeros((6, 6, 6), dtype)
    labels[1:4, 1:4, 1:4] = min(1, highest)
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


def paired(folders, **more):
    predictions, labels = folders
    return find_pairs(predictions, read_truth(labels, LIVER), **more)


def evaluate(folders, *, healthy=None, jobs=1, **rules):
    rules = Rules(**rules)
    cohort = paired(folders, healthy=healthy, resample=rules.resample)
    return evaluate_method("ours", cohort, rules, jobs=jobs)


def test_pairs_come_in_the_order_of_their_ids(folders):
    assert [pair.case for pair in paired(folders).pairs] == ["a", "b"]


def test_other_grids_are_a_problem_of_their_case(folders):
    save(folders[0] / "b.nii.gz", 2, shift_mm=3)
    method = evaluate(folders)
    assert [case.case for case in method.cases] == ["a"]
    assert list(method.problems) == ["b"]
    assert "b.nii.gz" in method.problems["b"]


def test_grids_are_compared_again_when_voxels_are_read(folders):
    cohort = paired(folders)
    save(folders[0] / "a.nii.gz", 2, shift_mm=3)
    with pytest.raises(GridMismatchError, match=r"a\.nii\.gz"):
        score_pair(cohort.pairs[0], cohort.truth, Rules())


def test_predictions_on_other_grids_are_resampled_on_request(folders):
    """Shifted by one voxel of 1 mm, 18 of 27 organ voxels overlap; the case says that it was resampled."""
    save(folders[0] / "b.nii.gz", 2, shift_mm=1)
    method = evaluate(folders, resample=True)
    by_case = method.by_case()
    assert by_case["b"].note == RESAMPLED
    assert by_case["a"].note == ""
    assert by_case["a"].result.organ.dsc == 1
    assert by_case["b"].result.organ.dsc == pytest.approx(2 * 18 / 54)
    save(folders[0] / "b.nii.gz", 2, shift_mm=100)
    assert "do not overlap in space" in evaluate(folders, resample=True).problems["b"]


def test_resampling_turns_and_refines(tmp_path):
    """A map in LPS at 2 mm, carried to RAS at 1 mm: every voxel gets what lies at its center."""
    generator = np.random.default_rng(0)
    data = generator.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    affine = np.array([[-2.0, 0, 0, 6], [0, -2, 0, 8], [0, 0, 2, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "a.nii.gz")
    like_affine = np.eye(4)
    like_affine[:3, 3] = 0.4, 0.4, 0.4
    nibabel.save(nibabel.Nifti1Image(np.zeros((7, 9, 11), np.uint8), like_affine), tmp_path / "b.nii.gz")
    found = resampled(read_labels(tmp_path / "a.nii.gz"), read_labels(tmp_path / "b.nii.gz"))
    assert found.grid.matches(Grid((7, 9, 11), like_affine))
    for voxel in np.ndindex(7, 9, 11):
        x, y, z = np.array(voxel) + 0.4
        nearest = round((6 - x) / 2), round((8 - y) / 2), round(z / 2)
        inside = all(0 <= index < size for index, size in zip(nearest, data.shape, strict=True))
        assert found.data[voxel] == (data[nearest] if inside else 0)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize(
    ("highest", "dtype", "words"), [(3, np.uint8, "holds label 3"), (1.5, np.float32, "is not a label map")]
)
def test_files_that_are_not_label_maps_are_a_problem_of_their_case(folders, part, highest, dtype, words):
    save(folders[part] / "a.nii.gz", highest, dtype=dtype)
    method = evaluate(folders)
    assert words in method.problems["a"]
    assert [case.case for case in method.cases] == ["b"]
    cohort = paired(folders)
    with pytest.raises(VolumeError, match=words):
        read_pair(cohort.pairs[0], cohort.truth)


def test_whole_numbers_as_floats_are_labels(folders):
    save(folders[0] / "a.nii.gz", 2, dtype=np.float32)
    assert not evaluate(folders).problems


@pytest.mark.parametrize("part", [0, 1])
def test_two_files_of_one_case_are_its_problem(folders, part):
    save(folders[part] / "a_0000.nii", 2)
    method = evaluate(folders)
    assert "keep one of them" in method.problems["a"]
    assert [case.case for case in method.cases] == ["b"]
    with pytest.raises(CaseListError, match=r"keep one of them"):
        label_maps(folders[part])


def test_missing_partners_are_listed(folders):
    predictions, labels = folders
    (predictions / "b.nii.gz").unlink()
    save(predictions / "c.nii.gz", 2)
    method = evaluate(folders)
    assert method.missing == ("b",)
    assert "holds no labels of c.nii.gz" in method.problems["c"]
    (labels / "a.nii.gz").unlink()
    with pytest.raises(CaseListError, match="No case"):
        evaluate(folders)


def test_healthy_scans_need_no_labels(folders, tmp_path):
    save(tmp_path / "healthy" / "c.nii.gz", 2)
    save(tmp_path / "healthy" / "d.nii.gz", 1)
    method = evaluate(folders, healthy=tmp_path / "healthy")
    cases = method.by_case()
    assert list(cases) == ["a", "b", "c", "d"]
    assert [case.labeled for case in method.cases] == [True, True, False, False]
    assert cases["c"].healthy
    assert cases["c"].result.organ is None
    assert len(cases["c"].result.detection.false_positives) == 1
    assert not cases["d"].result.detection.predicted_tumor


def test_a_scan_counts_once(folders, tmp_path):
    save(tmp_path / "healthy" / "a.nii.gz", 2)
    method = evaluate(folders, healthy=tmp_path / "healthy")
    assert "both hold the case a" in method.problems["a"]
    assert [case.case for case in method.cases] == ["b"]


def test_labels_that_nothing_names_are_a_problem_of_their_case(folders):
    labels = folders[1]
    names = {"background": 0, "liver": 1, "liver_tumor": 2}
    save(labels / "b.nii.gz", 7)
    (labels.parent / "dataset.json").write_text(json.dumps({"labels": names, "training": []}))
    method = evaluate(folders)
    assert "holds label 7" in method.problems["b"]
    assert [case.case for case in method.cases] == ["a"]


def test_labels_without_the_organ_have_no_scores_of_it(folders):
    """Its tumor alone is labeled: that the whole organ were false would be a lie."""
    tumor = np.zeros((6, 6, 6), np.uint8)
    tumor[2, 2, 2] = 2
    nibabel.save(nibabel.Nifti1Image(tumor, np.eye(4)), folders[1] / "a.nii.gz")
    case = evaluate(folders).by_case()["a"]
    assert case.result.organ is None
    assert case.note == NO_ORGAN
    assert case.result.tumor.dsc == 1
    assert case.labeled


def test_folders_of_cases_are_labels(tmp_path):
    """As AbdomenAtlas has them: CASE/ct.nii.gz and CASE/segmentations/liver.nii.gz."""
    (tmp_path / "labels" / "a").mkdir(parents=True)
    (tmp_path / "labels" / "a" / "segmentations").mkdir()
    save(tmp_path / "labels" / "a" / "ct.nii.gz", 1)
    save(tmp_path / "labels" / "a" / "segmentations" / "liver.nii.gz", 1)
    save(tmp_path / "predictions" / "a.nii.gz", 1)
    method = evaluate((tmp_path / "predictions", tmp_path / "labels"))
    assert method.by_case()["a"].result.organ.dsc == 1


@pytest.mark.parametrize("shape", [(6, 6, 6), (6, 6, 6, 3)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_probabilities_come_in_two_shapes(folders, shape, suffix):
    probability = np.zeros(shape, np.float32)
    (probability if len(shape) == 3 else probability[..., 2])[2, 2, 2] = 0.6
    for case in ("a", "b"):
        (folders[0] / "probabilities").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(probability, np.eye(4)), folders[0] / "probabilities" / f"{case}{suffix}")
    method = evaluate(folders, thresholds=(0.5, 0.7))
    assert [case.froc.found.tolist() for case in method.cases] == [[0, 1], [0, 1]]
    assert not method.troubles


def test_a_case_without_probabilities_keeps_its_scores(folders):
    method = evaluate(folders, thresholds=(0.5,))
    assert [case.result.tumor.dsc for case in method.cases] == [1, 1]
    assert "probabilities/a.nii.gz" in method.troubles["a"]
    with pytest.raises(CaseListError, match="2 of 2 cases of ours"):
        method.check_whole()


def test_probabilities_are_resampled_with_their_labels(folders):
    (folders[0] / "probabilities").mkdir()
    probability = np.zeros((6, 6, 6), np.float32)
    probability[3, 2, 2] = 0.8
    shifted = np.eye(4)
    shifted[0, 3] = -1
    for case in ("a", "b"):
        nibabel.save(nibabel.Nifti1Image(probability, shifted), folders[0] / "probabilities" / f"{case}.nii.gz")
    found = evaluate(folders, thresholds=(0.5,), resample=True)
    assert [case.froc.found.tolist() for case in found.cases] == [[1], [1]]
    refused = evaluate(folders, thresholds=(0.5,))
    assert "probabilities" in refused.troubles["a"]


def test_a_prediction_of_another_organ_is_a_problem_of_its_case(folders):
    (folders[0] / "a.json").write_text(json.dumps({"difftumor_version": "0.1.0", "organ": "kidney"}))
    method = evaluate(folders)
    assert "a prediction of kidney" in method.problems["a"]
    assert [case.case for case in method.cases] == ["b"]


@pytest.mark.slow
def test_processes_change_nothing(folders):
    save(folders[0] / "b.nii.gz", 3)
    one, two = evaluate(folders), evaluate(folders, jobs=2)
    assert one.problems == two.problems
    assert [case.result for case in one.cases] == [case.result for case in two.cases]


def test_what_is_labeled_to_be_ignored_is_not_scored(folders):
    predictions, labels = folders
    data = np.asarray(nibabel.load(labels / "a.nii.gz").dataobj).copy()
    data[4:] = 3
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), labels / "a.nii.gz")
    wrong = np.where(data == 3, 2, data).astype(np.uint8)  # tumor wherever nothing is known
    nibabel.save(nibabel.Nifti1Image(wrong, np.eye(4)), predictions / "a.nii.gz")
    names = {"background": 0, "liver": 1, "liver_tumor": 2, "ignore": 3}
    (labels.parent / "dataset.json").write_text(json.dumps({"labels": names}))
    case = next(case for case in evaluate(folders).cases if case.case == "a")
    assert (case.result.tumor.dsc, case.result.organ.dsc) == (1, 1)
    assert not case.result.detection.false_positives
    assert case.note == "33.3% of the scan is labeled to be ignored, and not scored"


def test_a_dataset_json_of_nnunet_in_either_folder_names_its_numbers(folders):
    predictions, labels = folders
    for case in "ab":
        data = np.asarray(nibabel.load(predictions / f"{case}.nii.gz").dataobj)
        nibabel.save(
            nibabel.Nifti1Image(np.array([0, 2, 1], np.uint8)[data], np.eye(4)), predictions / f"{case}.nii.gz"
        )
    content = {"labels": {"background": 0, "liver_tumor": 1, "liver": 2}, "numTraining": 2}
    (predictions / "dataset.json").write_text(json.dumps(content))
    content["labels"] = {"background": 0, "liver": 1, "liver_tumor": 2}
    (labels / "dataset.json").write_text(json.dumps(content))
    regions = {"labels": {"background": 0, "liver": [1, 2], "liver_tumor": 2}, "regions_class_order": [2, 1]}
    for written in (None, regions):
        if written:
            (predictions / "dataset.json").write_text(json.dumps(written))
        method = evaluate(folders)
        assert not method.problems
        assert [case.result.tumor.dsc for case in method.cases] == [1, 1]
    (predictions / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "spleen": 1}}))
    with pytest.raises(OrganError, match=r"dataset\.json hold no liver"):
        evaluate(folders)
