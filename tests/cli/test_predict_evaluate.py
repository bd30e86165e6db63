"""The command evaluate, from files to files."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from difftumor.cli import main

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
    starts = [line.split(",")[:5] for line in lines]
    assert starts == [
        ["case", "organ_dsc", "organ_nsd", "tumor_dsc", "tumor_nsd"],
        *(([c] + ["1.0"] * 4) for c in "ab"),
    ]
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
    assert (cohort / "out" / "cases.csv").read_text().splitlines()[1].startswith("a,1.0,1.0,1.0,1.0,")


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
    monkeypatch.setattr("difftumor.evaluation.pairs.read_labels", lambda path: pytest.fail(f"{path} was read"))
    assert evaluate(cohort, "--out", cohort / out) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert (cohort / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("beside", "status"),
    [
        ({"difftumor_version": "0.1.0", "organ": "kidney"}, 1),
        ({"difftumor_version": "0.1.0", "organ": "liver"}, 0),
        ({"difftumor_version": "0.1.0", "organ": None}, 0),  # a model that does not say it
        ({"organ": "kidney"}, 0),  # another program's
        (["kidney"], 0),
    ],
)
def test_evaluate_refuses_predictions_of_another_organ(cohort, capsys, beside, status):
    (cohort / "predictions" / "b.json").write_text(json.dumps(beside))
    assert evaluate(cohort) == status
    if status:
        assert "b.nii.gz is a prediction of kidney" in capsys.readouterr().err
        assert not (cohort / "out").exists()


def test_evaluate_does_not_replace_the_list_of_labels(cohort, capsys):
    listed = cohort / "cases.csv"
    listed.write_text("image,labels\nlabels/a.nii.gz,labels/a.nii.gz\nlabels/b.nii.gz,labels/b.nii.gz\n")
    before = listed.read_bytes()
    assert evaluate(cohort, "--labels", listed, "--out", cohort) == 1
    assert "would replace the input cases.csv" in capsys.readouterr().err
    assert listed.read_bytes() == before
    assert evaluate(cohort, "--labels", listed) == 0
    assert evaluate(cohort, "--labels", listed) == 0  # earlier results are replaced


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
