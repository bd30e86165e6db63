"""Tables in the shapes of the papers, and cases and lesions one by one."""

import pytest

from difftumor.evaluation.cohort.cases import SCORES
from difftumor.evaluation.cohort.combined import organ_tables
from difftumor.evaluation.cohort.evaluate import Evaluation
from difftumor.evaluation.cohort.tables import (
    best,
    case_table,
    folds_table,
    lesion_table,
    mean_sd,
    methods_table,
    p_value,
    sensitivity_table,
)
from tests.evaluation.cohort.methods import method, scored


def records(table):
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


@pytest.fixture(scope="module")
def cases():
    return [
        scored("ill", (3,), (3, 9)),  # one of two found
        scored("healthy", (), ()),
        scored("false", (6,), ()),
        scored("unlabeled", (6, 10), (), labeled=False),
    ]


def test_rows_of_cases(cases):
    table = case_table(cases, {"ill": "1"})
    assert table.header[:5] == ("case", "organ_dsc", "organ_nsd", "tumor_dsc", "tumor_nsd")
    ill, healthy, false, unlabeled = records(table)
    assert (ill["tumors"], ill["tumors_found"], ill["false_positives"]) == (2, 1, 0)
    assert (ill["tumor_empty"], healthy["tumor_empty"], false["tumor_empty"]) == ("neither", "both", "truth")
    assert ill["tumor_volume_error_ml"] == pytest.approx(-16 / 1000)
    assert (ill["fold"], healthy["fold"]) == ("1", None)
    assert {unlabeled[name] for name in SCORES} == {None}
    assert unlabeled["false_positives"] == 2


def test_lesions_name_their_fate(cases):
    rows = records(lesion_table(case.result for case in cases[:3]))
    assert [(row["case"], row["kind"]) for row in rows] == [("ill", "found"), ("ill", "missed"), ("false", "false")]
    assert rows[0]["volume_mm3"] == pytest.approx(16)
    assert (rows[0]["right_mm"], rows[0]["superior_mm"]) == (3.5, 9.0)
    assert rows[0]["overlap_voxels"] == 8
    assert rows[1]["found_diameter_mm"] is None


def test_the_best_is_bold_where_there_is_one():
    assert best([[1.0, None], [2.0, 3.0]], [[9, 9], [9, 9]]) == {(1, 1)}
    assert best([[2.0, 1.0], [2.0, 5.0], [1.0, 5.0]], [[9, 9]] * 3) == {(0, 1), (1, 1), (1, 2), (2, 2)}
    assert best([[2.0], [2.0]], [[9], [9]]) == frozenset()
    assert best([[2.0]], [[9]]) == frozenset()
    assert best([], []) == frozenset()
    assert best([[1.0, 1.0], [2.0, 2.0]], [[9, 9], [9, 8]]) == {(1, 1)}


def test_nothing_is_bold_where_methods_have_other_cases(evaluation):
    few = method("few", scored("b", (3,), (3,)))
    summaries = Evaluation(method=evaluation.method, others=(few,)).summaries
    tables = methods_table(summaries), sensitivity_table(summaries)
    assert tables[0].bold == tables[1].bold == frozenset()
    assert tables[0].rows[1][:3] == ("few", "100.0", "1")


def test_the_fewest_false_positives_are_bold():
    quiet, loud = method("quiet", scored("a", (3,), (3,))), method("loud", scored("a", (3, 9), (3,)))
    table = sensitivity_table(Evaluation(method=quiet, others=(loud,)).summaries)
    assert table.header[-1] == "FP per scan"
    assert (0, len(table.header) - 1) in table.bold
    assert (1, len(table.header) - 1) not in table.bold


def test_the_rules_stand_with_the_tables(evaluation):
    segmentation, detection = methods_table(evaluation.summaries), sensitivity_table(evaluation.summaries)
    assert segmentation.note == "NSD at 2 mm."
    assert "voxel in common" in detection.note
    assert "NSD at 2 mm." in segmentation.latex()


def test_folds_stand_in_columns(evaluation):
    table = folds_table(evaluation.summaries)
    assert table.header == ("Method", "metric", "fold 0", "fold 1", "average ± SD of folds", "pooled")
    assert table.rows[0] == ("ours", "DSC (%)", "66.7", "100.0", "83.3±23.6", "83.3")
    assert table.rows[2] == ("theirs", "DSC (%)", "0.0", "100.0", "50.0±70.7", "50.0")
    without = Evaluation(method=evaluation.method)
    assert folds_table(without.summaries) is None


def test_organs_stand_in_columns(evaluation):
    summaries = evaluation.summaries
    segmentation, early = organ_tables(
        {
            ("ours", "liver"): summaries["ours"],
            ("theirs", "liver"): summaries["theirs"],
            ("ours", "kidney"): summaries["ours"],
        }
    )
    assert segmentation.header == ("Method", "liver DSC (%)", "liver NSD (%)", "kidney DSC (%)", "kidney NSD (%)")
    assert segmentation.rows[1][3:] == ("–", "–")
    assert (0, 1) in segmentation.bold
    assert early.rows == [("ours", "66.7", "66.7"), ("theirs", "33.3", "–")]


def test_organs_with_other_cases_have_no_best(evaluation):
    few = Evaluation(method=method("few", scored("b", (3,), (3,)))).summaries["few"]
    tables = organ_tables({("ours", "liver"): evaluation.summaries["ours"], ("few", "liver"): few})
    assert [table.bold for table in tables] == [frozenset(), frozenset()]


def test_numbers_as_text(evaluation):
    assert methods_table(evaluation.summaries).rows[0][:3] == ("ours", "83.3±23.6", "2")
    assert (mean_sd(0.665, 0.1), mean_sd(0.5, None), mean_sd(None, None)) == ("66.5±10.0", "50.0", "–")
    assert (p_value(0.0004), p_value(0.0312)) == ("<0.001", "0.031")
