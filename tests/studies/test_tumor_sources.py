"""The study of tumor sources: from the command line to the page, and again without training anew."""

import json
import shutil

import pytest

from difftumor.models.artifact_config import read_config
from studies.jobs.segmenters import SegmenterScores, StudyScores, scores_figure
from studies.tumor_sources import SOURCES, STUDY, declare, main, table_rows
from tests.conftest import read_rows
from tests.stages.tumor_cohort import SEGMENTATION, UNET
from tests.studies.test_timesteps import without_key, written


def words(folder, out, *more):
    return [
        "run", "--test", str(folder / "cohort"), "--out", str(out), "--device", "cpu", "--seeds", "2", "--steps", "6",
        *SEGMENTATION, *UNET, f"data.root={folder}/cohort", "synthesis.late_model=null",
        f"synthesis.early_model={folder}/diffusion_liver_early", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_it_trains_each_once_and_leaves_table_picture_and_page(folder, tmp_path, capfd, in_this_process):
    out = tmp_path / "study"
    assert main(words(folder, out)) == 0
    assert capfd.readouterr().out.endswith(f"The report is at {out}/report.html\n")
    rows = {row["trained on"]: row for row in read_rows(out / "tumor_sources.csv")}
    assert list(rows) == [name for name, *_ in SOURCES.values()]
    assert {row["trainings"] for row in rows.values()} == {"2"}
    trainings = {without_key(path): read_config(path).training for path in (out / "checkpoints").iterdir()}
    assert len(trainings) == 16
    assert {training["steps"] for training in trainings.values()} <= {6, 8}
    cases = {name: set(training["cases"]["training"]) for name, training in trainings.items()}
    real, healthy = {"early0", "early1", "early2", "late0"}, {"healthy0", "healthy1", "silent_healthy"}
    assert cases["few_real_tumors_0"] == real
    assert cases["diffusion_tumors_1"] == cases["hand-crafted_tumors_0"] == healthy
    made = ("copied_tumors", "few_real_and_healthy_scans", "few_real_and_diffusion", "few_real_and_copied")
    assert all(cases[f"{name}_0"] == real | healthy for name in made)
    generators = {name: training["config"]["synthesis"]["generators"] for name, training in trainings.items()}
    assert generators["few_real_and_copied_1"] == {"diffusion": 0.0, "handcrafted": 0.0, "copy_paste": 1.0}
    assert trainings["few_real_and_healthy_scans_0"]["config"]["synthesis"]["probability"] == 0
    assert not any(training["cases"]["validation"] for training in trainings.values())
    schedules = {training["config"]["training"]["warmup_epochs"] for training in trainings.values()}
    assert schedules == {0}  # a twentieth of three epochs at most

    before = written(out, "checkpoints/*/*")
    (out / "trainings.png").unlink()
    assert main(words(folder, out)) == 0
    assert written(out, "checkpoints/*/*") == before
    assert (out / "trainings.png").is_file()


def test_wrong_options_are_told_before_anything_is_trained(folder, tmp_path, capfd):
    assert main(words(folder, tmp_path / "out", "data.root=nowhere")) == 1
    assert "nowhere" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def unlabeled(cohort):
    listing = json.loads((cohort / "dataset.json").read_text())
    del listing["training"][2]["label"]
    (cohort / "dataset.json").write_text(json.dumps(listing))


def missing(cohort):
    (cohort / "labelsTr" / "late0.nii.gz").unlink()


def of_another_organ(cohort):
    listing = json.loads((cohort / "dataset.json").read_text())
    listing["labels"] = {"background": 0, "pancreas": 1, "pancreas_tumor": 2}
    (cohort / "dataset.json").write_text(json.dumps(listing))


def listless(cohort):
    for name in ("early0", "late0"):
        (cohort / name / "segmentations").mkdir(parents=True)
        (cohort / "imagesTr" / f"{name}.nii.gz").rename(cohort / name / "ct.nii.gz")
        (cohort / "labelsTr" / f"{name}.nii.gz").rename(cohort / name / "segmentations" / "liver.nii.gz")
    for part in ("imagesTr", "labelsTr"):
        shutil.rmtree(cohort / part)
    (cohort / "dataset.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unlabeled, "names no label map of late0: give a list with labels"),
        (missing, "late0.nii.gz, which does not exist"),
        (of_another_organ, "hold no liver"),
        (listless, "names no label map of early0, late0: give a list with labels"),
    ],
)
def test_scans_that_cannot_be_tested_on_are_told_before_anything_is_trained(
    folder, tmp_path, never_run, capfd, damage, message
):
    test = shutil.copytree(folder / "cohort", tmp_path / "test")
    damage(test)
    assert main(words(folder, tmp_path / "out", "--test", str(test))) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", ["real,real", "diffusion tumors", "", "real,"])
def test_sources_are_checked(folder, tmp_path, capsys, names):
    with pytest.raises(SystemExit):
        main(words(folder, tmp_path, f"--sources={names}"))
    assert f"give some of {','.join(SOURCES)}, each once" in capsys.readouterr().err


def test_only_chosen_sources_are_trained(folder, tmp_path):
    graph = declare(STUDY.parser().parse_intermixed_args(words(folder, tmp_path, "--sources", "mixed,real")))
    assert {name: len(nodes) for name, nodes in graph.trainings.items()} == {
        "few real tumors": 2, "few real and diffusion": 2
    }  # fmt: skip
    assert {node.config["tumors"] for node in graph.trainings["few real tumors"]} == {"real"}
    assert [node.config["seed"] for node in graph.trainings["few real tumors"]] == [0, 1]


def test_the_table_says_means_and_deviations_over_the_seeds():
    runs = [SegmenterScores(0.2, 0.9, 0.5, None, 1.0), SegmenterScores(0.4, 0.9, 0.7, None, 2.0)]
    (row, single) = table_rows({"a": runs, "b": runs[:1]})
    assert row["tumor DSC"] == "0.30 ± 0.14"
    assert row["sensitivity"] == "0.60 ± 0.14"
    assert row["false positives per scan"] == "1.50 ± 0.71"
    assert row["organ DSC"] == "0.90 ± 0.00"
    assert single["tumor DSC"] == "0.20"
    figure = scores_figure(StudyScores({"a": runs}, {}), {"tumor_dsc": "DSC", "small_sensitivity": "small"})
    assert [len(axis.patches) for axis in figure.axes] == [1, 0]  # of small tumors there are none
