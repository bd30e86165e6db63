"""Cohorts on disk: the Decathlon's layout, whole or not at all, and no case that depends on another."""

import json

import nibabel
import numpy as np
import pytest

from difftumor.datasets.phantom import LABEL_NAMES, PhantomConfig, cohort, make_case, write_cohort
from difftumor.errors import ConfigError, SynthesisError

TINY = PhantomConfig(shape=(32, 32, 32))
ARGUMENTS = {"organs": ("liver", "kidney"), "seed": 4, "config": TINY}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort") / "deep" / "out", cases=4, **ARGUMENTS)


def test_dataset_json_is_a_decathlon(written):
    content = json.loads(written.read_text())
    assert content["labels"] == {str(value): name for name, value in LABEL_NAMES.items()}
    assert content["modality"] == {"0": "CT"}
    assert content["numTraining"] == len(content["training"]) == 4
    patients = {entry["patient"] for entry in content["training"]}
    assert len(patients) == 4
    healthy = [entry for entry in content["training"] if entry["tumor_organs"] == []]
    assert len(healthy) == 1
    for entry in content["training"]:
        assert entry["tumor_organs"] in ([], ["liver", "kidney"])
        assert sorted({tumor["organ"] for tumor in entry["tumors"]}) == sorted(entry["tumor_organs"])


def test_files_hold_the_cases(written):
    content = json.loads(written.read_text())
    for index, entry in enumerate(content["training"]):
        case = make_case(seed=4, index=index, config=TINY, organs=("liver", "kidney"))
        image, labels = (nibabel.load(written.parent / entry[key]) for key in ("image", "label"))
        assert image.get_data_dtype() == np.int16
        assert labels.get_data_dtype() == np.uint8
        assert (np.asarray(image.dataobj) == case.ct_hu).all()
        assert (np.asarray(labels.dataobj) == case.labels).all()
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        assert np.allclose(image.affine, case.affine)
        assert np.allclose(labels.affine, image.get_qform())
        assert image.header.get_xyzt_units()[0] == "mm"


def test_a_larger_cohort_begins_with_the_smaller_one(written, tmp_path):
    small = write_cohort(tmp_path / "small", cases=2, **ARGUMENTS)
    for name in ("imagesTr/phantom_000.nii.gz", "imagesTr/phantom_001.nii.gz", "labelsTr/phantom_001.nii.gz"):
        assert (small.parent / name).read_bytes() == (written.parent / name).read_bytes()
    entries = [json.loads(path.read_text())["training"] for path in (small, written)]
    assert entries[0] == entries[1][:2]


def test_nothing_stays_when_a_case_fails(tmp_path, monkeypatch):
    made = []

    def fails_at_the_second(**arguments):
        if made:
            raise SynthesisError("no room")
        made.append(make_case(**arguments))
        return made[0]

    monkeypatch.setattr(cohort, "make_case", fails_at_the_second)
    with pytest.raises(SynthesisError):
        write_cohort(tmp_path / "out", cases=2, **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="--overwrite"):
        write_cohort(tmp_path, cases=1, **ARGUMENTS)
    with pytest.raises(ConfigError, match="is not an earlier phantom cohort"):
        write_cohort(tmp_path, cases=1, overwrite=True, **ARGUMENTS)
    with pytest.raises(ConfigError, match="is a file"):
        write_cohort(tmp_path / "mine.txt", cases=1, overwrite=True, **ARGUMENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_overwrite_replaces_an_older_cohort(tmp_path):
    write_cohort(tmp_path / "out", cases=2, **ARGUMENTS)
    write_cohort(tmp_path / "out", cases=1, overwrite=True, **ARGUMENTS)
    assert [path.name for path in (tmp_path / "out" / "imagesTr").iterdir()] == ["phantom_000.nii.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_used(tmp_path):
    assert write_cohort(tmp_path, cases=1, **ARGUMENTS).is_file()


@pytest.mark.parametrize(
    ("change", "message"), [({"cases": 0}, "cases"), ({"organs": ()}, "organs"), ({"organs": ("lung",)}, "lung")]
)
def test_wrong_arguments_are_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        write_cohort(tmp_path / "out", **{"cases": 1, **ARGUMENTS, **change})
    assert list(tmp_path.iterdir()) == []
