"""Summaries: means and shares by hand, with intervals, over cases, folds and patients."""

import json

import numpy as np
import pytest

from difftumor.evaluation.cohort.rows import CASE_COLUMNS, LESION_COLUMNS, SCORES, case_rows, lesion_rows
from difftumor.evaluation.cohort.statistics import wilson_interval
from difftumor.evaluation.cohort.summary import summarize, summarize_folds
from tests.evaluation.cohort.methods import scored


@pytest.fixture
def cases():
    return [
        scored("ill", (3,), (3, 9)),  # one of two found
        scored("healthy", (), ()),
        scored("false", (6,), ()),
        scored("unlabeled", (6, 10), (), labeled=False),
    ]


@pytest.fixture
def results(cases):
    return [case.result for case in cases]


def test_organ_includes_its_tumors(results):
    assert [result.organ.dsc for result in results[:3]] == [1.0, 1.0, 1.0]
    assert [result.tumor.dsc for result in results[:3]] == [pytest.approx(2 / 3), 1.0, 0.0]


def test_rows_of_cases(cases):
    rows = case_rows(cases, {"ill": "1"})
    assert [tuple(row) for row in rows] == [CASE_COLUMNS] * 4
    assert CASE_COLUMNS[:5] == ("case", "organ_dsc", "organ_nsd", "tumor_dsc", "tumor_nsd")
    ill, healthy, false, unlabeled = rows
    assert (ill["tumors"], ill["tumors_found"], ill["false_positives"]) == (2, 1, 0)
    assert (ill["tumor_empty"], healthy["tumor_empty"], false["tumor_empty"]) == ("neither", "both", "truth")
    assert ill["tumor_volume_error_ml"] == pytest.approx(-16 / 1000)
    assert (ill["fold"], healthy["fold"]) == ("1", None)
    assert {unlabeled[name] for name in SCORES} == {None}
    assert unlabeled["false_positives"] == 2


def test_lesions_name_their_fate(results):
    rows = lesion_rows(results[:3])
    assert [(row["case"], row["kind"]) for row in rows] == [("ill", "found"), ("ill", "missed"), ("false", "false")]
    assert all(tuple(row) == LESION_COLUMNS for row in rows)
    assert rows[0]["volume_mm3"] == pytest.approx(16)
    assert (rows[0]["right_mm"], rows[0]["superior_mm"]) == (3.5, 9.0)
    assert rows[0]["overlap_voxels"] == 8
    assert rows[1]["found_diameter_mm"] is None


def test_means_over_all_cases_and_over_those_with_tumor(results):
    scores = summarize(results, unlabeled=["unlabeled"])["scores"]
    dsc = scores["all_cases"]["tumor_dsc"]
    assert dsc["mean"] == pytest.approx((2 / 3 + 1 + 0) / 3)  # The scan without labels has no score.
    assert dsc["sd"] == pytest.approx(np.std([2 / 3, 1, 0], ddof=1))
    assert dsc["median"] == pytest.approx(2 / 3)
    assert dsc["by_rule"] == 2
    assert dsc["interval"][0] < dsc["mean"] < dsc["interval"][1]
    ill = scores["cases_with_tumor"]["tumor_dsc"]
    assert (ill["mean"], ill["sd"], ill["count"], ill["interval"]) == (pytest.approx(2 / 3), None, 1, None)


def test_detection_counts_scans_without_labels(results):
    summary = summarize(results, unlabeled=["unlabeled"])
    detection = summary["detection"]
    assert (summary["cases"], summary["cases_with_tumor"], summary["healthy_cases"]) == (4, 1, 3)
    assert summary["unlabeled_cases"] == 1
    low, high = vars(wilson_interval(1, 2)).values()
    assert detection["sensitivity"] == {
        "value": 0.5,
        "hits": 1,
        "total": 2,
        "interval": [low, high],
        "patients_interval": None,
    }
    assert detection["patient_specificity"]["hits"] == 1
    assert detection["patient_specificity"]["total"] == 3
    assert detection["false_positives_per_scan"] == 3 / 4
    # One true positive, three false ones, one miss.
    assert detection["f1"] == pytest.approx(2 / 6)
    assert detection["f1_interval"][0] <= 2 / 6 <= detection["f1_interval"][1]
    assert detection["sensitivity_by_radius"]["over 10 mm"]["interval"] is None


