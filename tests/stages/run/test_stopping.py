"""A stage that a signal stops saves where it is, and ends like one that nobody stopped."""

import os
import signal
import subprocess
import sys
from itertools import count

import pytest
import torch

from difftumor.models.artifact_config import read_config
from stages.autoencoder.train import build as autoencoder
from stages.diffusion.train import build as diffusion
from stages.run.run import run_stage
from stages.segmentation.train import build as segmentation
from tests.conftest import REPOSITORY
from tests.stages.builds import KINDS
from tests.stages.conftest import TINY

STAGES = {"autoencoder": autoencoder, "diffusion": diffusion, "segmentation": segmentation}
EPOCHS = ("training.steps=9", "training.steps_per_epoch=3")
OPTIONS = {
    "autoencoder": EPOCHS,
    "diffusion": (*EPOCHS, "ema.start=4", "ema.every=2", "fold=0", "folds.count=2"),
    "segmentation": ("training.epochs=3", "training.warmup_epochs=1", "trainer.validate_every_n_epochs=1"),
}


# A training whose step of this number has all processes of its group signaled. As under submitit, it has a handler that
# requeues until it trains.
GROUP = """
import os, signal, subprocess, sys, time
import torch
from stages.autoencoder.train import build
from tests.stages.builds import composed, run
torch.set_num_threads(1)  # as in the tests, since sums of several threads round otherwise
place, number, signum, requeued, *overrides = sys.argv[1:]

def requeue(*_):
    open(requeued, "a").close()
    sys.exit(1)

def signaling(options):
    built, steps = build(options), iter(range(1000))
    inner = getattr(built.module, place)

    def step(*arguments):
        if next(steps) == int(number):
            subprocess.run(["kill", "-s", signum, "--", f"-{os.getpid()}"])
            time.sleep(1)  # for what the others do about it
        return inner(*arguments)

    setattr(built.module, place, step)
    return built

signal.signal(signal.SIGUSR2, requeue)
run(composed("autoencoder", overrides), signaling)
"""


@pytest.fixture
def train(tiny_config, tiny_diffusion, tiny_segmentation, tmp_path):
    """Train a stage under a name, with a build of one's own."""
    composers = {"autoencoder": tiny_config, "diffusion": tiny_diffusion, "segmentation": tiny_segmentation}

    def train(stage, name, *options, build=None, job=None):
        config = composers[stage](f"name={name}", f"artifact={tmp_path}/{name}", *OPTIONS[stage], *options)
        return run_stage(config, KINDS[stage], build or STAGES[stage], job=job)

    return train


def stopping_at(build, place, number, signum=signal.SIGTERM):
    """Return a build whose module gets a signal during its training or validation step of this number."""

    def dying(settings):
        built, numbers = build(settings), count()
        inner = getattr(built.module, place)

        def step(*arguments):
            if next(numbers) == number:
                os.kill(os.getpid(), signum)
            return inner(*arguments)

        setattr(built.module, place, step)
        return built

    return dying


def checkpoint(tmp_path, stage, name="parted"):
    return torch.load(tmp_path / "runs" / stage / name / "last.ckpt", weights_only=True)


def left_behind(tmp_path, stage, name):
    kept = checkpoint(tmp_path, stage, name)
    files = [tmp_path / name / "model.safetensors", tmp_path / f"{name}_best" / "model.safetensors"]
    return {
        "optimizers": kept["optimizer_states"],
        "counts": (kept["steps_done"], kept["epochs_done"], kept["global_step"], kept.get("batches_done", 0)),
        "logged": kept["loops"]["fit_loop"]["epoch_loop.state_dict"],
        "weights": [file.read_bytes() for file in files if file.is_file()],
        "metrics": dict(read_config(tmp_path / name).metrics),
    }


