"""A cohort small enough to train on within a second, and options that shrink stage 1 to it."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from omegaconf import DictConfig

from tests.stages.builds import composed
from tests.stages.tumor_cohort import DIFFUSION, SEGMENTATION, UNET, write_autoencoder, write_cohort, write_diffusion

TINY = (
    "trainer=cpu", "trainer.log_every_n_steps=1", "trainer.progress_bar=false", "pictures.every_n_epochs=0",
    "data.spacing_mm=[3,3,3]", "data.crop=[16,16,16]", "data.batch_size=2", "data.num_workers=0",
    "data.cache_rate=1.0", "data.validation_share=0.25", "validation.scans=2", "trainer.validate_every_n_epochs=1",
    "network.base_channels=2", "network.norm_groups=2", "network.codes=16",
    "discriminators.base_channels=2", "discriminators.start_step=3", "perceptual.weight=0.0",
    "training.steps=8", "training.steps_per_epoch=2",
)  # fmt: skip


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases of about 20³ voxels of 3 mm with a box for a liver; the third is smaller than the tiny crop."""
    folder = tmp_path_factory.mktemp("cohort")
    entries = []
    for number in range(4):
        shape = (20, 18, 22) if number != 2 else (12, 14, 10)
        random = np.random.default_rng(number)
        labels = np.zeros(shape, np.uint8)
        labels[4:10, 5:10, 3:8] = 1
        ct = (random.normal(40, 15, shape) + 80 * labels - 1000 * (np.indices(shape)[0] < 2)).astype(np.int16)
        for part, data in (("imagesTr", ct), ("labelsTr", labels)):
            (folder / part).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(data, np.diag([3.0, 3.0, 3.0, 1.0])), folder / part / f"case{number}.nii.gz")
        entries.append({"image": f"./imagesTr/case{number}.nii.gz", "label": f"./labelsTr/case{number}.nii.gz"})
    listing = {"name": "boxes", "labels": {"background": 0, "liver": 1}, "training": entries, "test": []}
    (folder / "dataset.json").write_text(json.dumps(listing))
    return folder


@pytest.fixture
def tiny_config(cohort: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose stage 1's config, shrunk, with everything it writes under ``tmp_path``."""

    def compose(*overrides: str) -> DictConfig:
        places = (f"data.root={cohort}", f"runs_dir={tmp_path}/runs", f"checkpoints_dir={tmp_path}/checkpoints")
        return composed("autoencoder", [*TINY, *places, *overrides])

    return compose


@pytest.fixture(scope="session")
def tumor_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven cases: three with an early tumor, one with a late one, three healthy, of which one states nothing."""
    return write_cohort(tmp_path_factory.mktemp("tumor_cohort"))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of artifacts: an autoencoder, and diffusion models of early and late liver tumors, all untrained."""
    folder = tmp_path_factory.mktemp("untrained")
    write_autoencoder(folder)
    write_diffusion(folder, "early")
    write_diffusion(folder, "late")
    return folder


@pytest.fixture(scope="session")
def diffusion_in(tumor_cohort: Path, untrained: Path) -> Callable[..., DictConfig]:
    """Compose stage 2's config, shrunk, with everything it writes under a folder."""

    def compose(folder: Path, *overrides: str) -> DictConfig:
        places = (f"data.root={tumor_cohort}", f"runs_dir={folder}/runs", f"checkpoints_dir={folder}/checkpoints")
        parent = f"autoencoder.artifact={untrained}/autoencoder"
        return composed("diffusion", [*DIFFUSION, *places, parent, *overrides])

    return compose


@pytest.fixture
def tiny_diffusion(diffusion_in: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose stage 2's config, shrunk, with everything it writes under ``tmp_path``."""
    return partial(diffusion_in, tmp_path)


@pytest.fixture
def tiny_segmentation(tumor_cohort: Path, untrained: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose stage 3's config, shrunk, with everything it writes under ``tmp_path``."""

    def compose(*overrides: str, backbone: Sequence[str] = UNET) -> DictConfig:
        places = (f"data.root={tumor_cohort}", f"runs_dir={tmp_path}/runs", f"checkpoints_dir={tmp_path}/checkpoints")
        parents = [f"synthesis.{stage}_model={untrained}/diffusion_liver_{stage}" for stage in ("early", "late")]
        return composed("segmentation", [*SEGMENTATION, *backbone, *places, *parents, *overrides])

    return compose
