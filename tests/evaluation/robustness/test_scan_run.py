"""Segmenters whose answer is known, scan by scan: what is measured, kept, replayed, and done again."""

import errno
import json

import numpy as np
import pytest

from difftumor.errors import ConfigError
from difftumor.evaluation.metrics.detection import Matching
from difftumor.evaluation.robustness import scan_run
from difftumor.evaluation.robustness.detectability import contrast_curve, diameter_curve
from difftumor.evaluation.robustness.results import gather
from difftumor.evaluation.robustness.scan_run import RESULT_FILE, ScanTest
from difftumor.scans.nifti import read_ct, read_labels
from difftumor.synthesis.scan.record import read_record
from tests.conftest import run
from tests.evaluation.robustness.makers import Oracle, benchmark, dimensions, write_scan


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "in")


def test_a_perfect_segmenter_is_perfect_everywhere(tmp_path, scan, monkeypatch):
    oracle = Oracle(monkeypatch)
    result = benchmark(oracle).run("a", "p", scan, tmp_path / "out")
    assert result.status == "done"
    assert result.healthy_lesions == 0
    assert len(result.rows) == 35
    assert oracle.calls == 1 + 1 + 4 * 6 + 7  # once without a tumor; the mean once for all
    assert all(row.found and row.dsc == row.nsd == 1 and not row.marked_before for row in result.rows)
    assert {row.patient for row in result.rows} == {"p"}
    sizes = {row.level: row.diameter_mm for row in result.rows if row.dimension == "size"}
    # A mask of so few voxels has the volume of its ball to a voxel or two.
    assert sizes == pytest.approx({level: 10 * 1.2**level for level in range(-3, 4)}, rel=0.12)
    # Rim and noise: the tumor is blurred over about a voxel.
    contrasts = {row.level: row.contrast_hu for row in result.rows if row.dimension == "intensity"}
    assert list(contrasts) == [-3, -2, -1, 0, 1, 2, 3]
    assert list(contrasts.values()) == sorted(contrasts.values())
    assert contrasts[-3] == pytest.approx(-105 + 15, abs=15)


def test_blind_to_small_tumors(tmp_path, monkeypatch):
    judged = benchmark(Oracle(monkeypatch, lambda diameter_mm, _: diameter_mm >= 10), dimensions("size"), repeats=2)
    rows = [
        row
        for i in range(3)
        for row in judged.run(f"c{i}", f"c{i}", write_scan(tmp_path / "in", f"c{i}", seed=i), tmp_path / "out").rows
    ]
    assert all(row.found == (row.diameter_mm >= 10) for row in rows)
    curve = diameter_curve(rows, seed=0)
    assert curve.half == pytest.approx(10, rel=0.06)
    cells = {cell.level: cell for cell in gather(rows, judged.dimensions, seed=0)}
    assert [cells[level].detection for level in (-3, -2, -1, 1, 2, 3)] == [0, 0, 0, 1, 1, 1]


def test_blind_to_weak_contrast(tmp_path, monkeypatch):
    judged = benchmark(Oracle(monkeypatch, lambda _, hu: hu <= -35), dimensions("intensity"), repeats=3)
    rows = judged.run("a", "a", write_scan(tmp_path / "in"), tmp_path / "out").rows
    curve = contrast_curve(rows, judged.dimensions["intensity"], seed=0)
    assert curve.half == pytest.approx(35, rel=0.15)


def test_what_is_predicted_is_what_the_files_hold(tmp_path, scan, monkeypatch):
    """The replayed files are read back, and are bit by bit what the segmenter was given."""
    given = []
    make = ScanTest.with_tumor
    monkeypatch.setattr(ScanTest, "with_tumor", lambda s, made: given.append(make(s, made)) or given[-1])
    judged = benchmark(lambda ct: np.zeros(ct.grid.shape, np.uint8), dimensions("intensity"), margin_mm=None)
    rows = judged.run("a", "a", scan, tmp_path / "out").rows
    assert [row.found for row in rows] == 7 * [False]
    by_level = dict(zip([row.level for row in rows], given, strict=True))
    row = rows[1]
    record = tmp_path / "out" / "a" / row.record
    assert run("synthesize", "--replay", record, "--out", tmp_path / "again", "--device", "cpu") == 0
    ct_hu, truth = by_level[row.level]
    np.testing.assert_array_equal(read_ct(tmp_path / "again" / "ct.nii.gz").data, ct_hu)
    np.testing.assert_array_equal(read_labels(tmp_path / "again" / "labels.nii.gz").data == 2, truth)
    again, first = (json.loads(path.read_text())["tumors"] for path in (tmp_path / "again" / "record.json", record))
    assert again == first
    assert row.diameter_mm == first[0]["achieved"]["diameter_mm"]
    assert row.contrast_hu == first[0]["achieved"]["contrast_hu"]


def test_the_order_of_scans_does_not_matter(tmp_path, monkeypatch):
    oracle = Oracle(monkeypatch)
    cases = [(name, name, write_scan(tmp_path / "in", name, seed=i)) for i, name in enumerate("ab")]
    judged = benchmark(oracle, dimensions("size"))
    one = {r.case: r for r in judged.run_all(cases, tmp_path / "one")}
    other = {r.case: r for r in judged.run_all(cases[::-1], tmp_path / "other")}
    assert one == other
    assert {r.record.center_mm for r in recorded(tmp_path / "one" / "a")} != {
        r.record.center_mm for r in recorded(tmp_path / "one" / "b")
    }


