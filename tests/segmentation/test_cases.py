"""Predictions from files and from arrays, what they say, and what they write."""

import errno
import json
import os
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from difftumor.errors import ConfigError, GridMismatchError, VolumeError
from difftumor.models.artifact import load_artifact
from difftumor.scans.nifti import read_ct, volume_of
from difftumor.segmentation.cases import CaseFiles, CasePredictor, predict
from difftumor.segmentation.options import PredictionOptions, choose_organ_filter
from difftumor.segmentation.organ_masks import OrganMask
from difftumor.segmentation.prediction import Prediction
from tests.conftest import contents, run
from tests.nifti import write_nifti
from tests.segmentation.makers import make_segmenter, mask, scan


def prediction(labels: np.ndarray, affine: np.ndarray) -> Prediction:
    """A prediction that is a quarter sure of its tumors."""
    ct = volume_of(np.full(labels.shape, -1000, np.int16), affine, accept_hu=True)
    return Prediction(ct=ct, labels=labels, tumor_probability=np.where(labels == 2, 0.25, 0).astype(np.float16))


def test_the_record_lists_the_largest_lesion_first():
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[2:14, 2:14, 2:14] = 1
    labels[3:5, 4:6, 4:6] = 2
    labels[8:12, 8:12, 8:12] = 2
    record = prediction(labels, np.diag([1.0, 1.0, 2.0, 1.0])).record("a")
    assert record["organ_mm3"] == pytest.approx(12**3 * 2)
    assert record["tumor_mm3"] == pytest.approx((64 + 8) * 2)
    assert [lesion["voxels"] for lesion in record["lesions"]] == [64, 8]
    assert record["lesions"][0]["center_mm"] == pytest.approx([9.5, 9.5, 19.0])
    assert [lesion["mean_tumor_probability"] for lesion in record["lesions"]] == [0.25, 0.25]
    json.dumps(record)


