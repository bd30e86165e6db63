"""Folds as nnU-Net and tables write them, and their means."""

import json

import numpy as np
import pytest

from difftumor.errors import CaseListError
from difftumor.evaluation.cohort.folds import check_folds, read_folds, summarize_folds
from tests.evaluation.cohort.methods import scored


def test_splits_of_nnunet(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]))
    assert read_folds(path) == {"a": "0", "b": "1"}


def test_a_table(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("case,fold,more\na, 1,x\nb,two,y\n")
    assert read_folds(path) == {"a": "1", "b": "two"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("f.json", "[{}]", "cannot be read"),
        ("f.json", "{", "cannot be read"),
        ("f.csv", "id,fold\na,1\n", "no columns case and fold"),
        ("f.csv", "case,fold\na,1\nb\n", "line 3 has no case or no fold"),
        ("f.csv", "case,fold\n", "names no case"),
        ("f.csv", "case,fold\na,1\na,2\n", "puts a into the folds 1 and 2"),
    ],
)
def test_what_is_none_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(CaseListError, match=words):
        read_folds(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CaseListError, match=r"no\.csv cannot be read"):
        read_folds(tmp_path / "no.csv")


def test_a_mark_of_a_spreadsheet_is_no_name(tmp_path):
    (tmp_path / "f.csv").write_text("\ufeffcase,fold\na,²\n", encoding="utf-8")
    assert read_folds(tmp_path / "f.csv") == {"a": "²"}


def test_a_case_without_fold_is_named(tmp_path):
    check_folds({"a": "0"}, ["a"], tmp_path / "f.csv")
    with pytest.raises(CaseListError, match="does not name the case b"):
        check_folds({"a": "0"}, ["a", "b"], tmp_path / "f.csv")


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
