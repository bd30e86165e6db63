"""Jobs of the engine on SLURM: chains, and trainings that are killed, preempted, out of time, or lose their node."""

import re
import time

import pytest

from difftumor.models.artifact_config import read_config
from stages.cluster.jobs import Job
from stages.cluster.options import read_cluster
from stages.cluster.status import job_states
from stages.cluster.submission import latest, read_submissions, submit
from tests.stages.conftest import TINY, cohort

pytestmark = pytest.mark.slurm
__all__ = ["cohort"]  # a fixture

SMALL = (
    "cluster=slurm", "cluster.cpus=1", "cluster.memory=500M", "cluster.gpus_per_node=1", "cluster.time=30m",
    "cluster.environment={OMP_NUM_THREADS: 1}",
)  # fmt: skip
LONG = ("training.steps=120", "training.steps_per_epoch=20", "trainer.validate_every_n_epochs=6")


class Jobs:
    """Submits trainings of a tiny autoencoder and looks at them."""

    def __init__(self, slurm, cohort, folder):
        self.slurm, self.cohort, self.folder = slurm, cohort, folder

    def training(self, name, *words, needs=()):
        places = (f"data.root={self.cohort}", f"runs_dir={self.folder}/runs", f"name={name}")
        words = (*TINY, *places, f"artifact={self.folder / name}", *LONG, *words)
        return Job(name=name, module="stages.autoencoder", words=words, needs=needs)

    def info(self, name, needs, of=None):
        return Job(name=name, module="difftumor", words=("info", str(self.folder / (of or needs))), needs=(needs,))

    def submit(self, *jobs, words=(), queued=None):
        return submit(jobs, read_cluster([*SMALL, *words])[0], folder=self.folder, queued=queued)

    def states(self):
        return job_states(list(latest(read_submissions(self.folder)).values()))

    def wait(self, until=lambda states: not any(state.queued for state in states.values()), timeout=500):
        deadline = time.monotonic() + timeout
        while not until(states := self.states()):
            assert time.monotonic() < deadline, states
            time.sleep(0.5)
        return states

    def wait_for_checkpoint(self, name):
        last = self.folder / "runs" / "autoencoder" / name / "last.ckpt"
        self.wait(lambda states: last.is_file() or not states[name].queued)
        return last

    def weights(self, name):
        return (self.folder / name / "model.safetensors").read_bytes()

    def restarts(self, sent):
        return int(self.slurm.job(sent.id)["Restarts"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture
def jobs(slurm, cohort, folder, monkeypatch):
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return Jobs(slurm, cohort, folder)


@pytest.fixture
def whole(jobs):
    """Weights of a training that nothing disturbed."""
    if not (jobs.folder / "whole").exists():
        jobs.submit(jobs.training("whole"))
        jobs.wait()
    return jobs.weights("whole")


def test_what_needs_a_training_follows_it_and_nothing_follows_a_failure(jobs):
    jobs.submit(
        jobs.training("short", "training.steps=40"),
        jobs.info("about", "short"),
        jobs.training("broken", "data.root=/absent", needs=("short",)),
        jobs.info("never", "broken"),
    )
    states = jobs.wait()
    assert {name: states[name].state for name in ("short", "about", "broken", "never")} == {
        "short": "completed", "about": "completed", "broken": "failed", "never": "cancelled",
    }  # fmt: skip
    assert states["broken"].error.startswith("Error: /absent does not exist")
    assert states["short"].node in ("n1", "n2")
    assert "autoencoder" in states["about"].log.read_text()
    assert not states["never"].log.exists()


@pytest.mark.parametrize("of", ["step", "job"])
def test_a_killed_training_fails_and_goes_on_with_the_next_submission(jobs, whole, of):
    name, after = f"killed_{of}", f"after_{of}"
    sent = jobs.submit(jobs.training(name), jobs.info(after, name))
    jobs.wait_for_checkpoint(name)
    # Without a step, SLURM cancels the job, and warns it before.
    jobs.slurm.run("scancel", "--signal=KILL", f"{sent[0].id}.0" if of == "step" else sent[0].id)
    states = jobs.wait()
    assert (states[name].state, states[after].state) == ("failed" if of == "step" else "cancelled", "cancelled")
    assert not (jobs.folder / name).exists()
    jobs.submit(jobs.training(name), jobs.info(after, name))
    states = jobs.wait()
    assert (states[name].state, states[after].state) == ("completed", "completed")
    assert "Resuming" in states[name].log.read_text()
    assert jobs.weights(name) == whole


def test_a_preempted_training_saves_and_goes_on(jobs, whole):
    loading = jobs.training("preempted", "fresh=true", "data.num_workers=2")  # SLURM signals those processes too
    sent = jobs.submit(loading, jobs.info("later", "preempted"))
    jobs.wait_for_checkpoint("preempted")
    high = jobs.slurm.submit("-N2", "--exclusive", "--partition=high", "--output=/dev/null", script="true")
    jobs.slurm.wait(high)
    states = jobs.wait()
    assert (states["preempted"].state, states["later"].state) == ("completed", "completed")
    log = states["preempted"].log.read_text()
    assert jobs.restarts(sent[0]) >= 1
    assert log.count(f"Starting {jobs.folder}") == 1
    assert "Interrupted at step" in log
    assert "Resuming" in log
    assert jobs.weights("preempted") == whole


def test_a_training_that_is_signaled_before_its_limit_goes_on(jobs, whole):
    sent = jobs.submit(jobs.training("limited", "data.num_workers=2"))
    jobs.wait_for_checkpoint("limited")
    jobs.slurm.run("scancel", "--signal=USR2", sent[0].id)  # as SLURM does, warning_s before the limit
    states = jobs.wait()
    assert states["limited"].state == "completed"
    assert jobs.restarts(sent[0]) == 1
    assert jobs.weights("limited") == whole


def test_a_training_is_requeued_no_more_often_than_allowed(jobs):
    sent = jobs.submit(jobs.training("stopped", "training.steps=40000"), words=("cluster.max_requeues=0",))
    last = jobs.wait_for_checkpoint("stopped")
    jobs.slurm.run("scancel", "--signal=USR2", sent[0].id)
    state = jobs.wait()["stopped"]
    assert (state.state, jobs.restarts(sent[0])) == ("failed", 0)
    assert "cluster.max_requeues" in state.error
    assert last.is_file()


@pytest.mark.nightly  # SLURM counts limits in minutes
def test_a_training_goes_on_after_its_time_limit_as_often_as_allowed(jobs):
    words = ("cluster.time=2m", "cluster.warning_s=20", "cluster.max_requeues=1")
    (sent,) = jobs.submit(jobs.training("endless", "training.steps=1000000"), words=words)
    state = jobs.wait(timeout=900)["endless"]
    assert (state.state, jobs.restarts(sent)) == ("failed", 1)
    assert "cluster.max_requeues" in state.error
    log = sent.log.read_text()
    stops = [int(step) for step in re.findall(r"Interrupted at step (\d+)", log)]
    assert len(stops) == 2
    assert 0 < stops[0] < stops[1]
    assert log.count("Resuming") == 1


def test_a_canceled_training_is_canceled(jobs):
    sent = jobs.submit(jobs.training("canceled", "training.steps=40000"))
    jobs.wait_for_checkpoint("canceled")
    jobs.slurm.run("scancel", sent[0].id)
    assert jobs.wait()["canceled"].state == "cancelled"


def test_a_training_whose_node_is_lost_goes_on_elsewhere(jobs, whole):
    sent = jobs.submit(jobs.training("lost"))
    jobs.wait_for_checkpoint("lost")
    jobs.slurm.set_node(jobs.states()["lost"].node, "down")
    states = jobs.wait()
    assert states["lost"].state == "completed"
    assert jobs.restarts(sent[0]) >= 1
    assert jobs.weights("lost") == whole


def test_an_array_runs_as_many_at_once_as_allowed(jobs):
    sent = jobs.submit(
        *(jobs.training(f"part{fold}", "training.steps=40") for fold in range(2)), words=("cluster.at_once=1",)
    )
    states = jobs.wait()
    assert {states[job.name].state for job in sent} == {"completed"}
    assert {job.id.split("_")[1] for job in sent} == {"0", "1"}


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_training_runs_on_all_gpus_and_nodes(jobs, nodes):
    words = (f"cluster.nodes={nodes}", f"cluster.gpus_per_node={2 // nodes}")
    name = f"on{nodes}"
    (sent,) = jobs.submit(jobs.training(name, "training.steps=4", "training.steps_per_epoch=2"), words=words)
    assert jobs.wait()[name].state == "completed", sent.errors.read_text()
    assert read_config(jobs.folder / name).training["world_size"] == 2


def test_processes_on_two_nodes_stop_before_the_same_batch(jobs):
    (sent,) = jobs.submit(jobs.training("both"), words=("cluster.nodes=2",))
    jobs.wait_for_checkpoint("both")
    jobs.slurm.run("scancel", "--signal=USR2", sent.id)
    state = jobs.wait()["both"]
    assert (state.state, jobs.restarts(sent)) == ("completed", 1), sent.errors.read_text()
    assert "Resuming" in sent.log.read_text()
    assert read_config(jobs.folder / "both").training["world_size"] == 2