def test_intervals_are_of_patients(results):
    """Where all scans are one patient's, there is no interval."""
    summary = summarize(results, patients={result.case: "one" for result in results})
    assert summary["patients"] == 1
    assert summary["scores"]["all_cases"]["tumor_dsc"]["interval"] is None
    assert summary["detection"]["false_positives_per_scan_interval"] is None


def test_summaries_repeat_and_are_json(results):
    assert json.dumps(summarize(results, seed=3), allow_nan=False) == json.dumps(summarize(results, seed=3))
    assert summarize([])["cases"] == 0
    json.dumps(summarize([]), allow_nan=False)


def test_patients_are_counted_once():
    """One has two scans with a tumor, one of them missed, and a healthy one; the other a false alarm in one of two."""
    cases = [
        scored("a1", (3,), (3,)), scored("a2", (), (3,)), scored("a3", (), ()), scored("b1", (), ()),
        scored("b2", (9,), ()),
    ]  # fmt: skip
    results = [case.result for case in cases]
    patients = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b"}
    detection = summarize(results, patients=patients)["detection"]
    assert (detection["patient_sensitivity"]["hits"], detection["patient_sensitivity"]["total"]) == (1, 1)
    assert (detection["patient_specificity"]["hits"], detection["patient_specificity"]["total"]) == (0, 1)
    by_scan = summarize(results)["detection"]
    assert (by_scan["patient_sensitivity"]["hits"], by_scan["patient_sensitivity"]["total"]) == (1, 2)
    assert (by_scan["patient_specificity"]["hits"], by_scan["patient_specificity"]["total"]) == (2, 3)


def test_tumors_of_one_patient_are_not_independent():
    """Eight tumors, all of a patient found or none: the interval over patients is the wide one."""
    cases = [scored(f"{n}", (3, 9) if n % 2 else (), (3, 9)) for n in range(4)]
    rate = summarize([case.result for case in cases])["detection"]["sensitivity"]
    assert rate["patients_interval"] == [0.0, 1.0]
    assert rate["interval"][0] > 0.1
    small = summarize([case.result for case in cases])["detection"]["sensitivity_by_radius"]
    assert small["up to 5 mm"]["patients_interval"] == [0.0, 1.0]
    assert small["over 10 mm"]["patients_interval"] is None


def test_level_and_seed_reach_the_intervals(results):
    usual, narrow = summarize(results), summarize(results, level=0.5)
    dsc = [each["scores"]["all_cases"]["tumor_dsc"]["interval"] for each in (usual, narrow)]
    assert dsc[1][1] - dsc[1][0] < dsc[0][1] - dsc[0][0]
    assert narrow["detection"]["sensitivity"]["interval"] != usual["detection"]["sensitivity"]["interval"]


def test_folds_by_hand():
    """Fold means 1 and (2/3 + 0) / 2; their average is not the mean of the three pooled cases."""
    cases = [scored("a", (3,), (3,)), scored("b", (3,), (3, 9)), scored("c", (6,), (3,)), scored("d", (), ())]
    folds = summarize_folds([case.result for case in cases], {"a": "10", "b": "2", "c": "2", "d": "2"})
    assert folds["names"] == ["2", "10"]
    dsc = folds["scores"]["tumor_dsc"]
    assert dsc["by_fold"] == {"10": 1.0, "2": pytest.approx(1 / 3)}
    assert dsc["average"] == pytest.approx(2 / 3)
    assert dsc["sd"] == pytest.approx(np.std([1, 1 / 3], ddof=1))
    assert dsc["pooled"] == pytest.approx(5 / 9)  # The healthy case d has no tumor score.
    assert folds["scores"]["organ_dsc"]["pooled"] == 1
