"""Running stage 1: resuming, refusing, finishing."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from difftumor.errors import ConfigError, DeviceError, TrainingError, VolumeError
from difftumor.models.artifact import load_artifact
from difftumor.models.artifact_config import read_config
from stages.autoencoder.train import build
from stages.run.run import run_stage
from tests.conftest import REPOSITORY
from tests.stages.builds import KINDS, Crash, crashing_at


def run(config, build=build):
    return run_stage(config, KINDS["autoencoder"], build)


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def poisoned_at(build, *steps):
    """Return a build whose module sees a batch of NaN at some steps."""

    def poisoned_build(settings):
        built = build(settings)
        inner = built.module._signed
        built.module._signed = lambda batch: inner(batch) * (math.nan if built.module.steps_done in steps else 1)
        return built

    return poisoned_build


@pytest.mark.parametrize(("step", "options"), [(5, ()), (6, ("trainer.checkpoint_every_n_epochs=2",))])
def test_a_run_that_died_ends_with_the_weights_of_one_that_did_not(tiny_config, tmp_path, step, options):
    whole = run(tiny_config("name=whole", f"artifact={tmp_path}/whole", *options))
    parted_config = tiny_config("name=parted", f"artifact={tmp_path}/parted", *options)
    with pytest.raises(Crash):
        run(parted_config, crashing_at(build, step))
    assert not (tmp_path / "parted").exists()
    parted = run(parted_config)
    assert weights(parted) == weights(whole)
    assert weights(tmp_path / "parted_best") == weights(tmp_path / "whole_best")
    assert read_config(parted).metrics == read_config(whole).metrics
    assert read_config(parted).training["steps"] == 8


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_run_that_died_before_the_discriminators_joined_ends_as_if_it_had_not(tiny_config, tmp_path, update):
    options = (
        "training.accumulate=2", "data.batch_size=1", "optimizer.clip_norm=0.5", "discriminators.start_step=5",
        f"codebook.update={update}", "codebook.decay=0.5", "codebook.updates_per_step=2", "optimizer.milestones=[3,6]",
        "augmentation.rotation_probability=0.5",
    )  # fmt: skip

    def ending(name, *, dies):
        config = tiny_config(f"name={name}", f"artifact={tmp_path}/{name}", *options)
        # A batch of NaN before the death, which resuming must not see again, and one with the discriminators.
        poisoned = poisoned_at(build, 1, 6)
        if dies:
            with pytest.raises(Crash):
                run(config, crashing_at(poisoned, 4))
            died = _checkpoint(tmp_path, name)
            assert (died["steps_done"], died["safe_steps"]["skipped"]) == (4, 1)
            assert not died["optimizer_states"][1]["state"]  # the discriminators have not joined
        return run(config, poisoned), _checkpoint(tmp_path, name)

    (whole, expected), (parted, found) = ending("whole", dies=False), ending("parted", dies=True)
    assert weights(parted) == weights(whole)
    assert found["safe_steps"] == expected["safe_steps"] == {"skipped": 2, "in_a_row": 0}
    # Both networks, both Adams.
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(found["optimizer_states"], expected["optimizer_states"], rtol=0, atol=0)
    assert all(len(adam["state"]) == len(adam["param_groups"][0]["params"]) for adam in found["optimizer_states"])


def _checkpoint(tmp_path, name):
    return torch.load(tmp_path / "runs" / "autoencoder" / name / "last.ckpt", weights_only=True)


def test_resuming_with_loading_processes_sees_the_same_crops(tiny_config, tmp_path):
    whole = run(tiny_config("name=whole", f"artifact={tmp_path}/whole"))
    parted_config = tiny_config("name=parted", f"artifact={tmp_path}/parted", "data.num_workers=1")
    with pytest.raises(Crash):
        run(parted_config, crashing_at(build, 5))
    assert weights(run(parted_config)) == weights(whole)


def test_a_run_leaves_the_global_generators_alone(tiny_config):
    torch_before = torch.random.get_rng_state()
    run(tiny_config())
    assert torch.equal(torch_before, torch.random.get_rng_state())


def test_the_folder_holds_what_it_should_and_the_artifact_loads(tiny_config, tmp_path):
    artifact = run(tiny_config("pictures.every_n_epochs=4"))
    folder = tmp_path / "runs" / "autoencoder" / "default"
    assert yaml.safe_load((folder / "config.yaml").read_text())["network"]["codes"] == 16
    assert list((folder / "tensorboard").glob("events*"))
    assert len(list((folder / "pictures").glob("*.png"))) == 1
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert checkpoint["steps_done"] == 8
    loaded = load_artifact(artifact, kind="autoencoder")
    assert loaded.config.preprocessing["crop"] == [16, 16, 16]
    assert {"validation/psnr", "validation/ssim", "validation/organ_mae_hu"} < set(loaded.config.metrics)
    best = read_config(tmp_path / "checkpoints" / "autoencoder_best")
    assert best.complete
    assert best.metrics["validation/psnr"] >= loaded.config.metrics["validation/psnr"]


def test_a_finished_run_is_left_alone_until_its_artifact_goes(tiny_config, capsys):
    artifact = run(tiny_config())
    first = weights(artifact)

    def no_build(settings):
        raise AssertionError("must not be built")

    assert run(tiny_config("trainer.log_every_n_steps=2"), no_build) == artifact
    assert "has finished" in capsys.readouterr().out
    for file in artifact.iterdir():
        file.unlink()
    artifact.rmdir()
    assert weights(run(tiny_config())) == first


def test_more_steps_go_on_from_a_finished_run(tiny_config, tmp_path):
    run(tiny_config("training.steps=4"))
    longer = run(tiny_config())
    assert weights(longer) == weights(run(tiny_config("name=whole", f"artifact={tmp_path}/whole")))


def test_a_trial_cut_short_goes_on_when_more_epochs_are_asked_for(tiny_config, tmp_path, capsys):
    short = run(tiny_config("trainer.max_epochs=1"))
    assert read_config(short).training["steps"] == 2
    assert run(tiny_config("trainer.max_epochs=1")) == short
    assert "has finished" in capsys.readouterr().out
    longer = run(tiny_config())
    assert read_config(longer).training["steps"] == 8
    assert weights(longer) == weights(run(tiny_config("name=whole", f"artifact={tmp_path}/whole")))


def test_another_share_of_the_validation_is_another_run(tiny_config):
    run(tiny_config("trainer.limit_val_batches=1"))
    with pytest.raises(ConfigError, match=r"started with trainer\.limit_val_batches=1, not None"):
        run(tiny_config())


def test_the_artifact_of_another_run_is_kept_unless_fresh(tiny_config, tmp_path):
    first = weights(run(tiny_config("training.steps=2")))
    with pytest.raises(ConfigError, match=r"made by run 'default', not by run 'other'.*artifact=PATH.*fresh=true"):
        run(tiny_config("name=other", "seed=1", "training.steps=2"))
    assert weights(tmp_path / "checkpoints" / "autoencoder") == first
    assert not (tmp_path / "runs" / "autoencoder" / "other").exists()
    taken = run(tiny_config("name=other", "seed=1", "training.steps=2", "fresh=true"))
    assert weights(taken) != first


def test_a_fresh_run_removes_its_old_best_and_leaves_that_of_others(tiny_config, tmp_path):
    artifact = run(tiny_config("training.steps=2"))
    best = artifact.with_name("autoencoder_best")
    run(tiny_config("training.steps=2", "fresh=true", "data.validation_share=0.0"))
    assert not best.exists()
    run(tiny_config("training.steps=2", "fresh=true"))
    config = json.loads((best / "config.json").read_text()) | {"complete": False}
    config["training"]["run"] = "other"
    (best / "config.json").write_text(json.dumps(config))
    run(tiny_config("training.steps=2", "fresh=true", "data.validation_share=0.0"))
    assert read_config(best).training["run"] == "other"
    assert not read_config(best).complete


def test_metrics_of_the_last_epoch_are_in_the_artifact_whatever_the_interval_is(tiny_config, tmp_path):
    every = run(tiny_config("name=every", f"artifact={tmp_path}/every"))
    third = run(tiny_config("name=third", f"artifact={tmp_path}/third", "trainer.validate_every_n_epochs=3"))
    assert read_config(third).metrics == read_config(every).metrics
    assert read_config(third).training["validation_epoch"] == 4


def test_metrics_survive_a_crash_between_the_last_checkpoint_and_the_artifact(tiny_config, tmp_path, monkeypatch):
    whole = run(tiny_config("name=whole", f"artifact={tmp_path}/whole"))
    config = tiny_config("name=parted", f"artifact={tmp_path}/parted")

    def crash(*_):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("stages.run.run._export", crash)
        with pytest.raises(Crash):
            run(config)
    parted = read_config(run(config))
    assert parted.metrics == read_config(whole).metrics
    assert parted.training["validation_epoch"] == 4


def test_a_bad_file_met_by_a_loading_process_is_one_sentence(tiny_config, tmp_path, cohort):
    copy = shutil.copytree(cohort, tmp_path / "copy")
    for image in (copy / "imagesTr").iterdir():
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])  # the header still is whole
    with pytest.raises(VolumeError, match=r"case\d\.nii\.gz") as caught:
        run(tiny_config(f"data.root={copy}", "data.num_workers=1", "data.cache_rate=0.0"))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_another_number_of_devices_is_refused(tiny_config, tmp_path):
    run(tiny_config("training.steps=2"))
    file = tmp_path / "runs" / "autoencoder" / "default" / "start.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"world_size": 4}))
    with pytest.raises(ConfigError, match=r"started on 4 devices in all, not 1: .*fresh=true"):
        run(tiny_config())


def test_only_the_first_rank_minds_the_folder(tiny_config, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "autoencoder" / "default"
    folder.mkdir(parents=True)
    (folder / "half_removed").write_text("by the first rank, just now")
    monkeypatch.setattr("stages.run.run.is_rank_zero", lambda: False)
    monkeypatch.setattr("stages.run.run._fit", lambda *_: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        run(tiny_config())
    assert [p.name for p in folder.iterdir()] == ["half_removed"]


def test_lightning_does_not_requeue_slurm_jobs_by_itself(tiny_config, monkeypatch):
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0",
                        "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    seen = []

    def watched(settings):
        built = build(settings)
        built.module.on_fit_start = lambda: seen.append(built.module.trainer._accelerator_connector.cluster_environment)
        return built

    run(tiny_config("training.steps=2"), watched)
    assert [type(it).__name__ for it in seen] == ["SLURMEnvironment"]
    assert not seen[0].auto_requeue


def test_tasks_of_unknown_nodes_are_refused(tiny_config, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(ConfigError, match="give srun or sbatch --ntasks-per-node"):
        run(tiny_config())


def test_fewer_steps_than_done_are_refused(tiny_config):
    run(tiny_config())
    with pytest.raises(ConfigError, match=r"cannot be trained like this .*fresh=true"):
        run(tiny_config("training.steps=4"))


def test_a_changed_option_is_refused_by_name_and_fresh_starts_over(tiny_config, tmp_path):
    artifact = run(tiny_config("training.steps=2"))
    stray = tmp_path / "runs" / "autoencoder" / "default" / "note.txt"
    stray.write_text("of the old run")
    with pytest.raises(ConfigError, match=r"optimizer\.lr=1\.875e-05, not 0\.01: .*name=….*fresh=true"):
        run(tiny_config("training.steps=2", "optimizer.lr=0.01"))
    assert read_config(artifact).training["config"]["optimizer"]["lr"] == 1.875e-5
    run(tiny_config("training.steps=2", "optimizer.lr=0.01", "fresh=true"))
    assert read_config(artifact).training["config"]["optimizer"]["lr"] == 0.01
    assert not stray.exists()


@pytest.mark.parametrize("override", ["fresh=true", "fresh=false"])
def test_somebody_elses_folder_is_never_touched(tiny_config, tmp_path, override):
    folder = tmp_path / "runs" / "autoencoder" / "default"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("precious: true")
    with pytest.raises(ConfigError, match="is not an earlier run"):
        run(tiny_config(override))
    assert (folder / "config.yaml").read_text() == "precious: true"


def test_steps_that_are_not_finite_stop_the_run_at_last_and_the_checkpoint_is_good(tiny_config, tmp_path):
    config = tiny_config("training.nonfinite_limit=3", "training.steps_per_epoch=4")
    message = r"l1 is not finite at step 6, and 3 steps in a row .*last\.ckpt.*fresh=true and a lower optimizer\.lr"
    with pytest.raises(TrainingError, match=message):
        run(config, poisoned_at(build, 1, 4, 5, 6))
    checkpoint = torch.load(tmp_path / "runs/autoencoder/default/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert checkpoint["safe_steps"] == {"skipped": 1, "in_a_row": 0}


def test_a_damaged_checkpoint_is_named(tiny_config, tmp_path):
    with pytest.raises(Crash):
        run(tiny_config(), crashing_at(build, 5))
    last = tmp_path / "runs/autoencoder/default/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"last\.ckpt is damaged .*previous\.ckpt \(step 2\).*fresh=true"):
        run(tiny_config())


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("data.root=null", ConfigError, r"data\.root is not set: give data\.root=PATH"),
        ("name=a/b", ConfigError, r"name is 'a/b'"),
        ("data.crop=[16,16,18]", ConfigError, r"data\.crop is \[16, 16, 18\]: give three multiples of 4"),
        ("training.steps=7", ConfigError, r"training\.steps is 7: give a multiple"),
        ("optimizer.lr=-1", ConfigError, r"optimizer\.lr is -1"),
        ("optimizer.betas=[0.9]", ConfigError, r"optimizer\.betas is \[0\.9\]: give two numbers"),
        ("optimizer.betas=[0.9,1.0]", ConfigError, r"optimizer\.betas is \[0\.9, 1\.0\]: give two numbers"),
        ("stage=diffusion", ConfigError, r"stage is 'diffusion': leave it at 'autoencoder'"),
        ("network.layers=3", ConfigError, r"network\.layers"),
        ("data.window_hu=[250,-175]", ConfigError, r"data\.window_hu"),
        ("data.validation_share=0.9", ConfigError, r"data\.validation_share is 0\.9"),
        ("discriminators.loss=wgan", ConfigError, r"discriminators\.loss is 'wgan'"),
        ("codebook.update=adam", ConfigError, r"codebook\.update is 'adam': choose ema or gradient"),
        ("codebook.decay=1.0", ConfigError, r"codebook\.decay is 1\.0: give a number from 0, below 1"),
        ("codebook.decay=x", ConfigError, r"codebook\.decay is 'x'"),
        ("codebook.restart_below=-1", ConfigError, r"codebook\.restart_below is -1"),
        ("data.batch_size=1.5", ConfigError, r"data\.batch_size is 1\.5: give a whole number, 1 or more"),
        ("discriminators.base_channels=0", ConfigError, r"discriminators\.base_channels is 0"),
        ("discriminators.start_step=null", ConfigError, r"discriminators\.start_step is None"),
        ("perceptual.weight=-4", ConfigError, r"perceptual\.weight is -4: give a number from 0"),
        ("loss_weights.l1=-1", ConfigError, r"loss_weights\.l1 is -1"),
        ("optimizer.clip_norm=0", ConfigError, r"optimizer\.clip_norm is 0"),
        ("optimizer.milestones=[5,3]", ConfigError, r"optimizer\.milestones is \[5, 3\]: give steps in rising order"),
        ("augmentation.rotation_probability=2", ConfigError, r"augmentation\.rotation_probability is 2"),
        ("data.crop=[16,20,16]", ConfigError, r"alike along X and Y, not \[16, 20, 16\].*rotation_probability=0"),
        ("perceptual.reduction=max", ConfigError, r"perceptual\.reduction is 'max': choose sum or mean"),
        ("training.accumulate=0", ConfigError, r"training\.accumulate is 0"),
        ("training.nonfinite_limit=0.5", ConfigError, r"training\.nonfinite_limit is 0\.5"),
        ("training.compile=1", ConfigError, r"training\.compile is 1: choose true or false"),
        ("trainer.precision=16-mixed", ConfigError, r"trainer\.precision=16-mixed needs a GPU: .*bf16-mixed"),
        ("trainer.precision=bf16-true", ConfigError, r"trainer\.precision is 'bf16-true': choose bf16-mixed"),
        ("trainer.strategy=fsdp", ConfigError, r"trainer\.strategy is 'fsdp'"),
        ("trainer.precision=7", ConfigError, r"under 'trainer' do not work"),
        ("network.norm_groups=3", ConfigError, r"groups"),
        ("validation.scans=0", ConfigError, r"validation\.scans is 0: .*null for all"),
        ("validation.overlap=1", ConfigError, r"validation\.overlap is 1: give a number from 0, below 1"),
        ("pictures.every_n_epochs=-1", ConfigError, r"pictures\.every_n_epochs is -1: give a whole number, 0 or more"),
        ("data.cache_rate=half", ConfigError, r"data\.cache_rate is 'half': give auto, or a share from 0 to 1"),
        ("+data.bogus=1", ConfigError, r"Unknown option 'data\.bogus': known ones are root, "),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing_behind(tiny_config, tmp_path, override, error, message):
    with pytest.raises(error, match=message) as caught:
        run(tiny_config("+" + override if override.startswith("network.layers") else override))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_missing_gpu_is_named(tiny_config, tmp_path):
    with pytest.raises(DeviceError, match=r"trainer\.accelerator=gpu .* trainer\.accelerator=cpu"):
        run(tiny_config("trainer=gpu"))
    assert not list(tmp_path.iterdir())


def command(cohort, tmp_path, *overrides):
    from tests.stages.conftest import TINY

    places = (f"data.root={cohort}", f"runs_dir={tmp_path}/runs", f"checkpoints_dir={tmp_path}/checkpoints")
    arguments = [sys.executable, "-m", "stages.autoencoder", *TINY, *places, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return {"args": arguments, "cwd": tmp_path, "env": environment, "text": True}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_to_the_same_weights(cohort, tmp_path, how):
    steps = "training.steps=60"
    process = subprocess.Popen(**command(cohort, tmp_path, steps, "name=parted", f"artifact={tmp_path}/parted"))
    last = tmp_path / "runs" / "autoencoder" / "parted" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(timeout=60) == (-9 if how is signal.SIGKILL else 143)
    assert torch.load(last, weights_only=True)["steps_done"] < 60
    assert not (tmp_path / "parted").exists()
    for name in ("parted", "whole"):
        subprocess.run(**command(cohort, tmp_path, steps, f"name={name}", f"artifact={tmp_path}/{name}"), check=True)
    assert weights(tmp_path / "parted") == weights(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parted", "parted_best", "runs", "whole", "whole_best"]


@pytest.mark.slow
def test_the_command_line_fails_with_one_sentence(cohort, tmp_path):
    for override, sentence in [
        ("data.rot=x", "Error: Unknown option 'data.rot'"),
        ("data.root=null", "Error: data.root is not set"),
        ("+bogus=1", "Error: Unknown option 'bogus'"),
    ]:
        done = subprocess.run(**command(cohort, tmp_path, override), capture_output=True, check=False)
        assert done.returncode == 1
        assert [line for line in done.stderr.splitlines() if line][-1].startswith(sentence)
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_help_explains_groups_and_options(cohort, tmp_path):
    done = subprocess.run(**command(cohort, tmp_path, "--help"), capture_output=True, check=True)
    assert done.stdout.startswith("Usage: python -m stages.autoencoder [OPTION=VALUE ...]")
    for text in ("one with a slash belongs to the stage before it", "trainer: auto, cpu", "changed by OPTION=VALUE"):
        assert text in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("debug", ["one_batch", "overfit", "profile"])
def test_debug_configs_run(tiny_config, tmp_path, debug):
    config = tiny_config(f"+debug={debug}", "trainer.max_epochs=1")
    artifact = run(config)
    assert artifact.name == f"autoencoder_debug_{debug}"
    assert read_config(artifact).complete
    assert not (tmp_path / "checkpoints").exists()
    folder = tmp_path / "runs" / "autoencoder" / f"debug_{debug}"
    assert json.loads((folder / "finished.json").read_text())["artifact"] == str(artifact)
    assert bool(list(folder.glob("*profile*.txt"))) == (debug == "profile")
