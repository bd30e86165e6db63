"""The graph of a study: what a job is known by, and when it is done."""

import json
import os
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from difftumor.errors import ConfigError
from stages.cluster.options import ClusterOptions
from stages.config.comparing import EARLIER
from studies.jobs.graph import Graph, override_value
from studies.jobs.keys import content_key
from tests.stages.tumor_cohort import write_autoencoder, write_cohort

DEMO = ("experiment=demo", "organ=liver", "trainer=cpu")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder)
    return folder


def three(folder, cohort, *, steps=1000, epochs=200, lr=1.0e-3, **segmentation):
    """An autoencoder, a diffusion model and a segmenter, each made with the one before."""
    graph = Graph(folder)
    data = {"data.root": str(cohort)}
    first = graph.stage("autoencoder", "autoencoder", ["experiment=demo"], {**data, "training.steps": steps})
    second = graph.stage("diffusion", "diffusion", DEMO, {**data, "autoencoder.artifact": first, "optimizer.lr": lr})
    values = {**data, "synthesis.early_model": second, "training.epochs": epochs, "tumors": "mixed", **segmentation}
    third = graph.stage("segmentation", "segmenter", DEMO, values)
    scores = graph.command(
        "evaluate", "segmenter", ["--predictions", third, "--labels", cohort], results=["summary.json"]
    )
    return first, second, third, scores


def test_a_changed_option_changes_the_jobs_that_depend_on_it(tmp_path, cohort):
    before = three(tmp_path, cohort)
    for changed, alike in (({"epochs": 100}, 2), ({"lr": 2e-3}, 1), ({"steps": 2000}, 0), ({}, 4)):
        keys = [one.key == other.key for one, other in zip(before, three(tmp_path, cohort, **changed), strict=True)]
        assert keys == [number < alike for number in range(4)]


def test_where_things_are_and_how_fast_they_go_changes_nothing(tmp_path, cohort):
    moved = shutil.copytree(cohort, tmp_path / "elsewhere")
    faster = {"data.num_workers": 7, "trainer.progress_bar": False, "data.cache_rate": 0.5}
    before, after = three(tmp_path / "a", cohort), three(tmp_path / "b", moved, **faster)
    assert [node.key for node in before] == [node.key for node in after]
    assert before[2].output.name == after[2].output.name
    assert f"synthesis.early_model={after[1].output}" in after[2].words


def test_other_scans_are_other_data(tmp_path, cohort):
    other = shutil.copytree(cohort, tmp_path / "other")
    (other / "imagesTr/early0.nii.gz").write_bytes(b"another scan")
    assert content_key(cohort) != content_key(other)
    assert content_key(cohort / "imagesTr") != content_key(other / "imagesTr")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_other_voxels_in_files_of_the_same_size_are_other_data(tmp_path, suffix):
    keys = []
    for value in (1, 2):
        voxels = np.zeros((8, 8, 8), np.int16)
        voxels[3, 3, 3] = value
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"ct.{suffix}")
        size = (tmp_path / f"ct.{suffix}").stat().st_size
        keys.append((size, content_key(tmp_path)))
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]


def test_the_number_of_gpus_decides_results_since_batches_are_per_gpu(tmp_path, cohort):
    data = {"data.root": str(cohort)}
    clusters = [None, *(ClusterOptions(kind="slurm", gpus_per_node=gpus) for gpus in (1, 4))]
    here, one, four = (
        Graph(tmp_path, cluster).stage("autoencoder", "a", ["experiment=demo"], data) for cluster in clusters
    )
    assert here.key == one.key != four.key
    assert {"trainer.devices=4", "trainer.num_nodes=1"} <= set(four.words)
    mine = Graph(tmp_path, clusters[2]).stage("autoencoder", "b", ["experiment=demo", "trainer.devices=2"], data)
    assert "trainer.devices=4" not in mine.words
    assert mine.config["trainer"]["devices"] == 2


def test_a_training_without_data_is_blocked(tmp_path, cohort):
    graph = Graph(tmp_path)
    assert graph.stage("diffusion", "a", DEMO, {}).lacks == "data.root is not given"
    made = {"tumors": "handcrafted", "data.healthy_root": str(cohort)}
    assert graph.stage("segmentation", "b", DEMO, made).lacks == ""
    assert graph.stage("segmentation", "c", DEMO, {**made, "tumors": "real"}).lacks == "data.root is not given"


def test_pictures_and_models_that_are_not_used_change_nothing(tmp_path, cohort):
    graph, data = Graph(tmp_path), {"data.root": str(cohort), "tumors": "real"}
    one, other = (
        graph.stage("segmentation", "a", DEMO, {**data, "synthesis.early_model": model}) for model in ("one", "another")
    )
    few, many = (
        graph.stage("diffusion", "b", DEMO, {"data.root": str(cohort), "pictures.hosts": count}) for count in (1, 2)
    )
    assert (one.key, few.key) == (other.key, many.key)


