"""Which cases are pictured, and what of them."""

import nibabel
import numpy as np
import pytest

from difftumor.evaluation.cohort.cases import Rules
from difftumor.evaluation.cohort.methods import evaluate_method
from difftumor.evaluation.cohort.pairs import find_pairs, read_truth
from difftumor.evaluation.cohort.worst_cases import cts_of, worst_cases, worst_cases_figure
from difftumor.scans.organs import get_organ
from tests.evaluation.cohort.methods import method, scored

LPS = np.array([[-2.0, 0, 0, 60], [0, -2, 0, 60], [0, 0, 3, 0], [0, 0, 0, 1]])
SHAPE = (40, 40, 20)


def test_missed_tumors_come_first_then_false_ones():
    cases = [
        scored("good", (3,), (3,)), scored("half", (3,), (3, 9)), scored("missed", (), (3,)),
        scored("false", (3,), ()), scored("healthy", (), ()), scored("two false", (3, 9), ()),
    ]  # fmt: skip
    assert [case.case for case in worst_cases(method("m", *cases), 9)] == ["missed", "half", "two false", "false"]
    assert [case.case for case in worst_cases(method("m", *cases), 1)] == ["missed"]
    assert worst_cases(method("m", *cases), 0) == []


@pytest.fixture
def folders(tmp_path):
    """A case in LPS whose tumor, at the patient's right, is missed; what is predicted lies at the left."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[4:36, 4:36, 2:18] = 1
    prediction = truth.copy()
    truth[6:14, 18:22, 8:12] = 2
    prediction[28:32, 18:22, 8:12] = 2
    ct = np.where(truth == 2, -20, np.where(truth == 1, 100, -900)).astype(np.int16)
    for name, data in (("labels", truth), ("predictions", prediction), ("cts", ct)):
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(data, LPS), tmp_path / name / "a.nii.gz")
    return tmp_path


def shown(folders, with_ct: bool):
    cohort = find_pairs(folders / "predictions", read_truth(folders / "labels", get_organ("liver")))
    found = evaluate_method("m", cohort, Rules())
    cts = cts_of(found, folders / "cts" if with_ct else None)
    assert set(cts) == ({"a"} if with_ct else set())
    return worst_cases_figure(worst_cases(found, 4), found, Rules(), cts)


@pytest.mark.parametrize("with_ct", [True, False])
def test_the_patients_right_is_at_the_left(folders, with_ct):
    """The missed tumor, the largest wrong piece, is at small x of an LPS array: right, so left in the picture."""
    figure = shown(folders, with_ct)
    truth, prediction = figure.axes[0].images
    image = np.asarray(truth.get_array())
    assert np.array_equal(image, np.asarray(prediction.get_array()))
    if with_ct:
        assert np.nonzero((image < 0) & (image > -100))[1].mean() < image.shape[1] / 2
    else:
        assert set(np.unique(image)) == {-110.0, 40.0}


def test_a_ct_of_another_grid_is_not_shown(folders):
    nibabel.save(nibabel.Nifti1Image(np.full((9, 9, 9), -500, np.int16), np.eye(4)), folders / "cts" / "a.nii.gz")
    image = np.asarray(shown(folders, with_ct=True).axes[0].images[0].get_array())
    assert set(np.unique(image)) == {-110.0, 40.0}
