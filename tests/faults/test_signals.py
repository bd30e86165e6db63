"""SIGTERM and Ctrl-C end stages, commands and studies with a sentence, whatever they do, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

import stages.run.run
from difftumor.files.processes import Terminated
from difftumor.models.artifact_config import read_config
from stages.autoencoder.data import AutoencoderData
from stages.autoencoder.train import build
from stages.demo.run import Step, _run
from stages.exit_status import reported
from stages.run.entry import command_line
from stages.run.folder import RunFolder
from studies.jobs.graph import Graph, Node
from studies.jobs.running import JobProcesses, run_here
from tests.conftest import contents
from tests.faults.commands import COMMANDS, call
from tests.stages.builds import KINDS
from tests.stages.conftest import TINY

SIGNALS = {"SIGTERM": (signal.SIGTERM, 143), "SIGINT": (signal.SIGINT, 130)}


@pytest.fixture(autouse=True)
def _handlers():
    """Make sure that signals are handled as in a process of its own, and leave no handler behind."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {signum: signal.signal(signum, handler) for signum, handler in usual.items()}
    yield
    left = {signum: signal.signal(signum, handler) for signum, handler in before.items()}
    assert left[signal.SIGTERM] == signal.SIG_DFL  # Lightning ignores Ctrl-C from the first one on


def signaled(monkeypatch, owner, name, signum, *, number=1):
    """Let a call of a function, the first of this number, get a signal before it does anything."""
    real, calls = getattr(owner, name), iter(range(1, 1000))

    def call(*arguments, **options):
        if next(calls) == number:
            os.kill(os.getpid(), signum)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


def hidden(folder):
    return [path.name for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.fixture
def stage(cohort, tmp_path):
    """Return what runs stage 1 as a command line does, and returns its exit status."""
    places = (f"data.root={cohort}", f"runs_dir={tmp_path}/runs", f"checkpoints_dir={tmp_path}/checkpoints")

    def train(build=build):
        try:
            command_line("autoencoder", KINDS["autoencoder"], build, words=[*TINY, *places])
        except SystemExit as stop:
            return stop.code
        return 0

    return train


def told_while_building(signum):
    def building(options):
        os.kill(os.getpid(), signum)
        return build(options)

    return building


def told_while_checking(signum):
    def building(options):
        return replace(build(options), check=lambda: os.kill(os.getpid(), signum))

    return building


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("place", ["reading data", "comparing data", "opening the folder", "setup", "train_dataloader"])
def test_a_stage_told_to_stop_before_it_trains_ends_cleanly(stage, tmp_path, capsys, monkeypatch, place, signum):
    number, code = SIGNALS[signum]
    started = {"reading data": told_while_building, "comparing data": told_while_checking}.get(place)
    if place == "opening the folder":
        signaled(monkeypatch, RunFolder, "write_start", number)
    elif started is None:
        signaled(monkeypatch, AutoencoderData, place, number)
    assert stage(started(number) if started else build) == code
    said = capsys.readouterr()
    assert ("Interrupted" in said.err) != ("Interrupted at step 0: no checkpoint was written yet." in said.out)
    assert "Traceback" not in said.err
    assert hidden(tmp_path) == []
    assert {path.name for path in tmp_path.rglob("*") if path.suffix in (".ckpt", ".safetensors")} == set()
    monkeypatch.undo()
    if (place, signum) == ("opening the folder", "SIGTERM"):
        assert stage() == 0
        assert read_config(tmp_path / "checkpoints/autoencoder").complete


def test_a_stage_told_to_stop_after_training_finishes_when_run_again(stage, tmp_path, capsys, monkeypatch):
    signaled(monkeypatch, stages.run.run, "_export", signal.SIGTERM)
    assert stage() == 143
    assert "Interrupted: rerun the same command to go on.\n" in capsys.readouterr().err
    assert hidden(tmp_path) == []
    monkeypatch.undo()
    assert stage() == 0
    assert read_config(tmp_path / "checkpoints/autoencoder").training["steps"] == 8


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_told_to_stop_leaves_nothing(files, tmp_path, monkeypatch, capsys, command, signum):
    number, code = SIGNALS[signum]
    monkeypatch.chdir(files)
    before = contents(files)
    signaled(monkeypatch, os, "fsync", number)  # the first file is written, and takes its place next
    assert call(command, tmp_path / "deep/out") == code
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == []
    assert contents(files) == before


def job(folder, file):
    """A graph of one job that takes long."""
    node = Node(
        name="a", kind="sleep", module="tests.faults.sleeping", words=(str(file),), key="a" * 64,
        output=folder, results=("result",), needs=(), config={}, lacks="",
    )  # fmt: skip
    graph = Graph(folder / "study")
    graph.nodes[node.id] = node
    return graph


def test_a_job_that_is_just_being_started_is_told_to_stop_too(tmp_path, monkeypatch):
    file = tmp_path / "job"

    class SlowlyStarted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            while not file.exists() or not file.read_text():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)  # meanwhile the main thread ends

    monkeypatch.setattr(subprocess, "Popen", SlowlyStarted)
    assert reported(lambda: run_here(job(tmp_path, file))) == 143
    assert file.read_text() == "was told to stop"


def test_no_job_is_started_once_all_were_told_to_stop(tmp_path):
    processes = JobProcesses()
    processes.stop()
    with pytest.raises(Terminated):
        processes.start([sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"], None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runner", ["demo", "study"])
def test_what_a_demo_or_study_has_started_is_told_to_stop_too(tmp_path, capfd, runner):
    file = tmp_path / "job"

    def work():
        if runner == "demo":
            from rich.console import Console

            _run(Step(name="a", command=["tests.faults.sleeping", str(file)], is_done=lambda: False), None, Console())
        else:
            run_here(job(tmp_path, file))

    def tell():
        while not file.exists() or not file.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell, daemon=True).start()
    assert reported(work) == 143
    assert file.read_text() == "was told to stop"
    assert capfd.readouterr().err == "Interrupted: rerun the same command to go on.\n"
