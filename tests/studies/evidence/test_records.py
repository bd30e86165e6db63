"""Records and the tables made of them, by numbers derived by hand."""

import pytest

from difftumor.errors import CaseListError
from studies.evidence.measures import BESIDE, PRIMARY, compared, measured, per_patient, threshold_at
from studies.evidence.records import cell_name, key_of, read_record
from studies.evidence.tables import groups_of, tables_of, write_tables
from tests.conftest import read_rows
from tests.studies.evidence.build import entry, record, scan

AT_HALF, AT_ONE, DSC = PRIMARY
ENTRY = entry("first", lambda graph: None)
# Of four tumors one is found at the high threshold, with one false tumor in four scans, and three at the low one, with
# five. Of the patient with two tumors one is found.
FIRST = [
    scan("a", 1, (1, 1), (0, 0), dsc=0.8),
    scan("b", 1, (0, 1), (0, 1), dsc=0.4),
    scan("c", 0, (0, 0), (1, 3)),
    scan("d", 2, (0, 1), (0, 1), dsc=0.3, overlap=((0, 2), (0, 0))),
]
# Three false tumors at the high threshold: 0.75 per scan.
SECOND = [
    scan("a", 1, (1, 1), (1, 1), dsc=0.6),
    scan("b", 1, (1, 1), (1, 1), dsc=0.6),
    scan("c", 0, (0, 0), (1, 3)),
    scan("d", 2, (0, 2), (0, 1), dsc=0.0),
]


def test_a_record_is_read_as_it_was_written(tmp_path):
    each = record("made", 3, FIRST)
    file = tmp_path / "record.json"
    each.write(file)
    assert read_record(file) == each
    assert key_of(file) == each.key
    assert len(file.read_text().splitlines()) < 60  # one scan a line
    assert cell_name({"trained_on": "made", "fold": 0, "seed": 3}) == "made_fold0_seed3"


@pytest.mark.parametrize("damage", ["{", '{"format": 0}', '{"format": 1, "entry": "x"}'])
def test_a_damaged_record_is_told_and_is_not_done(tmp_path, damage):
    (tmp_path / "x.json").write_text(damage)
    assert key_of(tmp_path / "x.json") == key_of(tmp_path / "none.json") == ""
    with pytest.raises(CaseListError, match=r"x\.json is not a record .*: remove it, and run the queue again"):
        read_record(tmp_path / "x.json")


def test_sensitivity_is_the_highest_at_no_more_than_the_rate():
    assert measured({0: FIRST}, AT_HALF).by_seed == (0.25,)
    assert measured({0: FIRST}, AT_ONE).by_seed == (0.25,)  # five in four scans are too many
    assert measured({0: FIRST[:2]}, AT_HALF).by_seed == (1.0,)  # one in two scans is not
    both = measured({0: FIRST, 1: SECOND}, AT_ONE)
    assert (both.value, both.by_seed) == (0.375, (0.25, 0.5))
    assert (both.tumors, both.patients, both.unreached) == (4, 4, 0)
    assert 0 <= both.interval.low < 0.375 < both.interval.high <= 1
    assert str(both).startswith("0.38 [")
    assert str(both).endswith("] ± 0.18")
    assert measured({0: FIRST}, BESIDE[1]).by_seed == (1.0,)  # any overlap: all four, four false in four scans


def test_an_operating_point_that_is_not_reached_is_printed_as_such():
    assert str(measured({0: SECOND}, AT_HALF)) == "not reached"
    one = measured({0: FIRST, 1: SECOND}, AT_HALF)
    assert one.by_seed == (0.25, 0.0)
    assert str(one).endswith("(not reached by 1 of 2)")
    assert threshold_at(SECOND, 0.5, "iou") is None
    assert per_patient({0: SECOND}, AT_HALF) == {"a": 0, "b": 0, "d": 0}
    assert str(measured({0: [scan("c", 0, (0, 0), (0, 0))]}, AT_ONE)) == "–"


def test_an_interval_repeats_and_of_patients_that_are_all_alike_it_is_a_point():
    alike = [scan(name, 1, (1, 1), (0, 1), dsc=0.5) for name in "abcd"]
    for endpoint, value in ((AT_HALF, 1.0), (DSC, 0.5)):
        interval = measured({0: alike}, endpoint).interval
        assert (interval.low, interval.high) == (value, value)
    assert measured({0: FIRST}, AT_ONE).interval == measured({0: FIRST[::-1]}, AT_ONE).interval


def test_tumor_dsc_is_of_scans_with_tumors():
    value = measured({0: FIRST, 1: SECOND}, DSC)
    assert value.by_seed == pytest.approx((0.5, 0.4))
    assert value.value == pytest.approx(0.45)
    assert value.patients == 3
    assert per_patient({0: FIRST, 1: SECOND}, DSC) == pytest.approx({"a": 0.7, "b": 0.5, "d": 0.15})


def test_patients_have_the_operating_point_of_all_scans():
    assert threshold_at(FIRST, 1.0, "iou") == 0
    assert per_patient({0: FIRST}, AT_ONE) == {"a": 1.0, "b": 0.0, "d": 0.0}
    assert per_patient({0: FIRST, 1: SECOND}, AT_ONE) == {"a": 1.0, "b": 0.5, "d": 0.0}


