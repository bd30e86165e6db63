"""Artifacts, runs and records of the version before the rooms still work; tests/data/before_rooms/README.md."""

import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from difftumor.cli import main
from difftumor.models.artifact import load_artifact
from difftumor.models.artifact_config import read_config
from stages.autoencoder import train as autoencoder
from stages.config.compose import compose_config, given_by
from stages.diffusion import train as diffusion
from stages.run.run import run_stage
from stages.segmentation import train as segmentation
from tests.conftest import REPOSITORY
from tests.stages.builds import KINDS
from tests.stages.tumor_cohort import write_cohort

BEFORE = REPOSITORY / "tests" / "data" / "before_rooms"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
BUILDS = {"autoencoder": autoencoder.build, "diffusion": diffusion.build, "segmentation": segmentation.build}
SEGMENTER = "segmentation_liver_unet_mixed_fold0"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in the current folder, with the cohort that the runs were trained on."""
    folder = shutil.copytree(BEFORE, tmp_path / "workplace")
    (folder / "cohort").mkdir()
    write_cohort(folder / "cohort")
    monkeypatch.chdir(folder)
    return folder


def test_artifacts_load_and_compute_the_same():
    ct = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    latent = torch.linspace(-1, 1, 8 * 4**3).reshape(1, 8, 4, 4, 4)
    condition = torch.linspace(1, -1, 9 * 4**3).reshape(1, 9, 4, 4, 4)
    names = {"autoencoder": "autoencoder", "diffusion": "diffusion_liver_early", "segmenter": SEGMENTER}
    networks = {kind: load_artifact(BEFORE / "checkpoints" / name, kind=kind).network for kind, name in names.items()}
    with torch.no_grad():
        found = {
            "autoencoder": networks["autoencoder"](ct).reconstruction.flatten()[::64],
            "diffusion": networks["diffusion"](latent, torch.tensor([1]), condition).flatten()[::8],
            "segmenter": networks["segmenter"](ct).flatten()[::256],
        }
    for kind, values in found.items():
        torch.testing.assert_close(values, torch.tensor(EXPECTED["outputs"][kind]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_finished_runs_are_known_as_such(workplace, stage, capsys):
    def no_build(settings):
        raise AssertionError("must not be built")

    words = EXPECTED["commands"][stage]
    run_stage(compose_config(stage, words), KINDS[stage], no_build, given=given_by(stage, words))
    assert "has finished" in capsys.readouterr().out


def test_a_killed_run_resumes_with_the_same_command(workplace, capsys):
    words = EXPECTED["commands"]["segmentation"]
    config, given = compose_config("segmentation", words), given_by("segmentation", words)
    artifact = run_stage(config, KINDS["segmentation"], segmentation.build, given=given)
    assert read_config(artifact).training["steps"] == 9
    resumed, whole = (load_file(folder / "model.safetensors") for folder in (artifact, Path("checkpoints", SEGMENTER)))
    for name, value in whole.items():
        if name.endswith("weight"):  # biases before a norm follow rounding alone
            torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-5)


def test_a_record_is_replayed_bit_by_bit(workplace):
    ct = np.random.default_rng(14).normal(100, 15, (36, 34, 32)).astype(np.int16)
    ct[:2] = -1000
    liver = np.zeros(ct.shape, np.uint8)
    liver[4:32, 4:30, 4:28] = 1
    for name, voxels in (("ct", ct), ("liver", liver)):
        nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), f"{name}.nii")
    words = "synthesize --replay record.json --ct ct.nii --organ-mask liver.nii --device cpu --out again"
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 0
    made = np.asarray(nib.load("again/ct.nii.gz").dataobj)
    assert made.dtype == np.int16
    assert hashlib.sha256(np.ascontiguousarray(made).tobytes()).hexdigest() == EXPECTED["ct_sha256"]
