"""Cells, tables, figures and pages of tumors whose scores are known, and which tumors are the worst."""

import json

import pytest
from matplotlib.figure import Figure

from difftumor.evaluation.cohort.statistics import bootstrap_mean, wilson_interval
from difftumor.evaluation.robustness.dimensions import LEVELS
from difftumor.evaluation.robustness.report import detectability_figure, heatmap
from difftumor.evaluation.robustness.results import Results, cell_row, gather
from difftumor.evaluation.robustness.run import RESULT_FILES, write_results
from difftumor.evaluation.robustness.scoring import ScanResult
from difftumor.evaluation.robustness.worst import WorstCase, choose_worst
from tests.conftest import read_rows
from tests.evaluation.robustness.makers import dimensions, row


def scan(name, scores):
    """One scan whose tumors of level 0 are one; DSC by dimension and level."""
    rows = [
        row(
            case=name, patient=name, dimension=dimension, level=level, dsc=dsc, nsd=dsc / 2, found=dsc > 0,
            value=-5.0, diameter_mm=10 + level, contrast_hu=-40.0 + 10 * level, depth_mm=20.0 + level,
            record="records/mean_0.json" if level == 0 else f"records/{dimension}{level:+d}_0.json",
        )
        for (dimension, level), dsc in scores.items()
    ]  # fmt: skip
    return ScanResult(name, "done", tuple(rows), (), 2)


CHOSEN = dimensions("size", "intensity")
TWO = [
    scan("a", {("size", level): max(0.0, 0.2 * (level + 1)) for level in LEVELS}),
    scan("b", {("size", level): 0.8 for level in LEVELS} | {("intensity", 0): 0.8, ("intensity", -1): 0.0}),
]


def results(scans=TWO, **changes):
    values = {
        "organ": "liver",
        "dimensions": CHOSEN,
        "scans": scans,
        "settings": {"seed": 0, "model": ["m"]},
        "seed": 0,
    }
    return Results(**{**values, **changes})


def test_cells_by_hand():
    cells = gather([r for s in TWO for r in s.rows], CHOSEN, seed=0)
    assert [(c.dimension.name, c.level) for c in cells] == [(n, lv) for n in ("size", "intensity") for lv in LEVELS]
    found = cell_row(next(c for c in cells if (c.dimension.name, c.level) == ("size", -1)))
    assert (found["scans"], found["tumors"], found["found"], found["detection"]) == (2, 2, 1, 0.5)
    assert (found["dsc"], found["nsd"]) == (pytest.approx(0.4), pytest.approx(0.2))
    assert (found["dsc_low"], found["nsd_high"]) == (None, None)  # of two patients
    wilson = wilson_interval(1, 2)
    assert (found["detection_low"], found["detection_high"]) == (wilson.low, wilson.high)
    assert (found["diameter_mm"], found["contrast_hu"]) == (9, -50)
    alone = cell_row(next(c for c in cells if (c.dimension.name, c.level) == ("intensity", -1)))
    assert (alone["tumors"], alone["dsc"], alone["dsc_low"]) == (1, 0, None)
    empty = cell_row(cells[-1])
    assert (empty["tumors"], empty["dsc"], empty["detection"], empty["diameter_mm"]) == (0, None, None, None)


def test_intervals_are_over_patients():
    """Two tumors of each of four patients: they are drawn together, and the interval is wider than of eight."""
    scores = {"a": 0.0, "b": 0.2, "c": 0.6, "d": 0.9}
    rows = [
        row(case=name, patient=name, repeat=n, dsc=dsc, nsd=dsc / 2) for name, dsc in scores.items() for n in (0, 1)
    ]
    cell = next(c for c in gather(rows, CHOSEN, seed=0) if c.rows)
    expected = bootstrap_mean([r.dsc for r in rows], [r.patient for r in rows], seed=0)
    assert cell.dsc_interval == expected
    assert cell.nsd_interval == bootstrap_mean([r.nsd for r in rows], [r.patient for r in rows], seed=0)
    alone = bootstrap_mean([r.dsc for r in rows], seed=0)
    assert expected.high - expected.low > alone.high - alone.low