def test_pairs_are_tested_on_the_patients_of_both_and_adjusted_for_all():
    groups = {"real": {0: [*FIRST, scan("e", 1, (0, 0), (0, 0), dsc=0.9)]}, "made": {0: SECOND}}
    groups["apart"] = {0: [scan("f", 1, (1, 1), (0, 0), dsc=0.9)]}
    tests = compared(groups, [("made", "real"), ("made", "nobody"), ("made", "apart")])
    assert [each.endpoint for each in tests] == list(PRIMARY)
    assert (tests[2].patients, tests[2].difference) == (3, pytest.approx(-0.1))
    # Patient e is not of both: 0.25 of the tumors against none at half a false positive per scan, 0.5 at one.
    assert [each.difference for each in tests[:2]] == [-0.25, 0.25]
    # Of the eight ways to flip −0.2, 0.2 and −0.3, the mean is as far from 0 as it is in all but the two with 0.1.
    assert tests[2].p == pytest.approx(6 / 8)
    assert all(each.holm >= each.p for each in tests)
    assert tests[2].holm == 1.0


def test_tables_are_made_of_the_records_alone(tmp_path):
    dirty = {"commit": "0" * 40, "changes": "f", "dirty": True}
    records = [record("made", 0, SECOND), record("real", 1, SECOND, checkout=dirty), record("real", 0, FIRST)]
    endpoints, tests = write_tables(ENTRY, records, tmp_path)
    assert [row[0] for row in endpoints.rows] == ["real tumors", "made tumors"]
    assert endpoints.rows[0][-1] == "4 / 4 / 2"
    assert endpoints.rows[1][1] == "not reached"
    assert "3 cells; trainings of segmenters took 1.5 hours; abacus; commit 000000000000" in endpoints.note
    assert "1 of the cells was made with changes that are not committed" in endpoints.note
    assert [row[:3] for row in tests.rows] == [["made tumors", "real tumors", each.title] for each in PRIMARY]
    text = (tmp_path / "first.md").read_text()
    assert text.startswith("## What does first do?")
    assert "## Paired tests" in text
    numbers = read_rows(tmp_path / "first.csv")
    assert len(numbers) == 2 * 5
    assert (numbers[0]["endpoint"], numbers[0]["by_seed"], numbers[0]["unreached_seeds"]) == (
        "sensitivity_0.5", "0.2500 0.0000", "1"
    )  # fmt: skip
    assert tables_of(ENTRY, []) == []


def test_a_model_that_has_seen_its_test_is_refused():
    seen = record("made", 0, FIRST, trained_on_test={"autoencoder": 4, "diffusion": 2})
    with pytest.raises(CaseListError, match=r"A diffusion behind first, .* was trained on 2 of its test scans"):
        groups_of(ENTRY, [seen])
    groups_of(ENTRY, [record("made", 0, FIRST, trained_on_test={"autoencoder": 4, "segmenter": None})])


def test_folds_are_pooled_and_a_scan_is_tested_in_one():
    halves = [record("made", 0, FIRST[:2]), record("made", 0, FIRST[2:])]
    (group,) = groups_of(ENTRY, halves).values()
    assert group.folds == (2, 2)
    assert measured(group.runs, AT_HALF).by_seed == (0.25,)
    with pytest.raises(CaseListError, match="was tested in two folds"):
        groups_of(ENTRY, [*halves, record("made", 0, FIRST[:1])])


def test_seeds_without_all_test_scans_are_left_out_and_named():
    records = [record("made", 0, FIRST), record("made", 1, SECOND[:2]), record("real", 1, FIRST[:3])]
    made, real = groups_of(ENTRY, records)["made"], groups_of(ENTRY, records)["real"]
    assert (list(made.runs), made.incomplete, list(real.runs), real.incomplete) == ([0], (1,), [1], ())
    endpoints, tests = tables_of(ENTRY, records)
    assert "missing so far: seed 1 of made tumors." in endpoints.note
    assert {row[4] for row in tests.rows} == {2}  # the patients with tumors that both have


def test_a_kind_that_the_entry_no_longer_has_is_told():
    with pytest.raises(CaseListError, match="which the entry does not have: remove the record"):
        groups_of(ENTRY, [record("nothing", 0, FIRST)])


def test_the_interval_of_a_difference_chooses_thresholds_anew():
    # Three false tumors in four scans are too many at 0.5 per scan; resamples without patient a have none.
    few = [scan(name, 1, (0, 1), (0, 3 if name == "a" else 0), dsc=0.5) for name in "abcd"]
    none = [scan(name, 1, (0, 0), (0, 0), dsc=0.5) for name in "abcd"]
    (test, *_) = compared({"made": {0: few}, "real": {0: none}}, [("made", "real")])
    assert test.difference == 0
    assert (test.interval.low, test.interval.high) == (0, 1)
    same = compared({"made": {0: FIRST}, "real": {0: FIRST, 1: FIRST}}, [("made", "real")])
    assert {(each.interval.low, each.interval.high) for each in same} == {(0, 0)}
