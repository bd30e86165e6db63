"""The public function, on arrays and on folders."""

import json

import numpy as np
import pytest

from difftumor.errors import CaseListError, ConfigError
from difftumor.evaluation.cohort.cases import evaluate_case
from difftumor.evaluation.cohort.evaluate import evaluate
from difftumor.evaluation.metrics.detection import Matching
from tests.evaluation.cohort.methods import GRID, label_map
from tests.nifti import write_nifti

SPACING_MM = (1.0, 1.0, 2.0)


def test_arrays_give_the_scores_of_a_case():
    prediction, truth = label_map(3), label_map(4, 9)
    strict = Matching(rule="iou", minimum_iou=0.5)
    assert evaluate(prediction, truth, spacing_mm=SPACING_MM) == evaluate_case("", prediction, truth, GRID)
    assert evaluate(prediction, truth, spacing_mm=SPACING_MM).detection.found == 1
    assert evaluate(prediction, truth, spacing_mm=SPACING_MM, matching=strict).detection.found == 0


@pytest.mark.parametrize(
    ("prediction", "more", "words"),
    [
        (label_map(3), {}, "spacing_mm is None"),
        (label_map(3), {"spacing_mm": (1, 0, 1)}, "give the voxel size"),
        (label_map(3) == 2, {"spacing_mm": SPACING_MM}, "predictions is not a 3-D label map"),
        (label_map(3) * 2, {"spacing_mm": SPACING_MM}, "predictions is not a 3-D label map"),
        (label_map(3)[:9], {"spacing_mm": SPACING_MM}, "differ in shape"),
        (label_map(3), {"spacing_mm": SPACING_MM, "tolerance_mm": -1}, "tolerance"),
    ],
)
def test_arrays_that_are_not_label_maps_are_refused(prediction, more, words):
    with pytest.raises(ConfigError, match=words):
        evaluate(prediction, label_map(3), **more)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_folders_give_an_evaluation_that_can_be_saved(tmp_path, kind):
    for folder, tumor in (("predictions", 3), ("labels", 3), ("others", 9)):
        write_nifti(tmp_path / folder / "a.nii.gz", label_map(tumor), GRID.affine)
    predictions, labels, others = (kind(tmp_path / folder) for folder in ("predictions", "labels", "others"))
    found = evaluate(predictions, labels, organ="liver", compare={"other": others})
    found.check_whole()
    assert found.results == [evaluate_case("a", label_map(3), label_map(3), GRID)]
    assert found.summary["detection"]["sensitivity"]["hits"] == 1
    assert found.tests["other"]["tumor_dsc"]["difference"] == -1
    with pytest.raises(ConfigError, match="give its name"):
        evaluate(predictions, labels)
    with pytest.raises(ConfigError, match="Two methods are called predictions"):
        evaluate(predictions, labels, organ="liver", compare={"predictions": others})
    if kind is str:
        assert found.save(kind(tmp_path / "out"), worst=0).startswith("# Evaluation: liver")
        assert (tmp_path / "out" / "report.html").is_file()


@pytest.fixture
def cohort(tmp_path):
    """Predictions and labels of one case with tumor, found exactly, and a healthy one."""
    for folder in ("predictions", "labels"):
        write_nifti(tmp_path / folder / "a.nii.gz", label_map(3), GRID.affine)
        write_nifti(tmp_path / folder / "b.nii.gz", label_map(), GRID.affine)
    return tmp_path


def evaluated(cohort, labels=None, **more):
    return evaluate(cohort / "predictions", labels or cohort / "labels", organ="liver", **more)


def test_numbers_are_those_of_the_data_set(cohort):
    """A truth that numbers spleen, liver and its tumor 1, 5, 6 in a dataset.json beside the folder."""
    for case, tumors in (("a", (3,)), ("b", ())):
        numbered = np.array([0, 5, 6], np.uint8)[label_map(*tumors)]
        numbered[0, 0, 0] = 1
        write_nifti(cohort / "labels" / f"{case}.nii.gz", numbered, GRID.affine)
    with pytest.raises(CaseListError, match="holds label"):
        evaluated(cohort)
    names = {"background": 0, "spleen": 1, "liver": 5, "liver_tumor": 6}
    entries = [{"image": f"labels/{case}.nii.gz", "label": f"labels/{case}.nii.gz"} for case in ("a", "b")]
    (cohort / "dataset.json").write_text(json.dumps({"labels": names, "training": entries}))
    assert [result.organ.dsc for result in evaluated(cohort).results] == [1, 1]


