"""A cohort of boxes with tumors, artifacts of untrained networks, and options that shrink stages 2 and 3 to them."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from difftumor.models.artifact import Parent, save_artifact
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.denoiser import Denoiser

PREPROCESSING = {"spacing_mm": (3.0, 3.0, 3.0), "window_hu": (-175.0, 250.0), "crop": (16, 16, 16)}
SMALL_DENOISER = {"width": 8, "multipliers": (1, 2), "heads": 2, "head_dim": 8, "norm_groups": 4}
# Early: 27 voxels of 27 mm³, equivalent radius 5.6 mm. Late: 216 voxels, 11.2 mm.
TUMOR_SIDES = {"early0": 3, "early1": 3, "late0": 6, "early2": 3, "healthy0": 0, "healthy1": 0, "silent_healthy": 0}

COMMON = (
    "trainer=cpu", "trainer.log_every_n_steps=1", "trainer.progress_bar=false", "organ=liver",
    "data.spacing_mm=[3,3,3]", "data.crop=[16,16,16]", "data.batch_size=2", "data.num_workers=0",
    "data.cache_rate=1.0",
)  # fmt: skip
DIFFUSION = (
    *COMMON, "network.width=8", "network.multipliers=[1,2]", "network.heads=2", "network.head_dim=8",
    "network.norm_groups=4", "training.steps=6", "training.steps_per_epoch=2", "training.accumulate=1",
    "ema.start=2", "ema.every=1", "validation.crops=2", "validation.hosts=3", "pictures.hosts=1", "optimizer.lr=0.001",
)  # fmt: skip
UNET = ("backbone=unet", "backbone.channels=[4,8]", "backbone.residual_units=1")
NNUNET = ("backbone=nnunet", "backbone.channels=[4,8,8]", "backbone.strides=[1,2,2]")
SEGMENTATION = (
    *COMMON, "training.epochs=3",
    "training.warmup_epochs=1", "folds.count=2", "validation.overlap=0.25", "trainer.validate_every_n_epochs=1",
    "trainer.checkpoint_every_n_epochs=1",
)  # fmt: skip


def write_cohort(folder: Path) -> Path:
    """Write seven scans of about 24³ voxels of 3 mm with a box for a liver; the last one states nothing."""
    entries = []
    for number, (name, side) in enumerate(TUMOR_SIDES.items()):
        shape = (24, 22, 26)
        labels = np.zeros(shape, np.uint8)
        labels[4:20, 5:18, 4:20] = 1
        labels[7 : 7 + side, 8 : 8 + side, 7 : 7 + side] = 2
        noise = np.random.default_rng(number).normal(0, 15, shape)
        ct = (noise + np.array([-80, 110, 40])[labels]).astype(np.int16)
        for part, data in (("imagesTr", ct), ("labelsTr", labels)):
            (folder / part).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(data, np.diag([3.0, 3.0, 3.0, 1.0])), folder / part / f"{name}.nii.gz")
        entry = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        if not name.startswith("silent"):
            entry["tumor_organs"] = ["liver"] if side else []
        entries.append(entry)
    names = {"background": 0, "liver": 1, "liver_tumor": 2}
    (folder / "dataset.json").write_text(json.dumps({"name": "boxes", "labels": names, "training": entries}))
    return folder


def with_validation(source: Path, folder: Path, *names: str) -> Path:
    """Copy a cohort and state the named cases as its validation part."""
    shutil.copytree(source, folder)
    listing = json.loads((folder / "dataset.json").read_text())
    chosen = [entry for entry in listing["training"] if Path(entry["image"]).name.removesuffix(".nii.gz") in names]
    listing["training"] = [entry for entry in listing["training"] if entry not in chosen]
    listing["validation"] = chosen
    (folder / "dataset.json").write_text(json.dumps(listing))
    return folder


def small_autoencoder() -> Autoencoder:
    """Untrained, with random codes, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = Autoencoder(base_channels=2, norm_groups=2, codes=16)
        network.codebook.embeddings.uniform_(-1, 1)
    return network.eval()


def write_autoencoder(folder: Path) -> Path:
    """Write the artifact of ``small_autoencoder``."""
    return save_artifact(
        folder / "autoencoder",
        kind="autoencoder",
        architecture={"name": "vqgan3d", "base_channels": 2, "norm_groups": 2, "codes": 16},
        network=small_autoencoder(),
        preprocessing=PREPROCESSING,
    )


def write_diffusion(folder: Path, stage: str) -> Path:
    """Write the artifact of an untrained denoiser beside its autoencoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        denoiser = Denoiser(**SMALL_DENOISER)
    return save_artifact(
        folder / f"diffusion_liver_{stage}",
        kind="diffusion",
        architecture={"name": "factorized_unet", **SMALL_DENOISER},
        network=denoiser,
        preprocessing=PREPROCESSING,
        organ="liver",
        parents={"autoencoder": Parent.at(folder / "autoencoder")},
        settings={"timesteps": 2, "sampler": {"kind": "ddpm"}, "masked": "image", "tumor_stage": stage},
    )
