"""Validation of stage 2: exact means, tumors at the right epochs, and nothing that training would notice."""

import math
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from pytorch_lightning.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from difftumor.models.artifact_config import read_config
from difftumor.scans.appearance import EDGE_BINS_MM, Appearance, appearance_distance
from difftumor.synthesis.scan.loading import load_synthesizer
from stages.diffusion.hosts import synthesize
from stages.diffusion.train import build, held_out
from stages.diffusion.validation import HostedAppearances, TimestepLosses, visited_times
from stages.run.run import run_stage
from tests.stages.builds import KINDS, built_from, options_of
from tests.stages.diffusion.test_train import batch, module
from tests.stages.ranks import trainer_of
from tests.stages.tumor_cohort import with_validation

DISTANCES = {f"validation/{name}_distance_hu" for name in ("contrast", "sd", "edge")}


def run(config, build=build):
    return run_stage(config, KINDS["diffusion"], build)


def noting(history):
    """Return a build whose run appends the validation's metrics of each epoch to a list."""

    def noting_build(settings):
        built = build(settings)
        log = built.module.log

        def note(name, value, **options):
            if name.startswith("validation/"):
                history.append((built.module.current_epoch, name, float(value)))
            log(name, value, **options)

        built.module.log = note
        return built

    return noting_build


@pytest.fixture
def stated(tumor_cohort, tmp_path):
    """The cohort with two early tumors held out."""
    return with_validation(tumor_cohort, tmp_path / "stated", "early1", "early2")


def losses_of(*parts):
    """Validate a module on batches; return what it logs."""
    logged = {}
    ours = module()
    ours.log = lambda name, value, **_: logged.update({name: value})
    ours.on_validation_epoch_start()
    for number, part in enumerate(parts):
        ours.steps_done = number  # noise of steps would differ
        ours.validation_step(part, number)
    ours.on_validation_epoch_end()
    return logged


def part_of(whole, *indices):
    picked = list(indices)
    return {k: v[picked] if torch.is_tensor(v) else [v[i] for i in picked] for k, v in whole.items()}


def test_the_loss_is_the_mean_over_crops_and_timesteps_however_they_are_batched():
    whole = {**batch(3), "key": ["a/1", "a/2", "b/1"], "counted": torch.tensor([True, True, True])}
    together = losses_of(whole)
    assert set(together) == {"validation/loss", *(f"validation/loss_t00{time}" for time in range(4))}
    assert together["validation/loss"] == pytest.approx(sum(together[f"validation/loss_t00{t}"] for t in range(4)) / 4)
    assert len(set(together.values())) == 5
    twice = {**part_of(whole, 0), "counted": torch.tensor([False])}
    for parts in ([part_of(whole, 2, 0), part_of(whole, 1)], [part_of(whole, 0), part_of(whole, 1, 2), twice]):
        assert losses_of(*parts) == pytest.approx(together, rel=1e-5)
    alone = [losses_of(part_of(whole, index))["validation/loss"] for index in range(3)]
    assert together["validation/loss"] == pytest.approx(sum(alone) / 3, rel=1e-5)
    other_noise = losses_of({**whole, "key": ["a/3", "a/2", "b/1"]})
    assert other_noise["validation/loss"] != together["validation/loss"]


def test_losses_worked_by_hand():
    metric = TimestepLosses([0, 199])
    metric.update(torch.tensor([[1.0, 3.0], [10.0, 30.0]]), torch.tensor([True, True]))
    metric.update(torch.tensor([[5.0, 99.0], [80.0, 99.0]]), torch.tensor([True, False]))
    expected = {"validation/loss": 21.5, "validation/loss_t000": 3.0, "validation/loss_t199": 40.0}
    assert metric.compute() == expected
    metric.reset()
    metric.update(torch.tensor([[1.0], [1.0]]), torch.tensor([False]))
    assert metric.compute() == {}


@pytest.mark.parametrize(
    ("timesteps", "times"), [(1, [0]), (4, [0, 1, 2, 3]), (200, [0, 28, 57, 85, 114, 142, 171, 199])]
)
def test_early_and_late_timesteps_are_visited(timesteps, times):
    assert visited_times(timesteps) == times
    assert module(timesteps=timesteps).losses_by_time.times == tuple(times)