def test_patients_are_those_of_the_list(cohort):
    listed = cohort / "cases.csv"
    listed.write_text("image,labels,patient\nlabels/a.nii.gz,labels/a.nii.gz,p\nlabels/b.nii.gz,labels/b.nii.gz,p\n")
    summary = evaluated(cohort, listed).summary
    assert summary["patients"] == 1
    assert summary["detection"]["patient_sensitivity"]["total"] == 1
    assert summary["detection"]["patient_specificity"]["total"] == 0


def test_no_ct_is_needed(cohort):
    """The dataset.json beside the labels names CTs that were never copied."""
    entry = {"image": "imagesTr/a.nii.gz", "label": "labels/a.nii.gz"}
    names = {"background": 0, "liver": 1, "liver_tumor": 2}
    (cohort / "dataset.json").write_text(json.dumps({"labels": names, "training": [entry]}))
    evaluated(cohort).check_whole()


@pytest.mark.parametrize(
    ("beside", "refused"),
    [
        ({"difftumor_version": "0.1.0", "organ": "kidney"}, True),
        ({"difftumor_version": "0.1.0", "organ": "liver"}, False),
        ({"difftumor_version": "0.1.0", "organ": None}, False),  # a model that does not say it
        ({"organ": "kidney"}, False),  # another program's
        (["kidney"], False),
    ],
)
def test_predictions_of_another_organ_are_refused(cohort, beside, refused):
    (cohort / "predictions" / "b.json").write_text(json.dumps(beside))
    found = evaluated(cohort)
    assert [result.case for result in found.results] == (["a"] if refused else ["a", "b"])
    if refused:
        with pytest.raises(CaseListError, match=r"b\.nii\.gz is a prediction of kidney"):
            found.check_whole()


def test_bad_probabilities_are_named(cohort):
    wrong = np.full(GRID.shape, 7, np.float32)
    for case in ("a", "b"):
        write_nifti(cohort / "predictions" / "probabilities" / f"{case}.nii.gz", wrong, GRID.affine)
    with pytest.raises(CaseListError, match="has no probabilities from 0 to 1"):
        evaluated(cohort, froc=True).check_whole()


def test_tumors_alone_are_scored_whatever_organ_was_predicted(cohort):
    """A prediction of another organ: its organ does not count, nor do cases differ by whether it holds one."""
    for case in "ab":
        record = {"difftumor_version": "1", "organ": "kidney"}
        (cohort / "predictions" / f"{case}.json").write_text(json.dumps(record))
    with pytest.raises(CaseListError, match="prediction of kidney"):
        evaluated(cohort)
    found = evaluated(cohort, tumor_only=True)
    found.check_whole()
    assert [result.organ for result in found.results] == [None, None]
    assert found.summary["settings"]["tumor_only"]
    assert found.summary["scores"]["all_cases"]["organ_dsc"]["mean"] is None
    assert found.summary["scores"]["cases_with_tumor"]["tumor_dsc"]["mean"] == 1
    text = found.save(cohort / "out", worst=1)
    assert "| Organ DSC | all cases | – | – | – | – | 0 | 0 |" in text
    assert evaluate(label_map(3), label_map(3), spacing_mm=SPACING_MM, tumor_only=True).organ is None


def test_predictions_that_say_they_hold_tumors_alone_have_no_organ_scores(cohort):
    record = {"difftumor_version": "1", "organ": "liver", "trained_on": "kidney", "tumor_only": True}
    write_nifti(cohort / "predictions" / "a.nii.gz", (label_map(3) == 2) * np.uint8(2), GRID.affine)
    (cohort / "predictions" / "a.json").write_text(json.dumps(record))
    first, second = evaluated(cohort).results
    assert (first.organ, first.tumor.dsc, second.organ.dsc) == (None, 1, 1)
