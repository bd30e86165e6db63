"""Stage 2 resumed in the middle of an epoch: nothing tells the result from that of a run that never died."""

import hashlib
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from difftumor.datasets.transforms import RandomCrop
from difftumor.models.artifact import load_artifact
from difftumor.models.artifact_config import read_config
from stages.config.compose import compose_config
from stages.diffusion.train import build
from stages.run.run import run_stage
from tests.conftest import REPOSITORY
from tests.stages.builds import KINDS, Crash, crashing_at
from tests.stages.tumor_cohort import DIFFUSION

# Three epochs of three steps; the average starts and is updated inside of epochs.
OPTIONS = (
    "training.steps=9", "training.steps_per_epoch=3", "fold=0", "folds.count=2", "ema.start=4", "ema.every=2",
    "ema.decay=0.9",
)  # fmt: skip


@pytest.fixture
def trained(tiny_diffusion, tmp_path):
    """Train a run of some name, which dies at the steps given, each time in another process's stead."""

    def train(name, *, dies_at=(), workers=(0,), build=build):
        workers = list(workers) * (len(dies_at) + 1) if len(workers) == 1 else workers
        for step, processes in zip((*dies_at, None), workers, strict=True):
            config = tiny_diffusion(
                f"name={name}", f"artifact={tmp_path}/{name}", *OPTIONS, f"data.num_workers={processes}"
            )
            if step is None:
                return run_stage(config, KINDS["diffusion"], build)
            with pytest.raises(Crash):
                run_stage(config, KINDS["diffusion"], crashing_at(build, step))
        return None

    return train


def state(folder, name):
    """Return all that a run leaves behind: its checkpoint, its artifacts, its metrics."""
    kept = torch.load(folder / "runs" / "diffusion" / name / "last.ckpt", weights_only=True)
    artifacts = [folder / name, folder / f"{name}_best"]
    configs = [read_config(path) for path in artifacts]
    return {
        "weights": kept["state_dict"],
        "adam": kept["optimizer_states"],
        "ema": kept["ema"],
        "steps": (kept["steps_done"], kept["epochs_done"], kept["global_step"]),
        "callbacks": [value["metrics"] for key, value in kept["callbacks"].items() if "metrics" in value],
        "artifacts": [load_artifact(path).network.state_dict() for path in artifacts],
        "metrics": [(dict(config.metrics), config.training["validation_epoch"]) for config in configs],
    }


@pytest.fixture(scope="module")
def whole(diffusion_in, tmp_path_factory):
    """What a run that never died leaves behind, and the notes of its steps."""
    folder, notes = tmp_path_factory.mktemp("whole"), {}
    config = diffusion_in(folder, "name=whole", f"artifact={folder}/whole", *OPTIONS, "data.num_workers=0")
    run_stage(config, KINDS["diffusion"], noting(notes))
    return state(folder, "whole"), notes


def assert_same(found, expected):
    assert found["steps"] == expected["steps"] == (9, 3, 9)
    assert found["ema"]["step"] == 9
    (adam,) = expected["adam"]
    assert len(adam["state"]) == len(adam["param_groups"][0]["params"]) > 50
    assert "validation/loss" in expected["metrics"][0][0]
    assert expected["callbacks"]
    # Also compares numbers; none may differ in the last bit.
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def noting(seen, disturb=lambda step: None):
    """Return a build whose module notes the crops, time steps and noise of every step."""

    def noting_build(settings):
        built = build(settings)
        inner, drawn = built.module.training_step, built.module._drawn

        def training_step(batch, batch_idx):
            disturb(built.module.steps_done)
            parts = [batch["ct"].numpy().tobytes(), batch["labels"].numpy().tobytes()]
            seen.setdefault(built.module.steps_done, []).append([hashlib.sha256(part).hexdigest() for part in parts])
            return inner(batch, batch_idx)

        def noted(latent):
            times, noise = drawn(latent)
            seen[built.module.steps_done][-1] += [times.tolist(), hashlib.sha256(noise.numpy().tobytes()).hexdigest()]
            return times, noise

        built.module.training_step, built.module._drawn = training_step, noted
        return built

    return noting_build


def disturb(step):
    """Put the global generators where no run has them."""
    salt = int.from_bytes(os.urandom(4), "big")
    random.seed(salt)
    np.random.seed(salt)  # noqa: NPY002 - the state that must not matter
    torch.manual_seed(salt)


@pytest.mark.parametrize(
    ("dies_at", "workers"),
    [
        pytest.param((4,), (2,), marks=pytest.mark.slow),
        pytest.param((5,), (0, 2), marks=pytest.mark.slow),
        ((2,), (0,)),
        pytest.param((4, 8), (0, 2, 0), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_died_inside_an_epoch_ends_like_one_that_did_not(trained, whole, tmp_path, dies_at, workers):
    trained("parted", dies_at=dies_at, workers=workers)
    assert_same(state(tmp_path, "parted"), whole[0])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_crops_and_noise_follow_from_epoch_and_step_not_from_the_global_generators(
    trained, whole, tmp_path, monkeypatch, workers
):
    calm, shaken = whole[1], {}
    assert sorted(calm) == list(range(9))
    crops, noises = ({str(notes[0][i]) for notes in calm.values()} for i in (0, 3))
    assert len(crops) == len(noises) == 9

    seeded = RandomCrop.set_random_state

    def disturbed(self, seed=None, state=None):  # also in the loading processes, which are forks
        disturb(0)
        return seeded(self, seed, state)

    monkeypatch.setattr(RandomCrop, "set_random_state", disturbed)
    trained("parted", dies_at=(4,), workers=(workers,), build=noting(shaken, disturb))
    assert_same(state(tmp_path, "parted"), whole[0])
    # What the first process had seen of the epoch in which it died, the second one saw again.
    assert [len(shaken[step]) for step in range(9)] == [1, 1, 1, 2, 1, 1, 1, 1, 1]
    assert all(again == calm[step][0] for step, notes in shaken.items() for again in notes)


DYING = """
import os, signal, sys
from stages.diffusion.options import DiffusionOptions
from stages.diffusion.train import build
from stages.config.compose import compose_config
from stages.run.run import run_stage

how, step, *overrides = sys.argv[1:]

def dying(settings):
    built = build(settings)
    inner = built.module.training_step
    def training_step(batch, batch_idx):
        if built.module.steps_done == int(step):
            os.kill(os.getpid(), int(how))
        return inner(batch, batch_idx)
    built.module.training_step = training_step
    return built

run_stage(compose_config("diffusion", overrides), DiffusionOptions, dying)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_to_the_same_weights(trained, whole, tumor_cohort, untrained, tmp_path, how, workers):
    overrides = (
        *DIFFUSION, f"data.root={tumor_cohort}", f"runs_dir={tmp_path}/runs", f"checkpoints_dir={tmp_path}/checkpoints",
        f"autoencoder.artifact={untrained}/autoencoder", "name=parted", f"artifact={tmp_path}/parted", *OPTIONS,
        f"data.num_workers={workers}",
    )  # fmt: skip
    assert compose_config("diffusion", list(overrides)).data.num_workers == workers
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(int(how)), "4", *overrides],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert died.returncode == (-9 if how is signal.SIGKILL else 143), died.stderr
    kept = torch.load(tmp_path / "runs/diffusion/parted/last.ckpt", weights_only=True)
    assert kept["steps_done"] == (
        3 if how is signal.SIGKILL else 5
    )  # of the last epoch, or of the step before it stopped
    assert not (tmp_path / "parted").exists()
    trained("parted", workers=(workers,))
    assert_same(state(tmp_path, "parted"), whole[0])
