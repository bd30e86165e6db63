"""Folds that are made once: no stage lets anything of a test patient into a training, by whatever way."""

import json
from functools import partial

import numpy as np
import pytest

from difftumor.datasets.cases import read_cases, split_lists
from difftumor.errors import CaseListError, ConfigError
from stages.autoencoder import train as autoencoder
from stages.diffusion import train as diffusion
from stages.diffusion.latent_cache import LatentCache
from stages.run.run import run_stage
from stages.segmentation import train as segmentation
from tests.nifti import voxels, write_nifti
from tests.stages.builds import KINDS, built_from

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


@pytest.fixture
def folds(tumor_cohort, tmp_path):
    """Lists of two folds, and the ids that each holds out."""
    files = split_lists(read_cases(tumor_cohort), count=2, folder=tmp_path / "folds")
    return [(file, set(read_cases(file).validation_ids)) for file in files]


@pytest.fixture
def builds(tiny_config, tiny_diffusion, tiny_segmentation):
    """Build a stage on a list."""
    stages = {
        "autoencoder": (tiny_config, autoencoder.build),
        "diffusion": (tiny_diffusion, diffusion.build),
        "segmentation": (partial(tiny_segmentation, "tumors=mixed", "fold=0", "folds.count=2"), segmentation.build),
    }

    def build(stage, file, *overrides):
        compose, own = stages[stage]
        return built_from(compose(f"data.root={file}", "data.labels=null", *overrides), own)

    return build


def ids(cases):
    return {case.id for case in cases}


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion", "segmentation"])
def test_no_stage_trains_on_test_patients(builds, folds, stage):
    trained = []
    for file, held_out in folds:
        options = ("synthesis.on_overlap=warn",) if stage == "segmentation" else ()
        data = builds(stage, file, *options).data
        assert ids(data.train)
        assert not ids(data.train) & held_out
        trained.append(ids(data.train))
    assert trained[0] != trained[1]


def test_latents_of_another_fold_in_one_cache_are_never_drawn(tiny_diffusion, folds, tmp_path, monkeypatch):
    """The cache of both folds holds latents of each other's test patients, which training must not read."""
    read = []
    kept = LatentCache.read

    def noted(self, key):
        read.append(json.loads(key))
        return kept(self, key)

    monkeypatch.setattr(LatentCache, "read", noted)
    files = {case.id: case.image for case in read_cases(folds[0][0]).cases}
    for number, (file, held_out) in enumerate(folds):
        read.clear()
        places = (f"name=fold{number}", f"artifact={tmp_path}/fold{number}", f"latents.cache={tmp_path}/cache")
        run_stage(
            tiny_diffusion(f"data.root={file}", *places, "latents.crops=2", "pictures.hosts=0"),
            KINDS["diffusion"],
            diffusion.build,
        )
        pools = [key for key in read if "state" in key]  # those of training; around held-out tumors they name a tumor
        assert any(str(file) in json.dumps(key["files"]) for file in files.values() for key in pools)
        test_files = {str(files[case]) for case in held_out}
        assert not [key for key in pools if any(file in json.dumps(key["files"]) for file in test_files)]


def test_a_test_patient_is_neither_host_nor_parent_nor_in_another_list(builds, folds, tumor_cohort, tmp_path):
    """As a host of synthetic tumors under another name, and through a diffusion model of another fold."""
    file, held_out = folds[0]
    case = min(name for name in held_out if name.startswith("early"))
    write_nifti(tmp_path / "more" / "x.nii.gz", voxels(tumor_cohort / f"imagesTr/{case}.nii.gz"), AFFINE)
    labels = np.minimum(voxels(tumor_cohort / f"labelsTr/{case}.nii.gz"), 1)
    write_nifti(tmp_path / "more" / "labels.nii.gz", labels, AFFINE)
    entry = {"image": "x.nii.gz", "label": "labels.nii.gz"}
    (tmp_path / "more" / "list.json").write_text(json.dumps({"labels": {"liver": 1}, "training": [entry]}))
    with pytest.raises(CaseListError, match=rf"x\.nii\.gz, the same scan .*{case}\.nii\.gz, which is held out"):
        builds("segmentation", file, f"data.healthy_root={tmp_path}/more/list.json", "tumors=handcrafted")
    # Healthy test patients are no hosts either.
    stage = builds("segmentation", file, "tumors=handcrafted")
    assert not ids(stage.data.train) & held_out


def test_a_diffusion_model_of_another_fold_is_refused(builds, tiny_diffusion, folds, tmp_path):
    (file, _), (other, _) = folds
    places = (f"name=other{tmp_path.name}", f"artifact={tmp_path}/other", f"data.root={other}")
    model = run_stage(tiny_diffusion(*places), KINDS["diffusion"], diffusion.build)
    models = [f"synthesis.{stage}_model={model}" for stage in ("early", "late")]
    with pytest.raises(ConfigError, match=r"was trained on .*, the same scan"):
        builds("segmentation", file, *models)
    builds("segmentation", other, *models)
