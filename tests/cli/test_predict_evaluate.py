"""The commands predict and evaluate, from files to files."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from difftumor.artifacts import save_artifact
from difftumor.cli import main
from difftumor.networks.autoencoder import Autoencoder
from difftumor.networks.segmenters import build_segmenter

SHAPE = (24, 20, 16)
AFFINE = np.array([[-1.0, 0, 0, 40], [0, -1.5, 0, 30], [0, 0, 2.0, -10], [0, 0, 0, 1]])


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    return int(exit_info.value.code or 0)


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


def labels(*, tumor: bool) -> np.ndarray:
    data = np.zeros(SHAPE, np.uint8)
    data[4:20, 4:16, 4:12] = 1
    if tumor:
        data[8:12, 8:12, 6:9] = 2
    return data


@pytest.fixture
def cohort(tmp_path):
    """Predictions and labels of one case with tumor, found exactly, and a healthy one."""
    for case, tumor in (("a", True), ("b", False)):
        save(tmp_path / "predictions" / f"{case}.nii.gz", labels(tumor=tumor))
        save(tmp_path / "labels" / f"{case}.nii.gz", labels(tumor=tumor))
    return tmp_path


def evaluate(folder: Path, *more: object) -> int:
    words = ("--predictions", folder / "predictions", "--labels", folder / "labels", "--organ", "liver")
    return run("evaluate", *words, "--out", folder / "out", *more)


def test_evaluate_writes_tables(cohort, capsys):
    assert evaluate(cohort) == 0
    lines = (cohort / "out" / "cases.csv").read_text().splitlines()
    assert lines == ["case,organ_dsc,organ_nsd,tumor_dsc,tumor_nsd", "a,1.0,1.0,1.0,1.0", "b,1.0,1.0,1.0,1.0"]
    summary = json.loads((cohort / "out" / "summary.json").read_text())
    assert summary["detection"]["sensitivity"] == {"value": 1.0, "hits": 1, "total": 1}
    assert summary["detection"]["patient_specificity"] == {"value": 1.0, "hits": 1, "total": 1}
    assert "Tumor-wise sensitivity" in capsys.readouterr().out


def test_evaluate_reads_the_numbers_of_a_data_set(cohort, capsys):
    """A truth that numbers spleen, liver and its tumor 1, 5, 6 in a dataset.json beside the folder."""
    for case in ("a", "b"):
        truth = np.asarray(nibabel.load(cohort / "labels" / f"{case}.nii.gz").dataobj)
        numbered = np.array([0, 5, 6], np.uint8)[truth]
        numbered[0, 0, 0] = 1
        save(cohort / "labels" / f"{case}.nii.gz", numbered)
    assert evaluate(cohort) == 1
    assert "holds label 6" in capsys.readouterr().err
    names = {"background": 0, "spleen": 1, "liver": 5, "liver_tumor": 6}
    entries = [{"image": f"labels/{case}.nii.gz", "label": f"labels/{case}.nii.gz"} for case in ("a", "b")]
    (cohort / "dataset.json").write_text(json.dumps({"labels": names, "training": entries}))
    assert evaluate(cohort) == 0
    assert (cohort / "out" / "cases.csv").read_text().splitlines()[1] == "a,1.0,1.0,1.0,1.0"


def test_evaluate_names_missing_partners(cohort, capsys):
    (cohort / "predictions" / "b.nii.gz").unlink()
    assert evaluate(cohort) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no prediction of b" in error
    assert not (cohort / "out").exists()
    assert evaluate(cohort, "--subset") == 0
    (cohort / "labels" / "a.nii.gz").unlink()
    assert evaluate(cohort, "--subset") == 1
    assert "no labels of a" in capsys.readouterr().err


def test_evaluate_names_grids_that_differ(cohort, capsys):
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    save(cohort / "predictions" / "a.nii.gz", labels(tumor=True), shifted)
    assert evaluate(cohort) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "predictions/a.nii.gz" in error
    assert not (cohort / "out").exists()


@pytest.mark.parametrize("option", ["--tolerance-mm", "--minimum-iou"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_evaluate_refuses_numbers_out_of_range(cohort, capsys, option, value):
    assert evaluate(cohort, option, value) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (cohort / "out").exists()


@pytest.mark.parametrize(("out", "words"), [("file", "is a file"), ("file/a/b", "lies inside the file")])
def test_evaluate_refuses_an_output_in_a_file_before_it_reads_anything(cohort, capsys, monkeypatch, out, words):
    (cohort / "file").write_text("mine")
    monkeypatch.setattr("difftumor.evaluation.cohort.read_labels", lambda path: pytest.fail(f"{path} was read"))
    assert evaluate(cohort, "--out", cohort / out) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert (cohort / "file").read_text() == "mine"


def test_evaluate_needs_no_ct(cohort):
    """The dataset.json beside the labels names CTs that were never copied."""
    entry = {"image": "imagesTr/a.nii.gz", "label": "labels/a.nii.gz"}
    names = {"background": 0, "liver": 1, "liver_tumor": 2}
    (cohort / "dataset.json").write_text(json.dumps({"labels": names, "training": [entry]}))
    assert evaluate(cohort) == 0


def test_evaluate_refuses_missing_folders_and_unknown_organs(cohort, capsys):
    assert run("evaluate", "--predictions", cohort / "no", "--labels", cohort / "labels", "--organ", "liver",
               "--out", cohort / "out") == 1  # fmt: skip
    assert "no folder" in capsys.readouterr().err
    assert run("evaluate", "--predictions", cohort / "predictions", "--labels", cohort / "labels", "--organ", "toe",
               "--out", cohort / "out") == 1  # fmt: skip
    assert "toe" in capsys.readouterr().err


@pytest.fixture
def segmenter(tmp_path):
    """A small untrained network."""
    torch.manual_seed(0)
    arguments = {"channels": [4, 8], "residual_units": 1}
    return save_artifact(
        tmp_path / "segmenter",
        kind="segmenter",
        architecture={"name": "unet", **arguments},
        network=build_segmenter("unet", **arguments),
        preprocessing={"spacing_mm": [2.0, 2.0, 2.0], "window_hu": [-175, 250], "crop": [16, 16, 16]},
        organ="liver",
    )


def scan(path: Path) -> Path:
    noise = np.random.default_rng(0).normal(0, 40, SHAPE)
    ct = np.where(labels(tumor=False) > 0, 60 + noise, -1000).astype(np.int16)
    return save(path, ct)


def test_predict_keeps_the_grid_and_describes_lesions(tmp_path, segmenter):
    ct = scan(tmp_path / "in" / "scan_0000.nii.gz")
    before = ct.read_bytes()
    out = tmp_path / "out"
    assert run("predict", "--ct", ct, "--model", segmenter, "--out", out, "--overlap", 0.25, "--device", "cpu") == 0
    assert {path.name for path in out.iterdir()} == {"scan.nii.gz", "scan.json"}
    written = nibabel.load(out / "scan.nii.gz")
    np.testing.assert_array_equal(written.affine, AFFINE)
    assert written.shape == SHAPE
    assert set(np.unique(written.dataobj)) <= {0, 1, 2}
    record = json.loads((out / "scan.json").read_text())
    voxels = sum(lesion["voxels"] for lesion in record["lesions"])
    assert voxels == np.count_nonzero(np.asarray(written.dataobj) == 2)
    assert voxels > 0  # the untrained network must say something, else this tests little
    assert ct.read_bytes() == before


def test_predict_a_folder_with_masks(tmp_path, segmenter, capsys):
    for case in ("a", "b"):
        scan(tmp_path / "in" / f"{case}.nii.gz")
        mask = np.zeros(SHAPE, np.uint8)
        mask[:4] = 1
        save(tmp_path / "masks" / f"{case}.nii.gz", mask)
    common = ("predict", "--ct", tmp_path / "in", "--model", segmenter, "--overlap", 0.25, "--device", "cpu")
    assert run(*common, "--out", tmp_path / "out", "--organ-mask", tmp_path / "masks") == 0
    for case in ("a", "b"):
        tumor = np.asarray(nibabel.load(tmp_path / "out" / f"{case}.nii.gz").dataobj) == 2
        assert not tumor[4 + 5 :].any()  # the mask ends at 4 mm, and 5 mm beyond it are allowed
    (tmp_path / "masks" / "b.nii.gz").unlink()
    capsys.readouterr()
    assert run(*common, "--out", tmp_path / "new", "--organ-mask", tmp_path / "masks") == 1
    assert "b.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    one_mask = tmp_path / "masks" / "a.nii.gz"
    assert run(*common, "--out", tmp_path / "new", "--organ-mask", one_mask) == 1
    assert "one file for 2" in capsys.readouterr().err
    assert run(*common, "--out", tmp_path / "new", "--organ-mask", tmp_path / "typo.nii.gz") == 1
    assert "typo.nii.gz does not exist" in capsys.readouterr().err


def test_predict_finds_masks_named_like_their_cts(tmp_path, segmenter):
    scan(tmp_path / "in" / "a_0000.nii.gz")
    save(tmp_path / "masks" / "a_0000.nii.gz", labels(tumor=True))
    words = ("predict", "--ct", tmp_path / "in", "--model", segmenter, "--overlap", 0.25, "--device", "cpu")
    assert run(*words, "--out", tmp_path / "out", "--organ-mask", tmp_path / "masks") == 0
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_predict_refuses_masks_of_several_structures(tmp_path, segmenter, capsys):
    ct = scan(tmp_path / "in" / "a.nii.gz")
    structures = labels(tumor=False) * 5
    structures[0] = 1
    mask = save(tmp_path / "mask.nii.gz", structures)
    words = ("predict", "--ct", ct, "--model", segmenter, "--out", tmp_path / "out", "--device", "cpu")
    assert run(*words, "--organ-mask", mask) == 1
    assert "several labels (1, 5)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predict_never_replaces_its_inputs(tmp_path, segmenter, capsys):
    ct = scan(tmp_path / "in" / "a.nii.gz")
    mask = save(tmp_path / "masks" / "a.nii.gz", labels(tumor=False))
    before = [file.read_bytes() for file in (ct, mask)]
    words = ("predict", "--ct", ct, "--model", segmenter, "--organ-mask", mask.parent, "--device", "cpu")
    for out in (ct.parent, mask.parent):
        assert run(*words, "--out", out) == 1
        assert "would replace the input a.nii.gz" in capsys.readouterr().err
    assert run(*words, "--out", ct) == 1
    assert "is a file" in capsys.readouterr().err
    assert [file.read_bytes() for file in (ct, mask)] == before
    assert len(list(ct.parent.iterdir())) == len(list(mask.parent.iterdir())) == 1


def test_predict_refuses_other_networks(tmp_path, capsys):
    sizes = {"base_channels": 4, "norm_groups": 4, "codes": 4}
    other = save_artifact(
        tmp_path / "autoencoder",
        kind="autoencoder",
        architecture={"name": "vqgan3d", **sizes},
        network=Autoencoder(**sizes),
        preprocessing={"spacing_mm": [1.0, 1.0, 1.0], "window_hu": [-175, 250], "crop": [16, 16, 16]},
    )
    assert run("predict", "--ct", scan(tmp_path / "a.nii.gz"), "--model", other, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "'autoencoder', not 'segmenter'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_predict_reads_all_headers_first(tmp_path, segmenter, capsys):
    scan(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"no NIfTI")
    words = ("predict", "--ct", tmp_path / "in", "--model", segmenter, "--device", "cpu")
    assert run(*words, "--out", tmp_path / "out") == 1
    assert "b.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predict_refuses_masks_on_other_grids_and_devices_that_are_not_there(tmp_path, segmenter, capsys):
    ct = scan(tmp_path / "in" / "a.nii.gz")
    mask = save(tmp_path / "mask.nii.gz", labels(tumor=False), np.eye(4))
    common = ("predict", "--ct", ct, "--model", segmenter, "--out", tmp_path / "out")
    assert run(*common, "--organ-mask", mask, "--device", "cpu") == 1
    assert "mask.nii.gz" in capsys.readouterr().err
    assert run(*common, "--device", "cuda:99") == 1
    assert "cuda:99" in capsys.readouterr().err
    assert run(*common, "--overlap", 1.5, "--device", "cpu") == 1
    assert "overlap" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
