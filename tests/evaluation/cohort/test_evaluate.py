"""The public function, on arrays and on folders; tests/cli/evaluation/test_predict_evaluate.py has all its options."""

import doctest

import nibabel
import pytest

from difftumor.errors import ConfigError
from difftumor.evaluation.cohort import evaluate as module
from difftumor.evaluation.cohort.cases import evaluate_case
from difftumor.evaluation.cohort.evaluate import evaluate
from difftumor.evaluation.metrics.detection import Matching
from tests.evaluation.cohort.methods import GRID, label_map

SPACING_MM = (1.0, 1.0, 2.0)


def test_the_example_runs():
    assert doctest.testmod(module).attempted == 7
    assert doctest.testmod(module).failed == 0


def test_arrays_give_the_scores_of_a_case():
    prediction, truth = label_map(3), label_map(4, 9)
    strict = Matching(rule="iou", minimum_iou=0.5)
    assert evaluate(prediction, truth, spacing_mm=SPACING_MM) == evaluate_case("", prediction, truth, GRID)
    assert evaluate(prediction, truth, spacing_mm=SPACING_MM).detection.found == 1
    assert evaluate(prediction, truth, spacing_mm=SPACING_MM, matching=strict).detection.found == 0


@pytest.mark.parametrize(
    ("prediction", "more", "words"),
    [
        (label_map(3), {}, "no voxel size"),
        (label_map(3) == 2, {"spacing_mm": SPACING_MM}, "predictions is not a 3-D label map"),
        (label_map(3) * 2, {"spacing_mm": SPACING_MM}, "predictions is not a 3-D label map"),
        (label_map(3)[:9], {"spacing_mm": SPACING_MM}, "differ in shape"),
        (label_map(3), {"spacing_mm": SPACING_MM, "tolerance_mm": -1}, "tolerance"),
    ],
)
def test_arrays_that_are_no_label_maps_are_refused(prediction, more, words):
    with pytest.raises(ConfigError, match=words):
        evaluate(prediction, label_map(3), **more)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_folders_give_an_evaluation_that_can_be_saved(tmp_path, kind):
    for folder, tumor in (("predictions", 3), ("labels", 3), ("others", 9)):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(label_map(tumor), GRID.affine), tmp_path / folder / "a.nii.gz")
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
