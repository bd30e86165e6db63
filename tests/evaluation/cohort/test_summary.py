"""Summaries by hand: means and shares with intervals over cases and patients, and tests of two methods."""

import json

import numpy as np
import pytest

from difftumor.evaluation.cohort.statistics import holm, wilson_interval
from difftumor.evaluation.cohort.summary import MEASURES, compare_methods, summarize
from tests.evaluation.cohort.methods import method, scored


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
    """A single patient has no interval."""
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


@pytest.fixture
def methods():
    """Six scans of five patients: the second method misses what the first one finds, and sees more."""
    places = {"a": (3,), "b": (3,), "c": (9,), "d": (9,), "e": (3, 9)}
    first = method("first", *(scored(case, true, true) for case, true in places.items()), scored("h", (), ()))
    second = method(
        "second", *(scored(case, (12,), true) for case, true in places.items()), scored("h", (5,), ()),
        scored("only here", (), (3,)),
    )  # fmt: skip
    return first, second


def test_methods_are_compared_on_shared_scans(methods):
    first, second = methods
    found = compare_methods(first, {"second": second})["second"]
    assert set(found) == set(MEASURES)
    dsc = found["tumor_dsc"]
    assert (dsc["cases"], dsc["patients"]) == (5, 5)  # without the healthy scan and the one that only one has
    assert (dsc["first"], dsc["second"], dsc["difference"]) == (1.0, 0.0, -1.0)
    assert dsc["permutation_p"] == pytest.approx(2 / 32)
    assert found["sensitivity"]["difference"] == -1
    assert (dsc["first"] - dsc["second"]) == -dsc["difference"]
    assert found["false_positives"]["cases"] == 6
    assert found["false_positives"]["difference"] == 1


def test_holm_is_over_all_methods_and_measures(methods):
    first, second = methods
    found = compare_methods(first, {"second": second, "same": first})
    p_values = {(name, m): row["permutation_p"] for name, rows in found.items() for m, row in rows.items()}
    assert len(p_values) == 12
    adjusted = holm(p_values)
    assert {(n, m): row["permutation_holm"] for n, rows in found.items() for m, row in rows.items()} == adjusted
    assert found["same"]["tumor_dsc"]["wilcoxon_p"] == 1
    assert compare_methods(first, {}) == {}


def test_scans_of_one_patient_are_one():
    cases = [("a", "p"), ("b", "p"), ("c", "q")]
    first = method("first", *(scored(case, (3,), (3,), patient=patient) for case, patient in cases))
    second = method("second", *(scored(case, (), (3,), patient=patient) for case, patient in cases))
    assert compare_methods(first, {"second": second})["second"]["tumor_dsc"]["patients"] == 2


def test_what_no_shared_scan_has_is_left_out():
    healthy = method("first", scored("h", (), ()))
    found = compare_methods(healthy, {"second": healthy})["second"]
    assert set(found) == {"organ_dsc", "organ_nsd", "false_positives"}
