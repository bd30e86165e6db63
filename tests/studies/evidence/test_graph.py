"""The graph of the entries: data made by jobs, records in the repository, and what they spare."""

import shutil
from collections import Counter
from dataclasses import replace

import pytest

from studies.evidence.entries import ENTRIES
from studies.evidence.graph import RecordNode
from studies.evidence.records import read_record
from studies.evidence.study import STUDY, main
from studies.evidence.who_teaches import KINDS, WHO_TEACHES
from studies.jobs.graph import Graph
from studies.jobs.running import run_here
from tests.studies.evidence.build import entry, graph_of, job, record, scan

DEMO = ("experiment=demo", "organ=liver", "trainer=cpu")


def test_data_may_be_made_by_jobs_that_have_not_run(tmp_path):
    def models(seed):
        graph = Graph(tmp_path)
        words = ["--cases", "2", "--seed", str(seed)]
        cohort = graph.command("phantom", "cohort", words, results=("dataset.json",), out="")
        first = graph.stage("autoencoder", "autoencoder", ["experiment=demo"], {"data.root": cohort})
        values = {"data.root": cohort, "autoencoder.artifact": first, "fold": 0}
        second = graph.stage("diffusion", "diffusion", DEMO, values)
        values = {"data.root": cohort.part("few.json"), "synthesis.early_model": second.best, "tumors": "mixed"}
        third = graph.stage("segmentation", "segmenter", DEMO, values)
        return graph, cohort, second, third

    graph, cohort, second, third = models(0)
    assert cohort.words == ("phantom", "--cases", "2", "--seed", "0", str(cohort.output))
    assert f"data.root={cohort.output}/few.json" in third.words
    assert f"synthesis.early_model={second.output}_best" in third.words
    assert [need.id for need in third.needs] == [cohort.id, second.id]
    assert list(graph.nodes) == [each.id for each in (cohort, second.needs[1], second, third)]
    assert models(0)[3].key == third.key != models(1)[3].key
    assert not any(node.lacks for node in graph.nodes.values())


def recorded(graph):
    """A cell of two jobs; another cell shares the first."""
    data = job(graph, "data")
    for number, kind in enumerate(("real", "made")):
        model = job(graph, f"model_{kind}", data)
        graph.record({"trained_on": kind, "seed": number}, model=model, predictions=model, labels=data)


def write_record(node):
    assert isinstance(node, RecordNode)
    trained_on, seed = node.results[0].removesuffix(".json").split("_seed")
    each = replace(record(trained_on, int(seed), [scan("a", 1, (1, 1), (0, 0), dsc=0.5)]), key=node.key)
    each.write(node.output / node.results[0])


def test_what_only_finished_records_need_is_spared(tmp_path):
    graph = graph_of(tmp_path, entry("first", recorded))
    cells = [node for node in graph.nodes.values() if node.kind == "record"]
    assert [node.results for node in cells] == [("real_seed0.json",), ("made_seed1.json",)]
    assert cells[0].output == tmp_path / "records" / "small" / "first"
    assert not any(node.is_done() for node in graph.nodes.values())
    write_record(cells[0])
    graph = graph_of(tmp_path, entry("first", recorded))
    assert [node.name for node in graph.nodes.values() if not node.is_done()] == [
        "data", "model_made", "first_made_seed1"
    ]  # fmt: skip
    write_record(cells[1])
    graph = graph_of(tmp_path, entry("first", recorded))
    run_here(graph, run=lambda node, log: pytest.fail(f"{node.id} runs again"))
    assert {each.status for each in STUDY.found(graph).values()} == {"done"}


def test_a_record_of_other_options_is_made_again(tmp_path):
    graph = graph_of(tmp_path, entry("first", recorded))
    cell = next(node for node in graph.nodes.values() if node.kind == "record")
    replace(record("real", 0, []), key="b" * 64).write(cell.output / cell.results[0])
    assert not cell.is_done()
    write_record(cell)
    assert cell.is_done()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "full", "trial"])
