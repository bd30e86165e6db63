"""Scans that judge a run are not trained on, by it or its parents, under any name."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from difftumor.datasets.cases import read_cases, write_case_list
from difftumor.datasets.integrity import fingerprints, with_fingerprints
from difftumor.errors import CaseListError, ConfigError, DiffTumorError
from difftumor.models.artifact_config import read_config
from difftumor.scans.fingerprint import Fingerprint
from stages.autoencoder import train as autoencoder
from stages.diffusion import train as diffusion
from stages.ranks import own_share_first
from stages.run import case_lists
from stages.run.run import run_stage
from stages.segmentation import train as segmentation
from tests.nifti import voxels, write_nifti
from tests.stages.builds import KINDS, built_from
from tests.stages.tumor_cohort import TUMOR_SIDES

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
HELD_OUT = "early0"  # with fold=0 of two


def healthy_list(folder, cohort, change=lambda values: values, affine=AFFINE, name="another_name"):
    """Write a list of one scan whose labels know no tumor: the held-out one, changed."""
    write_nifti(folder / f"{name}.nii.gz", change(voxels(cohort / f"imagesTr/{HELD_OUT}.nii.gz")), affine)
    labels = np.minimum(voxels(cohort / f"labelsTr/{HELD_OUT}.nii.gz"), 1)
    write_nifti(folder / "labels.nii.gz", change(labels), affine)
    entry = {"image": f"{name}.nii.gz", "label": "labels.nii.gz"}
    (folder / "list.json").write_text(json.dumps({"labels": {"liver": 1}, "training": [entry]}))
    return folder / "list.json"


def built(config, build=segmentation.build):
    return built_from(config, build)


@pytest.mark.parametrize(
    ("change", "affine", "likeness"),
    [
        (lambda values: values, AFFINE, "identical"),
        (lambda values: values, np.diag([3.0, 3.0, 3.5, 1.0]), "other header"),
        (lambda values: values[::-1], AFFINE, "flipped"),
        (lambda values: values.transpose(1, 0, 2), AFFINE, "flipped"),
    ],
)
def test_a_held_out_scan_under_another_name_is_refused(
    tiny_segmentation, tumor_cohort, tmp_path, change, affine, likeness
):
    source = healthy_list(tmp_path / "more", tumor_cohort, change, affine)
    with pytest.raises(CaseListError) as refused:
        built(tiny_segmentation(f"data.healthy_root={source}", "tumors=handcrafted"))
    sentence = str(refused.value)
    assert f"This run trains on {tmp_path}/more/another_name.nii.gz, the same scan ({likeness}) as " in sentence
    assert f"{tumor_cohort}/imagesTr/{HELD_OUT}.nii.gz, which is held out" in sentence
    assert "remove one of them from its list" in sentence
    assert "\n" not in sentence


def test_a_windowed_copy_is_said_to_look_like_it(tiny_segmentation, tumor_cohort, tmp_path, monkeypatch, capsys):
    source = healthy_list(tmp_path / "more", tumor_cohort, lambda values: values.clip(-120, 240))
    monkeypatch.setattr(case_lists, "MOST_SUSPICIONS", 99)  # boxes of one size look alike
    built(tiny_segmentation(f"data.healthy_root={source}", "tumors=handcrafted"))
    said = capsys.readouterr().out
    assert f"another_name.nii.gz, which looks like the held-out {tumor_cohort}/imagesTr/{HELD_OUT}.nii.gz" in said


def test_other_scans_are_trained_on_without_a_word(tiny_segmentation, tumor_cohort, tmp_path, capsys):
    built(tiny_segmentation("tumors=handcrafted"))
    assert "the same scan" not in capsys.readouterr().out


def parents(folder, untrained, cohort, **trained_on):
    """Copy untrained artifacts, and state by role what they were trained on: fingerprints by name."""
    shutil.copytree(untrained, folder)
    for role, names in trained_on.items():
        file = folder / role / "config.json"
        content = json.loads(file.read_text())
        found = fingerprints([cohort / f"imagesTr/{name}.nii.gz" for name in names])
        stored = [[f"of_{path.name[:-7]}", str(each)] for path, each in found.items()]
        content["training"] = {"fingerprints": {"training": stored, "validation": []}}
        file.write_text(json.dumps(content))
    return folder


def of_parents(folder):
    return [f"synthesis.{group}_model={folder}/diffusion_liver_{group}" for group in ("early", "late")]


def test_diffusion_models_that_saw_held_out_scans_are_refused(
    tiny_segmentation, tumor_cohort, untrained, tmp_path, capsys
):
    folder = parents(
        tmp_path / "parents", untrained, tumor_cohort, diffusion_liver_early=["early1", "early0", "late0"],
        diffusion_liver_late=["early1"], autoencoder=["early1"],
    )  # fmt: skip
    with pytest.raises(ConfigError) as refused:
        built(tiny_segmentation(*of_parents(folder)))
    sentence = str(refused.value)
    assert f"{folder}/diffusion_liver_early was trained on of_early0, the same scan (identical) as " in sentence
    assert "and so 1 more pair: to keep them unseen, train it with python -m stages.diffusion organ=liver" in sentence
    assert (
        "fold=0 folds.count=2 folds.seed=0 tumor_stage=early, or accept it with synthesis.on_overlap=warn" in sentence
    )
    stage = built(tiny_segmentation(*of_parents(folder), "synthesis.on_overlap=warn"))
    assert "Note: " + sentence.split(", or accept")[0] in capsys.readouterr().out
    assert stage.check()["autoencoder_overlap"]["seen"] == 0


@pytest.mark.parametrize("stage", ["diffusion", "segmentation"])
def test_what_happens_with_autoencoders_that_saw_held_out_scans(
    tiny_segmentation, tiny_diffusion, tumor_cohort, untrained, tmp_path, capsys, stage
):
    folder = parents(tmp_path / "parents", untrained, tumor_cohort, autoencoder=["early0", "early1"])
    if stage == "diffusion":
        compose, build = tiny_diffusion, diffusion.build
        own = ["fold=0", "folds.count=2", f"autoencoder.artifact={folder}/autoencoder"]
    else:
        compose, build, own = tiny_segmentation, segmentation.build, of_parents(folder)
    made = built(compose(*own), build)
    assert f"Note: {folder}/autoencoder was trained on of_early0, the same scan" in capsys.readouterr().out
    overlap = made.check()["autoencoder_overlap"]
    assert (overlap["judged"], overlap["seen"]) == (2, 1)
    with pytest.raises(ConfigError, match=r"train one on the other scans, with python -m stages\.autoencoder organ="):
        built(compose(*own, "autoencoder.on_overlap=refuse"), build)


def test_autoencoders_without_fingerprints_are_said_to_be_unknown(tiny_segmentation, capsys):
    stage = built(tiny_segmentation())
    said = capsys.readouterr().out
    assert said.count("autoencoder has no fingerprints of what it was trained on, like imported weights") == 1
    assert stage.check()["autoencoder_overlap"] == {"judged": 2, "seen": None, "suspected": None}


def test_artifacts_say_what_they_were_trained_on(tiny_diffusion, tumor_cohort):
    artifact = run_stage(tiny_diffusion("fold=0", "folds.count=2"), KINDS["diffusion"], diffusion.build)
    for folder in (artifact, artifact.with_name(artifact.name + "_best")):
        config = read_config(folder)
        assert set(config.trained_on) == {"early1", "early2"}
        file = tumor_cohort / "imagesTr/early1.nii.gz"
        assert str(config.trained_on["early1"]) == str(fingerprints([file])[file])
        assert [name for name, _ in config.training["fingerprints"]["validation"]] == ["early0", "late0"]
    assert all(Fingerprint.from_text(text) for _, text in config.training["fingerprints"]["validation"])


def test_nothing_is_compared_if_nothing_is_held_out(tiny_diffusion, capsys):
    stage = built(tiny_diffusion(), diffusion.build)
    assert "autoencoder_overlap" not in stage.check()
    assert len(stage.check()["fingerprints"]["training"]) == 3
    assert "has no fingerprints" not in capsys.readouterr().out


@pytest.mark.parametrize("rank", [0, 2])
def test_every_process_comes_to_the_verdict_and_begins_with_its_own_share(
    tiny_segmentation, tumor_cohort, tmp_path, monkeypatch, rank
):
    monkeypatch.setattr("stages.ranks.rank_zero_only.rank", rank)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert own_share_first(range(8)) == [*range(2 * rank, 8), *range(2 * rank)]
    assert sorted(own_share_first(range(3))) == [0, 1, 2]
    source = healthy_list(tmp_path / "more", tumor_cohort)
    with pytest.raises(CaseListError, match="the same scan"):
        built(tiny_segmentation(f"data.healthy_root={source}", "tumors=handcrafted"))


def test_scans_that_judge_other_runs_may_be_trained_on(tiny_segmentation, tumor_cohort, tmp_path, capsys):
    listing = read_cases(tumor_cohort)
    healthy = tuple(case for case in listing.cases if case.id.startswith("healthy"))
    copied = shutil.copy(tumor_cohort / "imagesTr/early1.nii.gz", tmp_path / "copied.nii.gz")
    apart = replace(healthy[0], id="apart", image=copied, patient="apart")
    source = tmp_path / "list.json"
    stated = replace(listing, cases=(*healthy[1:], apart), validation_ids=("apart",))
    write_case_list(source, stated, name="more")
    stage = built(tiny_segmentation(f"data.healthy_root={source}", "tumors=mixed"))
    said = capsys.readouterr().out
    assert "apart" not in {case.id for case in stage.data.train}
    assert "early1" in {case.id for case in stage.data.train}
    assert f"Note: This run trains on {tumor_cohort}/imagesTr/early1.nii.gz, the same scan" in said
    assert len(stage.check()["fingerprints"]["validation"]) == 2


def test_cases_without_tumors_that_a_list_states_judge_stage_2_as_well(tiny_diffusion, tumor_cohort, tmp_path):
    listing = replace(read_cases(tumor_cohort), validation_ids=("healthy0", "late0"))
    write_case_list(tmp_path / "list.json", listing, name="stated")
    stage = built(tiny_diffusion(f"data.root={tmp_path}/list.json"), diffusion.build)
    assert {name for name, _ in stage.check()["fingerprints"]["validation"]} == {"healthy0", "late0"}


def test_what_takes_less_time_is_refused_before_scans_are_compared(tiny_diffusion, monkeypatch):
    run_stage(tiny_diffusion("training.steps=2"), KINDS["diffusion"], diffusion.build)
    monkeypatch.setattr(case_lists, "fingerprints", None)
    with pytest.raises(ConfigError, match=r"was started with seed=0, not 1"):
        run_stage(tiny_diffusion("seed=1"), KINDS["diffusion"], diffusion.build)


@pytest.fixture
def tiny_autoencoder(tiny_config, tumor_cohort):
    return lambda *overrides: tiny_config(f"data.root={tumor_cohort}", *overrides)


def test_stage_1_holds_out_the_fold_of_the_later_stages(tiny_autoencoder, tiny_segmentation, tiny_diffusion):
    for fold in range(2):
        folds = [f"fold={fold}", "folds.count=2"]
        stage = built(tiny_autoencoder("organ=liver", *folds), autoencoder.build)
        later = [built(tiny_segmentation(*folds)), built(tiny_diffusion(*folds), diffusion.build)]
        held_out = {name for name, _ in stage.check()["fingerprints"]["validation"]}
        for other in later:
            assert {name for name, _ in other.check()["fingerprints"]["validation"]} == held_out
        assert {case.id for case in stage.data.train} == {*TUMOR_SIDES} - held_out


def test_an_autoencoder_of_the_same_fold_has_seen_no_held_out_scan(tiny_autoencoder, tiny_diffusion, tmp_path):
    folds = ["fold=1", "folds.count=2"]
    run_stage(tiny_autoencoder("organ=liver", *folds, "training.steps=2"), KINDS["autoencoder"], autoencoder.build)
    artifact = tmp_path / "checkpoints" / "autoencoder"
    assert len(read_config(artifact).trained_on) == 5
    options = [*folds, f"autoencoder.artifact={artifact}", "autoencoder.on_overlap=refuse"]
    assert built(tiny_diffusion(*options), diffusion.build).check()["autoencoder_overlap"]["seen"] == 0
    with pytest.raises(ConfigError, match="same scan"):
        built(tiny_diffusion(*options, "fold=0"), diffusion.build)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fold=0"], r"fold is 0: give organ=NAME as well"),
        (["fold=5", "organ=liver", "folds.count=2"], r"Fold 5 does not exist"),
        (["fold=0", "organ=kidney"], r"kidney"),
    ],
)
def test_folds_of_stage_1_that_cannot_be_made(tiny_autoencoder, overrides, message):
    with pytest.raises(DiffTumorError, match=message):
        built(tiny_autoencoder(*overrides), autoencoder.build)


def test_stage_1_says_nothing_of_scans_that_only_later_stages_leave_out(
    tiny_autoencoder, tumor_cohort, tmp_path, capsys
):
    folder = shutil.copytree(tumor_cohort, tmp_path / "lacking")
    file = folder / "labelsTr/healthy1.nii.gz"
    write_nifti(file, np.zeros_like(voxels(file)), AFFINE)
    stage = built(tiny_autoencoder(f"data.root={folder}", "organ=liver", "fold=0", "folds.count=2"), autoencoder.build)
    assert "healthy1" in {case.id for case in stage.data.train}
    assert "Left out" not in capsys.readouterr().out


def test_stage_1_only_warns_of_scans_on_both_sides(tiny_autoencoder, tumor_cohort, tmp_path, capsys):
    folder = shutil.copytree(tumor_cohort, tmp_path / "twice")
    shutil.copy(folder / "imagesTr/early0.nii.gz", folder / "imagesTr/healthy0.nii.gz")
    built(tiny_autoencoder(f"data.root={folder}", "organ=liver", "fold=0", "folds.count=2"), autoencoder.build)
    assert "Note: This run trains on" in capsys.readouterr().out


def test_fingerprints_that_a_list_states_are_believed(tiny_segmentation, tumor_cohort, tmp_path, monkeypatch):
    folder = shutil.copytree(tumor_cohort, tmp_path / "stated")
    listing = read_cases(folder)
    write_case_list(folder / "dataset.json", replace(listing, cases=with_fingerprints(listing.cases)), name="stated")
    read = []
    monkeypatch.setattr(case_lists, "fingerprints", lambda files, **more: {file: read.append(file) for file in files})
    options = [f"data.root={folder}", "tumors=handcrafted"]
    assert len(built(tiny_segmentation(*options)).check()["fingerprints"]["training"]) == 3
    assert read == []
    source = healthy_list(tmp_path / "more", tumor_cohort)
    monkeypatch.undo()
    with pytest.raises(CaseListError, match="the same scan"):
        built(tiny_segmentation(*options, f"data.healthy_root={source}"))
