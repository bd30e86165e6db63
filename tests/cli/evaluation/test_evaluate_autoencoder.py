"""The command evaluate-autoencoder, from scans to a card."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from difftumor.evaluation.autoencoder.fidelity import measure_fidelity
from difftumor.evaluation.autoencoder.reconstruction import reconstruct
from difftumor.models.artifact import load_artifact, save_artifact
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.segmenters import build_segmenter
from difftumor.scans.hounsfield import ScanWarning
from difftumor.scans.intensity import IntensityWindow
from tests.conftest import contents, read_rows, run
from tests.nifti import write_nifti

SHAPE = (30, 26, 20)
AFFINE = np.diag([-2.0, -2.0, 2.0, 1.0])
PREPROCESSING = {"spacing_mm": [2.0, 2.0, 2.0], "window_hu": [-175.0, 250.0], "crop": [16, 16, 16]}
FILES = {"card.json", "cases.csv", "report.html"}


def structures(*, tumor: bool = True) -> np.ndarray:
    data = np.zeros(SHAPE, np.uint8)
    data[4:20, 4:20, 4:16] = 5
    data[22:27, 4:14, 4:16] = 2
    if tumor:
        data[8:14, 8:14, 6:12] = 9
    return data


def scan(path: Path, *, seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).normal(0, 12, SHAPE)
    ct = np.full(SHAPE, -1000.0)
    ct[1:29, 1:25, :] = -100 + noise[1:29, 1:25, :]
    inside = structures() > 0
    ct[inside] = 60 + noise[inside]
    return write_nifti(path, ct.astype(np.int16), AFFINE)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """A small network that has learnt nothing but has a codebook."""
    sizes = {"base_channels": 4, "norm_groups": 4, "codes": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Autoencoder(**sizes)
        features = network.encode(torch.rand(2, 1, 16, 16, 16) * 2 - 1)
    network.codebook.initialize(features, generator=torch.Generator().manual_seed(0))
    return save_artifact(
        tmp_path_factory.mktemp("artifacts") / "autoencoder",
        kind="autoencoder",
        architecture={"name": "vqgan3d", **sizes},
        network=network,
        preprocessing=PREPROCESSING,
    )


@pytest.fixture
def data(tmp_path) -> Path:
    """An MSD data set of two scans, of which one is labelled; label 9 has no name."""
    for number, case in enumerate(("a", "b")):
        scan(tmp_path / "data" / "imagesTr" / f"{case}.nii.gz", seed=number)
    write_nifti(tmp_path / "data" / "labelsTr" / "a.nii.gz", structures(), AFFINE)
    content = {
        "labels": {"background": 0, "liver": 5, "kidney_right": 2},
        "training": [
            {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"},
            {"image": "imagesTr/b.nii.gz"},
        ],
    }
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    return tmp_path / "data"


def evaluate(artifact: Path, data: Path, out: Path, *more: object) -> int:
    return run("evaluate-autoencoder", artifact, data, "--out", out, "--device", "cpu", "--pictures", 0, *more)


def test_a_card_of_two_scans(artifact, data, tmp_path, capsys):
    before = contents(data)
    out = tmp_path / "out"
    assert evaluate(artifact, data, out) == 0
    assert {file.name for file in out.iterdir()} == FILES
    assert contents(data) == before
    card = json.loads((out / "card.json").read_text())
    assert card["verdict"]["good_enough"] is False
    assert card["verdict"]["sentence"] in capsys.readouterr().out
    assert card["failed"] == {}
    a, b = card["scans"]
    assert (a["case"], b["case"]) == ("a", "b")
    assert a["shape"] == list(SHAPE)
    assert {name: inside["voxels"] for name, inside in a["structures"].items()} == {
        "kidney_right": 5 * 10 * 12, "liver": 16 * 16 * 12 - 6**3, "label 9": 6**3,
    }  # fmt: skip
    assert b["structures"] == {}
    for name in ("psnr_db", "ssim", "mae_hu", "bias_hu", "edge_ratio"):
        assert card["overall"][name] == pytest.approx((a[name] + b[name]) / 2), name
    assert card["overall"]["structures"] == a["structures"]
    assert max(a["codes_used"], b["codes_used"]) <= card["overall"]["codes_used"] <= 16
    config = json.loads((artifact / "config.json").read_text())
    assert card["artifact"]["identity"] == config["identity"]
    assert card["thresholds"]["psnr_db"] == 28
    assert card["settings"] == {"labels": None, "overlap": 0.25, "windows_per_batch": 8, "device": "cpu"}
    rows = read_rows(out / "cases.csv")
    assert [row["case"] for row in rows] == ["a", "b"]
    assert float(rows[0]["liver mae_hu"]) == a["structures"]["liver"]["mae_hu"]
    assert rows[1]["liver mae_hu"] == ""


def test_numbers_are_those_of_the_model_space(artifact, data, tmp_path):
    """Measured by hand on the file, turned to RAS; at the network's own spacing nothing is resampled."""
    assert evaluate(artifact, data / "imagesTr" / "a.nii.gz", tmp_path / "out", "--overlap", 0.5) == 0
    found = json.loads((tmp_path / "out" / "card.json").read_text())["scans"][0]
    stored = nibabel.as_closest_canonical(nibabel.load(data / "imagesTr" / "a.nii.gz"))
    ct = torch.from_numpy(np.ascontiguousarray(stored.get_fdata(), np.float32))
    network = load_artifact(artifact).network
    window = IntensityWindow()
    result = reconstruct(network, window.to_signed(ct), window=(16, 16, 16), overlap=0.5)
    expected = measure_fidelity(ct, window.from_signed(result.ct_signed_XYZ), window=window)
    assert found["psnr_db"] == pytest.approx(expected.psnr_db)
    assert found["mae_hu"] == pytest.approx(expected.mae_hu)
    assert found["ssim"] == pytest.approx(expected.ssim)


