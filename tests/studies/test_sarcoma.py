"""The study on sarcomas: from a folder of patients to the page, and again without training anew."""

import html
import shlex

import nibabel as nib
import numpy as np
import pytest

from studies.jobs.comparison import HEALTHY, REAL
from studies.sarcoma import main
from tests.conftest import read_rows
from tests.stages.conftest import TINY
from tests.stages.tumor_cohort import DIFFUSION
from tests.studies.test_timesteps import without_key

FILES = ["appearance.png", "losses.png", "report.html", "sarcoma.csv", "sarcoma.md", "tumors.png"]
SIZES = ("data.spacing_mm=[4,4,4]", "data.crop=[24,24,16]")


def without(options, *names):
    return [option for option in options if option.split("=")[0] not in names]


def write_patients(folder):
    """Write four patients with a box of a body, and a tumor of 24 mm in it."""
    for number in range(4):
        tumor = np.zeros((34, 32, 24), np.uint8)
        tumor[6 + number : 12 + number, 8:14, 6:12] = 1
        ct = np.full(tumor.shape, -1000, np.int16)
        noise = np.random.default_rng(number).normal(60, 10, tumor.shape).astype(np.int16)
        ct[3:31, 3:29] = noise[3:31, 3:29]
        ct[tumor > 0] -= 40
        patient = folder / f"P{number}"
        patient.mkdir(parents=True)
        for name, data in (("ct", ct), ("tumor", tumor)):
            nib.save(nib.Nifti1Image(data, np.diag([-4.0, -4.0, 4.0, 1.0])), patient / f"{name}.nii.gz")


@pytest.fixture
def words(tmp_path):
    """The command line for the four patients."""
    write_patients(tmp_path / "patients")
    return [
        "run", "--data", str(tmp_path / "patients"), "--out", str(tmp_path / "out"), "--folds", "2", "--hosts", "2",
        "--device", "cpu",
        "--autoencoder", *without(TINY, "data.validation_share", "trainer"), *SIZES, "training.steps=2",
        "--diffusion", *without(DIFFUSION, "organ", "trainer", "validation.hosts"), *SIZES, "training.steps=2",
        "latents.crops=2",
    ]  # fmt: skip


@pytest.mark.slow
def test_it_trains_each_once_and_leaves_table_pictures_and_page(words, tmp_path, capfd):
    assert main(words) == 0
    out = tmp_path / "out"
    assert capfd.readouterr().out.endswith(f"The report is at {out}/report.html\n")
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == FILES
    rows = {row["tumors of"]: row for row in read_rows(out / "sarcoma.csv")}
    assert list(rows) == [REAL, HEALTHY, "all tumors", "one tumor"]
    assert {row["tumors"] for row in rows.values()} == {"2"}
    assert float(rows[HEALTHY]["contrast_distance_hu"]) == pytest.approx(40, abs=5)
    assert float(rows[REAL]["contrast_distance_hu"]) < 5
    assert rows["all tumors"]["contrast_distance_hu"] != rows["one tumor"]["contrast_distance_hu"]
    page = (out / "report.html").read_text()
    assert html.escape(shlex.join(["python", "-m", "studies.sarcoma", *words])) in page
    assert page.count("<figure>") == 3

    made = {path: path.stat().st_mtime_ns for part in ("checkpoints", "latents") for path in (out / part).rglob("*.*")}
    assert {without_key(path.parent) for path in made} >= {"autoencoder", "all_tumors", "one_tumor"}
    (out / "losses.png").unlink()
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert (out / "losses.png").is_file()

    assert main([*words, "--fold", "1"]) == 1
    assert capfd.readouterr().err.endswith("on which models beside it were trained: give another --out.\n")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--hosts", "0"], "has no room for tumors to compare"),
        (["--data", "nowhere"], "nowhere holds no <patient>/tumor.nii.gz"),
        (["--folds", "5"], "4 patients cannot make 5 folds"),
        (["--diffusion", "ema.dekay=1"], "Unknown option 'ema.dekay': did you mean 'ema.decay'?"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(words, never_run, capsys, more, message):
    assert main([*words, *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert message in error
    assert error.count("\n") == 1
