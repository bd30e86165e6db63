"""Tables and records as files."""

import csv

import pytest

from difftumor.reporting.tables import Table, latex_text, write_csv, write_json


def test_bars_in_cells_are_escaped():
    assert Table(["a"], [["x|y"]]).markdown().splitlines()[-1] == "| x\\|y |"


def test_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_latex_keeps_special_characters():
    assert latex_text(r"50% of a_b & {c} #1 $2 \x ~^") == (
        r"50\% of a\_b \& \{c\} \#1 \$2 \textbackslash{}x \textasciitilde{}\textasciicircum{}"
    )
    assert latex_text("1 ± 2 − 3 – 4 ≤ 5") == r"1 $\pm$ 2 $-$ 3 -- 4 $\leq$ 5"


def test_bold_cells():
    table = Table(("a", "b"), (("x|y", "1"), ("z", "2")), title="t", bold={(1, 1)})
    assert table.markdown().splitlines()[2:] == ["| x\\|y | 1 |", "| z | **2** |"]
    assert r"z & \textbf{2} \\" in table.latex()


def test_records_become_rows(tmp_path):
    table = Table.of_records(("case", "dsc", "note"), [{"case": "a", "dsc": 0.123456}, {"note": "x, y", "case": "b"}])
    assert write_csv(tmp_path / "t.csv", table).read_text() == 'case,dsc,note\na,0.123456,\nb,,"x, y"\n'
    assert table.markdown().splitlines()[2:] == ["| a | 0.1235 | – |", "| b | – | x, y |"]
    with pytest.raises(ValueError, match="'more' is not one of the columns"):
        Table.of_records(("case",), [{"case": "a", "more": 1}])


def test_a_section_has_title_table_and_note():
    assert Table(("a",), [(1,)], title="t", note="n").section() == "## t\n\n| a |\n| --- |\n| 1 |\n\nn"


@pytest.mark.parametrize("name", ['=HYPERLINK("http://x")', "@SUM(A1)", "+1+cmd", "-2+3", "\t=1"])
def test_no_name_is_a_formula_in_a_spreadsheet(tmp_path, name):
    write_csv(tmp_path / "a.csv", Table(["case", "score"], [[name, -1.5], ["-12", "+3.5"], ["a=b", "–"]]))
    with (tmp_path / "a.csv").open(newline="") as stream:
        assert list(csv.reader(stream))[1:] == [["'" + name, "-1.5"], ["-12", "+3.5"], ["a=b", "–"]]


def test_no_name_is_a_tag_in_markdown():
    text = Table(["case"], [["<script>alert(1)</script>"], ["< 2 cm"]]).markdown()
    assert "<script" not in text
    assert "</script" not in text
    assert "&lt;script>alert(1)&lt;/script>" in text
    assert "| < 2 cm |" in text