@pytest.mark.parametrize(
    ("stage", "place", "number", "batches", "epochs"),
    [
        ("diffusion", "training_step", 4, 2, 1),
        pytest.param("diffusion", "training_step", 0, 1, 0, marks=pytest.mark.slow),
        pytest.param("diffusion", "training_step", 5, None, 2, marks=pytest.mark.slow),  # last of an epoch
        pytest.param("diffusion", "validation_step", 1, 3, 0, marks=pytest.mark.slow),
        pytest.param("autoencoder", "training_step", 4, 2, 1, marks=pytest.mark.slow),
        pytest.param("autoencoder", "validation_step", 0, 0, 1, marks=pytest.mark.slow),
        pytest.param("segmentation", "training_step", 1, 2, 0, marks=pytest.mark.slow),
        pytest.param("segmentation", "validation_step", 0, None, 1, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_ends_like_one_that_was_not(train, tmp_path, stage, place, number, batches, epochs):
    train(stage, "whole")
    with pytest.raises(SystemExit) as stopped:
        train(stage, "parted", build=stopping_at(STAGES[stage], place, number))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "parted").exists()
    kept = checkpoint(tmp_path, stage)
    if batches is not None:
        assert (kept.get("batches_done", 0), kept["epochs_done"]) == (batches, epochs)
    train(stage, "parted")
    torch.testing.assert_close(
        left_behind(tmp_path, stage, "parted"), left_behind(tmp_path, stage, "whole"), rtol=0, atol=0
    )


def test_a_run_that_is_past_its_last_step_ends_well(train, tmp_path):
    build = stopping_at(diffusion, "training_step", 8)
    train("diffusion", "parted", "trainer.limit_val_batches=0", build=build)
    assert read_config(tmp_path / "parted").complete


def test_a_scheduler_that_waits_for_usr2_gets_its_exit_code_and_handler_back(train, tmp_path):
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda *_: seen.append("requeued"))
    try:
        with pytest.raises(SystemExit) as stopped:
            train("diffusion", "parted", build=stopping_at(diffusion, "training_step", 1, signal.SIGUSR2))
        assert stopped.value.code == 128 + signal.SIGUSR2
        assert not seen  # while it trained, it was asked to save and nothing else
        signal.raise_signal(signal.SIGUSR2)
        assert seen == ["requeued"]
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert checkpoint(tmp_path, "diffusion")["batches_done"] == 2


def test_a_job_that_starts_over_does_so_once(train, tmp_path):
    train("diffusion", "parted", "trainer.max_epochs=1")
    for step, expected in ((0, 1), (0, 2)):
        with pytest.raises(SystemExit):
            train("diffusion", "parted", "fresh=true", build=stopping_at(diffusion, "training_step", step), job="a")
        assert checkpoint(tmp_path, "diffusion")["steps_done"] == expected
    with pytest.raises(SystemExit):
        train("diffusion", "parted", "fresh=true", build=stopping_at(diffusion, "training_step", 0), job="b")
    assert checkpoint(tmp_path, "diffusion")["steps_done"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number", "signum"),
    [("training_step", 4, "TERM"), ("training_step", 4, "USR2"), ("validation_step", 1, "USR2")],
)
def test_processes_that_load_leave_the_signal_to_the_training(train, cohort, tmp_path, place, number, signum):
    loading = (*EPOCHS, "data.num_workers=2")
    places = (f"data.root={cohort}", f"runs_dir={tmp_path}/runs", f"checkpoints_dir={tmp_path}/checkpoints")
    words = (place, str(number), signum, f"{tmp_path}/requeued", *TINY, *places, "name=parted", *loading)
    command = [sys.executable, "-c", GROUP, *words, f"artifact={tmp_path}/parted"]
    stopped = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, start_new_session=True)
    assert stopped.returncode == 128 + signal.Signals[f"SIG{signum}"], stopped.stderr
    assert "Interrupted at step" in stopped.stdout
    assert not (tmp_path / "requeued").exists()
    train("autoencoder", "whole")
    train("autoencoder", "parted", "data.num_workers=2")
    torch.testing.assert_close(
        left_behind(tmp_path, "autoencoder", "parted"), left_behind(tmp_path, "autoencoder", "whole"), rtol=0, atol=0
    )
