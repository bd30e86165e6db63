"""The sarcoma patients as stages read them."""

import json

import nibabel as nib
import numpy as np
import pytest

from difftumor.datasets.cases import read_cases
from difftumor.errors import CaseListError, ConfigError, GridMismatchError
from studies.sarcoma_data import body_mask, write_sarcoma


def write_patient(folder, name):
    """A body of 40 HU in air, with a hole of air, a tumor, and a table beside it, in LPS."""
    folder = folder / name
    folder.mkdir(parents=True)
    ct = np.full((12, 12, 8), -1000, np.int16)
    ct[2:10, 2:9, :] = 40
    ct[4:6, 4:6, 3:5] = -900
    ct[2:10, 11, :] = 100
    tumor = np.zeros(ct.shape, np.uint8)
    tumor[7:9, 5:7, 2:4] = 1
    for file, data in (("ct", ct), ("tumor", tumor)):
        nib.save(nib.Nifti1Image(data, np.diag([-1.0, -1.0, 3.0, 1.0])), folder / f"{file}.nii.gz")
    return ct, tumor


def test_the_body_is_the_largest_part_with_its_holes(tmp_path):
    ct, _ = write_patient(tmp_path, "A")
    body = body_mask(ct)
    assert body[2:10, 2:9].all()
    assert body.sum() == 8 * 7 * 8


def test_folds_are_stated_and_labels_lie_on_the_scan(tmp_path):
    for name in "ABCD":
        ct, tumor = write_patient(tmp_path / "source", name)
    before = {path: path.read_bytes() for path in (tmp_path / "source").rglob("*.nii.gz")}
    held_out = []
    for fold in range(2):
        folder = write_sarcoma(tmp_path / "source", tmp_path / str(fold), count=2, fold=fold)
        cases = read_cases(folder)
        held_out += cases.validation_ids
        assert len(cases.cases) == 4
        assert len(cases.validation_ids) == 2
    assert sorted(held_out) == list("ABCD")
    stored = nib.load(folder / "A_labels.nii.gz")
    labels = np.asarray(stored.dataobj)
    assert (stored.affine == np.diag([-1.0, -1.0, 3.0, 1.0])).all()
    assert ((labels == 2) == (tumor > 0)).all()
    assert ((labels == 1) == (body_mask(ct) & (tumor == 0))).all()
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "body": 1, "sarcoma": 2}
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_without_patients_is_named(tmp_path):
    with pytest.raises(CaseListError, match=r"holds no <patient>/tumor\.nii\.gz"):
        write_sarcoma(tmp_path, tmp_path / "out", count=2, fold=0)


@pytest.fixture
def source(tmp_path):
    for name in "ABCD":
        write_patient(tmp_path / "source", name)
    return tmp_path / "source"


def states(folder):
    return {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()}


def test_what_is_there_stays_untouched_and_another_fold_is_refused(source, tmp_path):
    """Latents of its cases stay valid, and models beside it are not taken for those of another fold."""
    folder = write_sarcoma(source, tmp_path / "out", count=2, fold=0)
    before = states(folder)
    assert len(before) == 9
    assert states(write_sarcoma(source, folder, count=2, fold=0)) == before
    with pytest.raises(ConfigError, match=r"out holds other patients or another fold, .*: give another --out\."):
        write_sarcoma(source, folder, count=2, fold=1)
    assert states(folder) == before


def test_a_tumor_on_another_grid_is_refused(source, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((12, 12, 9), np.uint8), np.eye(4)), source / "B" / "tumor.nii.gz")
    with pytest.raises(GridMismatchError, match=r"B/ct\.nii\.gz"):
        write_sarcoma(source, tmp_path / "out", count=2, fold=0)
    assert not (tmp_path / "out").exists()
