"""Tables in the shapes of the papers, figures, files and the page."""

import json

import pytest

from difftumor.evaluation.cohort.page import evaluation_page
from difftumor.evaluation.cohort.paper_tables import best, folds_table, mean_sd, methods_table, organ_tables, p_value
from difftumor.evaluation.cohort.results import COMPARED, RESULT_FILES, Evaluation, find, write_results
from difftumor.reporting.plots import to_png
from difftumor.reporting.tables import Table, latex_text
from tests.evaluation.cohort.methods import method, scored


@pytest.fixture
def evaluation():
    first = method(
        "ours", scored("a", (3,), (3, 9), froc=True), scored("b", (3,), (3,), froc=True),
        scored("h", (6,), (), labeled=False, froc=True), problems={"x": "It is broken: mend it."}, missing=("y",),
    )  # fmt: skip
    second = method("theirs", scored("a", (), (3, 9)), scored("b", (3,), (3,)))
    return Evaluation(organ="liver", method=first, others=(second,), folds={"a": "0", "b": "1"})


def found(evaluation):
    return find(evaluation, worst=0)


def test_files(evaluation, tmp_path):
    (tmp_path / "worst_cases.png").write_text("of an earlier evaluation")
    text = write_results(tmp_path, evaluation, found(evaluation))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*RESULT_FILES, COMPARED} - {"report.html", "worst_cases.png"}
    assert {path.name for path in (tmp_path / COMPARED / "theirs").iterdir()} == {"cases.csv", "lesions.csv"}
    assert (tmp_path / "summary.md").read_text() == text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["method"] == "ours"
    assert summary["problems"] == {"x": "It is broken: mend it."}
    assert summary["missing"] == ["y"]
    assert "voxel in common" in summary["settings"]["matching"]
    assert summary["froc"]["sensitivity"] == [0.0, pytest.approx(2 / 3)]
    assert summary["froc"]["false_positives_per_scan"] == [0.0, pytest.approx(1 / 3)]
    assert summary["folds"]["scores"]["tumor_dsc"]["by_fold"] == {"0": pytest.approx(2 / 3), "1": 1.0}
    assert summary["compared"]["theirs"]["tests"]["tumor_dsc"]["difference"] == pytest.approx(-1 / 3)


def test_the_text_says_all(evaluation, tmp_path):
    lines = write_results(tmp_path, evaluation, found(evaluation)).splitlines()
    assert lines[0] == "# Evaluation: liver"
    assert "3 cases of 3 patients: 2 with tumor, 1 healthy, 1 of these scans without labels." in lines
    assert "| ours | **83.3±23.6** | 2 | **" in "\n".join(lines)
    assert "| Tumor-wise sensitivity | 66.7 | 20.8 to 93.9 | 50.0 to 100.0 | 2 / 3 |" in lines
    assert "| Patient-wise specificity | 0.0 | 0.0 to 79.3 | – | 0 / 1 |" in lines
    assert "| – radius over 10 mm | – | – | – | 0 / 0 |" in lines
    assert any("theirs and ours do not have the same cases: 2 are shared, of 2 and 3" in line for line in lines)
    assert "- ours, x: It is broken: mend it." in lines
    assert "- ours, y: there is no prediction." in lines
    assert any(line.startswith("| theirs | Tumor DSC (%) | 83.3 | 50.0 | −33.3 |") for line in lines)


