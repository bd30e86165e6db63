"""Methods held against each other on the scans that both have."""

import pytest

from difftumor.evaluation.cohort.comparison import MEASURES, compare_methods
from difftumor.evaluation.cohort.statistics import holm
from tests.evaluation.cohort.methods import method, scored


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


def test_by_hand(methods):
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
