"""Tumors in many scans: which files belong to a case, and what becomes of each, whatever happens to others."""

import errno
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from difftumor.datasets.cases import Case, CaseList, read_cases
from difftumor.errors import ArtifactError, CaseListError, OrganError
from difftumor.scans.organs import get_convention, get_organ
from difftumor.seeding import derive_seed
from difftumor.synthesis.scan.cohort import inputs_of, synthesize_cohort
from difftumor.synthesis.scan.files import ScanSynthesizer
from difftumor.synthesis.scan.gate import QualityGate
from difftumor.synthesis.scan.inputs import ScanInputs
from difftumor.synthesis.scan.record import read_record
from difftumor.synthesis.synthesizer import TumorSynthesizer
from tests.conftest import contents
from tests.nifti import write_nifti
from tests.synthesis.makers import ball, wanted

SHAPE = (30, 28, 26)


pytestmark = pytest.mark.usefixtures("no_picture")


# Which files


def listed(labels, names, **options):
    case = Case("a", Path("ct.nii.gz"), labels)
    return case, CaseList((case,), names, Path("cases.csv"), **options)


def test_numbers_of_organ_and_tumors_come_from_the_label_names(tmp_path):
    path = tmp_path / "labels.nii.gz"
    path.touch()
    case, cases = listed(path, get_convention("kits"))
    found = inputs_of(case, cases, get_organ("kidney"))
    # Cysts count as organ.
    assert (found.organ_masks, found.organ_labels, found.tumor_labels) == ((path,), (1, 3), (2,))
    assert (found.ct, found.tumor_masks, found.segments) == (case.image, (), None)
    case, cases = listed(path, get_convention("totalsegmentator"))
    assert inputs_of(case, cases, get_organ("liver")).organ_labels == (5,)
    assert inputs_of(case, cases, get_organ("kidney")).organ_labels == (2, 3, 23, 24)


def test_numbers_that_the_user_gives_go_first(tmp_path):
    path = tmp_path / "labels.nii.gz"
    path.touch()
    case, cases = listed(path, get_convention("lits"))
    found = inputs_of(case, cases, get_organ("liver"), organ_labels=(7,))
    # The tumors that the list names stay tumors.
    assert (found.organ_labels, found.tumor_labels) == ((7,), (2,))


def test_an_organ_without_a_name_and_a_case_without_labels_are_refused(tmp_path):
    path = tmp_path / "labels.nii.gz"
    path.touch()
    with pytest.raises(OrganError, match="hold no pancreas"):
        inputs_of(*listed(path, get_convention("lits")), get_organ("pancreas"))
    with pytest.raises(CaseListError, match=r"Case 'a' \(ct\.nii\.gz\) has no labels: give a list that names them"):
        inputs_of(*listed(None, {}), get_organ("liver"))


@pytest.fixture
def folder(tmp_path):
    """Two cases with one file per structure; the second has no right kidney."""
    halves = ball(SHAPE, 11)
    for case in ("one", "two", "none"):
        parts = tmp_path / case / "segmentations"
        hu = np.random.default_rng(0).normal(100, 10, SHAPE)
        hu[:2] = -1000
        write_nifti(tmp_path / case / "ct.nii.gz", hu.astype(np.int16))
        for name, side in (("kidney_left", slice(None, 15)), ("kidney_right", slice(15, None))):
            mask = np.zeros(SHAPE, np.uint8)
            mask[side] = halves[side]
            if case == "two" and name == "kidney_right":
                mask[:] = 0
            if case != "none":
                write_nifti(parts / f"{name}.nii.gz", mask)
        write_nifti(parts / "liver.nii.gz", ball(SHAPE, 3).astype(np.uint8))
    write_nifti(tmp_path / "one" / "segmentations" / "kidney_lesion.nii.gz", ball(SHAPE, 3).astype(np.uint8))
    return tmp_path


def test_a_folder_with_one_file_per_structure(folder):
    cases = read_cases(folder)
    found = {case.id: case for case in cases.cases}
    one = inputs_of(found["one"], cases, get_organ("kidney"))
    assert [path.name for path in one.organ_masks] == ["kidney_left.nii.gz", "kidney_right.nii.gz"]
    assert [path.name for path in one.tumor_masks] == ["kidney_lesion.nii.gz"]
    assert (one.organ_labels, one.tumor_labels) == ((), ())
    scan = one.read(organ="kidney")
    np.testing.assert_array_equal(scan.organ_mask, ball(SHAPE, 11) & ~ball(SHAPE, 3))
    np.testing.assert_array_equal(scan.tumor_mask, ball(SHAPE, 3))
    two = inputs_of(found["two"], cases, get_organ("kidney"))
    assert two.tumor_masks == ()
    assert two.read(organ="kidney").organ_mask.any()
    with pytest.raises(CaseListError, match=r"segmentations has no file of the kidney: leave the case out"):
        inputs_of(found["none"], cases, get_organ("kidney"))


# What becomes of them


