"""Segmenters of sarcomas: lists made of the patients of a study, and trainings on them."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from difftumor.datasets.cases import read_cases
from difftumor.errors import CaseListError, ConfigError
from difftumor.models.artifact_config import read_config
from studies.sarcoma_data import write_sarcoma
from studies.sarcoma_segmentation import FEW, HEALTHY, TEST, main, write_lists
from tests.conftest import read_rows
from tests.stages.tumor_cohort import UNET, write_autoencoder, write_diffusion
from tests.studies.test_sarcoma import write_patients
from tests.studies.test_timesteps import without_key


@pytest.fixture
def study(tmp_path):
    """What ``studies.sarcoma`` leaves, with untrained models: slices of 4 mm, tumors in the slices 6 to 11 of 24."""
    out = tmp_path / "study"
    write_patients(tmp_path / "patients")
    write_sarcoma(tmp_path / "patients", out / "data", count=2, fold=0)
    checkpoints = out / "checkpoints"
    checkpoints.mkdir()
    write_autoencoder(checkpoints)
    write_diffusion(checkpoints, "late").rename(checkpoints / "all_tumors-01234567")
    return out


def test_the_slices_above_and_below_are_healthy_scans_of_the_training_patients(study, tmp_path):
    lists = write_lists(study / "data", tmp_path / "lists")
    few, test, healthy = (read_cases(lists / file) for file in (FEW, TEST, HEALTHY))
    stated = read_cases(study / "data")
    assert {case.id for case in test.cases} == set(stated.validation_ids)
    assert {case.id for case in (*few.cases, *test.cases)} == {case.id for case in stated.cases}
    # Of 24 mm below, 16 are left beside the margin: too few. Of 48 above, 40 are left.
    assert [case.id for case in healthy.cases] == [f"{case.id}_above" for case in few.cases]
    assert [case.patient for case in healthy.cases] == [case.patient for case in few.cases]
    assert {case.tumor_organs for case in healthy.cases} == {()}
    assert few.label_names == healthy.label_names == stated.label_names
    for slab, case in zip(healthy.cases, few.cases, strict=True):
        for part in ("image", "labels"):
            whole, cut = nib.load(getattr(case, part)), nib.load(getattr(slab, part))
            assert cut.shape == (*whole.shape[:2], 10)
            np.testing.assert_array_equal(np.asarray(cut.dataobj), np.asarray(whole.dataobj)[:, :, 14:])
            np.testing.assert_allclose(cut.affine @ [0, 0, 0, 1], whole.affine @ [0, 0, 14, 1])
        assert set(np.unique(nib.load(slab.labels).dataobj)) == {0, 1}


def test_lists_that_are_there_stay_and_those_of_another_fold_are_refused(study, tmp_path):
    lists = write_lists(study / "data", tmp_path / "lists")
    before = {path: path.stat().st_mtime_ns for path in lists.iterdir()}
    write_lists(study / "data", lists)
    other = write_sarcoma(tmp_path / "patients", tmp_path / "other", count=2, fold=1)
    with pytest.raises(ConfigError, match=r"holds other patients.*give another --out"):
        write_lists(other, lists)
    assert {path: path.stat().st_mtime_ns for path in lists.iterdir()} == before


def test_scans_without_room_beside_the_tumor_are_no_hosts(study, tmp_path, monkeypatch):
    monkeypatch.setattr("studies.sarcoma_segmentation.SLAB_MM", 44.0)
    with pytest.raises(CaseListError, match="44 mm of tumor-free slices"):
        write_lists(study / "data", tmp_path / "lists")
    assert not (tmp_path / "lists").exists()


def test_a_study_without_its_model_is_told(study, capsys):
    shutil.rmtree(study / "checkpoints" / "all_tumors-01234567")
    assert main(["plan", "--study", str(study)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"run python -m studies.sarcoma run --out {study} first" in error


@pytest.mark.slow
def test_it_trains_on_patients_and_slabs_and_tests_on_the_held_out_ones(study, tmp_path, in_this_process):
    out = tmp_path / "out"
    words = ["run", "--study", str(study), "--out", str(out), "--seeds", "1", "--steps", "2", "--device", "cpu", *UNET,
             "trainer.progress_bar=false"]  # fmt: skip
    assert main(words) == 0
    assert [row["trained on"] for row in read_rows(out / "tumor_sources.csv")] == [
        "few real tumors",
        "few real and healthy scans",
        "few real and diffusion",
        "few real and copied",
    ]
    few = {case.id for case in read_cases(out / "data" / FEW).cases}
    configs = {without_key(path): read_config(path) for path in (out / "checkpoints").iterdir()}
    cases = {name: set(config.training["cases"]["training"]) for name, config in configs.items()}
    assert cases["few_real_tumors_0"] == few
    assert cases["few_real_and_diffusion_0"] == few | {f"{name}_above" for name in few}
    for config in configs.values():
        assert config.preprocessing["spacing_mm"] == [3, 3, 3]
        assert config.preprocessing["crop"] == [16, 16, 12]  # as wide as the model's, as high as a slab
        assert config.organ == "body"
    assert {path.name for path in next((out / "predict").glob("predict_few_real_tumors_0-*")).glob("*.nii.gz")} == {
        f"{case.id}.nii.gz" for case in read_cases(out / "data" / TEST).cases
    }