def test_tumors_are_gathered_in_the_order_of_their_hosts_and_what_is_missing_stays_missing():
    def tumor(contrast_hu):
        profile = (math.nan,) * (len(EDGE_BINS_MM) - 1)
        return Appearance(contrast_hu=contrast_hu, sd_hu=3.0, edge_hu=profile, voxels=9)

    metric = HostedAppearances(4)
    metric.update(3, tumor(math.nan))
    metric.update(0, tumor(-5.0))
    metric.update(7, None)
    first, last = (Appearance.from_row(row) for row in metric.compute().tolist())
    assert first.contrast_hu == -5
    assert math.isnan(last.contrast_hu)
    assert (last.sd_hu, last.voxels) == (3, 9)
    metric.reset()
    metric.update(7, None)
    assert len(metric.compute()) == 0
    assert not metric.state_dict()


@pytest.mark.slow
def test_tumors_are_made_at_their_epochs_pictured_and_compared_with_real_ones(tiny_diffusion, stated, tmp_path):
    history = []
    config = tiny_diffusion(
        f"data.root={stated}", "validation.synthesize_every_n_epochs=2", "training.steps=10", "pictures.hosts=2"
    )
    artifact = run(config, noting(history))
    logged = {epoch: {name: v for e, name, v in history if e == epoch} for epoch in range(5)}
    losses = {"validation/loss", *(f"validation/loss_t00{time}" for time in range(4))}
    counts = {"validation/synthetic_tumors", "validation/real_tumors"}
    for epoch in (0, 2):
        assert set(logged[epoch]) == losses
    for epoch in (1, 3, 4):  # every second, and the last
        assert set(logged[epoch]) == losses | counts | DISTANCES
        assert logged[epoch]["validation/synthetic_tumors"] == 3
        assert logged[epoch]["validation/real_tumors"] == 2
    folder = tmp_path / "runs/diffusion/liver_early"
    rest = held_out(options_of(config))
    ids = [host.id.replace("/", "_") for host in rest.hosts[:2]]
    names = [f"{n:02d}_{each}_step_{step:07d}.png" for n, each in enumerate(ids, 1) for step in (4, 8, 10)]
    assert sorted(file.name for file in (folder / "pictures").iterdir()) == names
    assert imread(folder / "pictures" / names[0]).std() > 0.1
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]} == {
        f"synthesis/{n:02d}_{each}": [4, 8, 10] for n, each in enumerate(ids, 1)
    }
    # What users will get from the artifact is what was measured last.
    synthesizer = load_synthesizer(artifact, organ="liver")
    made = [tumor.appearance for tumor in synthesize(synthesizer, rest.hosts)]
    expected = appearance_distance(made, rest.real)
    metrics = read_config(artifact).metrics
    for name in ("contrast", "sd", "edge"):
        assert metrics[f"validation/{name}_distance_hu"] == pytest.approx(getattr(expected, f"{name}_hu"), rel=1e-4)
    # Nor do distances of one epoch pass for those of another.
    best = read_config(artifact.with_name(f"{artifact.name}_best"))
    own = logged[best.training["validation_epoch"] - 1]
    assert best.metrics == pytest.approx(own, rel=1e-6)


def test_metrics_of_an_epoch_are_its_own(tiny_diffusion, stated, monkeypatch):
    kept = []
    monkeypatch.setattr(
        "stages.run.callbacks.KeepLastAndBest._keep_best", lambda self, *_: kept.append(frozenset(self.metrics))
    )
    run(tiny_diffusion(f"data.root={stated}", "validation.synthesize_every_n_epochs=2", "training.steps=10"))
    assert [bool(names & DISTANCES) for names in kept] == [False, True, False, True, True]


@pytest.mark.slow
def test_making_tumors_changes_nothing_that_is_learned(tiny_diffusion, stated, tmp_path):
    runs = [
        run(
            tiny_diffusion(
                f"data.root={stated}", f"name={every}", f"artifact={tmp_path}/{every}",
                f"validation.synthesize_every_n_epochs={every}",
            )
        )
        for every in (0, 1)
    ]  # fmt: skip
    without, made = ((artifact / "model.safetensors").read_bytes() for artifact in runs)
    assert without == made
    assert not DISTANCES & set(read_config(runs[0]).metrics)
    assert not (tmp_path / "runs/diffusion/0/pictures").exists()


def test_without_held_out_tumors_there_are_pictures_alone(tiny_diffusion, tmp_path):
    history = []
    artifact = run(tiny_diffusion(), noting(history))
    assert {name for _, name, _ in history} == {"validation/synthetic_tumors", "validation/real_tumors"}
    assert read_config(artifact).metrics == {"validation/synthetic_tumors": 3, "validation/real_tumors": 0}
    assert len(list((tmp_path / "runs/diffusion/liver_early/pictures").iterdir())) == 1


