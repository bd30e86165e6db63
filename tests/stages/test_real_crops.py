"""One optimization step of every stage on real CT with real tumors, joined by their artifacts.

The tumors are sarcomas; their host is the body, given to the stages as an organ of the user's own.
"""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from difftumor.artifacts import load_artifact, read_config
from stages import autoencoder, diffusion, segmentation
from stages.entry import compose_config
from stages.run import run_stage

PATIENTS = ("STS_002", "STS_012", "STS_029")
BODY = (
    "organ=liver", "organ.name=body", "organ.label_names=[body]", "organ.tumor_names=[sarcoma]", "organ.cyst_names=[]",
    "organ.minimum_radius_mm=10",
)  # fmt: skip
COMMON = (
    "trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=0",
    "trainer.log_every_n_steps=1", "trainer.progress_bar=false", "data.spacing_mm=[2,2,2]", "data.crop=[32,32,32]",
    "data.batch_size=2", "data.num_workers=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def sarcoma(real_data, tmp_path_factory):
    """Three patients with body 1 and tumor 2, and a part of each without tumor as a healthy scan."""
    folder = tmp_path_factory.mktemp("sarcoma")
    rows = []
    for patient in PATIENTS:
        source = real_data / "sarcoma" / patient
        image = nib.load(source / "ct.nii.gz")
        ct = np.asarray(image.dataobj)
        tumor = np.asarray(nib.load(source / "tumor.nii.gz").dataobj) > 0
        labels = np.where(tumor, 2, _body(ct)).astype(np.uint8)
        rows.append(_write(folder, patient, image, slice(None), labels, "body"))
        # Above or below the tumor, whichever is more, with its own header.
        levels = np.flatnonzero(tumor.any(axis=(0, 1)))
        below, above = slice(0, levels[0]), slice(levels[-1] + 1, ct.shape[2])
        part = max(below, above, key=lambda s: s.stop - s.start)
        rows.append(_write(folder, f"{patient}_part", image, part, labels, "none", patient=patient))
    (folder / "dataset.json").write_text(_listing(rows))
    return folder


def _body(ct):
    parts, _ = ndimage.label(ct > -200)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes(parts == sizes.argmax())


def _write(folder, name, image, part, labels, organs, patient=None):
    cropped = image.slicer[:, :, part]
    nib.save(cropped, folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(labels[:, :, part], cropped.affine), folder / f"{name}_labels.nii.gz")
    return f"{name}.nii.gz", f"{name}_labels.nii.gz", patient or name, organs


def _listing(rows):
    entries = [
        {"image": image, "label": label, "patient": patient, "tumor_organs": [] if organs == "none" else [organs]}
        for image, label, patient, organs in rows
    ]
    return json.dumps({"labels": {"background": 0, "body": 1, "sarcoma": 2}, "training": entries})


def _run(stage, build, sarcoma, folder, *overrides):
    places = (f"data.root={sarcoma}", f"runs_dir={folder}/runs", f"checkpoints_dir={folder}/checkpoints")
    return run_stage(stage=stage, config=compose_config(stage, [*COMMON, *places, *overrides]), build=build)


@pytest.mark.slow
@pytest.mark.data
def test_one_step_of_every_stage(sarcoma, tmp_path):
    first = _run(
        "autoencoder", autoencoder.build, sarcoma, tmp_path, "network.base_channels=4", "network.norm_groups=4",
        "network.codes=64", "discriminators.base_channels=4", "discriminators.start_step=0", "perceptual.weight=0",
        "training.steps=1", "training.steps_per_epoch=1", "pictures_every_n_epochs=0",
    )  # fmt: skip
    second = _run(
        "diffusion", diffusion.build, sarcoma, tmp_path, *BODY, "tumor_stage=late", "network.width=8",
        "network.multipliers=[1,2]", "network.heads=2", "network.head_dim=8", "training.steps=1",
        "training.steps_per_epoch=1",
    )  # fmt: skip
    third = _run(
        "segmentation", segmentation.build, sarcoma, tmp_path, *BODY, "backbone=unet", "backbone.channels=[4,8]",
        "backbone.residual_units=1", "folds.count=3", "training.epochs=1", "training.warmup_epochs=0",
        "synthesis.early_model=null", "synthesis.probability=1.0", "synthesis.sizes={medium: 1.0}",
    )  # fmt: skip
    for path in (first, second, third):
        weights = load_artifact(path).network.state_dict().values()
        assert all(np.isfinite(value.float().numpy()).all() for value in weights)
        assert read_config(path).training["steps"] == 1
    assert read_config(second).organ == "body"
    assert len(read_config(second).training["cases"]["training"]) == len(PATIENTS)
