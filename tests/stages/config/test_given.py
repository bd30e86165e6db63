"""A run keeps its own values of options that are not given again, although the defaults have changed."""

import json
import shutil

import pytest
import yaml

from difftumor.errors import ConfigError
from difftumor.models.artifact_config import read_config
from stages.autoencoder.train import build
from stages.config.comparing import EARLIER, flatten
from stages.config.compose import compose_config, given_by
from stages.config.given import with_stored
from stages.config.reading import read_options, to_plain
from stages.run.folder import HEADER, RunFolder
from stages.run.run import run_stage
from tests.conftest import REPOSITORY
from tests.stages.builds import KINDS, Crash, crashing_at
from tests.stages.conftest import TINY

BEFORE = REPOSITORY / "tests" / "data" / "before_rooms"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
# What the version before it had by default, and other values than today's.
OLD = ("optimizer.lr=3e-4", "optimizer.betas=[0.9,0.999]", "optimizer.clip_norm=0.5", "data.foreground_ratio=7")


def test_names_choices_and_what_choices_set():
    given = given_by(
        "autoencoder", ["experiment=demo", "+debug=one_batch", "optimizer={lr: 1}", "seed=3", "data=coarse"]
    )
    assert set(given.names) == {"optimizer.lr", "seed"}
    assert given.choices == {"experiment": "demo", "debug": "one_batch", "data": "coarse"}
    assert {"optimizer.lr", "data.batch_size", "name"} < set(given.sets["experiment"])
    assert set(given.sets["data"]) == {"data.spacing_mm", "data.crop", "data.num_workers", "data.cache_rate"}
    several = given_by("segmentation", ["experiment=[label_free,demo]", "organ=kidney", "backbone=unet"])
    assert several.choices["experiment"] == "label_free,demo"
    assert "organ.name" in several.sets["organ"]


def test_what_a_command_decides():
    given = given_by("diffusion", ["experiment=paper", "organ=kidney", "seed=3"])
    paper, organ = {"diffusion.loss", "diffusion.masked"}, {"organ.name", "organ.minimum_radius_mm"}
    same = given.decides({"experiment": "paper", "organ": "kidney"})
    assert same == {"seed"}
    assert {*paper, *organ, "seed"} < given.decides({})
    # A run that recorded no choices may have had the same preset, with the values of its time.
    unknown = given.decides(None)
    assert {*organ, "seed"} < unknown
    assert not paper & unknown


@pytest.fixture
def call(cohort, tmp_path):
    """Run stage 1 as its command line does, on whatever is given besides the tiny options."""

    def run(*words, build=build, name="old"):
        places = (f"data.root={cohort}", f"runs_dir={tmp_path}/runs", f"artifact={tmp_path}/{name}", f"name={name}")
        overrides = [*TINY, *places, *words]
        config = compose_config("autoencoder", overrides)
        return run_stage(config, KINDS["autoencoder"], build, given=given_by("autoencoder", overrides))

    return run


def forget(folder):
    """Make of a run's records those of a version that had none of today's new options."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for name in EARLIER:
        section, _, option = name.partition(".")
        (config.get(section, {}) if option else config).pop(option or section, None)
    (folder / "config.yaml").write_text(f"{HEADER}\n{yaml.safe_dump({k: v for k, v in config.items() if v != {}})}")
    start = json.loads((folder / "start.json").read_text())
    del start["choices"]
    (folder / "start.json").write_text(json.dumps(start))


def test_a_killed_run_of_the_version_before_resumes_with_its_own_values(call, tmp_path, capsys):
    today = flatten(to_plain(compose_config("autoencoder")))
    earlier = [f"{name}={'null' if value is None else value}" for name, value in EARLIER.items() if name in today]
    whole = call(*OLD, *earlier, name="whole")
    with pytest.raises(Crash):
        call(*OLD, *earlier, build=crashing_at(build, 5))
    folder = tmp_path / "runs" / "autoencoder" / "old"
    forget(folder)
    capsys.readouterr()
    resumed = call()  # the same command, with the defaults of today
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Resuming"))
    assert said.startswith(f"Resuming {folder} with the values that it was started with")
    assert "data.foreground_ratio=7 (now 20.0)" in said
    assert "optimizer.clip_norm=0.5" in said
    assert "network.codes" not in said
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["trainer"]["precision"] == "32-true"  # what auto is here
    assert (
        stored["data"]["foreground_ratio"] == read_config(resumed).training["config"]["data"]["foreground_ratio"] == 7
    )
    assert call() == resumed
    assert "has finished" in capsys.readouterr().out


def test_a_run_that_the_defaults_of_today_would_refuse_goes_on(call, tmp_path, capsys):
    crop = "data.crop=[32,16,16]"  # is not to be rotated, as it is by default
    with pytest.raises(Crash):
        call(crop, "augmentation.rotation_probability=0", build=crashing_at(build, 5))
    forget(tmp_path / "runs" / "autoencoder" / "old")
    call(crop)
    capsys.readouterr()
    call(crop)
    said = capsys.readouterr().out
    assert "has finished" in said
    assert "It was trained with the values that it was started with, of which" in said
    assert "augmentation.rotation_probability=0.0 (now 0.1)" in said
    with pytest.raises(ConfigError, match="Rotation"):
        call(crop, "fresh=true")


def test_an_option_that_is_given_and_differs_is_refused(call):
    with pytest.raises(Crash):
        call(*OLD, build=crashing_at(build, 5))
    with pytest.raises(ConfigError, match=r"started with data\.foreground_ratio=7, not 20: .*fresh=true"):
        call("data.foreground_ratio=20")


def test_another_preset_is_refused_and_the_same_one_is_not(call):
    with pytest.raises(Crash):
        call("experiment=published", build=crashing_at(build, 5))
    with pytest.raises(ConfigError, match=r"was started with codebook\.updates_per_step=2, not 1"):
        call("experiment=paper")
    call("experiment=published")


@pytest.mark.parametrize(("stage", "words"), [("diffusion", []), ("diffusion", ["experiment=published"])])
def test_early_tumors_of_an_old_run_include_the_limit_as_they_did(stage, words, tmp_path):
    folder = RunFolder(shutil.copytree(BEFORE / "runs" / stage / "liver_early", tmp_path / "liver_early"))
    overrides = [*EXPECTED["commands"][stage], *words]
    config, _ = with_stored(
        compose_config(stage, overrides), folder.stored(), folder.choices(), given_by(stage, overrides)
    )
    options = read_options(KINDS[stage], to_plain(config))
    assert options.lesions.early_includes_limit
    assert not folder.changed(to_plain(config))


def test_another_backbone_keeps_its_own_options(tmp_path):
    overrides = ["backbone=nnunet", f"runs_dir={tmp_path}", "name=mine", "organ=kidney"]
    folder = RunFolder(tmp_path / "mine")
    folder.path.mkdir()
    started = to_plain(compose_config("segmentation", overrides))
    folder.write_config(started)
    config, differing = with_stored(
        compose_config("segmentation"), folder.stored(), folder.choices(), given_by("segmentation", [])
    )
    assert to_plain(config)["backbone"] == started["backbone"]
    assert to_plain(config)["organ"] == started["organ"]
    assert differing["backbone.name"] == ("nnunet", "unet")
