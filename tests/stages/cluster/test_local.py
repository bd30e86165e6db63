"""Jobs as processes of this machine."""

import fcntl
import json
import os
import signal
import time

import pytest

from stages.cluster.jobs import Job, Submitted
from stages.cluster.local import LocalRunner
from stages.cluster.options import read_cluster
from stages.cluster.status import job_states
from stages.cluster.submission import cancel, latest, read_submissions, submit
from tests.conftest import REPOSITORY

TOY = """
import os, sys, time
print(*sys.argv[1:], os.environ.get("GREETING"), flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(sys.argv[3] if len(sys.argv) > 3 else int(sys.argv[2]))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def run(*jobs, words=(), queued=None):
        cluster, _ = read_cluster(["cluster=local", *words])
        made = [Job(name=name, module="toy", words=said, needs=needs) for name, said, needs in jobs]
        return submit(made, cluster, folder=tmp_path / "out", queued=queued)

    return run


def wait(folder, until=lambda states: not any(state.queued for state in states.values())):
    deadline = time.monotonic() + 60
    while not until(states := job_states(list(latest(read_submissions(folder)).values()))):
        assert time.monotonic() < deadline, states
        time.sleep(0.1)
    return states


def test_jobs_run_in_order_and_nothing_follows_a_failure(run, tmp_path):
    words = ("cluster.environment={GREETING: hi}", "cluster.at_once=2")
    run(
        ("a", ("0.1", "0"), ()),
        ("b", ("0", "3", "Error: no data."), ("a",)),
        ("c", ("0", "0"), ("b",)),
        ("d", ("0", "0"), ("a",)),
        words=words,
    )
    states = wait(tmp_path / "out")
    assert {name: state.state for name, state in states.items()} == {
        "a": "completed", "b": "failed", "c": "cancelled", "d": "completed",
    }  # fmt: skip
    assert states["b"].error == "Error: no data."
    assert states["c"].error == "a job that it needs did not end well"
    assert states["d"].log.read_text() == "0 0 hi\n"
    assert not states["c"].log.exists()


def test_a_job_may_need_one_of_an_earlier_submission(run, tmp_path):
    (first,) = run(("a", ("1", "0"), ()))
    run(("b", ("0", "0"), ("a",)), queued={"a": first.id})
    assert [state.state for state in wait(tmp_path / "out").values()] == ["completed", "completed"]


def test_canceling_ends_what_runs_and_what_waits(run, tmp_path):
    sent = run(("a", ("60", "0"), ()), ("b", ("0", "0"), ("a",)))
    wait(tmp_path / "out", lambda states: states["a"].state == "running")
    cancel(sent)
    assert {state.state for state in wait(tmp_path / "out").values()} == {"cancelled"}


def test_jobs_whose_runner_was_killed_are_not_shown_as_running(run, tmp_path):
    (sent,) = run(("a", ("1", "0"), ()))
    wait(tmp_path / "out", lambda states: states["a"].state == "running")
    os.kill(int((sent.log.parent / "runner.lock").read_text()), signal.SIGKILL)
    state = wait(tmp_path / "out")["a"]
    assert (state.state, "submit again" in state.error) == ("cancelled", True)
    run(("b", ("0", "0"), ("a",)), queued={"a": sent.id})  # by a program that began to wait before
    assert wait(tmp_path / "out")["b"].error == "a job that it needs did not end well"


def test_a_stop_while_jobs_are_started_ends_them_all(tmp_path):
    ids = [f"local-{tmp_path.name}-{number}" for number in range(3)]
    steps = [{"id": each, "command": ["sleep", "60"], "needs": [], "gpu": False} for each in ids]
    logs = {each: [str(tmp_path / "out"), str(tmp_path / "err")] for each in ids}
    plan = {"steps": steps, "at_once": 2, "gpus": 0, "environment": {}, "checkout": {"commit": None}, "logs": logs}
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    class Stopped(LocalRunner):
        def _start(self, step):
            super()._start(step)
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    try:
        Stopped(tmp_path).run()
    finally:
        signal.signal(signal.SIGTERM, before)
    states = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(3)]
    assert [(state["state"], state.get("code")) for state in states] == [
        ("cancelled", -signal.SIGTERM), ("cancelled", None), ("cancelled", None),
    ]  # fmt: skip


def test_canceling_leaves_alone_who_has_the_id_of_a_program_that_is_gone(tmp_path, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda process, signum: killed.append(process))
    sent = Submitted(name="a", id=f"local-{tmp_path.name}-0", log=tmp_path / "a.out", errors=tmp_path / "a.err")
    (tmp_path / "runner.lock").write_text("4711")
    cancel([sent])
    assert killed == []
    with (tmp_path / "runner.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cancel([sent])
    assert killed == [4711]


def test_the_checkout_comes_before_a_path_of_ones_own(tmp_path):
    cluster, _ = read_cluster(["cluster=local", "cluster.environment={PYTHONPATH: /more}"])
    words = ("-n1", "-r1", "import os; print(os.environ['PYTHONPATH'])")
    (sent,) = submit([Job(name="path", module="timeit", words=words)], cluster, folder=tmp_path)
    wait(tmp_path)
    assert sent.log.read_text().startswith(f"{REPOSITORY}:/more\n")