def test_the_report_says_the_verdict_first_and_shows_the_scans(artifact, data, tmp_path):
    assert evaluate(artifact, data, tmp_path / "out", "--pictures", 1) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == [
        "Good enough for stage 2: no", "Scans", "Structures", "Pictures", "What was measured",
        "Thresholds and their reasons", "How it was run",
    ]  # fmt: skip
    assert card["verdict"]["failures"][0] in page
    assert "right" in page
    assert re.findall(r"<h3[^>]*>(.*?)</h3>", page) == ["a"]  # one picture, of the first scan
    assert "The first 1 of 2 scans." in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)  # it asks for nothing from elsewhere


def test_numbers_get_names_from_a_convention(artifact, data, tmp_path):
    (data / "list.csv").write_text("image,labels\nimagesTr/a.nii.gz,labelsTr/a.nii.gz\n")
    for options, names in (
        ((), {"label 2", "label 5", "label 9"}),
        (("--labels", "totalsegmentator"), {"kidney_right", "liver", "adrenal_gland_left"}),
    ):
        assert evaluate(artifact, data / "list.csv", tmp_path / "out", "--overwrite", *options) == 0
        card = json.loads((tmp_path / "out" / "card.json").read_text())
        assert set(card["overall"]["structures"]) == names


def test_numbers_never_mix_on_the_way_to_another_voxel_size(artifact, data, tmp_path):
    finer = np.diag([-1.3, -1.3, 1.7, 1.0])
    ct = np.asarray(nibabel.load(data / "imagesTr" / "a.nii.gz").dataobj)
    write_nifti(data / "imagesTr" / "a.nii.gz", ct, finer)
    write_nifti(data / "labelsTr" / "a.nii.gz", structures(), finer)
    assert evaluate(artifact, data, tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "card.json").read_text())["scans"][0]
    assert set(found["structures"]) == {"kidney_right", "liver", "label 9"}
    assert found["structures"]["label 9"]["voxels"] == pytest.approx(6**3 * 1.3 * 1.3 * 1.7 / 8, rel=0.25)


def test_structures_with_files_of_their_own(artifact, tmp_path):
    scan(tmp_path / "data" / "x" / "ct.nii.gz")
    for name, number in (("liver", 5), ("liver_tumor", 9)):
        part = (structures() == number).astype(np.uint8)
        write_nifti(tmp_path / "data" / "x" / "segmentations" / f"{name}.nii.gz", part, AFFINE)
    assert evaluate(artifact, tmp_path / "data", tmp_path / "out") == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["overall"]["structures"]["liver_tumor"]["voxels"] == 6**3


LENIENT = ["psnr_db=0", "ssim=0", "mae_hu=999", "bias_hu=999", "edge_ratio_min=0", "edge_ratio_max=99",
           "noise_ratio_min=0", "noise_ratio_max=99", "structure_mae_hu=999", "structure_bias_hu=999"]  # fmt: skip


