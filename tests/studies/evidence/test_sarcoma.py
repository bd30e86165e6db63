"""The jobs of the entry on real patients: lists of the folds, and tumors made before in an organ of one's own."""

from types import SimpleNamespace

import pytest

from difftumor.datasets.cases import read_cases
from difftumor.synthesis.scan.record import read_record
from studies.evidence import sarcoma_jobs
from studies.evidence.sarcoma_jobs import FOLD, MADE, SLABS, TEST, TRAINING, main
from tests.stages.tumor_cohort import write_autoencoder, write_diffusion
from tests.studies.test_sarcoma import write_patients


@pytest.fixture
def lists(tmp_path):
    """What the first job leaves of four patients, of whom each has one slab."""
    write_patients(tmp_path / "patients")
    assert main(["lists", "--data", str(tmp_path / "patients"), "--folds", "2", "--out", str(tmp_path / "lists")]) == 0
    return tmp_path / "lists"


def test_a_patient_is_tested_in_one_fold_and_its_slabs_are_not_trained_on_there(lists):
    tested = []
    for fold in range(2):
        whole, training, slabs, test = (read_cases(lists / name.format(fold)) for name in (FOLD, TRAINING, SLABS, TEST))
        ids = {case.id for case in test.cases}
        assert set(whole.validation_ids) == ids
        assert {case.id for case in whole.cases} == ids | {case.id for case in training.cases}
        assert not ids & {case.id for case in training.cases}
        assert {case.patient for case in slabs.cases} == {case.patient for case in training.cases}
        assert all(case.image.is_file() and case.labels.is_file() for case in (*whole.cases, *slabs.cases))
        tested += sorted(ids)
    assert len(set(tested)) == len(tested) == 4


@pytest.mark.slow
def test_tumors_are_made_in_the_body_several_times(lists, tmp_path, monkeypatch):
    write_autoencoder(tmp_path)
    model = write_diffusion(tmp_path, "late")
    organ = {"name": "body", "minimum_radius_mm": 10, "label_names": ["body"], "tumor_names": ["sarcoma"]}
    known = SimpleNamespace(training={"config": {"organ": organ}})
    monkeypatch.setattr(sarcoma_jobs, "read_config", lambda path: known)
    words = ["make", "--cases", str(lists / SLABS.format(0)), "--model", str(model), "--rounds", "2", "--steps", "2"]
    words += ["--device", "cpu", "--out", str(tmp_path / "made")]
    status = main(words)
    made = sorted(path.parent.name for path in (tmp_path / "made").glob("*/record.json"))
    assert (tmp_path / "made" / "summary.csv").is_file()
    assert {name.rpartition("_")[2] for name in made} <= {"0", "1"}
    assert made
    record = read_record(tmp_path / "made" / made[0] / "record.json")
    assert record.organ == "body"
    assert status == 0
    (tmp_path / "made" / MADE).unlink()
    (tmp_path / "made" / made[0] / "record.json").write_text("{}")  # of another model, or damaged
    assert main(words) == 1
    assert not (tmp_path / "made" / MADE).is_file()
    assert main([*words, "--overwrite"]) == 0
    assert (tmp_path / "made" / MADE).is_file()


def test_errors_are_one_sentence(tmp_path, capsys):
    assert main(["lists", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"Error: {tmp_path} holds no <patient>/tumor.nii.gz")
    assert not (tmp_path / "out").exists()
