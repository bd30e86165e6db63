"""The queue: order, resuming, pausing, failures, the lock."""

import json
import os
import threading
import time

import pytest

from difftumor.errors import CaseListError, ConfigError, TrainingError
from difftumor.files.lock import locked
from studies.evidence.queue import LOCK, PAUSE, STATE, Queue, QueuePausedError, seconds_of
from studies.evidence.study import STUDY, EvidenceStudy
from studies.jobs.running import log_of, run_here
from tests.studies.evidence.build import entry, graph_of, job


def run(graph):
    with graph.queue.held():
        run_here(graph, run=graph.queue.run)


def statuses(graph):
    return {each.node.name: each.status for each in STUDY.found(graph).values()}


def two_entries(folder, first="a"):
    return graph_of(
        folder,
        entry("one", lambda graph: job(graph, "b", job(graph, first))),
        entry("two", lambda graph: job(graph, "c")),
    )


def test_entries_run_in_their_order_and_once(tmp_path, capfd):
    graph = two_entries(tmp_path)
    run(graph)
    ran = [line.split()[1] for line in capfd.readouterr().out.splitlines()]
    assert ran == ["a-a0000000", "b-b0000000", "c-c0000000"]
    assert (tmp_path / "b" / "result").read_text() == "ab"
    run(two_entries(tmp_path))
    assert capfd.readouterr().out == ""
    assert statuses(graph) == dict.fromkeys("abc", "done")
    assert graph.entry_of == {"a-a0000000": "one", "b-b0000000": "one", "c-c0000000": "two"}
    assert not (tmp_path / f".{LOCK}.lock").exists()


def test_jobs_have_one_core_and_low_priority(tmp_path):
    shown = "import os,pathlib,sys; print(os.nice(0), os.environ['OMP_NUM_THREADS']); sys.exit(3)"
    (tmp_path / "shown.py").write_text(shown)
    graph = graph_of(tmp_path, entry("one", lambda graph: job(graph, "a", module="runpy", words=())))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        (node,) = graph.nodes.values()
        object.__setattr__(node, "module", "shown")
        with pytest.raises(TrainingError):
            run(graph)
    assert log_of(graph, node).read_text() == "19 1\n"


def test_a_failed_job_stops_only_what_needs_it_and_goes_again(tmp_path):
    graph = two_entries(tmp_path, first="fail")
    with pytest.raises(TrainingError, match="2 jobs in all"):
        run(graph)
    assert statuses(graph) == {"fail": "failed", "b": "to do", "c": "done"}
    (tmp_path / "fail").mkdir()
    (tmp_path / "fail" / "result").write_text("f")
    run(two_entries(tmp_path, first="fail"))
    assert statuses(graph) == {"fail": "done", "b": "done", "c": "done"}


def slow_graph(folder):
    return graph_of(
        folder,
        entry("one", lambda graph: job(graph, "slow", module="tests.studies.evidence.slow_job")),
        entry("two", lambda graph: job(graph, "c")),
    )


def test_pause_lets_the_job_save_and_run_goes_on_there(tmp_path):
    graph, seen = slow_graph(tmp_path), {}

    def pause():
        while not (tmp_path / "slow" / "started").is_file():
            time.sleep(0.05)
        seen.update(statuses(slow_graph(tmp_path)))
        seen["paused"] = Queue(tmp_path, poll_s=0.05).pause()

    other = threading.Thread(target=pause)
    other.start()
    with pytest.raises(QueuePausedError):
        run(graph)
    other.join()
    assert seen == {"slow": "running", "c": "to do", "paused": True}
    assert (tmp_path / "slow" / "saved").is_file()
    assert statuses(graph) == {"slow": "to do", "c": "to do"}
    assert json.loads((tmp_path / STATE).read_text())["slow-slow0000"]["state"] == "stopped"
    spent = Queue(tmp_path).jobs["slow-slow0000"].seconds

    assert not Queue(tmp_path).pause()  # nothing runs
    run(slow_graph(tmp_path))
    assert statuses(graph) == {"slow": "done", "c": "done"}
    assert Queue(tmp_path).jobs["slow-slow0000"].seconds > spent
    assert seconds_of(tmp_path, "unknown") is None


def test_a_short_job_ends_before_the_pause(tmp_path):
    graph = graph_of(tmp_path, entry("one", lambda graph: (job(graph, "a", gpu=False), job(graph, "b"))))
    queue = graph.queue
    with queue.held():
        (first, second) = graph.nodes.values()
        wait = queue._wait

        def asked_meanwhile(process, *, stop):
            (tmp_path / PAUSE).touch()
            wait(process, stop=stop)

        queue._wait = asked_meanwhile
        with pytest.raises(QueuePausedError):
            queue.run(first, log_of(graph, first))
        assert first.is_done()
        with pytest.raises(QueuePausedError):
            queue.run(second, log_of(graph, second))
        assert not second.is_done()


def test_only_one_runs_at_a_time(tmp_path):
    graph = two_entries(tmp_path)
    with locked(tmp_path / LOCK), pytest.raises(ConfigError, match=r"is run by .*process \d+ on .*pause it first"):
        run(graph)
    run(graph)


def test_a_damaged_state_is_told(tmp_path):
    (tmp_path / STATE).write_text("{]")
    with pytest.raises(ConfigError, match="is not the state of a queue: remove it"):
        _ = Queue(tmp_path).jobs


def test_a_table_that_cannot_be_written_hides_no_failure(tmp_path, capfd):
    def table(arguments, graph):
        raise CaseListError("A record is damaged.")

    study = EvidenceStudy(
        "evidence",
        "Doc.",
        lambda arguments: graph_of(arguments.out, entry("one", lambda graph: job(graph, "fail"))),
        table,
    )
    assert study.main(["run", "--out", str(tmp_path)]) == 1
    said = capfd.readouterr().err
    assert "The tables are not written: A record is damaged.\nError: fail-fail0000 is not done" in said
