"""The check of a list of cases before it is used."""

import json
import os

import numpy as np
import pytest

from difftumor.datasets import integrity
from difftumor.datasets.cases import read_cases
from difftumor.datasets.integrity import SharedScan, check_cases, fingerprints, shared_scans
from difftumor.errors import CaseListError, VolumeError
from difftumor.scans.fingerprint import Fingerprint
from difftumor.scans.nifti import read_ct
from tests.nifti import LPS, ct_values, write_nifti


@pytest.fixture
def cohort(tmp_path):
    entries = []
    for name in ("good", "damaged", "turned", "windowed", "empty"):
        values = ct_values().clip(0, 255) if name == "windowed" else ct_values()
        labels = np.zeros((5, 6, 4), "uint8")
        labels[2] = name != "empty"
        write_nifti(tmp_path / f"images/{name}.nii.gz", values)
        write_nifti(tmp_path / f"labels/{name}.nii.gz", labels, LPS if name == "turned" else None)
        entries.append({"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"})
    (tmp_path / "images/damaged.nii.gz").write_bytes(b"no volume")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"1": "liver"}, "training": entries}))
    return read_cases(tmp_path)


def test_headers_tell_damage_and_grids(cohort):
    report = check_cases(cohort)
    assert report.checked == 5
    assert [problem.case_id for problem in report.problems] == ["damaged", "turned", "windowed"]
    assert "damaged or not NIfTI" in report.problems[0].message
    assert "orientation RAS against LPS" in report.problems[1].message
    assert "Hounsfield" in report.problems[2].message


@pytest.mark.parametrize("first", [40, -1000])
def test_a_slice_with_air_is_proof_enough_of_hu_and_one_without_is_not(tmp_path, monkeypatch, first):
    values = np.full((5, 6, 4), -1000, np.int16)
    values[..., 0] = first
    write_nifti(tmp_path / "a.nii.gz", values)
    whole = []
    monkeypatch.setattr("difftumor.datasets.integrity.read_ct", lambda file, **options: whole.append(file))
    assert not check_cases(read_cases(tmp_path)).problems
    assert len(whole) == (first == 40)


def test_one_error_tells_every_problem(cohort):
    with pytest.raises(CaseListError, match="3 of 5 cases cannot be used") as caught:
        check_cases(cohort).raise_if_any()
    assert "damaged: " in str(caught.value)
    assert "turned: " in str(caught.value)


def test_a_sound_list_passes(cohort):
    (case,) = (case for case in cohort.cases if case.id == "good")
    report = check_cases(type(cohort)((case,), cohort.label_names, cohort.source))
    assert not report.problems
    report.raise_if_any()


def test_every_file_of_a_folder_is_checked(tmp_path):
    write_nifti(tmp_path / "c1" / "ct.nii.gz", ct_values())
    write_nifti(tmp_path / "c1" / "segmentations" / "liver.nii.gz", np.ones((5, 6, 4), "uint8"))
    write_nifti(tmp_path / "c1" / "segmentations" / "spleen.nii.gz", np.ones((5, 6, 3), "uint8"))
    (problem,) = check_cases(read_cases(tmp_path)).problems
    assert "spleen.nii.gz" in problem.message
    assert "shape" in problem.message


@pytest.mark.data
def test_real_scans_are_sound(real_data, tmp_path):
    entries = [
        {"id": folder.name, "image": str(folder / "ct.nii.gz"), "labels": str(folder / "tumor.nii.gz")}
        for folder in sorted((real_data / "sarcoma").iterdir())
    ]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    assert not check_cases(read_cases(tmp_path / "list.json")).problems


def prints(folder, **scans):
    """Write CTs, and return their fingerprints by name."""
    files = {name: write_nifti(folder / f"{name}.nii.gz", values) for name, values in scans.items()}
    found = fingerprints(list(files.values()), workers=2)
    return {name: found[file] for name, file in files.items()}