def test_predictions_of_a_model_that_was_trained_again_are_not_done(tmp_path, cohort):
    first, *_ = three(tmp_path, cohort)
    first.output.parent.mkdir()
    write_autoencoder(first.output.parent).rename(first.output)
    card = Graph(tmp_path).command(
        "evaluate-autoencoder", "card", [first, cohort], results=["card.json", "page"], replacing=["--overwrite"]
    )
    assert not card.is_done()
    card.output.mkdir(parents=True)
    (card.output / "page").touch()
    assert not card.is_done()
    assert card.command == card.words  # what is there stays
    (card.output / "card.json").touch()
    assert card.is_done()
    later = card.finished + 5
    os.utime(first.output / "config.json", (later, later))
    assert not card.is_done()
    assert card.command == (*card.words, "--overwrite")
    os.utime(card.output / "card.json", (later + 5, later + 5))  # a run that fails may write some of them again
    assert not card.is_done()
    assert card.command == (*card.words, "--overwrite")
    os.utime(card.output / "page", (later + 5, later + 5))
    assert card.is_done()


def test_runs_that_are_cut_short_are_others(tmp_path, cohort):
    short = three(tmp_path, cohort, **{"trainer.max_epochs": 1})
    assert [one.key == other.key for one, other in zip(three(tmp_path, cohort), short, strict=True)] == [
        True, True, False, False
    ]  # fmt: skip


def test_what_earlier_versions_did_without_an_option_is_as_if_it_were_not_there(tmp_path, cohort, monkeypatch):
    node = three(tmp_path, cohort)[2]
    monkeypatch.setitem(EARLIER, "augmentation.shift", node.config["augmentation"]["shift"])
    without = three(tmp_path, cohort)[2]
    monkeypatch.setattr("studies.jobs.keys.flatten", lambda config: {
        name: value for name, value in flat(config).items() if name != "augmentation.shift"
    })  # fmt: skip
    assert without.key == three(tmp_path, cohort)[2].key != node.key


def flat(config, prefix=""):
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def test_an_artifact_is_done_when_it_is_complete_and_of_its_parents(tmp_path, cohort):
    first, *_ = three(tmp_path, cohort)
    assert not first.is_done()
    first.output.parent.mkdir()
    write_autoencoder(first.output.parent).rename(first.output)
    assert first.is_done()
    config = first.output / "config.json"
    config.write_text(config.read_text().replace('"complete": true', '"complete": false'))
    assert not first.is_done()


def test_what_is_missing_is_passed_on_to_what_needs_it(tmp_path, cohort):
    graph = Graph(tmp_path)
    first = graph.stage("autoencoder", "autoencoder", [], {"data.root": None}, lacks="data.liver is not given")
    second = graph.stage("diffusion", "diffusion", DEMO, {"autoencoder.artifact": first})
    scores = graph.command("evaluate", "x", ["--predictions", second], results=["summary.json"])
    assert {node.lacks for node in (first, second, scores)} == {"data.liver is not given"}


def test_a_job_that_several_need_is_one(tmp_path, cohort):
    graph = Graph(tmp_path)
    for _ in range(2):
        first = graph.stage("autoencoder", "autoencoder", ["experiment=demo"], {"data.root": str(cohort)})
    assert list(graph.nodes.values()) == [first]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer.lr": -1}, "optimizer.lr is -1: give a number above 0"),
        ({"optimizer.rate": 1}, "Stage 'diffusion' has no option 'optimizer.rate'"),
        ({"nowhere.at.all": 1}, "Stage 'diffusion' has no option 'nowhere.at.all'"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        Graph(tmp_path).stage("diffusion", "diffusion", DEMO, values)


def test_it_says_what_an_earlier_job_of_the_name_had_otherwise(tmp_path, cohort):
    node = three(tmp_path, cohort)[0]
    node.output.parent.mkdir()
    assert node.changes() == ""
    earlier = write_autoencoder(node.output.parent).rename(node.output.with_name("autoencoder-00000000"))
    file = earlier / "config.json"
    stored = {**node.config, "training": {**node.config["training"], "steps": 7}}
    content = json.loads(file.read_text())
    content["training"]["config"] = json.loads(json.dumps(stored, default=str))
    file.write_text(json.dumps(content))
    assert node.changes() == f"autoencoder-00000000: training.steps 7 → {node.config['training']['steps']}"
    assert replace(node, name="other").changes() == ""


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1
)  # fmt: skip


@given(plain | st.lists(plain, max_size=3))
def test_values_are_read_by_hydra_as_they_were(value):
    (override,) = OverridesParser.create().parse_overrides([f"key={override_value(value)}"])
    assert override.value() == value