def scans(folder, names):
    """Write cases that are the same but for their names."""
    hu = np.random.default_rng(0).normal(100, 10, SHAPE)
    hu[:2] = -1000
    cases = []
    for name in names:
        ct = write_nifti(folder / name / "ct.nii.gz", hu.astype(np.int16))
        mask = write_nifti(folder / name / "liver.nii.gz", ball(SHAPE, 11).astype(np.uint8))
        cases.append((name, ScanInputs(ct=ct, organ_masks=(mask,))))
    return cases


def loading(*, seed=0, gate=None, **fields):
    spec = wanted(fields.pop("size", "tiny"), generator="handcrafted", **fields)
    synthesizer = TumorSynthesizer(organ=get_organ("liver"))
    return lambda: ScanSynthesizer(synthesizer=synthesizer, tumors=(spec,), seed=seed, gate=gate)


def make(load, cases, out, **options):
    return {outcome.id: outcome for outcome in synthesize_cohort(load, cases, out=out, **options)}


def test_seeds_depend_on_the_id_alone(tmp_path):
    cases = scans(tmp_path / "in", ["a", "b", "c"])
    made = make(loading(), cases, tmp_path / "all")
    assert [outcome.status for outcome in made.values()] == ["made"] * 3
    make(loading(), cases[::-1], tmp_path / "reversed")
    make(loading(), cases[1:2], tmp_path / "alone")
    for name in ("a", "b", "c"):
        assert contents(tmp_path / "all" / name) == contents(tmp_path / "reversed" / name)
    assert contents(tmp_path / "all" / "b") == contents(tmp_path / "alone" / "b")
    # The same scan under another name has other tumors.
    lesions = {name: contents(tmp_path / "all" / name)["lesions.nii.gz"] for name in ("a", "b", "c")}
    assert len(set(lesions.values())) == 3
    content = read_record(tmp_path / "all" / "b" / "record.json").content
    assert content["request"]["seed"] == derive_seed(0, "case", "b")
    assert len(made["b"].report.tumors) == 1


def test_one_that_fails_leaves_the_others(tmp_path, monkeypatch):
    cases = scans(tmp_path / "in", ["a", "damaged", "missing", "strange", "z"])
    cases[1][1].ct.write_bytes(b"no gzip")
    cases[2][1].organ_masks[0].unlink()
    write_nifti(cases[3][1].ct, np.full(SHAPE, -1000, np.int16))
    make_files = ScanSynthesizer.make_files

    def sometimes_broken(self, inputs, **options):
        if "strange" in str(inputs.ct):
            raise ZeroDivisionError("float division by zero")
        return make_files(self, inputs, **options)

    monkeypatch.setattr(ScanSynthesizer, "make_files", sometimes_broken)
    made = make(loading(), cases, tmp_path / "out")
    assert {name: outcome.status for name, outcome in made.items()} == {
        "a": "made", "damaged": "failed", "missing": "failed", "strange": "failed", "z": "made",
    }  # fmt: skip
    assert "damaged" in made["damaged"].error
    assert "liver.nii.gz does not exist" in made["missing"].error
    assert made["strange"].error == "ZeroDivisionError: float division by zero"
    assert all(outcome.report is None for outcome in made.values() if outcome.status == "failed")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "z"]


def test_a_full_disk_ends_all_of_them(tmp_path, monkeypatch):
    def full(self, inputs, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "out")

    monkeypatch.setattr(ScanSynthesizer, "make_files", full)
    with pytest.raises(OSError, match="No space left"):
        make(loading(), scans(tmp_path / "in", ["a", "b"]), tmp_path / "out")


def test_records_of_before_a_field_was_there_are_those_of_its_earlier_meaning(tmp_path):
    cases = scans(tmp_path / "in", ["a"])
    file = tmp_path / "out" / "a" / "record.json"

    def status(load):
        (outcome,) = make(load, cases, tmp_path / "out").values()
        return outcome.status

    before = loading(gate=QualityGate(), scale_texture=False)
    assert status(before) == "made"
    content = json.loads(file.read_text())
    (asked,) = content["request"]["tumors"]
    for name in ("blur_share", "scale_texture", "host_noise_mm"):
        del asked[name]
    del content["request"]["quality_gate"]["minimum_change_hu"]
    file.write_text(json.dumps(content))
    assert status(before) == "done before"
    for other in (
        loading(gate=QualityGate()),
        loading(gate=QualityGate(minimum_change_hu=5), scale_texture=False),
        loading(gate=QualityGate(), scale_texture=False, host_noise_mm=1),
    ):
        assert status(other) == "failed"