def test_every_size_composes(tmp_path, size, capfd):
    words = ["plan", "--size", size, "--out", str(tmp_path / "out"), "--records", str(tmp_path / "records")]
    assert main(words) == 0
    out = capfd.readouterr().out
    for each in ENTRIES:
        assert each.name in out
    graph = STUDY.declare(_arguments(words))
    cells = [node for name, node in graph.nodes.items() if node.kind == "record"]
    of_entry = Counter(graph.entry_of[node.id] for node in cells)
    seeds = {"small": 3, "full": 5, "trial": 1}[size]
    assert of_entry["who_teaches_what"] == len(KINDS) * seeds
    blocked = {graph.entry_of[node.id] for node in graph.nodes.values() if node.lacks}
    assert "who_teaches_what" not in blocked
    assert {node.lacks for node in cells if graph.entry_of[node.id] == "real_patients"} == {"--sarcoma is not given"}


def _arguments(words):
    arguments = STUDY.parser().parse_intermixed_args(words)
    arguments.options = []
    return arguments


@pytest.mark.slow
def test_segmenters_differ_in_their_tumors_alone_and_all_train_as_long(tmp_path):
    words = ["plan", "--entries", "who_teaches_what", "--out", str(tmp_path / "out"), "--records", str(tmp_path / "r")]
    graph = STUDY.declare(_arguments(words))
    trainings = [node for node in graph.nodes.values() if node.kind == "segmentation"]
    assert len(trainings) == 33
    for node in trainings:
        config, name = node.config, node.name
        annotated, made = "_real" in name, "liver_real_0" not in name and "_real_" not in f"{name}_"
        cases = 8 * annotated + 16 * (config["data"]["healthy_root"] is not None)
        steps = config["training"]["epochs"] * -(-cases // 2)
        assert abs(steps - 1600) <= 12, name
        assert (config["synthesis"]["early_model"] is None) == ("diffusion" not in name)
        assert (config["synthesis"]["offline"] is None) == ("before" not in name)
        assert config["synthesis"]["probability"] == (0 if "none" in name else 1)
        assert (config["tumors"] == "real") == (config["data"]["healthy_root"] is None)
        assert made or annotated
    assert {node.config["fold"] for node in trainings} == {None}
    others = [node for node in graph.nodes.values() if node.kind in ("synthesize", "predict")]
    assert {node.replacing for node in others} == {("--overwrite",)}
    pairs = {name for pair in WHO_TEACHES.comparisons for name in pair}
    assert pairs <= set(KINDS)


def test_only_known_entries_are_taken(capsys):
    for words in (["plan", "--entries", "nothing"], ["plan", "--entries", "real_patients,real_patients"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "each once" in capsys.readouterr().err
    assert main(["run", "--jobs", "2"]) == 1
    assert "one job at a time" in capsys.readouterr().err


def test_pausing_what_does_not_run_says_so(tmp_path, capsys):
    assert main(["pause", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "The queue is not running.\n"


def test_tables_come_from_the_records_without_any_model(tmp_path, capfd):
    folder = tmp_path / "records" / "trial" / "who_teaches_what"
    words = ["table", "--entries", "who_teaches_what", "--size", "trial", "--out", str(tmp_path / "out")]
    words += ["--records", str(tmp_path / "records")]
    keys = {node.results[0]: node.key for node in STUDY.declare(_arguments(words)).cells("who_teaches_what")}
    # One is of other options, and there are no more than one seed.
    for kind, seed in (("real", 0), ("real_none", 0), ("real_diffusion", 0), ("none", 0), ("real", 1)):
        each = record(kind, seed, [scan(name, 1, (0, 1), (0, 1), dsc=0.5) for name in "abcd"])
        key = keys.get(f"{kind}_seed{seed}.json", "b" * 64) if kind != "none" else "b" * 64
        replace(each, key=key).write(folder / f"{kind}_seed{seed}.json")
    assert main(words) == 0
    assert capfd.readouterr().out.endswith("out/report.html\n")
    table = (folder.parent / "who_teaches_what.md").read_text()
    assert "| few real and diffusion | 0.00" in table
    assert "healthy scans alone" not in table
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 of 11 cells so far" in page
    assert "do not count: 2." in page
    assert read_record(folder / "real_seed0.json").size == "small"
    shutil.rmtree(tmp_path / "out")
