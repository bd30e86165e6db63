"""A study leaves its numbers as CSV, Markdown and a page, and its figures as PNG."""

import pytest

from difftumor.reporting.plots import curves
from studies.jobs.results import Picture, spoken, write_results
from tests.conftest import read_rows


def test_everything_is_written(tmp_path):
    rows = [{"model": "T = 4", "sd_distance_hu": 1.5}, {"model": "none", "sd_distance_hu": None}]
    picture = Picture(curves({"a": ([0, 1], [1.0, 2.0])}), "A curve.")
    page = write_results(
        tmp_path / "out", "numbers", title="A title", introduction=["First."], rows=rows,
        pictures={"curve": picture}, details={"command": "python -m this"},
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "curve.png", "numbers.csv", "numbers.md", "report.html",
    ]  # fmt: skip
    assert read_rows(tmp_path / "out" / "numbers.csv") == [
        {"model": "T = 4", "sd_distance_hu": "1.5"},
        {"model": "none", "sd_distance_hu": ""},
    ]
    assert (tmp_path / "out" / "numbers.md").read_text().splitlines() == [
        "| Model | SD distance (HU) |", "| --- | --- |", "| T = 4 | 1.5 |", "| none | – |",
    ]  # fmt: skip
    text = page.read_text()
    for part in ("A title", "First.", "SD distance (HU)", "A curve.", "python -m this", "data:image/png"):
        assert part in text


@pytest.mark.parametrize(
    ("column", "head"),
    [
        ("seconds_per_tumor", "Time per tumor (s)"),
        ("tumors of", "Tumors of"),
        ("edge_distance_hu", "Edge distance (HU)"),
    ],
)
def test_heads_name_units(column, head):
    assert spoken(column) == head