@pytest.mark.parametrize("option", ["hosts", "synthesize_every_n_epochs"])
def test_without_hosts_there_is_the_loss_alone(tiny_diffusion, stated, tmp_path, option):
    history = []
    run(tiny_diffusion(f"data.root={stated}", f"validation.{option}=0", "training.steps=2"), noting(history))
    assert {name.split("_t")[0] for _, name, _ in history} == {"validation/loss"}
    assert not (tmp_path / "runs/diffusion/liver_early/pictures").exists()


@pytest.mark.slow
def test_late_tumors_are_made_in_two_hundred_timesteps_sampled_as_the_artifact_says(
    tiny_diffusion, tumor_cohort, tmp_path
):
    folder = shutil.copytree(tumor_cohort, tmp_path / "late")
    # Another late tumor, to be held out, in a scan of its own.
    shutil.copy(folder / "labelsTr" / "late0.nii.gz", folder / "labelsTr" / "early1.nii.gz")
    late = nib.load(folder / "imagesTr" / "late0.nii.gz")
    brighter = nib.Nifti1Image(np.asarray(late.dataobj) + np.int16(5), late.affine)
    nib.save(brighter, folder / "imagesTr" / "early1.nii.gz")
    folder = with_validation(folder, tmp_path / "stated_late", "early1")
    config = tiny_diffusion(f"data.root={folder}", "tumor_stage=late", "training.steps=2", "validation.hosts=2")
    seen = []

    def counting_build(settings):
        built = build(settings)
        ours = built.module.hosts.synthesizer.diffusion["late"]
        inner = ours._denoiser.forward
        ours._denoiser.forward = lambda noisy, time, *rest: (seen.append(int(time[0])), inner(noisy, time, *rest))[1]
        return built

    metrics = read_config(run(config, counting_build)).metrics
    assert {f"validation/loss_t{time:03d}" for time in (0, 28, 57, 85, 114, 142, 171, 199)} < set(metrics)
    assert metrics["validation/synthetic_tumors"] == 2
    assert set(metrics) >= DISTANCES
    assert len(seen) == 8 + 2 * 50  # losses, then DDIM's fifty steps for each host


class Keep(Callback):
    """Writes what each rank has logged, and the hosts that it has made."""

    def __init__(self, folder):
        self.folder = str(folder)

    def on_validation_end(self, trainer, pl_module):
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        torch.save(logged, f"{self.folder}/{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tiny_diffusion, stated, tmp_path):
    """Each makes its share of three hosts, and has one of three crops or a copy; nothing is trained meanwhile."""
    kept = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        config = tiny_diffusion(f"data.root={stated}", "optimizer.lr=1e-12", "validation.crops=3", "pictures.hosts=3")
        built = built_from(config, build)
        built.data.train = built.data.train[:1]
        options = {"callbacks": [Keep(folder)], "default_root_dir": folder, "limit_train_batches": 1}
        trainer_of(ranks, num_sanity_val_steps=0, **options).fit(built.module, built.data)
        kept[ranks] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
        assert len(list((folder / "pictures").iterdir())) == 3
    names = [name for name in kept[1][0] if name.startswith("validation/")]
    assert set(names) >= {*DISTANCES, "validation/loss_t003", "validation/loss"}
    for name in names:
        assert kept[2][0][name] == kept[2][1][name] == pytest.approx(kept[1][0][name], rel=1e-4), name


def test_every_rank_gets_as_many_crops_and_hosts_and_each_counts_once(tiny_diffusion, stated):
    built = built_from(tiny_diffusion(f"data.root={stated}", "data.batch_size=1"), build)
    built.data.setup()
    for ranks in (1, 2, 3, 5):
        crops, hosts = [], []
        for rank in range(ranks):
            built.data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)
            for loader, found in zip(built.data.val_dataloader(), (crops, hosts), strict=True):
                found.append(list(loader))
        for found in (crops, hosts):
            assert len({len(own) for own in found}) == 1
        counted = [item["key"][0] for own in crops for item in own if item["counted"].all()]
        assert sorted(counted) == sorted(item["key"] for item in built.data.fixed)
        numbers = [number for own in hosts for number in own]
        assert len(numbers) == len(set(numbers))
        assert {0, 1, 2} <= set(numbers)