def test_what_was_made_as_it_is_asked_for_is_not_made_again(tmp_path):
    (case,) = cases = scans(tmp_path / "in", ["a"])
    out = tmp_path / "out"
    make(loading(), cases, out)
    before = contents(out / "a")

    def status(load, **options):
        (outcome,) = make(load, cases, out, **options).values()
        return outcome.status, outcome.error

    assert status(loading()) == ("done before", "")
    # Anything else is not what is there, and not replaced unasked.
    others = {
        "seed": loading(seed=1),
        "fields": loading(mass_effect=20),
        "number": loading(count=2),
        "gate": loading(gate=QualityGate()),
    }
    for other in others.values():
        what, error = status(other)
        assert what == "failed"
        assert "--overwrite" in error
    assert contents(out / "a") == before
    record = out / "a" / "record.json"
    content = json.loads(record.read_text())
    sampling = {"kind": "ddpm", "steps": None, "eta": 0.0, "spacing": "leading", "precision": "fp32"}
    record.write_text(
        json.dumps({**content, "models": {"early": {"path": "m", "identities": {}, "sampling": sampling}}})
    )
    assert status(loading())[0] == "failed"
    record.write_text("{")
    assert status(loading())[0] == "failed"
    assert status(loading(), overwrite=True)[0] == "made"
    assert contents(out / "a") == before
    # Neither is what was made from other files.
    write_nifti(case[1].organ_masks[0], ball(SHAPE, 10).astype(np.uint8))
    assert status(loading())[0] == "failed"
    assert status(loading(), overwrite=True)[0] == "made"
    assert contents(out / "a") != before


def test_overwriting_makes_what_is_done_anew(tmp_path):
    cases = scans(tmp_path / "in", ["a"])
    make(loading(), cases, tmp_path / "out")
    (outcome,) = make(loading(), cases, tmp_path / "out", overwrite=True).values()
    assert outcome.status == "made"


def test_networks_are_loaded_once(tmp_path):
    calls = []

    def load():
        calls.append(1)
        return loading()()

    make(load, scans(tmp_path / "in", ["a", "b"]), tmp_path / "out")
    assert calls == [1]


def test_what_one_scan_has_no_room_for_is_its_own_failure(tmp_path):
    cases = scans(tmp_path / "in", ["a", "b"])
    write_nifti(cases[1][1].organ_masks[0], ball(SHAPE, 2).astype(np.uint8))
    made = make(loading(size="small"), cases, tmp_path / "out")
    assert made["a"].status == "made"
    assert (made["b"].status, "no room for a tumor of size 'small'" in made["b"].error) == ("failed", True)


def test_a_map_of_many_structures_without_names_is_not_guessed_at(tmp_path):
    ct = write_nifti(tmp_path / "ct.nii.gz", np.linspace(-500, 500, 27).reshape(3, 3, 3).astype(np.int16))
    maps = write_nifti(tmp_path / "labels.nii.gz", np.arange(27, dtype=np.uint8).reshape(3, 3, 3))
    cases = CaseList((Case("a", ct, maps),), {}, tmp_path)
    with pytest.raises(OrganError, match="nothing says which is the liver: give organ_labels"):
        inputs_of(cases.cases[0], cases, get_organ("liver")).read(organ="liver")
    assert (
        inputs_of(cases.cases[0], cases, get_organ("liver"), organ_labels=(5,)).read(organ="liver").organ_mask.sum()
        == 1
    )


WISH = wanted("tiny", generator="handcrafted")


def broken_load():
    raise ArtifactError("there is no model")


def killed_by(folder):
    """Load networks whose process ends at one of the scans."""
    synthesizer = TumorSynthesizer(organ=get_organ("liver"))
    original = synthesizer.apply

    def apply(ct, *arguments, **options):
        if float(ct.max()) > 2000:
            os._exit(9)
        return original(ct, *arguments, **options)

    synthesizer.apply = apply  # type: ignore[method-assign]
    return ScanSynthesizer(synthesizer=synthesizer, tumors=(WISH,))


@pytest.mark.slow
def test_what_is_wrong_with_the_models_is_said_once_by_any_number_of_processes(tmp_path):
    cases = [(name, ScanInputs(ct=tmp_path / "ct.nii.gz", organ_masks=(tmp_path / "m.nii.gz",))) for name in "abc"]
    for jobs in (1, 2):
        with pytest.raises(ArtifactError, match="there is no model"):
            list(synthesize_cohort(broken_load, cases, out=tmp_path / "out", jobs=jobs))


@pytest.mark.slow
def test_a_process_that_is_killed_takes_its_own_scan_alone(tmp_path):
    shape = (30, 30, 30)
    mask = write_nifti(tmp_path / "mask.nii.gz", ball(shape, 12).astype(np.uint8))
    cases = []
    for name in ("a", "b", "c", "d"):
        values = np.random.default_rng(0).normal(60, 10, shape)
        values[:2] = -1000
        values[5:25, 5:25, 5:25] += 2500 * (name == "b")
        cases.append((name, ScanInputs(ct=write_nifti(tmp_path / f"{name}.nii.gz", values), organ_masks=(mask,))))
    outcomes = synthesize_cohort(partial(killed_by, tmp_path), cases, out=tmp_path / "out", jobs=2)
    status = {outcome.id: outcome.status for outcome in outcomes}
    assert status == {"a": "made", "b": "failed", "c": "made", "d": "made"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "c", "d"}