def test_latex_tables_are_whole(evaluation, tmp_path):
    write_results(tmp_path, evaluation, found(evaluation))
    text = (tmp_path / "tables.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 5
    rows = [line for line in text.splitlines() if " & " in line]
    for table in text.split(r"\begin{table}")[1:]:
        columns = table.split(r"\begin{tabular}{")[1].split("}")[0]
        assert {line.count(" & ") + 1 for line in table.splitlines() if " & " in line} == {len(columns)}
    assert all(line.endswith(r" \\") for line in rows)
    assert r"\textbf{83.3$\pm$23.6}" in text


def test_latex_keeps_special_characters():
    assert latex_text(r"50% of a_b & {c} #1 $2 \x ~^") == (
        r"50\% of a\_b \& \{c\} \#1 \$2 \textbackslash{}x \textasciitilde{}\textasciicircum{}"
    )
    assert latex_text("1 ± 2 − 3 – 4 ≤ 5") == r"1 $\pm$ 2 $-$ 3 -- 4 $\leq$ 5"


def test_bold_cells():
    table = Table(("a", "b"), (("x|y", "1"), ("z", "2")), title="t", bold={(1, 1)})
    assert table.markdown().splitlines()[2:] == ["| x\\|y | 1 |", "| z | **2** |"]
    assert r"z & \textbf{2} \\" in table.latex()


def test_the_best_is_bold_where_there_is_one():
    assert best([[1.0, None], [2.0, 3.0]], [[9, 9], [9, 9]]) == {(1, 1)}
    assert best([[2.0, 1.0], [2.0, 5.0], [1.0, 5.0]], [[9, 9]] * 3) == {(0, 1), (1, 1), (1, 2), (2, 2)}
    assert best([[2.0], [2.0]], [[9], [9]]) == frozenset()
    assert best([[2.0]], [[9]]) == frozenset()
    assert best([], []) == frozenset()
    assert best([[1.0, 1.0], [2.0, 2.0]], [[9, 9], [9, 8]]) == {(1, 1)}


def test_nothing_is_bold_where_methods_have_other_cases(evaluation):
    few = method("few", scored("b", (3,), (3,)))
    tables = find(Evaluation(organ="liver", method=evaluation.method, others=(few,)), worst=0).tables
    assert tables[0].bold == tables[1].bold == frozenset()
    assert tables[0].rows[1][:3] == ("few", "100.0", "1")


def test_the_fewest_false_positives_are_bold():
    quiet, loud = method("quiet", scored("a", (3,), (3,))), method("loud", scored("a", (3, 9), (3,)))
    table = find(Evaluation(organ="liver", method=quiet, others=(loud,)), worst=0).tables[1]
    assert table.header[-1] == "FP per scan"
    assert (0, len(table.header) - 1) in table.bold
    assert (1, len(table.header) - 1) not in table.bold


def test_the_rules_stand_with_the_tables(evaluation):
    segmentation, detection, *_ = find(evaluation, worst=0).tables
    assert segmentation.note == "NSD at 2 mm."
    assert "voxel in common" in detection.note
    assert "NSD at 2 mm." in segmentation.latex()


def test_bars_are_in_percent(evaluation):
    axes = found(evaluation).figures["sensitivity"].axes[0]
    assert axes.patches[0].get_height() == pytest.approx(200 / 3)
    assert axes.get_xticklabels()[0].get_text() == "all\nn = 3"
    curve = found(evaluation).figures["froc"].axes[0].lines[0]
    assert max(curve.get_ydata()) == pytest.approx(200 / 3)


def test_what_another_evaluation_left_is_removed(evaluation, tmp_path):
    write_results(tmp_path, evaluation, found(evaluation))
    (tmp_path / COMPARED / "mine").mkdir()
    (tmp_path / COMPARED / "mine" / "notes.txt").write_text("mine")
    alone = Evaluation(organ="liver", method=evaluation.method)
    write_results(tmp_path, alone, found(alone))
    assert [path.name for path in (tmp_path / COMPARED).iterdir()] == ["mine"]


def test_folds_stand_in_columns(evaluation):
    table = folds_table(evaluation.summaries())
    assert table.header == ("Method", "metric", "fold 0", "fold 1", "average ± SD of folds", "pooled")
    assert table.rows[0] == ("ours", "DSC (%)", "66.7", "100.0", "83.3±23.6", "83.3")
    assert table.rows[2] == ("theirs", "DSC (%)", "0.0", "100.0", "50.0±70.7", "50.0")
    without = Evaluation(organ="liver", method=evaluation.method)
    assert folds_table(without.summaries()) is None


def test_organs_stand_in_columns(evaluation):
    summaries = evaluation.summaries()
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
    few = Evaluation(organ="liver", method=method("few", scored("b", (3,), (3,)))).summaries()["few"]
    tables = organ_tables({("ours", "liver"): evaluation.summaries()["ours"], ("few", "liver"): few})
    assert [table.bold for table in tables] == [frozenset(), frozenset()]


def test_numbers_as_text(evaluation):
    assert methods_table(evaluation.summaries()).rows[0][:3] == ("ours", "83.3±23.6", "2")
    assert (mean_sd(0.665, 0.1), mean_sd(0.5, None), mean_sd(None, None)) == ("66.5±10.0", "50.0", "–")
    assert (p_value(0.0004), p_value(0.0312)) == ("<0.001", "0.031")


def test_the_page_has_all(evaluation):
    findings = found(evaluation)
    assert set(findings.figures) == {"sensitivity", "scores", "froc"}
    page = evaluation_page(evaluation, findings, command="difftumor evaluate …").html()
    for words in ("Paired tests against ours", "It is broken: mend it.", "there is no prediction", "difftumor evaluate",
                  "voxel in common", "Tumor segmentation by fold", "<b>83.3±23.6</b>"):  # fmt: skip
        assert words in page
    assert page.count("<img") == 3


def test_figures_are_drawn_without_tumors(tmp_path):
    healthy = Evaluation(organ="liver", method=method("ours", scored("h", (), (), froc=True)))
    findings = find(healthy)
    assert "worst_cases" not in findings.figures
    assert all(to_png(figure) for figure in findings.figures.values())
    write_results(tmp_path, healthy, findings)
    assert json.loads((tmp_path / "summary.json").read_text())["froc"]["mean_sensitivity"] is None
