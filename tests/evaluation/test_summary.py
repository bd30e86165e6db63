"""Tables say what the results say, and JSON is JSON."""

import csv
import json

import numpy as np
import pytest

from difftumor.evaluation.case_scores import evaluate_case
from difftumor.evaluation.rows import CASE_COLUMNS, LESION_COLUMNS, lesion_rows
from difftumor.evaluation.summary import summarize, write_results
from difftumor.grids import Grid

GRID = Grid((16, 16, 16), np.diag([1.0, 1.0, 2.0, 1.0]))


def label_map(*tumors: int) -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:14, 2:14, 2:14] = 1
    for x in tumors:
        labels[x : x + 2, 4:6, 4:6] = 2
    return labels


@pytest.fixture
def results():
    return [
        evaluate_case("ill", label_map(3), label_map(3, 9), GRID),  # one of two found
        evaluate_case("healthy", label_map(), label_map(), GRID),
        evaluate_case("false", label_map(6), label_map(), GRID),
    ]


def test_organ_includes_its_tumors(results):
    assert [result.organ.dsc for result in results] == [1.0, 1.0, 1.0]
    assert [result.tumor.dsc for result in results] == [pytest.approx(2 / 3), 1.0, 0.0]


def test_files(results, tmp_path):
    text = write_results(tmp_path / "out", results, title="Liver", settings={"organ": "liver"})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "cases.csv", "lesions.csv", "summary.json", "summary.md",
    }  # fmt: skip
    with (tmp_path / "out" / "cases.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == CASE_COLUMNS
    assert CASE_COLUMNS[:5] == ("case", "organ_dsc", "organ_nsd", "tumor_dsc", "tumor_nsd")
    assert [row["case"] for row in rows] == ["ill", "healthy", "false"]
    assert float(rows[0]["tumor_dsc"]) == results[0].tumor.dsc
    assert (tmp_path / "out" / "summary.md").read_text() == text
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["settings"] == {"organ": "liver"}
    assert summary["detection"]["sensitivity"] == {"value": 0.5, "hits": 1, "total": 2}


def test_lesions_name_their_fate(results):
    rows = lesion_rows(results)
    assert [(row["case"], row["kind"]) for row in rows] == [("ill", "found"), ("ill", "missed"), ("false", "false")]
    assert all(tuple(row) == LESION_COLUMNS for row in rows)
    assert rows[0]["volume_mm3"] == pytest.approx(16)
    assert (rows[0]["right_mm"], rows[0]["superior_mm"]) == (3.5, 9.0)
    assert rows[0]["overlap_voxels"] == 8
    assert rows[1]["found_diameter_mm"] is None


def test_means_over_all_cases_and_over_those_with_tumor(results):
    scores = summarize(results)["scores"]
    assert scores["all_cases"]["tumor_dsc"]["mean"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["all_cases"]["tumor_dsc"]["sd"] == pytest.approx(np.std([2 / 3, 1, 0], ddof=1))
    assert scores["all_cases"]["tumor_dsc"]["median"] == pytest.approx(2 / 3)
    assert scores["cases_with_tumor"]["tumor_dsc"]["mean"] == pytest.approx(2 / 3)
    assert scores["cases_with_tumor"]["tumor_dsc"]["sd"] is None
    assert scores["cases_with_tumor"]["tumor_dsc"]["count"] == 1


def test_markdown_shows_percent_and_counts(results, tmp_path):
    text = write_results(tmp_path, results, title="Liver", settings={})
    lines = text.splitlines()
    assert lines[0] == "# Liver"
    assert "3 cases, 1 with tumor." in lines
    assert "| Tumor DSC | cases with tumor | 66.7 | – | 66.7 | 1 |" in lines
    assert "| Tumor-wise sensitivity | 50.0 | 1 / 2 |" in lines
    assert "| Patient-wise specificity | 50.0 | 1 / 2 |" in lines
    assert "| – radius over 10 mm | – | 0 / 0 |" in lines
    assert "| False positives per scan | 0.33 |  |" in lines


def test_nothing_to_evaluate_is_still_a_summary(tmp_path):
    assert "0 cases" in write_results(tmp_path, [], title="None", settings={})
