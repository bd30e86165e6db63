"""The check of lists: pairs, patients and sides, folders of labels, and processes."""

import json
import os
import signal

import numpy as np
import pytest

from difftumor.datasets.cases import read_case_labels, read_cases
from difftumor.datasets.integrity import check_cases
from difftumor.datasets.tumor_cases import sort_cases
from difftumor.datasets.validation import lists as module
from difftumor.datasets.validation.lists import check_lists, list_to_check
from difftumor.datasets.validation.report import check_places, write_findings, write_fix_list
from difftumor.errors import CaseListError, ConfigError
from difftumor.scans.nifti import read_ct
from difftumor.scans.organs import get_organ
from tests.conftest import read_rows
from tests.datasets.validation.makers import SHAPE, body, organs, write_case, write_list
from tests.nifti import LPS, write_nifti


def check(*sources, jobs=1, **options):
    return check_lists(
        [list_to_check(source, cache=source.parent / "cache", **options) for source in sources], jobs=jobs
    )


def statuses(listed):
    return {each.case.id: each.status for each in listed.checked}


def findings(listed):
    return {each.case.id: [finding.message for finding in each.findings] for each in listed.checked}


@pytest.fixture
def cohort(tmp_path):
    """Four cases; c is a again under another name, and d is a mirrored, of the patient of b."""
    entries = [write_case(tmp_path, name) for name in "ab"]
    entries += [write_case(tmp_path, "c", body(ord("a"))), write_case(tmp_path, "d", body(ord("a"))[:, ::-1])]
    return [entries[0], {**entries[1], "patient": "p"}, entries[2], {**entries[3], "patient": "p"}]


def test_of_a_scan_twice_on_one_side_the_later_one_is_the_error(cohort, tmp_path):
    (listed,) = (found := check(write_list(tmp_path, cohort))).lists
    assert statuses(listed) == {"a": "good", "b": "good", "c": "error", "d": "error"}
    assert "c.nii.gz is the same scan as" in findings(listed)["c"][0]
    assert "(identical): keep one of them." in findings(listed)["c"][0]
    assert len(findings(listed)["d"]) == 1  # the first partner is enough
    (comparison,) = found.comparisons
    assert [pair.likeness for pair in comparison.pairs] == ["identical", "flipped", "flipped"]
    assert not found.sound


def test_what_is_held_out_stays(cohort, tmp_path):
    (listed,) = check(write_list(tmp_path, cohort, validation=("c", "d"))).lists
    assert statuses(listed) == {"a": "error", "b": "error", "c": "good", "d": "error"}
    assert "which is held out for validation (identical)" in findings(listed)["a"][0]
    assert "Its patient 'p' is held out for validation too (d)" in findings(listed)["b"][0]


def test_a_damaged_copy_does_not_win(cohort, tmp_path):
    (tmp_path / "maps/a.nii.gz").write_bytes(b"")
    (listed,) = check(write_list(tmp_path, [cohort[0], cohort[2]])).lists
    assert statuses(listed) == {"a": "error", "c": "good"}


def test_scans_and_stated_patients_of_another_list_are_told_of_the_first(cohort, tmp_path):
    one = write_list(tmp_path, [cohort[0], cohort[1]], name="one.json")
    other = write_list(tmp_path, [cohort[2], {**cohort[3], "image": "e.nii.gz"}], name="other.json")
    write_nifti(tmp_path / "e.nii.gz", body(99), LPS)
    found = check(one, other)
    first, second = found.lists
    assert (statuses(first), statuses(second)) == ({"a": "error", "b": "warning"}, {"c": "good", "d": "good"})
    assert "Its patient 'p' is in" in findings(first)["b"][0]
    assert [len(comparison.pairs) for comparison in found.comparisons] == [0, 0, 1]


def test_folds_of_one_split_are_compared_by_what_they_hold_out(tmp_path):
    entries = [write_case(tmp_path, name) for name in "abc"]
    one, other = (write_list(tmp_path, entries, validation=held, name=f"{held}.json") for held in ("a", "b"))
    found = check(one, other)
    assert found.sound
    assert found.comparisons[-1].where.startswith("held out by")
    both = check(one, write_list(tmp_path, entries, validation="ac", name="ac.json")).lists[0]
    assert statuses(both) == {"a": "error", "b": "good", "c": "good"}
    assert "ac.json holds out (identical)" in findings(both)["a"][0]


def test_ids_that_two_lists_happen_to_share_say_nothing(tmp_path):
    one = write_list(tmp_path, [write_case(tmp_path, "a")], name="one.json")
    (tmp_path / "o").mkdir()
    other = write_list(tmp_path / "o", [write_case(tmp_path / "o", "a", body(5))])
    assert check(one, other).sound
    # Nor does a patient that only the other one states.
    entry = {**write_case(tmp_path / "o", "b", body(6)), "patient": "a"}
    (listed, _) = check(one, write_list(tmp_path / "o", [entry])).lists
    assert statuses(listed) == {"a": "good"}


def test_labels_come_from_a_folder_and_its_names_from_beside_it(tmp_path):
    for name in "abc":
        write_case(tmp_path / "cts", name)
    maps = (tmp_path / "cts/maps").rename(tmp_path / "maps")
    write_list(tmp_path, [{"id": "x", "image": "absent.nii.gz"}])
    (maps / "b.nii.gz").rename(maps / "z.nii.gz")
    (maps / "a.nii").write_bytes(b"")
    (listed,) = check(tmp_path / "cts", labels=maps, organ=get_organ("liver")).lists
    assert statuses(listed) == {"a": "error", "b": "error", "c": "good"}
    assert "b has no label map in" in findings(listed)["b"][0]
    assert "keep one of them" in listed.notes[0]
    assert "holds 1 label map without a CT (z.nii.gz)" in listed.notes[1]
    with pytest.raises(CaseListError, match=r"No CT of .* is named like a label map"):
        list_to_check(tmp_path / "cts/a.nii.gz", labels=_folder_of(tmp_path, "other"))


