"""The command evaluate-synthesis, from two lists to a page."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet50

from difftumor.files.checksums import sha256_of
from difftumor.scans.hounsfield import ScanWarning
from tests.conftest import read_rows, run
from tests.evaluation.realism.tumors import write_record
from tests.nifti import LPS, write_nifti

AFFINE = LPS @ np.diag([1.0, 1.0, 2.0, 1.0])
FILES = {
    "quality.json", "quality.csv", "quality.md", "tumors.csv", "histograms.png", "looks.png", "real.png",
    "synthetic.png", "report.html",
}  # fmt: skip
QUICK = ("--device", "cpu", "--crop", 16, "--repeats", 3, "--resamples", 20, "--pictures", 2)


def scan(seed: int, *, tumor_hu: float = 50.0, shape: tuple[int, int, int] = (34, 30, 16)) -> tuple:
    rng = np.random.default_rng(seed)
    ct = np.full(shape, -1000.0)
    ct[2:-2, 2:-2] = 110 + rng.normal(0, 10, (shape[0] - 4, shape[1] - 4, shape[2]))
    labels = np.zeros(shape, np.uint8)
    labels[3:-3, 3:-3, 1:-1] = 1
    labels[10:17, 10:17, 5:9] = 2
    ct[labels == 2] += tumor_hu - 110
    return np.rint(ct).astype(np.int16), labels


def cohort(folder: Path, *, patients: int = 5, offset: int = 0, affine: np.ndarray = AFFINE, **more: object) -> Path:
    entries = []
    for number in range(offset, offset + patients):
        ct, labels = scan(number, **more)
        write_nifti(folder / f"{number}.nii.gz", ct, affine)
        write_nifti(folder / f"{number}_labels.nii.gz", labels, affine)
        entries.append({"image": f"{number}.nii.gz", "label": f"{number}_labels.nii.gz"})
    content = {"labels": {"background": 0, "liver": 1, "liver_tumor": 2}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    return cohort(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> Path:
    """As `difftumor synthesize --cases` writes them: without a list, in folders, with a map of what was made."""
    folder = tmp_path_factory.mktemp("synthetic")
    for number in range(5):
        ct, labels = scan(10 + number, tumor_hu=20)
        for name, data in (("ct", ct), ("labels", labels), ("lesions", (labels == 2).astype(np.uint8))):
            write_nifti(folder / f"case{number}" / f"{name}.nii.gz", data, AFFINE)
    return folder


def evaluate(real: Path, synthetic: Path, out: Path, *more: object) -> int:
    words = ("--real", real, "--synthetic", synthetic, "--organ", "liver", "--out", out, *QUICK)
    return run("evaluate-synthesis", *words, *more)


def test_two_lists_become_a_page(real, synthetic, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(real, synthetic, out) == 0
    assert {file.name for file in out.iterdir()} == FILES
    record = json.loads((out / "quality.json").read_text())
    assert record["real"]["tumors"] == record["synthetic"]["patients"] == 5
    assert record["networks"] == {}
    assert record["settings"]["seed"] == 0
    found = {each["distance"]: each for each in record["distances"]}
    assert found["hu_wasserstein"]["value"] == pytest.approx(30, abs=2)
    assert found["contrast"]["value"] == pytest.approx(30, abs=4)
    assert found["hu_wasserstein"]["scale"]["farther"] == 1
    assert not [key for key in found if "fid" in key]
    rows = read_rows(out / "quality.csv")
    assert [row["distance"] for row in rows] == list(found)
    assert float(rows[0]["value"]) == found["hu_wasserstein"]["value"]
    page = (out / "report.html").read_text()
    assert "--features" in page
    assert len(re.findall(r"data:image/png;base64,", page)) == 4
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    warning = "Only 5 real and 5 synthetic tumors"
    assert all(warning in text for text in (page, (out / "quality.md").read_text(), "".join(record["warnings"])))
    streams = capsys.readouterr()
    assert warning in streams.err
    assert "point to a difference between synthetic and real tumors" in streams.out


def test_patients_of_hosts_are_those_of_the_real_list(tmp_path, synthetic):
    real = cohort(tmp_path / "real")
    listing = json.loads((real / "dataset.json").read_text())
    for number, entry in enumerate(listing["training"]):
        entry["patient"] = "twice" if number < 2 else f"p{number}"
    (real / "dataset.json").write_text(json.dumps(listing))
    made = shutil.copytree(synthetic, tmp_path / "made")
    for number in range(5):
        write_record(made / f"case{number}", real / f"{number}.nii.gz")
    assert evaluate(real, made, tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert record["real"]["patients"] == record["synthetic"]["patients"] == 4
    named = {(row["set"], row["case"]): row["patient"] for row in read_rows(tmp_path / "out" / "tumors.csv")}
    assert all(named["synthetic", f"case{number}"] == named["real", str(number)] for number in range(5))


@pytest.mark.slow
def test_features_and_the_same_seed_give_the_same_files(real, synthetic, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(resnet50(weights=None).state_dict(), tmp_path / "weights.pth")
    more = ("--features", f"radimagenet_resnet50={tmp_path / 'weights.pth'}", "--slices", 2, "--seed", 3)
    for name in ("one", "other"):
        assert evaluate(real, synthetic, tmp_path / name, *more) == 0
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file
    record = json.loads((tmp_path / "one" / "quality.json").read_text())
    network = record["networks"]["radimagenet_resnet50"]
    assert network["sha256"] == sha256_of(tmp_path / "weights.pth")
    fid = next(each for each in record["distances"] if each["distance"] == "fid_radimagenet_resnet50")
    assert fid["value"] > 0
    assert "not more than 2048 feature dimensions" in fid["warnings"][0]
    page = (tmp_path / "one" / "report.html").read_text()
    assert "10 slices of 5 tumors" in page
    assert network["sha256"] in page


def test_other_voxel_sizes_are_resampled_and_said(real, tmp_path):
    fine = cohort(tmp_path / "fine", offset=10, affine=LPS @ np.diag([1.0, 1.0, 1.0, 1.0]))
    assert evaluate(real, fine, tmp_path / "out") == 0
    assert "differ in voxel size" in (tmp_path / "out" / "quality.md").read_text()


def test_an_unreadable_scan_is_named_and_the_others_measured(real, tmp_path, capsys):
    broken = cohort(tmp_path / "broken", offset=10)
    (broken / "12.nii.gz").write_bytes(b"nothing")
    out = tmp_path / "out"
    assert evaluate(real, broken, out) == 1
    err = capsys.readouterr().err
    assert "Left out 12:" in err
    assert "1 of the scans could not be measured (12)" in err
    record = json.loads((out / "quality.json").read_text())
    assert record["synthetic"]["tumors"] == 4
    assert "12.nii.gz" in record["synthetic"]["failed"]["12"]
    assert "Left out of the synthetic tumors: 12." in (out / "report.html").read_text()


def without_tumors(folder: Path) -> None:
    for file in folder.glob("*_labels.nii.gz"):
        write_nifti(file, np.minimum(scan(0)[1], 1), AFFINE)


def without_tumor_names(folder: Path) -> None:
    listing = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**listing, "labels": {"background": 0, "liver": 1}}))


def without_a_file(folder: Path) -> None:
    (folder / "11_labels.nii.gz").unlink()


def without_labels(folder: Path) -> None:
    listing = json.loads((folder / "dataset.json").read_text())
    del listing["training"][1]["label"]
    (folder / "dataset.json").write_text(json.dumps(listing))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_tumors, r"holds no liver tumors \(0 of 5 scans could not be read\)"),
        (without_tumor_names, "names no liver tumors: name their label"),
        (without_a_file, r"11_labels\.nii\.gz, which does not exist"),
        (without_labels, "names no label map for 11"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_lists_that_cannot_be_used(real, tmp_path, capsys, damage, message):
    bad = cohort(tmp_path / "bad", offset=10)
    damage(bad)
    assert evaluate(real, bad, tmp_path / "out") == 1
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--features", "inception_v3"), "is not NETWORK=PATH"),
        (("--features", "vgg=weights.pth"), "names no feature network"),
        (("--features", "inception_v3=none.pth"), "There is no file none.pth"),
        (("--slices", 17), "--slices 17 is more than --crop 16"),
        (("--window-hu=250,-175",), "give the lower number first"),
        (("--window-hu", "soft"), "--window-hu 'soft' is not understood"),
        (("--spacing-mm", "0"), "is not a voxel size"),
        (("--real-labels", "mine"), "Label convention 'mine' is not known"),
    ],
)
def test_wrong_options_are_named_at_once(real, synthetic, tmp_path, capsys, words, message):
    assert evaluate(real, synthetic, tmp_path / "out", *words) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_scans_that_are_not_in_hu_are_measured_if_they_are_accepted(real, synthetic, tmp_path):
    windowed = shutil.copytree(real, tmp_path / "windowed")
    write_nifti(windowed / "0.nii.gz", np.clip(scan(0)[0], 0, None), AFFINE)
    with pytest.warns(ScanWarning, match=r"0\.nii\.gz looks windowed"):
        assert evaluate(windowed, synthetic, tmp_path / "accepted", "--accept-hu") == 0


def test_an_earlier_result_stays(real, synthetic, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "quality.json").write_text("mine")
    assert evaluate(real, synthetic, out) == 1
    assert "already holds quality.json" in capsys.readouterr().err
    assert (out / "quality.json").read_text() == "mine"
    assert evaluate(real, synthetic, out, "--overwrite") == 0
    assert json.loads((out / "quality.json").read_text())["organ"] == "liver"
