"""``difftumor check``: scans that two data sets share."""

import json

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import contents, read_rows, run
from tests.nifti import LPS, ct_values, write_nifti


@pytest.fixture
def folders(tmp_path):
    """Two data sets: of the second, four scans are of the first."""
    scans = [ct_values((9, 8, 7), seed=number) for number in range(5)]
    for number, values in enumerate(scans):
        write_nifti(tmp_path / f"a/scan{number}.nii.gz", values, LPS)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/copy.nii.gz").write_bytes((tmp_path / "a/scan0.nii.gz").read_bytes())
    write_nifti(tmp_path / "b/float.nii", scans[1].astype(np.float32), LPS)
    write_nifti(tmp_path / "b/header.nii.gz", scans[2], np.diag([-2.0, -2.0, 1.0, 1.0]))
    write_nifti(tmp_path / "b/mirrored.nii.gz", scans[3][:, :, ::-1], LPS)
    write_nifti(tmp_path / "b/other.nii.gz", ct_values((9, 8, 7), seed=9), LPS)
    return tmp_path / "a", tmp_path / "b"


def test_shared_scans_are_named_and_the_exit_status_is_1(folders, tmp_path, capsys):
    before = contents(tmp_path)
    assert run("check", *folders, "--out", tmp_path / "pairs.csv") == 1
    said = capsys.readouterr().out
    assert f"4 pairs of the same scan shared by {folders[0]} and {folders[1]}; 0 suspected." in said
    found = [(row["likeness"], row["one"][-12:-7], row["other"].split("/")[-1]) for row in
             read_rows(tmp_path / "pairs.csv")]  # fmt: skip
    assert found == [
        ("identical", "scan0", "copy.nii.gz"),
        ("identical", "scan1", "float.nii"),
        ("other header", "scan2", "header.nii.gz"),
        ("flipped", "scan3", "mirrored.nii.gz"),
    ]
    assert {name: value for name, value in contents(tmp_path).items() if name != "pairs.csv"} == before


def test_one_data_set_is_searched_for_scans_it_holds_twice(folders, tmp_path, capsys):
    assert run("check", folders[0]) == 0
    assert "0 pairs of the same scan within" in capsys.readouterr().out
    (folders[0] / "again.nii.gz").write_bytes((folders[0] / "scan4.nii.gz").read_bytes())
    assert run("check", folders[0], "--out", tmp_path / "pairs.json") == 1
    (pair,) = json.loads((tmp_path / "pairs.json").read_text())
    assert pair == {
        "likeness": "identical", "one": str(folders[0] / "again.nii.gz"), "other": str(folders[0] / "scan4.nii.gz"),
    }  # fmt: skip


@pytest.mark.data
def test_suspicions_alone_are_no_failure(tmp_path, capsys, real_data):
    image = nib.load(real_data / "sarcoma" / "STS_002" / "ct.nii.gz")
    write_nifti(tmp_path / "a.nii.gz", np.asarray(image.dataobj).astype(np.int16), image.affine)
    write_nifti(tmp_path / "b.nii.gz", np.asarray(image.dataobj)[9:-9, 5:, 3:].astype(np.int16), image.affine)
    assert run("check", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz") == 0
    assert "0 pairs of the same scan shared by" in (said := capsys.readouterr().out)
    assert said.strip().endswith("1 suspected.")


def test_unreadable_scans_are_named_and_the_others_compared(folders, tmp_path, capsys):
    (folders[1] / "damaged.nii.gz").write_bytes(b"no scan")
    assert run("check", *folders) == 1
    said = capsys.readouterr()
    assert "4 pairs of the same scan" in said.out
    assert "1 of 11 CTs cannot be read" in said.err
    assert "damaged.nii.gz" in said.err


def test_a_result_never_replaces_a_scan(folders, capsys):
    listing = folders[0] / "list.json"
    listing.write_text(json.dumps([{"image": "scan0.nii.gz"}, {"image": "scan1.nii.gz"}]))
    assert run("check", listing, "--out", listing) == 1
    assert "list.json" in capsys.readouterr().err
    assert len(json.loads(listing.read_text())) == 2
