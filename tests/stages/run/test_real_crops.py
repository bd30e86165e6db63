"""One optimization step of every stage on real CT with real tumors, joined by their artifacts.

The tumors are sarcomas; their host is the body, given to the stages as an organ of the user's own.
"""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from difftumor.models.artifact import load_artifact
from difftumor.models.artifact_config import read_config
from stages.autoencoder import train as autoencoder
from stages.config.compose import compose_config
from stages.diffusion import train as diffusion
from stages.run.run import run_stage
from stages.segmentation import train as segmentation
from tests.stages.builds import KINDS, built_from

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


def _config(stage, sarcoma, folder, *overrides):
    places = (f"data.root={sarcoma}", f"runs_dir={folder}/runs", f"checkpoints_dir={folder}/checkpoints")
    return compose_config(stage, [*COMMON, *places, *overrides])


def _check_trained(path, build, config):
    """The artifact's network is finite and differs from the one that training began with, in every part."""
    initial = dict(built_from(config, build).module.network.named_parameters())
    trained = dict(load_artifact(path).network.named_parameters())
    assert trained.keys() == initial.keys()
    assert all(value.isfinite().all() for value in trained.values())
    # A bias right before a normalization has no gradient worth the name, and a first step may leave it alone.
    moved = [name for name, value in trained.items() if not torch.equal(value, initial[name])]
    assert len(moved) > 0.9 * len(initial)
    assert read_config(path).training["steps"] == 1


def _check_tumors_on_tissue(config):
    """Crops of the healthy parts get tumors, whose tissue differs from what was there."""
    stage = built_from(config, segmentation.build)
    stage.data.setup()
    items = [stage.data.train_set[(0, index)] for index in range(len(stage.data.train_set))]
    batch = torch.utils.data.default_collate([item for item in items if item["healthy"]])
    assert not (batch["labels"] == 2).any()
    made = stage.module.tumors(
        batch["ct"], batch["labels"], seeds=batch["tumor_seed"].tolist(), healthy=batch["healthy"].tolist()
    )
    assert made.wanted == len(batch["ct"]) > made.rejected
    for element, records in enumerate(made.records):
        tumor = made.labels[element] == 2
        assert bool(records) == bool(tumor.any())
        if records:
            # A radius of 16 mm at 2 mm is 2145 voxels; elastic deformation and the crop's edge take some.
            assert 200 < tumor.sum() < 4000
            before = batch["ct"][element]
            assert (before[tumor] > -200).float().mean() > 0.9
            assert (made.ct_hu[element] - before)[tumor].abs().mean() > 1


@pytest.mark.slow
@pytest.mark.data
def test_one_step_of_every_stage(sarcoma, tmp_path):
    first = _config(
        "autoencoder", sarcoma, tmp_path, "network.base_channels=4", "network.norm_groups=4",
        "network.codes=64", "discriminators.base_channels=4", "discriminators.start_step=0", "perceptual.weight=0",
        "training.steps=1", "training.steps_per_epoch=1", "pictures.every_n_epochs=0",
    )  # fmt: skip
    second = _config(
        "diffusion", sarcoma, tmp_path, *BODY, "tumor_stage=late", "network.width=8",
        "network.multipliers=[1,2]", "network.heads=2", "network.head_dim=8", "training.steps=1",
        "training.steps_per_epoch=1",
    )  # fmt: skip
    third = _config(
        "segmentation", sarcoma, tmp_path, *BODY, "backbone=unet", "backbone.channels=[4,8]",
        "backbone.residual_units=1", "folds.count=3", "training.epochs=1", "training.warmup_epochs=0",
        "synthesis.early_model=null", "synthesis.probability=1.0", "synthesis.sizes={medium: 1.0}",
        "synthesis.on_overlap=warn",  # the model has learned from all patients
    )  # fmt: skip
    builds = {"autoencoder": autoencoder.build, "diffusion": diffusion.build, "segmentation": segmentation.build}
    artifacts = []
    for config, (stage, build) in zip((first, second, third), builds.items(), strict=True):
        artifacts.append(run_stage(config, KINDS[stage], build))
        _check_trained(artifacts[-1], build, config)
    _check_tumors_on_tissue(third)
    assert read_config(artifacts[1]).organ == "body"
    assert len(read_config(artifacts[1]).training["cases"]["training"]) == len(PATIENTS)