def test_two_lists_are_searched_for_scans_in_both(tmp_path):
    a, b = ct_values((6, 7, 8)), ct_values((6, 7, 8), seed=1)
    ones = prints(tmp_path / "ones", a=a, b=b)
    others = prints(tmp_path / "others", mirrored=a[::-1], other=ct_values((6, 7, 8), seed=2), again=b)
    assert shared_scans(ones, others) == (SharedScan("a", "mirrored", "flipped"), SharedScan("b", "again", "identical"))
    assert shared_scans(ones) == ()
    assert [(pair.one, pair.other) for pair in shared_scans({**ones, **others})] == [("a", "mirrored"), ("b", "again")]


def _likely(random, content, near=None):
    """A fingerprint of random landmarks, or of some of another's moved alike and a bit changed."""
    points, patterns = random.integers(0, 400, (12, 3)), random.integers(0, 2**64, 12, dtype=np.uint64)
    if near is not None and len(near.patterns) == 12:
        kept = random.permutation(12)[: random.integers(5, 12)]
        points[: len(kept)] = near.points_mm[kept] + random.integers(0, 3, (len(kept), 3)) + 9
        patterns[: len(kept)] = near.patterns[kept] ^ np.uint64(2 ** random.integers(0, 14) - 1)
    count = random.choice([0, 3, 12], p=[0.1, 0.1, 0.8])
    return Fingerprint(content, "+x+y+z", "here", points[:count].astype(np.uint16), patterns[:count])


@pytest.mark.parametrize("seed", range(4))
def test_shared_scans_are_those_of_comparing_each_with_each(seed, monkeypatch):
    monkeypatch.setattr("difftumor.scans.fingerprint._BLOCK", 7)
    random = np.random.default_rng(seed)
    ones = {f"a{n}": _likely(random, str(random.integers(30))) for n in range(25)}
    near = list(ones.values())
    others = {f"b{n}": _likely(random, str(random.integers(20, 60)), near[n % 25]) for n in range(40)}

    def each_with_each(ones, others):
        for name, own in ones.items():
            pairs = [(other, own.likeness(their)) for other, their in others(name).items()]
            alike = [SharedScan(name, other, likeness) for other, likeness in pairs if likeness is not None]
            yield from [pair for pair in alike if pair.certain] or alike

    found = shared_scans(ones, others)
    assert found == tuple(each_with_each(ones, lambda name: others))
    assert {pair.certain for pair in found} == {True, False}
    both = {**ones, **others}
    names = list(both)
    later = {name: {other: both[other] for other in names[place + 1 :]} for place, name in enumerate(names)}
    assert shared_scans(both) == tuple(each_with_each(both, later.get))


def test_a_scan_is_read_again_only_when_its_file_changes(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(integrity, "read_ct", lambda file, **options: read.append(file) or read_ct(file))
    file = write_nifti(tmp_path / "a.nii", ct_values())
    first = fingerprints([file, file], cache=tmp_path / "cache")
    assert str(fingerprints([file], cache=tmp_path / "cache")[file]) == str(first[file])
    assert read == [file]
    write_nifti(file, ct_values(seed=1))
    os.utime(file, ns=(1, 1))
    assert fingerprints([file], cache=tmp_path / "cache")[file].content != first[file].content
    assert len(read) == 2


def test_what_one_run_accepts_is_refused_by_the_next_that_does_not(tmp_path):
    file, fine = write_nifti(tmp_path / "a.nii", ct_values() * 0 + 5), write_nifti(tmp_path / "b.nii", ct_values())
    first = fingerprints([file, fine], cache=tmp_path / "cache", accept_hu=True)
    with pytest.raises(VolumeError, match="accept_hu=true"):
        fingerprints([file], cache=tmp_path / "cache")
    assert str(fingerprints([file], cache=tmp_path / "cache", accept_hu=True)[file]) == str(first[file])
    fingerprints([fine], cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("broken", [b"", b"\xff\xfe", b"2:a:b:c:d"])
def test_damaged_or_unwritable_caches_do_not_matter(tmp_path, broken):
    file = write_nifti(tmp_path / "a.nii", ct_values())
    first = fingerprints([file], cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(broken)
    assert str(fingerprints([file], cache=tmp_path / "cache")[file]) == str(first[file])
    (tmp_path / "file").write_text("")
    assert str(fingerprints([file], cache=tmp_path / "file")[file]) == str(first[file])