def _folder_of(folder, name):
    write_nifti(folder / "others" / f"{name}.nii.gz", np.ones((2, 2, 2), np.uint8))
    return folder / "others"


def test_a_convention_counts_for_all_and_a_partial_one_names_not_all(tmp_path):
    source = write_list(tmp_path, [write_case(tmp_path, "a")])
    (listed,) = check(source, convention="lits", organ=None).lists
    assert any("holds labels 5, 6, 7" in message for message in findings(listed)["a"])
    (listed,) = check(source, convention="totalsegmentator").lists
    assert statuses(listed) == {"a": "good"}


def test_cases_without_labels_among_others_are_warned_of(tmp_path):
    entries = [write_case(tmp_path, name) for name in "ab"]
    del entries[1]["label"]
    (listed,) = check(write_list(tmp_path, entries)).lists
    assert statuses(listed) == {"a": "good", "b": "warning"}


def test_the_list_of_good_cases_is_one_that_every_command_reads(cohort, tmp_path):
    (tmp_path / "b.nii.gz").write_bytes(b"x")
    (listed,) = check(write_list(tmp_path, cohort, validation=("c",))).lists
    write_fix_list(tmp_path / "good.json", listed)
    again = read_cases(tmp_path / "good.json")
    assert [case.id for case in again.cases] == ["c"]
    assert again.validation_ids == ("c",)
    assert dict(again.label_names)["liver"] == 5
    assert all(case.fingerprint for case in again.cases)
    content = json.loads((tmp_path / "good.json").read_text())
    assert {entry["id"] for entry in content["left_out"]} == {"a", "b", "d"}
    assert all(entry["reasons"] for entry in content["left_out"])


def test_what_a_check_lets_through_is_read_everywhere(tmp_path):
    fractions, shifted = organs().astype(np.float32), np.zeros(SHAPE, np.uint8)
    fractions[0, 0, 0], shifted[:3] = 0.5, 5
    cases = {
        "good": {}, "healthy": {"labels": organs(tumor=False)}, "windowed": {"values": body().clip(0, 255)},
        "fractions": {"labels": fractions}, "turned": {"labels_affine": np.eye(4)}, "truncated": {},
        "nan": {"values": np.where(organs() == 6, np.nan, body()).astype(np.float32)}, "air": {"labels": shifted},
        "empty": {"labels": np.zeros(SHAPE, np.uint8)},
    }  # fmt: skip
    entries = [write_case(tmp_path, name, **options) for name, options in cases.items()]
    (tmp_path / "truncated.nii.gz").write_bytes((tmp_path / "truncated.nii.gz").read_bytes()[:-9])
    (listed,) = check(write_list(tmp_path, entries), organ=get_organ("liver")).lists
    write_fix_list(tmp_path / "good.json", listed)
    good = read_cases(tmp_path / "good.json")
    assert [case.id for case in good.cases] == ["good", "healthy"]
    check_cases(good).raise_if_any()
    found = sort_cases(good, get_organ("liver"))
    assert {case.id for case in found.healthy} == {"healthy"}
    assert not found.left_out
    for case in good.cases:
        assert read_ct(case.image).data.shape == read_case_labels(case, good.label_names).data.shape


def test_a_list_without_a_good_case_is_not_written(tmp_path):
    entry = write_case(tmp_path, "a")
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    (listed,) = check(write_list(tmp_path, [entry])).lists
    with pytest.raises(CaseListError, match="No case of"):
        write_fix_list(tmp_path / "good.json", listed)
    assert not (tmp_path / "good.json").exists()


def test_results_replace_earlier_ones_of_their_kind_alone(cohort, tmp_path):
    found = check(source := write_list(tmp_path, cohort))
    out, table, good = tmp_path / "o.json", tmp_path / "o.csv", tmp_path / "good.json"
    for file in (out, table):
        write_findings(file, found)
    write_fix_list(good, found.lists[0])
    rows = read_rows(table)
    assert [row["status"] for row in rows] == ["good", "good", "error", "error"]
    assert [case["status"] for case in json.loads(out.read_text())["cases"]] == [row["status"] for row in rows]
    for places in ((out, good), (table, good)):
        check_places(*places, inputs=[source], overwrite=False)
    for places in ((good, None), (None, out), (tmp_path / "mine.csv", None), (None, tmp_path / "mine.json")):
        (tmp_path / "mine.csv").write_text("name,age\n")
        (tmp_path / "mine.json").write_text("[]")
        with pytest.raises(ConfigError, match="no earlier result of this kind"):
            check_places(*places, inputs=[source], overwrite=False)
        check_places(*places, inputs=[source], overwrite=True)
    with pytest.raises(ConfigError, match="would replace an input"):
        check_places(None, source, inputs=[source], overwrite=True)
    with pytest.raises(ConfigError, match="give two files"):
        check_places(out, out, inputs=[], overwrite=True)


@pytest.mark.slow
def test_processes_change_nothing_and_a_killed_one_costs_one_case(cohort, tmp_path, monkeypatch):
    source = write_list(tmp_path, cohort)
    assert check(source, jobs=2) == check(source)
    monkeypatch.setattr(module, "_check_piece", _killed_by_b)
    (listed,) = check(source, jobs=2).lists
    assert "was killed" in findings(listed)["b"][0]
    assert statuses(listed) == {"a": "good", "b": "error", "c": "error", "d": "error"}


def _killed_by_b(case, rules, _):
    if case.id == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return module.check_case(case, rules)