def test_thresholds_and_strict_decide_the_exit(artifact, data, tmp_path, capsys):
    out, one = tmp_path / "out", data / "imagesTr" / "a.nii.gz"
    assert evaluate(artifact, one, out, "--strict") == 1
    assert {file.name for file in out.iterdir()} == FILES
    changes = [word for setting in LENIENT for word in ("--threshold", setting)]
    capsys.readouterr()
    assert evaluate(artifact, one, out, "--strict", "--overwrite", *changes) == 0
    assert "Good enough for stage 2: yes, because" in capsys.readouterr().out
    card = json.loads((out / "card.json").read_text())
    assert card["verdict"]["good_enough"] is True
    assert card["thresholds"]["mae_hu"] == 999


def test_one_bad_scan_is_named_and_the_others_are_measured(artifact, data, tmp_path, capsys):
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    write_nifti(data / "labelsTr" / "a.nii.gz", structures(), shifted)
    assert evaluate(artifact, data, tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "Left out a:" in captured.err
    assert "labelsTr/a.nii.gz" in captured.err
    assert "1 of 2 scans could not be measured (a)" in captured.err
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert [found["case"] for found in card["scans"]] == ["b"]
    assert "labelsTr/a.nii.gz" in card["failed"]["a"]
    assert "Left out: a." in (tmp_path / "out" / "report.html").read_text()


def test_a_scan_that_is_not_in_hu_is_measured_only_if_it_is_accepted(artifact, data, tmp_path, capsys):
    write_nifti(data / "imagesTr" / "a.nii.gz", np.full(structures().shape, 7, np.int16), AFFINE)
    assert evaluate(artifact, data, tmp_path / "out") == 1
    assert "go on with accept_hu (--accept-hu" in capsys.readouterr().err
    with pytest.warns(ScanWarning, match=r"a\.nii\.gz looks windowed or scaled"):
        assert evaluate(artifact, data, tmp_path / "accepted", "--accept-hu") == 0


def test_nothing_is_written_where_no_scan_can_be_measured(artifact, data, tmp_path, capsys):
    for case in ("a", "b"):
        (data / "imagesTr" / f"{case}.nii.gz").write_bytes(b"no NIfTI")
    assert evaluate(artifact, data, tmp_path / "out") == 1
    assert "None of the scans" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_scan_smaller_than_the_window(artifact, tmp_path):
    ct = np.full((9, 7, 1), 50, np.int16)
    ct[0, 0, 0] = -1000
    assert evaluate(artifact, write_nifti(tmp_path / "ct.nii.gz", ct, AFFINE), tmp_path / "out") == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["scans"][0]["shape"] == [9, 7, 1]
    # 63 voxels say nothing about noise.
    assert card["scans"][0]["noise_ratio"] is None
    assert "the noise ratio could not be measured" in card["verdict"]["unmeasured"]


def test_an_earlier_card_and_inputs_stay(artifact, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(artifact, data, out) == 0
    (out / "mine.txt").write_text("mine")
    before = contents(out)
    assert evaluate(artifact, data, out) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert contents(out) == before
    assert evaluate(artifact, data, out, "--overwrite") == 0
    assert contents(out) == before  # the same input gives the same card, byte by byte
    (data / "cases.csv").write_text("image\nimagesTr/a.nii.gz\n")
    capsys.readouterr()
    assert evaluate(artifact, data / "cases.csv", data, "--overwrite") == 1
    assert f"would replace the input {data / 'cases.csv'}" in capsys.readouterr().err
    assert (data / "cases.csv").read_text().startswith("image")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threshold", "psnr=3"), "psnr_db"),
        (("--labels", "nobody"), "totalsegmentator"),
        (("--overlap", 1.0), "overlap"),
        (("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_bad_options_are_one_sentence(artifact, data, tmp_path, capsys, options, words):
    assert evaluate(artifact, data, tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_data_and_artifacts_are_one_sentence(artifact, data, tmp_path, capsys):
    arguments = {"channels": [4, 8], "residual_units": 1}
    segmenter = save_artifact(
        tmp_path / "segmenter", kind="segmenter", architecture={"name": "unet", **arguments},
        network=build_segmenter("unet", **arguments), preprocessing=PREPROCESSING, organ="liver",
    )  # fmt: skip
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    for model, source, out, words in (
        (segmenter, data, "out", "'segmenter', not 'autoencoder'"),
        (tmp_path / "nowhere", data, "out", "nowhere"),
        (artifact, tmp_path / "empty", "out", "holds no CT"),
        (artifact, tmp_path / "missing.nii.gz", "out", "missing.nii.gz"),
        (artifact, data, "file", "is a file"),
    ):
        assert evaluate(model, source, tmp_path / out) == 1
        error = capsys.readouterr().err
        assert words in error
        assert not (tmp_path / "out").exists()
