"""Files, figures and the page of an evaluation."""

import json

import pytest

from difftumor.evaluation.cohort.evaluate import Evaluation
from difftumor.evaluation.cohort.results import COMPARED, RESULT_FILES, results_page, summary_markdown, write_results
from tests.evaluation.cohort.methods import method, scored


def test_files(findings, tmp_path):
    (tmp_path / "worst_cases.png").write_text("of an earlier evaluation")
    text = write_results(tmp_path, findings)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*RESULT_FILES, COMPARED} - {"worst_cases.png"}
    assert {path.name for path in (tmp_path / COMPARED / "theirs").iterdir()} == {"cases.csv", "lesions.csv"}
    assert (tmp_path / "summary.md").read_text() == text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["method"] == "ours"
    assert summary["problems"] == {"x": "It is broken: fix it."}
    assert summary["missing"] == ["y"]
    assert "voxel in common" in summary["settings"]["matching"]
    assert summary["froc"]["sensitivity"] == [0.0, pytest.approx(2 / 3)]
    assert summary["froc"]["false_positives_per_scan"] == [0.0, pytest.approx(1 / 3)]
    assert summary["folds"]["scores"]["tumor_dsc"]["by_fold"] == {"0": pytest.approx(2 / 3), "1": 1.0}
    assert summary["compared"]["theirs"]["tests"]["tumor_dsc"]["difference"] == pytest.approx(-1 / 3)


def test_the_text_says_all(findings):
    lines = summary_markdown(findings).splitlines()
    assert lines[0] == "# Evaluation: liver"
    assert "3 cases of 3 patients: 2 with tumor, 1 healthy, 1 of these without labels." in lines
    assert "| ours | **83.3±23.6** | 2 | **" in "\n".join(lines)
    assert "| Tumor-wise sensitivity | 66.7 | 20.8 to 93.9 | 50.0 to 100.0 | 2 / 3 |" in lines
    assert "| Patient-wise specificity | 0.0 | 0.0 to 79.3 | – | 0 / 1 |" in lines
    assert "| – radius over 10 mm | – | – | – | 0 / 0 |" in lines
    assert any("theirs and ours do not have the same cases: they share 2 of 2 and 3" in line for line in lines)
    assert "- ours, x: It is broken: fix it." in lines
    assert "- ours, y: there is no prediction." in lines
    assert any(line.startswith("| theirs | Tumor DSC (%) | 83.3 | 50.0 | −33.3 |") for line in lines)


def test_latex_tables_are_whole(findings):
    text = "\n".join(table.latex() for table in findings.tables)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 5
    rows = [line for line in text.splitlines() if " & " in line]
    for table in text.split(r"\begin{table}")[1:]:
        columns = table.split(r"\begin{tabular}{")[1].split("}")[0]
        assert {line.count(" & ") + 1 for line in table.splitlines() if " & " in line} == {len(columns)}
    assert all(line.endswith(r" \\") for line in rows)
    assert r"\textbf{83.3$\pm$23.6}" in text


def test_bars_are_in_percent(findings):
    axes = findings.figures["sensitivity"].axes[0]
    assert axes.patches[0].get_height() == pytest.approx(200 / 3)
    assert axes.get_xticklabels()[0].get_text() == "all\nn = 3"
    curve = findings.figures["froc"].axes[0].lines[0]
    assert max(curve.get_ydata()) == pytest.approx(200 / 3)


def test_the_page_has_all(findings):
    assert set(findings.figures) == {"sensitivity", "scores", "froc"}
    page = results_page(findings, command="difftumor evaluate …").html()
    for words in ("Paired tests against ours", "It is broken: fix it.", "there is no prediction", "difftumor evaluate",
                  "voxel in common", "Tumor segmentation by fold", "<b>83.3±23.6</b>"):  # fmt: skip
        assert words in page
    assert page.count("<img") == 3


def test_a_cohort_without_tumors_replaces_what_another_evaluation_left(tmp_path):
    healthy = Evaluation(method=method("ours", scored("h", (), (), froc=True)))
    (tmp_path / COMPARED / "theirs").mkdir(parents=True)
    (tmp_path / COMPARED / "theirs" / "cases.csv").write_text("of an earlier evaluation")
    (tmp_path / COMPARED / "mine").mkdir()
    (tmp_path / COMPARED / "mine" / "notes.txt").write_text("mine")
    healthy.save(tmp_path)
    assert [path.name for path in (tmp_path / COMPARED).iterdir()] == ["mine"]
    assert not (tmp_path / "worst_cases.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["froc"]["mean_sensitivity"] is None
