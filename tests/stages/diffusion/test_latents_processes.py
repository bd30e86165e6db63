"""Cached latents with real processes: two runs that fill one cache at once, one that is killed, and two ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from difftumor.files.checksums import sha256_of
from difftumor.models.artifact_config import read_config
from tests.conftest import REPOSITORY
from tests.stages.tumor_cohort import DIFFUSION

pytestmark = pytest.mark.slow
CROPS = 60  # of each of two cases; one more tumor is held out
LATENTS = 2 * CROPS + 1
NO_HOSTS = "validation.synthesize_every_n_epochs=0"  # whose CTs are read in any case


@pytest.fixture(scope="module")
def start(tumor_cohort, untrained):
    """Start a run of a name as a user does."""

    def started(folder: Path, name: str, *overrides: str) -> subprocess.Popen:
        places = (
            f"data.root={tumor_cohort}", f"autoencoder.artifact={untrained}/autoencoder", f"runs_dir={folder}/runs",
            f"artifact={folder}/{name}", f"name={name}", f"latents.cache={folder}/cache",
        )  # fmt: skip
        options = ("fold=0", "folds.count=2", f"latents.crops={CROPS}", "training.steps_per_epoch=3", NO_HOSTS)
        command = [sys.executable, "-m", "stages.diffusion", *DIFFUSION, *options, *places, *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return started


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """What a run that nobody disturbs ends with, and its cache."""
    folder = tmp_path_factory.mktemp("alone")
    assert f"0 are there, {LATENTS} to be made" in finished(start(folder, "alone"))
    return result(folder / "alone"), contents(folder / "cache")


def finished(process: subprocess.Popen) -> str:
    """What a process said until its good end."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def result(artifact: Path) -> tuple[str, dict]:
    return sha256_of(artifact / "model.safetensors"), dict(read_config(artifact).metrics)


def files(folder: Path) -> list[Path]:
    """Latents, and nothing that is being written."""
    return list(folder.glob("[0-9a-f]*.safetensors"))


def contents(folder: Path) -> dict[str, dict[str, bytes]]:
    return {
        file.name: {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}
        for file in files(folder)
    }


def test_runs_that_fill_a_cache_at_once_train_as_one_that_does_alone(start, alone, tmp_path):
    runs = [start(tmp_path, "one"), start(tmp_path, "two", "data.num_workers=2")]
    for process in runs:
        assert f"{LATENTS} of 0.0044 MB" in finished(process)
    assert result(tmp_path / "one") == result(tmp_path / "two") == alone[0]
    assert contents(tmp_path / "cache") == alone[1]
    assert len(list((tmp_path / "cache").iterdir())) == LATENTS  # and nothing temporary


def test_a_run_that_is_killed_while_it_fills_the_cache_goes_on(start, alone, tmp_path):
    killed = start(tmp_path, "killed")
    try:
        while len(files(tmp_path / "cache")) < 5:
            assert killed.poll() is None
            time.sleep(0.002)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
    there = len(files(tmp_path / "cache"))
    assert 5 <= there < LATENTS
    assert f"{there} are there, {LATENTS - there} to be made" in finished(start(tmp_path, "killed"))
    assert (result(tmp_path / "killed"), contents(tmp_path / "cache")) == alone


def test_two_ranks_fill_the_cache_that_one_process_fills(start, alone, tmp_path):
    ranks = ("trainer.devices=2", "trainer.strategy=ddp")
    assert finished(start(tmp_path, "empty", *ranks)).count(f"{LATENTS} of 0.0044 MB") == 1
    finished(start(tmp_path, "full", *ranks))
    assert result(tmp_path / "empty") == result(tmp_path / "full")
    assert contents(tmp_path / "cache") == alone[1]
