import re

import pytest

from difftumor.errors import ConfigError
from stages.cluster.jobs import Job, check_order
from stages.cluster.options import CLUSTERS, ClusterOptions, read_cluster, read_minutes


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("48h", 2880), ("1d12h", 2160), ("90m", 90), (30, 30), ("30", 30), ("2-00:00:00", 2880), ("1:00:30", 61)],
)
def test_times_are_minutes_rounded_up(text, minutes):
    assert read_minutes(text, field="cluster.time") == minutes


@pytest.mark.parametrize("text", ["", "0h", 0, -5, True, "soon", "1:60", None, "4 h"])
def test_other_times_are_refused(text):
    with pytest.raises(ConfigError, match=r"cluster\.time is .*: give a time such as 48h"):
        read_minutes(text, field="cluster.time")


@pytest.mark.parametrize("name", [file.stem for file in CLUSTERS.glob("*.yaml")])
def test_every_file_is_a_cluster_and_states_its_defaults(name):
    options, words = read_cluster(["fold=0", f"cluster={name}"])
    assert options.kind == name
    assert words == ("fold=0",)


def test_the_command_line_overrides_the_file_and_keeps_the_other_words():
    words = [
        "fold=0,1", "cluster=slurm", "cluster.partition=gpu", "cluster.time=2d", "clusters=3",
        "+cluster.more.gres='gpu:a100:1'", "cluster.setup=[module load cuda]", "cluster.environment={A: 1}",
    ]  # fmt: skip
    options, rest = read_cluster(words)
    assert rest == ("fold=0,1", "clusters=3")
    assert (options.partition, options.time, options.more) == ("gpu", 2880, {"gres": "gpu:a100:1"})
    assert (options.setup, options.environment) == (("module load cuda",), {"A": 1})


def test_without_a_word_jobs_are_processes_of_this_machine():
    assert read_cluster(["fold=0"])[0].kind == "local"


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "lab.yaml"
    # Plain YAML reads both times as numbers of base 60: 86400 and 5400.
    file.write_text(
        "kind: slurm\npartition: 12\ngpus_per_node: 4\ntime: 24:00:00 # day\nenvironment: {LIMIT: 1:30:00}\n"
    )
    options, _ = read_cluster([f"cluster={file}"])
    assert (options.partition, options.gpus_per_node, options.nodes) == ("12", 4, 1)
    assert (options.time, options.variables) == (1440, {"LIMIT": "1:30:00"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster=lab"], r"There is no cluster 'lab': choose from local, slurm, or give the path"),
        (["cluster=absent.yaml"], r"There is no cluster 'absent\.yaml'"),
        (["cluster.partitions=gpu"], r"Unknown option 'cluster\.partitions'"),
        (["cluster=slurm", "cluster.nodes=0"], r"cluster\.nodes is 0"),
        (["cluster=slurm", "cluster.nodes=1,2"], r"cluster\.nodes=1,2 gives several values"),
        (["cluster=slurm", "cluster.nodes=[1"], r"slurm\.yaml cannot be read"),
        (["cluster=slurm", "cluster.partition=[a]"], r"cluster\.partition is \['a'\]: give a word, or null"),
        (["cluster=slurm", "cluster.environment=3"], r"cluster\.environment is 3: give a mapping"),
        (["cluster=slurm", "cluster.environment={a-b: 3}"], r"cluster\.environment has 'a-b'"),
        (["cluster=slurm", "cluster.nodes=2", "cluster.gpus_per_node=0"], r"cluster\.gpus_per_node is 0: .*nodes=1"),
        (["cluster=slurm", "cluster.environment={A: null}"], r"cluster\.environment\.A is null: give a value"),
        (["cluster.partition=gpu"], r"cluster\.partition means nothing to jobs on this machine: .*cluster=slurm"),
        (["cluster=local", "cluster.more.gres=gpu:1"], r"cluster\.more means nothing to jobs on this machine"),
        (["cluster=local", "+cluster.nodes=2"], r"cluster\.nodes is 2: .*this machine"),
    ],
)
def test_bad_options_are_one_sentence(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_cluster(words)
    assert "\n" not in str(caught.value)


def job(name="a", **options):
    return Job(name=name, **{"module": "stages.diffusion", "words": ("fold=0",), **options})


@pytest.mark.parametrize(
    ("made", "nodes", "gpus", "added"),
    [
        (job(), 1, 1, ""),
        (job(), 1, 0, ""),
        (job(), 2, 4, "trainer.devices=4 trainer.num_nodes=2"),
        (job(words=("fold=0", "trainer.devices=1")), 1, 2, "trainer.num_nodes=1"),
        (job(module="difftumor"), 2, 4, ""),
    ],
)
def test_a_stage_learns_of_nodes_and_gpus_and_the_user_has_the_last_word(made, nodes, gpus, added):
    assert made.placed(nodes=nodes, gpus=gpus) == (*made.words, *added.split())


def test_jobs_come_after_what_they_need():
    check_order([job("a"), job("b", needs=("a", "earlier"))], {"earlier"})
    check_order([job("earlier")], {"earlier"})  # submitted again
    for jobs, message in (([job("b", needs=("a",)), job("a")], "b needs a"), ([job(), job()], "Two jobs are called a")):
        with pytest.raises(ConfigError, match=message):
            check_order(jobs, ())


def test_the_files_say_what_the_class_says():
    slurm = read_cluster(["cluster=slurm"])[0]
    lines = (CLUSTERS / "slurm.yaml").read_text()
    names = re.findall(r"^(\w+):", lines, re.MULTILINE)
    assert set(names) == set(ClusterOptions.__dataclass_fields__)
    assert slurm.more == slurm.environment == {}
