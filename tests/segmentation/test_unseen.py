"""Which models behind predictions have seen the scans that they are judged by."""

import json

import numpy as np
import pytest

from difftumor.datasets.integrity import fingerprints
from difftumor.segmentation.unseen import SeenScans, seen_by_predictors, seen_scans
from tests.nifti import ct_values, write_nifti


@pytest.fixture
def scans(tmp_path):
    return [write_nifti(tmp_path / f"scan{number}.nii.gz", ct_values((6, 7, 8), seed=number)) for number in range(3)]


def write_config(folder, kind, trained_on=None, parents=()):
    """Write an artifact without weights, which are not looked at."""
    names = {"autoencoder": "vqgan3d", "diffusion": "factorized_unet", "segmenter": "unet"}
    found = None if trained_on is None else fingerprints(trained_on)
    training = {} if found is None else {"fingerprints": {"training": [[f.name, str(p)] for f, p in found.items()]}}
    content = {
        "kind": kind, "architecture": {"name": names[kind]}, "preprocessing": {}, "weights_sha256": "",
        "parents": {name: {"path": f"../{name}", "identity": ""} for name in parents},
        "training": training, "format_version": 1,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def models(tmp_path, scans):
    """A segmenter that saw no test scan, an imported diffusion model, and an autoencoder that saw two."""
    mirrored = write_nifti(tmp_path / "mirrored.nii", np.ascontiguousarray(ct_values((6, 7, 8), seed=1)[::-1]))
    write_config(tmp_path / "autoencoder", "autoencoder", [scans[0], mirrored])
    write_config(tmp_path / "diffusion", "diffusion", parents=["autoencoder"])
    return write_config(tmp_path / "segmenter", "segmenter", [], parents=["diffusion", "gone"])


def test_models_are_followed_to_their_autoencoder(models, scans):
    found = seen_scans([models], scans)
    assert [(each.kind, each.tested, each.seen, each.suspected) for each in found] == [
        ("segmenter", 3, 0, 0), ("diffusion", 3, None, 0), ("autoencoder", 3, 2, 0),
    ]  # fmt: skip
    assert [str(each) for each in found] == [
        "The segmenter segmenter was trained on none of the 3 test scans.",
        "The diffusion model diffusion does not say which scans it was trained on, so whether it has seen any of the 3 "
        "test scans is unknown.",
        "The autoencoder autoencoder was trained on 2 of the 3 test scans (unlabeled).",
    ]
    assert str(SeenScans("autoencoder", models, 1, 0, 1)).endswith(
        "the 1 test scan; 1 more looks like one that it was."
    )


def test_scans_that_cannot_be_compared_are_counted_and_not_called_unseen(models, scans, tmp_path):
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(b"no gzip")
    found, silent, _ = seen_scans([models], [scans[2], damaged, tmp_path / "gone.nii"])
    assert (found.tested, found.seen, found.unread, silent.tested) == (3, 0, 2, 3)
    assert str(found).endswith("trained on none of the 1 test scan; 2 more could not be read and compared.")
    found, *_ = seen_scans([models], [damaged])
    assert (found.tested, found.seen, found.unread) == (1, None, 1)
    assert str(found) == (
        "None of the 1 test scan can be read, so whether the segmenter segmenter has seen any is unknown."
    )


def test_predictions_name_models_and_scans(models, scans, tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    for number, scan in enumerate(scans[:2]):
        record = {"ct": {"path": str(scan)}, "models": [{"path": str(models)}]}
        (folder / f"case{number}.json").write_text(json.dumps(record))
    (folder / "other.json").write_text("[]")
    files = [folder / f"{name}.nii.gz" for name in ("case0", "case1", "other", "silent")]
    assert [each.seen for each in seen_by_predictors(files)] == [0, None, 2]
    assert seen_by_predictors(files[2:]) == ()


def test_nothing_is_read_if_no_model_says_what_it_saw(tmp_path, scans, monkeypatch):
    monkeypatch.setattr("difftumor.segmentation.unseen.fingerprints", None)
    model = write_config(tmp_path / "imported", "segmenter")
    (found,) = seen_scans([model], [*scans, tmp_path / "gone.nii"])
    assert (found.seen, found.tested) == (None, 4)
