"""Processes that are killed while they write lose nothing: what was there is there, whole, and the next one goes on."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from stages.run.checkpoint import DurableCheckpoints, check_checkpoint
from stages.run.folder import RunFolder
from tests.conftest import REPOSITORY, contents
from tests.faults import trainings
from tests.faults.commands import COMMANDS, call
from tests.faults.harm import forked, killed_at_byte, killed_at_call

# Before and after each call of a save that has one before it, and at bytes of its file.
CALL_PLACES, BYTE_PLACES = range(20), range(200, 3200, 300)
SHARED = Path("/dev/shm")  # a file system of its own, as a node's own disk may be


def checkpoint(step):
    return {"state_dict": {"w": torch.arange(400.0) + step}, "optimizer_states": [{"m": torch.ones(3)}],
            "steps_done": step}  # fmt: skip


def holds(file, steps):
    """Whether a file is a whole checkpoint of one of these steps."""
    step = check_checkpoint(file)
    torch.testing.assert_close(torch.load(file, weights_only=True), checkpoint(step), rtol=0, atol=0)
    return step in steps


@pytest.fixture(params=["beside", "another file system"])
def temporary(request, monkeypatch, tmp_path):
    """Let TMPDIR be on the file system of the run, or on another one, and empty."""
    place = SHARED if request.param == "another file system" else tmp_path.parent
    if place == SHARED and not (SHARED.is_dir() and SHARED.stat().st_dev != tmp_path.stat().st_dev):
        pytest.skip("there is no /dev/shm on a file system of its own")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield folder
        assert os.listdir(folder) == []  # nothing goes through it


@pytest.mark.harms(len(CALL_PLACES) + len(BYTE_PLACES))
def test_a_kill_at_any_moment_of_a_save_leaves_good_checkpoints(tmp_path, temporary):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    for step in (2, 4):
        DurableCheckpoints().save_checkpoint(checkpoint(step), folder.last)
    kills = [(killed_at_call, place) for place in CALL_PLACES] + [(killed_at_byte, place) for place in BYTE_PLACES]
    for step, (killed, place) in enumerate(kills, 5):
        earlier = check_checkpoint(folder.last)

        def save(step=step, killed=killed, place=place):
            with killed(place):
                DurableCheckpoints().save_checkpoint(checkpoint(step), folder.last)

        assert forked(save) in (-signal.SIGKILL, -signal.SIGXFSZ), (killed, place)
        assert holds(folder.last, (earlier, step)), (killed, place)
        assert holds(folder.path / "previous.ckpt", range(step)), (killed, place)
        folder.remove_partial_files()
        assert sorted(os.listdir(folder.path)) == ["last.ckpt", "previous.ckpt"], (killed, place)
    DurableCheckpoints().save_checkpoint(checkpoint(99), folder.last)
    assert holds(folder.last, [99])


@pytest.mark.slow
@pytest.mark.harms(trainings.KILLS)
def test_a_run_that_is_killed_in_a_save_resumes_to_the_same_weights(cohort, tmp_path):
    with tempfile.TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as temporary:
        environment = {**os.environ, "TMPDIR": temporary, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "tests.faults.trainings", str(cohort), str(tmp_path)]
        done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(kills) == trainings.KILLS >= 20
    assert [kill for kill in kills if not (kill["killed"] and kill["same"])] == []


KILLS = 6


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
@pytest.mark.harms(KILLS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_killed_while_it_writes_makes_all_when_run_again(files, tmp_path, monkeypatch, command):
    monkeypatch.chdir(files)
    before, count = contents(files), tmp_path / "count"

    def undisturbed():
        call(command, tmp_path / "first/out")  # fills caches, which are written to as well
        with killed_at_call(-1) as calls:
            assert call(command, tmp_path / "whole/out") == 0
        count.write_text(str(2 * len(calls)))

    assert forked(undisturbed) == 0
    whole, places = contents(tmp_path / "whole"), int(count.read_text())
    for place in range(places // KILLS // 2, places, -(-places // KILLS)):
        out = tmp_path / str(place) / "out"

        def killed(place=place, out=out):
            with killed_at_call(place):
                call(command, out)

        assert forked(killed) == -signal.SIGKILL
        forked(lambda out=out: call(command, out))  # refuses to replace results, if they are all there
        made = contents(out.parent)
        assert made.keys() == whole.keys(), place
        compared = [name for name in whole if name.endswith((".nii.gz", "cases.csv", ".safetensors", ".pt"))]
        assert {name: made[name] for name in compared} == {name: whole[name] for name in compared}, place
    assert contents(files) == before