class Recorded:
    def __init__(self, path):
        (self.record,) = read_record(path).tumors


def recorded(folder):
    return [Recorded(path) for path in sorted((folder / "records").iterdir())]


def test_a_part_of_the_scan_is_enough(tmp_path, scan, monkeypatch):
    shapes = set()
    oracle = Oracle(monkeypatch)

    def noting(ct):
        shapes.add(ct.grid.shape)
        np.testing.assert_allclose(ct.grid.affine[:3, 3], 2 * np.array([2, 1, 0]))  # the ball begins at voxel 3, 2, 1
        return oracle(ct)

    part = benchmark(noting, dimensions("size"), margin_mm=2.0).run("a", "a", scan, tmp_path / "part")
    assert shapes == {(37, 37, 36)}
    whole = benchmark(Oracle(monkeypatch), dimensions("size"), margin_mm=None).run("a", "a", scan, tmp_path / "whole")
    assert part.rows == whole.rows


def test_scans_with_tumors_are_left_out(tmp_path, monkeypatch):
    result = benchmark(Oracle(monkeypatch)).run("a", "a", write_scan(tmp_path / "in", tumor=True), tmp_path / "out")
    assert (result.status, result.rows) == ("skipped", ())
    assert "liver tumors of its own" in result.notes[0]
    assert not (tmp_path / "out").exists()


def test_what_was_done_is_kept(tmp_path, scan, monkeypatch):
    oracle = Oracle(monkeypatch)
    judged = benchmark(oracle, dimensions("size"))
    first = judged.run("a", "a", scan, tmp_path / "out")
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    calls = oracle.calls
    again = judged.run("a", "a", scan, tmp_path / "out")
    assert (again.status, again.rows, again.healthy_lesions) == ("done before", first.rows, 0)
    assert oracle.calls == calls
    assert {path: path.read_bytes() for path in files} == files
    assert judged.run("a", "a", scan, tmp_path / "out", overwrite=True).status == "done"
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"repeats": 2},
        {"matching": Matching(rule="iou", minimum_iou=0.2)},
        {"about": {"models": ["another"]}},
        {"margin_mm": None},
    ],
)
def test_results_of_another_request_are_not_taken_for_these(tmp_path, scan, monkeypatch, changes):
    oracle = Oracle(monkeypatch)
    chosen = dimensions("size")
    benchmark(oracle, chosen).run("a", "a", scan, tmp_path / "out")
    with pytest.raises(ConfigError, match="out/a holds results of other settings: give another --out or --overwrite"):
        benchmark(oracle, chosen, **changes).run("a", "a", scan, tmp_path / "out")


def test_results_of_before_the_tumor_was_stored_are_not_mixed_with_others(tmp_path, scan, monkeypatch):
    judged = benchmark(Oracle(monkeypatch), dimensions("size"))
    judged.run("a", "a", scan, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "a" / RESULT_FILE).read_text())
    assert content["request"].pop("tumor")["scale_texture"] is True
    (tmp_path / "out" / "a" / RESULT_FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="of other settings"):
        judged.run("a", "a", scan, tmp_path / "out")


def test_results_of_other_files_are_not_taken_for_these(tmp_path, monkeypatch):
    judged = benchmark(Oracle(monkeypatch), dimensions("size"))
    judged.run("a", "a", write_scan(tmp_path / "in"), tmp_path / "out")
    moved = write_scan(tmp_path / "moved")
    assert judged.run("a", "a", moved, tmp_path / "out").status == "done before"
    with pytest.raises(ConfigError, match="of other settings"):
        judged.run("a", "a", write_scan(tmp_path / "other", seed=5), tmp_path / "out")
    (tmp_path / "out" / "a" / RESULT_FILE).write_text("{")
    with pytest.raises(ConfigError, match="of other settings"):
        judged.run("a", "a", moved, tmp_path / "out")


def test_a_scan_that_fails_leaves_nothing_and_stops_nobody(tmp_path, monkeypatch):
    oracle = Oracle(monkeypatch)
    cases = [(name, name, write_scan(tmp_path / "in", name)) for name in "abc"]
    cases[0][2].ct.write_bytes(b"no CT")
    score = scan_run.score_tumor

    def broken(*arguments, **options):
        if oracle.calls == 5:
            raise MemoryError("too large")
        return score(*arguments, **options)

    monkeypatch.setattr(scan_run, "score_tumor", broken)
    found = list(benchmark(oracle, dimensions("size")).run_all(cases, tmp_path / "out"))
    assert [result.status for result in found] == ["failed", "failed", "done"]
    assert "a.nii.gz" in found[0].notes[0]
    assert "there is not enough memory" in found[1].notes[0]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c"]


def test_a_full_disk_ends_all_scans(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "out")

    oracle = Oracle(monkeypatch)
    monkeypatch.setattr(scan_run, "score_tumor", full)
    cases = [("a", "a", write_scan(tmp_path / "in", "a"))]
    with pytest.raises(OSError, match="No space left"):
        next(benchmark(oracle, dimensions("size")).run_all(cases, tmp_path / "out"))


def test_inputs_stay_as_they_are(tmp_path, scan, monkeypatch):
    before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()}
    benchmark(Oracle(monkeypatch), dimensions("location")).run("a", "a", scan, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()} == before