def test_noise_is_described_too():
    """A poor segmenter must not stop a folder of scans; 41³ single voxels are more than uint16 can number."""
    labels = np.zeros((82, 82, 82), np.uint8)
    labels[::2, ::2, ::2] = 2
    found = prediction(labels, np.eye(4))
    assert len(found.lesions) == 41**3
    assert found.record("a")["tumor_mm3"] == pytest.approx(41**3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [make_segmenter(folder / name, seed) for seed, name in enumerate(("one", "two"))]


def test_files_and_arrays_give_what_the_command_writes(tmp_path, models):
    ct, given = scan(tmp_path / "in" / "a.nii.gz"), mask(tmp_path / "mask.nii.gz")
    words = ("--ct", ct, "--model", models[0], "--model", models[1], "--organ-mask", given, "--overlap", 0.25)
    assert run("predict", *words, "--min-volume-mm3", 20, "--device", "cpu", "--out", tmp_path / "command") == 0
    options = {"overlap": 0.25, "min_volume_mm3": 20.0, "device": "cpu"}
    from_file = predict(str(ct), models, organ_mask=str(given), **options)
    image = nibabel.load(ct)
    from_array = predict(
        np.asarray(image.dataobj),
        [load_artifact(model) for model in models],
        affine=image.affine,
        organ_mask=np.asarray(nibabel.load(given).dataobj).astype(bool),
        **options,
    )
    np.testing.assert_array_equal(from_array.labels, from_file.labels)
    assert from_array.lesions == from_file.lesions
    assert from_array.lesions
    assert from_file.save(tmp_path / "saved") == tmp_path / "saved" / "a.nii.gz"
    assert contents(tmp_path / "saved") == contents(tmp_path / "command")
    with pytest.raises(ConfigError, match=r"already holds a\.nii\.gz"):
        from_file.save(tmp_path / "saved")
    from_file.save(tmp_path / "saved", overwrite=True)
    with pytest.raises(ConfigError, match="would replace the input"):
        from_file.save(ct.parent, overwrite=True)
    from_array.save(str(tmp_path / "array"))
    assert set(contents(tmp_path / "array")) == {"prediction.nii.gz", "prediction.png", "prediction.json"}
    record = json.loads((tmp_path / "array" / "prediction.json").read_text())
    assert (record["ct"], record["organ_mask"], record["organ"]) == (None, None, "liver")
    np.testing.assert_allclose(nibabel.load(tmp_path / "array" / "prediction.nii.gz").affine, image.affine)


def test_one_model_need_not_be_in_a_list(tmp_path, models):
    ct = replace(read_ct(scan(tmp_path / "a.nii.gz")), stored=None)
    found = [predict(ct, model, overlap=0).labels for model in (models[0], str(models[0]), load_artifact(models[0]))]
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


def test_a_full_disk_ends_all_cases(tmp_path, models, monkeypatch):
    def full(self, case, out, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(out))

    monkeypatch.setattr(CasePredictor, "predict", full)
    predictor = CasePredictor([load_artifact(models[0])], PredictionOptions())
    with pytest.raises(OSError, match="No space left"):
        next(predictor.predict_all([CaseFiles("ct", tmp_path / "ct.nii.gz")], tmp_path / "out"))


def test_a_pipe_is_refused_before_its_bytes_are_waited_for(tmp_path, models):
    os.mkfifo(tmp_path / "ct.nii.gz")
    predictor = CasePredictor([load_artifact(models[0])], PredictionOptions())
    with pytest.raises(VolumeError, match=r"ct\.nii\.gz is no regular file"):
        predictor.predict(CaseFiles("ct", tmp_path / "ct.nii.gz"), tmp_path / "out")


def test_a_mask_on_another_grid_is_refused_before_the_scan_is_read(tmp_path, models):
    ct = scan(tmp_path / "ct.nii.gz")
    ct.write_bytes(ct.read_bytes()[:-20])  # which reading it to its end would find
    given = write_nifti(tmp_path / "mask.nii.gz", np.ones((4, 4, 4), np.uint8))
    predictor = CasePredictor([load_artifact(models[0])], PredictionOptions())
    with pytest.raises(GridMismatchError, match=r"ct\.nii\.gz and .*mask\.nii\.gz differ in shape"):
        predictor.predict(CaseFiles("ct", ct, OrganMask(given)), tmp_path / "out")


def test_arrays_that_do_not_fit_are_refused(tmp_path, models):
    ct = np.full((8, 8, 8), -1000)
    with pytest.raises(ConfigError, match="affine is missing"):
        predict(ct, models[0])
    several = np.arange(8, dtype=np.uint8).reshape(2, 2, 2).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    for wrong, words in (
        (np.ones((3, 3, 3), bool), "shape"),
        (np.ones(ct.shape), "give booleans or whole numbers"),
        (np.zeros(ct.shape, bool), "empty"),
        (several, "several labels"),
    ):
        with pytest.raises(ConfigError, match=words):
            predict(ct, models[0], affine=np.eye(4), organ_mask=wrong)


def test_a_mask_and_its_filter_go_together():
    assert choose_organ_filter(None, has_mask=True) == choose_organ_filter("mask", has_mask=True) == "mask"
    assert choose_organ_filter(None, has_mask=False) == PredictionOptions().organ_filter == "none"
    assert choose_organ_filter("predicted", has_mask=False) == "predicted"


def test_tumors_of_another_organ_are_found_alone(tmp_path, models):
    ct = scan(tmp_path / "a.nii.gz")
    inside = np.asarray(nibabel.load(mask(tmp_path / "mask.nii.gz")).dataobj) > 0
    options = {"organ_mask": inside, "closing_mm": 0.0, "dilation_mm": 0.0, "overlap": 0.25}
    alone, both = predict(ct, models[0], organ="kidney", **options), predict(ct, models[0], **options)
    np.testing.assert_array_equal(alone.labels, np.where(both.labels == 2, 2, 0))
    assert (alone.organ, alone.trained_on, alone.tumor_only, both.tumor_only) == ("kidney", "liver", True, False)
    with pytest.raises(ConfigError, match="trained on the liver"):
        predict(ct, models[0], organ="kidney")
