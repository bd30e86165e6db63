"""Doing what is missing of a graph, and saying where its jobs are."""

import json

import pytest

from difftumor.errors import TrainingError
from stages.cluster.jobs import Job, Submitted
from stages.cluster.options import ClusterOptions
from stages.cluster.status import JobState
from studies.jobs import running, states
from studies.jobs.graph import Graph, Node
from studies.jobs.running import run_here, submit_missing
from studies.jobs.states import job_table, plan_table, remarks, standings
from studies.jobs.study import Study


def graph_of(folder, **needs):
    """A graph of jobs by name, with what each needs."""
    graph = Graph(folder)
    for name, needed in needs.items():
        nodes = tuple(graph.nodes[f"{each}-{each * 8}"] for each in needed)
        output = folder / name
        words = (str(output), *(str(node.output) for node in nodes))
        node = Node(
            name=name, kind="leave", module="tests.studies.jobs.leave", words=words, key=name * 64, output=output,
            results=("result",), needs=nodes, config={}, lacks="there is no data" if name.startswith("n") else "",
        )  # fmt: skip
        graph.nodes[node.id] = node
    return graph


def statuses(graph):
    return {each.node.name: each.status for each in standings(graph).values()}


@pytest.mark.parametrize("at_once", [1, 3])
def test_each_runs_after_what_it_needs_and_once(tmp_path, capfd, at_once):
    graph = graph_of(tmp_path, a="", b="a", c="a", d="bc")
    run_here(graph, at_once=at_once)
    assert (tmp_path / "d" / "result").read_text() == "abacd"
    assert set(statuses(graph).values()) == {"done"}
    assert capfd.readouterr().out.count("$ python -m tests.studies.jobs.leave") == 4
    run_here(graph, at_once=at_once)
    assert capfd.readouterr().out == ""


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path):
    graph = Graph(tmp_path)
    for name, needed in {"a": "", "b": "a", "c": ""}.items():
        graph.nodes |= graph_of(tmp_path, **({"a": "", name: needed} if name != "a" else {"a": ""})).nodes
    (failing,) = [node for node in graph.nodes.values() if node.name == "a"]
    object.__setattr__(failing, "words", (str(tmp_path / "fail"),))
    with pytest.raises(TrainingError, match=r"^a-aaaaaaaa is not done \(2 jobs in all\): see its message"):
        run_here(graph)
    assert statuses(graph) == {"a": "to do", "b": "to do", "c": "done"}


def test_what_lacks_data_is_blocked_and_the_rest_runs(tmp_path):
    graph = graph_of(tmp_path, n="", a="")
    with pytest.raises(TrainingError, match="there is no data"):
        run_here(graph)
    assert statuses(graph) == {"n": "blocked", "a": "done"}
    assert remarks(standings(graph)) == ["1 job is blocked: there is no data."]


@pytest.fixture
def scheduler(monkeypatch):
    """A scheduler that takes jobs and says what it is told to."""
    told, taken = {}, []

    def submit(jobs, cluster, *, folder, queued=None):
        taken.append((tuple(jobs), dict(queued)))
        return tuple(
            Submitted(name=job.name, id=str(n), log=folder / "log", errors=folder / "err") for n, job in enumerate(jobs)
        )

    def known(_):
        names = [job.name for jobs, _ in taken for job in jobs]
        return {name: Submitted(name=name, id=f"id-{name}", log=told["log"], errors=told["log"]) for name in names}

    monkeypatch.setattr(running, "submit", submit)
    monkeypatch.setattr(states, "read_submissions", lambda folder: folder)
    monkeypatch.setattr(states, "latest", known)
    monkeypatch.setattr(states, "job_states", lambda asked: {
        job.name: JobState(name=job.name, id=job.id, state=told.get(job.name, "pending"), log=job.log, error="no luck")
        for job in asked
    })  # fmt: skip
    return told, taken