@pytest.mark.parametrize(
    ("patients", "warning"),
    [
        (1, "Only 1 patient: means and curves have no intervals, and those of shares are too narrow."),
        (3, "Only 3 patients: means and curves have no intervals, and those of shares are too narrow."),
        (4, "Only 4 patients: intervals are too narrow."),
        (9, "Only 9 patients: intervals are too narrow."),
        (10, None),
    ],
)
def test_few_patients_are_warned_of(tmp_path, patients, warning):
    found = results([scan(f"c{n}", {("size", level): 0.5 for level in (0, 1)}) for n in range(patients)])
    assert found.warnings == ([warning] if warning else [])
    if patients == 9:
        write_results(tmp_path, found, [])
        for name in ("report.html", "robustness.md", "robustness.json"):
            assert warning in (tmp_path / name).read_text()


def test_physical_values():
    names = dimensions()
    cells = {
        c.dimension.name: c.physical
        for c in gather([row(dimension="location", level=-3, depth_mm=d) for d in (10.0, 14.0)], names, seed=0)
        if c.level == -3
    }
    assert cells == {
        "shape": "σe/r 0.05", "size": "5.8 mm", "texture": "η 1.00", "intensity": "−105 HU", "location": "12 mm deep"
    }  # fmt: skip


def test_the_introduction_counts_tumors_once():
    found = results()
    assert found.tumors == 7 + 8
    assert found.introduction == (
        "15 hand-crafted tumors in the liver of 2 scans, one at a time. The mean tumor was found in 2 of 2 tries, with "
        "a DSC of 0.50. Of 11 found tumors, 0 lie where tumor was predicted before. "
        "Without a tumor, 2.0 lesions were predicted per scan."
    )


def test_found_tumors_that_were_marked_before_are_counted_once():
    rows = [row(level=level, record=str(level), found=level > 1, marked_before=level in (0, 2)) for level in LEVELS]
    rows += [row(dimension="shape", record="2", marked_before=True)]
    assert "Of 2 found tumors, 1 lie where tumor" in results([ScanResult("a", "done", tuple(rows))]).introduction


def test_cells_with_fewer_tumors_say_so(tmp_path):
    whole, short = range(-3, 4), range(-3, 3)
    scans = [scan(name, {("size", level): 0.8 for level in levels}) for name, levels in (("a", whole), ("b", short))]
    found = results(scans, dimensions=dimensions("size"))
    assert [cell.fewer for cell in found.cells] == 6 * [False] + [True]
    figure = heatmap(found.cells, "dsc")
    assert "17 mm\nn = 1" in texts(figure)
    assert figure.axes[0].get_xlabel() == "n: tumors, if some scans had no room"
    assert "n = 1" in texts(heatmap(found.cells, "dsc", values=False))
    assert found.table("dsc") == [["size", *6 * ["0.80"], "0.80 (n = 1)"]]
    write_results(tmp_path, found, [])
    for name in ("report.html", "robustness.md"):
        assert "fewer tumors because some scans had no room" in (tmp_path / name).read_text()
    assert results([scans[0]]).cell_notes == []


def test_the_widest_dimension_comes_first():
    first, second = results().ranges()
    assert (first[0], first[3], second[0], second[3]) == ("intensity", "0.80", "size", "0.40")
    assert first[1] == "0.00 at μ − σ (−65 HU)"
    assert second[2].startswith("0.80 at μ + 3σ (17 mm)")
    four = [scan(name, {("size", level): 0.8 for level in LEVELS}) for name in "abcd"]
    assert results(four).ranges()[0][2].startswith("0.80 [0.80, 0.80] at")


def test_the_worst_are_missed_ones_near_the_mean_and_of_several_scans():
    rows = [
        row(case="a", dimension="size", level=-3, dsc=0.0, record="1"),
        row(case="a", dimension="size", level=-1, dsc=0.0, record="2"),
        row(case="a", dimension="shape", level=0, dsc=0.1, record="3", repeat=1),
        row(case="a", dimension="intensity", level=0, dsc=0.1, record="3", repeat=1),
        row(case="b", dimension="size", level=-1, dsc=0.0, diameter_mm=20.0, record="2"),
        row(case="b", dimension="shape", level=2, dsc=0.05, record="4", repeat=1),
        row(case="c", dimension="shape", level=2, dsc=0.9, record="4", repeat=1),
    ]
    for order in (rows, rows[::-1]):
        found = [(r.case, r.record) for r in choose_worst(order, 4)]
        assert found == [("b", "2"), ("a", "2"), ("b", "4"), ("a", "3")]
    assert choose_worst(rows, 0) == []
    assert len(choose_worst(rows, 100)) == 5


