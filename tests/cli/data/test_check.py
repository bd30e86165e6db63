"""``difftumor check``: cases that cannot be used, and scans that two data sets share."""

import json

import nibabel as nib
import numpy as np
import pytest

from difftumor.datasets.cases import read_cases
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
    assert run("check", *folders, "--out", tmp_path / "found.json") == 1
    said = capsys.readouterr().out
    assert f"4 pairs of the same scan shared by {folders[0]} and {folders[1]}; 0 suspected." in said
    assert f"1 of 5 cases of {folders[0]} can be used (0 with warnings); 4 with errors cannot." in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(pair["likeness"], pair["one"][-12:-7], pair["other"].split("/")[-1]) for pair in found["pairs"]] == [
        ("identical", "scan0", "copy.nii.gz"),
        ("identical", "scan1", "float.nii"),
        ("other header", "scan2", "header.nii.gz"),
        ("flipped", "scan3", "mirrored.nii.gz"),
    ]
    assert {name: value for name, value in contents(tmp_path).items() if name != "found.json"} == before


def test_numbers_agree(folders, tmp_path, capsys):
    """A case with a warning can be used."""
    for number in range(2, 5):
        (folders[0] / f"scan{number}.nii.gz").unlink()
    (folders[0] / "scan0.nii.gz").write_bytes(b"")
    write_nifti(folders[0] / "scan1.nii.gz", abs(ct_values((9, 8, 7))), LPS)
    assert run("check", folders[0], "--accept-hu", "--fix-list", tmp_path / "good.json") == 1
    said = capsys.readouterr().out
    assert f"1 of 2 cases of {folders[0]} can be used (1 with warnings); 1 with errors cannot." in said
    assert f"{tmp_path / 'good.json'} lists what can be used of A: 1 case." in said


@pytest.mark.parametrize("beside", [False, True])
def test_only_whole_folders_are_shortened(folders, tmp_path, capsys, monkeypatch, beside):
    """A list in its own folder, and a folder whose name is the end of another one's."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(folders[0] if beside else tmp_path)
    if beside:
        (folders[0] / "list.json").write_text(json.dumps([{"image": "scan0.nii.gz"}]))
        assert run("check", "list.json", "../b") == 1
        assert "scan0.nii.gz is the same scan as ../b/copy.nii.gz, which ../b has" in capsys.readouterr().out
        return
    (tmp_path / "b" / "a").mkdir()
    (tmp_path / "b/copy.nii.gz").rename(tmp_path / "b/a/scan0.nii.gz")
    assert run("check", "a", "b/a") == 1
    assert "…/scan0.nii.gz is the same scan as b/a/scan0.nii.gz, which b/a has" in capsys.readouterr().out


def test_one_data_set_is_searched_for_scans_it_holds_twice(folders, tmp_path, capsys):
    assert run("check", folders[0]) == 0
    assert "0 pairs of the same scan within" in capsys.readouterr().out
    (folders[0] / "xagain.nii.gz").write_bytes((folders[0] / "scan4.nii.gz").read_bytes())
    assert run("check", folders[0], "--out", tmp_path / "found.csv", "--fix-list", tmp_path / "good.json") == 1
    assert [row["case"] for row in read_rows(tmp_path / "found.csv") if row["status"] == "error"] == ["xagain"]
    assert len(read_cases(tmp_path / "good.json").cases) == 5
    assert run("check", tmp_path / "good.json") == 0


@pytest.mark.data
def test_suspicions_alone_are_no_failure(tmp_path, capsys, real_data):
    image = nib.load(real_data / "sarcoma" / "STS_002" / "ct.nii.gz")
    write_nifti(tmp_path / "a.nii.gz", np.asarray(image.dataobj).astype(np.int16), image.affine)
    write_nifti(tmp_path / "b.nii.gz", np.asarray(image.dataobj)[9:-9, 5:, 3:].astype(np.int16), image.affine)
    assert run("check", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz") == 0
    assert "0 pairs of the same scan shared by" in (said := capsys.readouterr().out)
    assert said.strip().endswith("1 suspected.")


@pytest.mark.data
def test_real_scans_are_good(tmp_path, capsys, real_data):
    entries = [
        {"id": folder.name, "image": str(folder / "ct.nii.gz"), "label": str(folder / "tumor.nii.gz")}
        for folder in sorted((real_data / "sarcoma").iterdir())[:4]
    ]
    (tmp_path / "list.json").write_text(json.dumps({"labels": {"tumor": 1}, "training": entries}))
    assert run("check", tmp_path / "list.json") == 0
    ct, maps = real_data / "abdomen/ct.nii.gz", tmp_path / "maps"
    maps.mkdir()
    (maps / "ct.nii.gz").write_bytes((real_data / "abdomen/organs.nii.gz").read_bytes())
    words = ("check", ct, "--labels", maps, "--organ", "liver", "--convention")
    assert run(*words, "totalsegmentator") == 0
    assert run("check", ct, "--labels", maps, "--organ", "pancreas", "--convention", "totalsegmentator_v1") == 1
    assert "give the convention 'totalsegmentator' of version 2" in " ".join(capsys.readouterr().out.split())


def test_unreadable_scans_are_named_and_the_others_compared(folders, capsys, monkeypatch):
    (folders[1] / "\x1b[31m[bold]\ndamaged.nii.gz").write_bytes(b"no scan")
    monkeypatch.setenv("COLUMNS", "300")
    assert run("check", *folders, "--workers", 1) == 1
    said = capsys.readouterr().out
    assert "4 pairs of the same scan" in said
    assert "\\x1b[31m[bold]\\ndamaged.nii.gz is damaged or not NIfTI" in said
    assert "\x1b" not in said


def test_a_result_never_replaces_a_scan_or_another_file(folders, tmp_path, capsys):
    listing = folders[0] / "list.json"
    listing.write_text(json.dumps([{"image": "scan0.nii.gz"}, {"image": "scan1.nii.gz"}]))
    assert run("check", listing, "--out", listing, "--overwrite") == 1
    assert "list.json" in capsys.readouterr().err
    assert len(json.loads(listing.read_text())) == 2
    (tmp_path / "notes.csv").write_text("mine")
    assert run("check", listing, "--out", tmp_path / "notes.csv") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "notes.csv").read_text() == "mine"
    for _ in range(2):
        assert run("check", listing, "--out", tmp_path / "found.csv", "--fix-list", tmp_path / "good.json") == 0
    assert run("check", listing, "--out", tmp_path / "notes.csv", "--overwrite") == 0


def test_more_folders_of_labels_than_lists_are_refused(folders, capsys):
    assert run("check", folders[0], "--labels", folders[0], "--labels", folders[1]) == 1
    assert "--labels is given 2 times" in capsys.readouterr().err