def test_only_what_is_missing_is_submitted(tmp_path, scheduler):
    told, taken = scheduler
    told["log"] = tmp_path / "log"
    told["log"].write_text("epoch 1/9  step 5\nepoch 2/9  step 10  loss 3\n")
    graph = graph_of(tmp_path, a="", b="a", c="b", n="")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result").touch()
    submit_missing(graph, ClusterOptions(kind="slurm"))
    jobs, queued = taken[-1]
    assert [(job.name[0], [need[0] for need in job.needs]) for job in jobs] == [("b", []), ("c", ["b"])]
    assert queued == {}
    assert submit_missing(graph, ClusterOptions(kind="slurm")) == ()  # both are pending
    told["b-bbbbbbbb"], told["c-cccccccc"] = "running", "failed"
    submit_missing(graph, ClusterOptions(kind="slurm"))
    jobs, queued = taken[-1]
    assert [(job.name, job.needs) for job in jobs] == [("c-cccccccc", ("b-bbbbbbbb",))]
    assert queued == {"b-bbbbbbbb": "id-b-bbbbbbbb"}
    found = standings(graph)
    assert statuses(graph) == {"a": "done", "b": "running", "c": "failed", "n": "blocked"}
    assert found["b-bbbbbbbb"].progress == "epoch 2/9, step 10"
    assert found["c-cccccccc"].reason == "no luck"
    assert job_table(found.values()).row_count == 4


def test_the_table_goes_again_if_it_lacks_results(tmp_path, scheduler, monkeypatch):
    told, taken = scheduler
    told["log"] = tmp_path / "log"
    monkeypatch.setattr(running, "read_submissions", lambda folder: taken)
    graph, page = graph_of(tmp_path, a="", b=""), tmp_path / "report.html"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result").touch()
    table = Job(name="table", module="studies.transfer", words=("table",), gpu=False)

    def sent():
        before = len(taken)
        submit_missing(graph, ClusterOptions(kind="slurm"), last=table, page=page)
        return [(job.name, job.needs) for jobs, _ in taken[before:] for job in jobs]

    assert sent() == [("table-0", ())]
    assert sent() == []  # it is pending
    told["table-0"] = "failed"
    (last,) = sent()
    assert last == (f"table-{len(taken) - 1}", ())
    told[last[0]] = "completed"
    page.touch()
    assert sent() == []
    told[last[0]] = "running"
    (tmp_path / "b" / "result").unlink()
    again = sent()  # with another job, after the table that still runs
    assert again == [("b-bbbbbbbb", ()), (f"table-{len(taken) - 1}", ("b-bbbbbbbb", last[0]))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["submit", "--jobs", "2"], "--jobs has no meaning for submit"),
        (["plan", "--watch"], "--watch has no meaning for plan"),
        (["run", "cluster=slurm"], "The action run runs jobs here: leave out cluster="),
        (["table", "option=1"], "The study takes no option 'option=1'"),
    ],
)
def test_what_an_action_would_ignore_is_refused(capsys, words, message):
    study = Study("example", "An example.", lambda _: pytest.fail("declared"), lambda *_: pytest.fail("written"))
    assert study.main(words) == 1
    assert capsys.readouterr().err.startswith(f"Error: {message}")


def test_hours_are_said_only_where_they_were_measured(tmp_path):
    graph = Graph(tmp_path)
    for name, seconds in {"a": 3600, "b": 7200, "c": None}.items():
        node = Node(name=name, kind="diffusion", module="m", words=(), key=name * 64, output=tmp_path / name, config={})
        graph.nodes[node.id] = node
        if seconds is not None:
            write_artifact(node.output, {"seconds": seconds, "world_size": 2})
    table = plan_table(standings(graph))
    assert list(table.columns[-1].cells) == ["3.0", ""]
    assert list(table.columns[1].cells) == ["2", "2"]


def write_artifact(folder, training):
    folder.mkdir()
    config = {
        "kind": "diffusion", "architecture": {"name": "factorized_unet"}, "preprocessing": {},
        "weights_sha256": "0" * 64,
        "organ": "liver", "parents": {}, "settings": {}, "training": training, "metrics": {}, "real_tumors": {},
        "complete": True, "format_version": 1, "difftumor_version": "0",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