def test_the_worst_are_in_different_places():
    """All dimensions but the location share the place of their repeat."""
    rows = [row(case="a", dimension=name, repeat=n, dsc=0.1 * n, record=f"{name}{n}")
            for n in (0, 1) for name in ("shape", "size", "intensity")]  # fmt: skip
    rows += [row(case="a", dimension="location", level=level, dsc=0.5, record=f"location{level}") for level in (0, 1)]
    found = [(r.dimension == "location", r.repeat) for r in choose_worst(rows, 10)]
    assert found == [(False, 0), (False, 1), (True, 0)]


def texts(figure):
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def test_heatmaps_write_numbers_and_values():
    figure = heatmap(gather([r for s in TWO for r in s.rows], CHOSEN, seed=0), "dsc")
    assert {"0.40", "12 mm", "−105 HU", "no room"} <= texts(figure)
    plain = heatmap(gather([r for s in TWO for r in s.rows], CHOSEN, seed=0), "detection", values=False)
    assert "0.50" in texts(plain)
    assert "12 mm" not in texts(plain)
    clamped = dimensions("texture")
    cells = gather([row(dimension="texture", level=level) for level in LEVELS], clamped, seed=0)
    drawn = heatmap(cells, "dsc")
    assert {"0.80*", "0.80"} <= texts(drawn)
    assert drawn.axes[0].get_xlabel() == "* held at a limit of the dimension"
    assert plain.axes[0].get_xlabel() == "n: tumors, if some scans had no room"


def test_curves_are_drawn():
    figure = detectability_figure(results().curves)
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_xlabel() == "diameter (mm)"


def test_all_files_are_written(tmp_path):
    found = results([*TWO, ScanResult("bad", "failed", notes=("It <is> broken.",))])
    picture = heatmap_png(found)
    worst = [WorstCase(choose_worst(found.rows, 1)[0], "b_intensity-1_0", picture)]
    (tmp_path / "mine.txt").write_text("stays")
    for _ in range(2):  # results are replaced
        write_results(tmp_path, found, worst)
    assert {p.name for p in tmp_path.iterdir()} == {*RESULT_FILES, "pictures", "mine.txt"}
    rows = read_rows(tmp_path / "tumors.csv")
    assert len(rows) == 16
    assert rows[0]["record"] == "scans/a/records/size-3_0.json"
    assert (rows[0]["found"], rows[0]["clamped"]) == ("0", "0")
    assert len(read_rows(tmp_path / "cells.csv")) == 14
    content = json.loads((tmp_path / "robustness.json").read_text())
    assert content["tumors"] == 15
    assert content["worst"][0]["folder"] == "worst/b_intensity-1_0"
    assert [scan["status"] for scan in content["scans"]] == ["done", "done", "failed"]
    assert content["detectability"][0]["quantity"] == "diameter"
    text = (tmp_path / "robustness.md").read_text()
    assert "| size | 0.40 |" in text
    assert "- bad: It <is> broken." in text
    page = (tmp_path / "report.html").read_text()
    assert "It &lt;is&gt; broken." in page
    assert page.count("<img") == 4
    assert "http" not in page.replace("http-equiv", "")


def test_an_earlier_curve_does_not_stay(tmp_path):
    write_results(tmp_path, results(), [])
    assert (tmp_path / "detectability.png").exists()
    few = results([scan("a", {("size", 0): 0.5})])
    assert not few.curves
    write_results(tmp_path, few, [])
    assert {p.name for p in tmp_path.iterdir()} == {*RESULT_FILES} - {"detectability.png"}


def heatmap_png(found):
    from difftumor.reporting.plots import to_png

    return to_png(heatmap(found.cells, "dsc"), dpi=40)
