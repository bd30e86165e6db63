"""Whose scans synthetic tumors were made in."""

from dataclasses import replace
from pathlib import Path

import pytest

from difftumor.datasets.cases import Case, CaseList
from difftumor.errors import SynthesisError
from difftumor.evaluation.realism.tumor_samples import with_real_patients
from tests.evaluation.realism.tumors import write_record


@pytest.fixture
def real(tmp_path):
    """Two scans of Ann, one of Bo, and one of whom nobody names."""
    patients = {"s1": "Ann", "s2": "Ann", "s3": "Bo", "case0": ""}
    cases = tuple(Case(name, tmp_path / f"{name}.nii.gz", patient=patient) for name, patient in patients.items())
    return CaseList(cases, {}, tmp_path)


def made(folder: Path, hosts: dict[str, Path | None]) -> CaseList:
    """Return what `difftumor synthesize` left, without a record where there is no host."""
    cases = []
    for name, host in hosts.items():
        (folder / "made" / name).mkdir(parents=True)
        if host is not None:
            write_record(folder / "made" / name, host)
        cases.append(Case(name, folder / "made" / name / "ct.nii.gz", folder / "made" / name / "labels.nii.gz"))
    return CaseList(tuple(cases), {}, folder / "made")


def patients(made: CaseList, real: CaseList) -> dict[str, str]:
    found = with_real_patients(made, real)
    assert [replace(case, patient="x") for case in found.cases] == [replace(case, patient="x") for case in made.cases]
    return {case.id: case.patient for case in found.cases}


def test_patients_are_those_of_the_hosts(real, tmp_path):
    (tmp_path / "s3.nii.gz").write_bytes(b"")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "s3.nii.gz")
    hosts = {"m1": "s1", "m2": "s2", "m3": "link", "m4": "case0", "s1": "s3"}
    synthetic = made(tmp_path, {name: tmp_path / f"{host}.nii.gz" for name, host in hosts.items()})
    assert patients(synthetic, real) == {"m1": "Ann", "m2": "Ann", "m3": "Bo", "m4": "case0", "s1": "Bo"}


def test_equal_ids_of_two_data_sets_are_two_patients(real, tmp_path):
    other = tmp_path / "other"
    synthetic = made(tmp_path, {"case0": other / "case0.nii.gz", "Bo": None, "case9": other / "case9.nii.gz"})
    found = patients(synthetic, real)
    assert found["case9"] == "case9"
    assert not {found["case0"], found["Bo"]} & {"Ann", "Bo", "case0"}
    assert len(set(found.values())) == 3


def test_tumors_made_twice_in_one_ct_are_of_one_patient(real, tmp_path):
    host = tmp_path / "other" / "x.nii.gz"
    synthetic = made(tmp_path, {"a": host, "b": host, "c": tmp_path / "other" / "y.nii.gz"})
    for cases in (synthetic.cases, synthetic.cases[::-1]):
        assert patients(replace(synthetic, cases=cases), real) == {"a": "a", "b": "a", "c": "c"}


def test_a_list_that_names_patients_is_believed(real, tmp_path):
    cases = [Case(f"m{n}", tmp_path / f"m{n}.nii.gz", patient=name) for n, name in enumerate(("Ann", "Eve"))]
    assert patients(CaseList(tuple(cases), {}, tmp_path), real) == {"m0": "Ann", "m1": "Eve"}


def test_the_real_list_itself_has_its_own_patients(real):
    assert with_real_patients(real, real) == real


def test_a_record_that_cannot_be_read_is_named(real, tmp_path):
    synthetic = made(tmp_path, {"a": tmp_path / "s1.nii.gz"})
    (tmp_path / "made" / "a" / "record.json").write_text("{}")
    with pytest.raises(SynthesisError, match=r"a/record\.json is not a readable"):
        with_real_patients(synthetic, real)
