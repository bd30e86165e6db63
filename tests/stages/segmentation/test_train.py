"""Stage 3: what it trains on, what it leaves alone, and what resuming repeats."""

import json
import math
import shutil
from inspect import signature
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, ListConfig
from torch import nn

from difftumor.errors import CaseListError, ConfigError
from difftumor.models.artifact import load_artifact
from difftumor.models.artifact_config import read_config
from difftumor.models.segmenters import SEGMENTERS
from difftumor.scans.hounsfield import ScanWarning
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.organs import ORGANS
from stages.config.compose import compose_config
from stages.run import case_lists
from stages.run.run import run_stage
from stages.segmentation.module import learning_rate_factor
from stages.segmentation.train import build
from stages.segmentation.tumors import finished
from tests.nifti import voxels, write_nifti
from tests.stages.builds import KINDS, Crash, built_from, crashing_at
from tests.stages.tumor_cohort import NNUNET, UNET, with_validation


def run(config: DictConfig, build=build):
    return run_stage(config, KINDS["segmentation"], build)


def built(config: DictConfig):
    stage = built_from(config, build)
    stage.module.log = stage.module.log_dict = lambda *_, **__: None
    return stage


def first_batch(stage):
    stage.data.setup()
    items = [stage.data.train_set[(0, index)] for index in range(len(stage.data.train_set))]
    return torch.utils.data.default_collate(items)


def test_a_step_trains_the_segmenter_and_no_model_behind_it(tiny_segmentation):
    stage = built(tiny_segmentation("synthesis.probability=1", "data.class_ratios=[0,0,1]"))
    module, batch = stage.module, first_batch(stage)
    texture = module.tumors.synthesizer.diffusion["early"]
    frozen = [texture.codec.autoencoder, texture._denoiser]
    before = [[p.clone() for p in network.parameters()] for network in frozen]
    optimizer = module.configure_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    losses = []
    for _ in range(6):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    for network, weights in zip(frozen, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
    assert set(module.state_dict()) == {f"segmenter.{name}" for name in module.segmenter.state_dict()}
    assert {id(p) for p in module.parameters()} == {id(p) for p in module.segmenter.parameters()}


def dice_and_cross_entropy(logits, labels, *, smooth_nr, smooth_dr):
    """Return the loss of crops (B, 3, N) as its definition says: Milletari et al. 2016 with squares, and entropy."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    g = np.eye(3)[labels].transpose(0, 2, 1)
    dice = 1 - (2 * (p * g).sum(2) + smooth_nr) / ((p**2).sum(2) + g.sum(2) + smooth_dr)
    return dice.mean() - np.log((p * g).sum(1)).mean()


@pytest.mark.parametrize(
    ("overrides", "smoothing"),
    [
        ((), {"smooth_nr": 0.0, "smooth_dr": 1e-6}),
        (("loss.smooth_nr=0.1", "loss.smooth_dr=0.2"), {"smooth_nr": 0.1, "smooth_dr": 0.2}),
    ],
)
def test_the_loss_is_dice_and_cross_entropy_smoothed_as_stated(tiny_segmentation, overrides, smoothing):
    criterion = built(tiny_segmentation("tumors=handcrafted", *overrides)).module.criterion
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(2, 3, 8)), random.integers(0, 2, (2, 8))  # without tumor
    ours = criterion(torch.tensor(logits).reshape(2, 3, 2, 2, 2), torch.tensor(labels).reshape(2, 1, 2, 2, 2))
    assert float(ours) == pytest.approx(dice_and_cross_entropy(logits, labels, **smoothing), rel=1e-6)


def test_a_crop_without_tumor_pushes_no_tumor_down_by_its_dice(tiny_segmentation):
    # Of n voxels with a tumor probability of p, the Dice's slope by the tumor logits, summed, is
    # 2 S nr / (S + dr)² / 3 with S = n p², for small p: 1/6 if S, nr and dr are alike, and 0 without nr.
    slopes = {}
    for nr, dr in ((1e-5, 1e-5), (0.0, 1e-6)):
        options = ("tumors=handcrafted", f"loss.smooth_nr={nr}", f"loss.smooth_dr={dr}")
        dice = built(tiny_segmentation(*options)).module.criterion.dice
        logits = torch.zeros(1, 3, 2, 2, 2, dtype=torch.float64)
        logits[:, 2] = math.log(math.sqrt(1e-5 / 8) * 2)
        logits.requires_grad_()
        dice(logits, torch.tensor([0, 1]).repeat(4).reshape(1, 1, 2, 2, 2)).backward()
        slopes[nr] = float(logits.grad[:, 2].sum())
    assert slopes[1e-5] - slopes[0.0] == pytest.approx(1 / 6, rel=0.01)
    assert abs(slopes[0.0]) < 1e-3


def test_intensity_is_scaled_from_the_windows_lower_end_and_then_shifted(tiny_segmentation):
    module = built(tiny_segmentation("tumors=handcrafted")).module
    batch = {
        "ct": torch.tensor([-1000.0, -175.0, 37.5, 250.0]).reshape(2, 1, 2, 1, 1),
        "shift": torch.tensor([0.1, 0.0]), "scale": torch.tensor([0.5, -0.2]),
        "offset_hu": torch.tensor([-175.0, -175.0]), "scale_hu": torch.tensor([425.0, 425.0]),
    }  # fmt: skip
    torch.testing.assert_close(module.scaled(batch).flatten(), torch.tensor([0.1, 0.1, 0.4, 0.8]))


@pytest.mark.parametrize(
    ("tumors", "train"),
    [
        ("real", {"early1", "early2"}),
        ("diffusion", {"healthy0", "healthy1", "silent_healthy"}),
        ("handcrafted", {"healthy0", "healthy1", "silent_healthy"}),
        ("copy_paste", {"healthy0", "healthy1", "silent_healthy"}),
        ("mixed", {"early1", "early2", "healthy0", "healthy1", "silent_healthy"}),
    ],
)
def test_what_is_trained_on(tiny_segmentation, tumors, train):
    stage = built(tiny_segmentation(f"tumors={tumors}"))
    assert {case.id for case in stage.data.train} == train
    assert {case.id for case in stage.data.validation} == {"early0", "late0"}
    assert (stage.module.tumors is None) == (tumors == "real")
    models = {"diffusion_early", "diffusion_late"}
    assert set(stage.module.parents) == (models if tumors in ("diffusion", "mixed") else set())


def test_copies_are_of_the_training_patients_alone_and_the_artifact_names_them(tiny_segmentation, capsys):
    stage = built(tiny_segmentation("tumors=copy_paste", "synthesis.probability=1"))
    said = capsys.readouterr().out
    assert "Reading the tumors of 2 training cases, to copy them." in said
    assert "No tumors of size medium, large are copied, because no training patient has one." in said
    assert {case.id for case in stage.data.validation} == {"early0", "late0"}
    assert {tumor.case for tumor in stage.module.tumors.synthesizer.sources.tumors} == {"early1", "early2"}
    assert set(stage.module.cases["training"]) == {"healthy0", "healthy1", "silent_healthy", "early1", "early2"}
    batch = first_batch(stage)
    made, again = (finished(batch, stage.module.tumors) for _ in range(2))
    assert (made["synthetic"], made["rejected"]) == (3, 0)
    assert torch.equal(made["ct"], again["ct"])
    for ct, before, labels in zip(made["ct"], batch["ct"], made["labels"], strict=True):
        inside = labels == 2
        assert inside.any()
        assert ct[inside].mean() < before[inside].mean() - 20  # the tumors of the cohort are 70 HU darker


def test_tumors_of_scans_that_are_not_in_hu_are_copied_if_that_is_accepted(tiny_segmentation, tumor_cohort, tmp_path):
    folder = shutil.copytree(tumor_cohort, tmp_path / "copy")
    file = folder / "imagesTr" / "early1.nii.gz"
    write_nifti(file, np.clip(voxels(file), -90, None), nib.load(file).affine)
    options = ("tumors=copy_paste", f"data.root={folder}")
    with pytest.raises(CaseListError, match="accept_hu=true"):
        built(tiny_segmentation(*options))
    with pytest.warns(ScanWarning, match=r"early1\.nii\.gz looks windowed"):
        stage = built(tiny_segmentation(*options, "data.accept_hu=true"))
    assert {tumor.case for tumor in stage.module.tumors.synthesizer.sources.tumors} == {"early1", "early2"}


def test_copies_of_sizes_that_no_training_patient_has_are_refused(tiny_segmentation):
    sizes = "synthesis.sizes={early: 0, medium: 0, large: 1}"
    with pytest.raises(ConfigError, match=r"size of the training patients' tumors, which are tiny: add one"):
        built(tiny_segmentation("tumors=copy_paste", sizes))


def test_healthy_scans_may_stay_as_they_are_without_any_model(tiny_segmentation):
    stage = built(tiny_segmentation("synthesis.probability=0", "synthesis.early_model=nowhere"))
    assert stage.module.tumors is None
    assert {case.id for case in stage.data.train} == {"early1", "early2", "healthy0", "healthy1", "silent_healthy"}
    batch = first_batch(stage)
    made = finished(batch, stage.module.tumors)
    assert torch.equal(made["ct"], batch["ct"])
    assert torch.equal(made["labels"], batch["labels"])


def test_stated_validation_cases_are_the_validation_set(tiny_segmentation, tumor_cohort, tmp_path, capsys):
    folder = with_validation(tumor_cohort, tmp_path / "stated", "early2", "healthy0")
    stage = built(tiny_segmentation(f"data.root={folder}"))
    assert {case.id for case in stage.data.validation} == {"early2"}
    assert {case.id for case in stage.data.train} == {"early0", "early1", "late0", "healthy1", "silent_healthy"}
    assert "Holding out the 2 validation cases" in (said := capsys.readouterr().out)
    assert "fold=0 is ignored" in said
    with pytest.raises(ConfigError, match=r"fold is 1, but .* states its validation cases"):
        built(tiny_segmentation(f"data.root={folder}", "fold=1"))


def test_validation_cases_of_the_healthy_list_are_not_trained_on(tiny_segmentation, tumor_cohort, tmp_path):
    folder = with_validation(tumor_cohort, tmp_path / "stated", "healthy0")
    for file in (folder / "imagesTr").iterdir():  # other scans of the same names
        write_nifti(file, voxels(file) + 1, np.diag([3.0, 3.0, 3.0, 1.0]))
    stage = built(tiny_segmentation(f"data.healthy_root={folder}", "tumors=diffusion"))
    own = [case.id for case in stage.data.train if folder in case.image.parents]
    assert sorted(own) == ["healthy1", "silent_healthy"]
    assert {case.id for case in stage.data.validation} == {"early0", "late0"}  # the folds of the other list


def test_only_healthy_crops_get_tumors(tiny_segmentation):
    stage = built(tiny_segmentation("synthesis.probability=1", "synthesis.sizes={early: 1}"))
    batch = first_batch(stage)
    made = finished(batch, stage.module.tumors)
    assert (made["synthetic"], made["rejected"]) == (3, 0)
    for element, healthy in enumerate(batch["healthy"].tolist()):
        assert bool((made["labels"][element] != batch["labels"][element]).any()) == healthy
        assert torch.equal(made["ct"][element], batch["ct"][element]) != healthy


def test_tumors_are_the_same_with_loading_processes_and_other_batches(tiny_segmentation):
    ways = []
    for workers, size in ((0, 1), (1, 2)):
        stage = built(tiny_segmentation(f"data.num_workers={workers}", "synthesis.probability=1"))
        stage.data.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=3, lightning_module=None)
        stage.data.batch_size = size
        stage.data.setup()
        found = {}
        for batch in stage.data.train_dataloader():
            made = finished(batch, stage.module.tumors)
            for element, case in enumerate(batch["case"]):
                found.setdefault(case, (made["ct"][element], made["labels"][element], batch["shift"][element].item()))
        ways.append(found)
    for case in ways[0].keys() & ways[1].keys():
        assert torch.equal(ways[0][case][1], ways[1][case][1])
        assert torch.allclose(ways[0][case][0], ways[1][case][0], atol=1e-2)
        assert ways[0][case][2] == ways[1][case][2]
    assert len(ways[0].keys() & ways[1].keys()) >= 4


def test_the_intensity_shift_comes_after_the_tumors(tiny_segmentation):
    stage = built(tiny_segmentation())
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 3, *x.shape[2:])

    stage.module.segmenter = Spy()
    batch = first_batch(stage)
    batch["shift"] = torch.tensor([0.0, 0.1, -0.1, 0.0, 0.05], dtype=torch.float64)
    stage.module.training_step(batch, 0)
    unit = IntensityWindow().to_unit(finished(batch, stage.module.tumors)["ct"])
    assert seen[0].dtype == torch.float32
    assert torch.allclose(seen[0] - unit, batch["shift"].float()[:, None, None, None, None], atol=1e-6)


def test_a_run_that_died_ends_with_the_weights_of_one_that_did_not(tiny_segmentation, tmp_path):
    whole = run(tiny_segmentation("name=whole", f"artifact={tmp_path}/whole"))
    parted_config = tiny_segmentation("name=parted", f"artifact={tmp_path}/parted")
    with pytest.raises(Crash):
        run(parted_config, crashing_at(build, 4))
    parted = run(parted_config)
    for name in ("", "_best"):
        files = [path.with_name(path.name + name) / "model.safetensors" for path in (whole, parted)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert read_config(parted).metrics == read_config(whole).metrics


@pytest.mark.parametrize(("backbone", "options"), [("unet", UNET), ("nnunet", NNUNET)])
def test_the_artifact_is_a_segmenter(tiny_segmentation, tmp_path, backbone, options):
    config = tiny_segmentation("training.epochs=1", "training.warmup_epochs=0", backbone=options)
    artifact = run(config)
    assert artifact == tmp_path / "checkpoints" / f"segmentation_liver_{backbone}_mixed_fold0"
    loaded = load_artifact(artifact, kind="segmenter")
    assert loaded.config.architecture["name"] == backbone
    assert loaded.network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)
    assert set(loaded.config.parents) == {"diffusion_early", "diffusion_late"}
    assert set(loaded.config.metrics) == {"validation/tumor_dsc", "validation/organ_dsc"}
    assert load_artifact(artifact.with_name(artifact.name + "_best"), kind="segmenter").config.complete


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    factors = [learning_rate_factor(epoch, warmup=4, total=24) for epoch in range(25)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[14] == pytest.approx(0.5)
    assert factors[24] == pytest.approx(0)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert learning_rate_factor(0, warmup=0, total=10) == 1
    assert learning_rate_factor(9, warmup=10, total=10) == 1


def test_validation_scores_a_perfect_segmenter_with_one(tiny_segmentation):
    stage = built(tiny_segmentation())
    logged = {}
    stage.module.log_dict = lambda metrics, **_: logged.update(metrics)
    stage.data.setup()
    item = stage.data.validation_set[(0, 0)]
    batch = torch.utils.data.default_collate([item])
    window = IntensityWindow()

    class Oracle(nn.Module):
        """Tells classes apart by intensity, which the boxes allow once they carry no noise."""

        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            centers = window.to_unit(torch.tensor([-80.0, 110.0, 40.0]))
            return torch.cat([-1000 * (x - center) ** 2 for center in centers], 1)

    batch["ct"] = torch.tensor([-80.0, 110.0, 40.0])[batch["labels"].long()]
    stage.module.segmenter = Oracle()
    stage.module.validation_step(batch, 0)
    assert {name: metric.compute() for name, metric in logged.items()} == {
        "validation/tumor_dsc": 1.0,
        "validation/organ_dsc": 1.0,
    }


def test_more_healthy_scans_may_come_from_elsewhere(tiny_segmentation, tumor_cohort, tmp_path):
    folder = tmp_path / "healthy"
    shutil.copytree(tumor_cohort, folder)
    listing = json.loads((folder / "dataset.json").read_text())
    listing["labels"] = {"background": 0, "liver": 1}
    listing["training"] = [
        {k: v for k, v in entry.items() if k != "tumor_organs"}
        for entry in listing["training"]
        if "healthy0" in entry["image"]
    ]
    (folder / "dataset.json").write_text(json.dumps(listing))
    stage = built(tiny_segmentation(f"data.healthy_root={folder}", "tumors=diffusion"))
    assert sum(case.id == "healthy0" for case in stage.data.train) == 2
    assert first_batch(stage)["healthy"].all()


def test_a_tumor_in_a_scan_stated_to_be_healthy_is_named(tiny_segmentation, tumor_cohort, tmp_path):
    folder = tmp_path / "lying"
    shutil.copytree(tumor_cohort, folder)
    listing = json.loads((folder / "dataset.json").read_text())
    for entry in listing["training"]:
        if "early1" in entry["image"]:
            entry["tumor_organs"] = []
    (folder / "dataset.json").write_text(json.dumps(listing))
    with pytest.raises(CaseListError, match=r"'early1' is stated to be free of liver tumors"):
        built(tiny_segmentation(f"data.root={folder}"))


def test_a_scan_without_the_organ_is_left_out_at_the_start(tiny_segmentation, tumor_cohort, tmp_path, capsys):
    folder = shutil.copytree(tumor_cohort, tmp_path / "lacking")
    file = folder / "labelsTr" / "healthy1.nii.gz"
    stored = nib.load(file)
    nib.save(nib.Nifti1Image(np.zeros(stored.shape, np.uint8), stored.affine), file)
    stage = built(tiny_segmentation(f"data.root={folder}"))
    assert "Left out: healthy1 holds no liver." in capsys.readouterr().out
    assert "healthy1" not in {case.id for case in stage.data.train}


def test_a_ct_not_in_hu_is_refused_at_the_start(tiny_segmentation, tumor_cohort, tmp_path):
    folder = shutil.copytree(tumor_cohort, tmp_path / "windowed")
    file = folder / "imagesTr" / "early1.nii.gz"
    stored = nib.load(file)
    nib.save(nib.Nifti1Image(np.clip(np.asarray(stored.dataobj), 0, 255).astype(np.uint8), stored.affine), file)
    with pytest.raises(CaseListError, match=r"early1.nii.gz looks windowed .*Hounsfield"):
        built(tiny_segmentation(f"data.root={folder}"))


def test_a_long_list_is_not_silent(tumor_cohort, monkeypatch, capsys):
    monkeypatch.setattr(case_lists, "SAID_EVERY", 3)
    case_lists.sort_and_say(case_lists.read_root(tumor_cohort), ORGANS["liver"], workers=1)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" of ")[0] for line in said] == ["Checking the 7 cases", "Reading the label maps", "3", "6"]


def test_a_leak_between_stages_is_said(tiny_segmentation, untrained, tmp_path, capsys):
    folder = tmp_path / "leaking"
    shutil.copytree(untrained, folder)
    config = folder / "diffusion_liver_early" / "config.json"
    content = json.loads(config.read_text())
    content["training"] = {"cases": {"training": {"early0": 1, "early1": 1}}}
    config.write_text(json.dumps(content))
    built(tiny_segmentation(f"synthesis.early_model={folder}/diffusion_liver_early"))
    said = capsys.readouterr().out
    assert "was trained on 1 of the 2 held-out cases" in said
    assert "train it with python -m stages.diffusion organ=liver data.root=" in said
    assert "fold=0 folds.count=2 folds.seed=0 tumor_stage=early" in said
    assert "diffusion_liver_late has no fingerprints" in said
    assert "tumor_stage=late" not in said


def test_sizes_without_a_model_are_said_to_be_left_out(tiny_segmentation, capsys):
    stage = built(tiny_segmentation("synthesis.late_model=null"))
    assert "No tumors of size medium, large are made" in capsys.readouterr().out
    assert set(stage.module.parents) == {"diffusion_early"}


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ["tumors=painted"],
            ConfigError,
            r"tumors is 'painted': choose real, .*, copy_paste or mixed",
        ),
        (["synthesis.early_model=null", "synthesis.late_model=null"], ConfigError, r"needs a diffusion model"),
        (["synthesis.early_model=nowhere"], ConfigError, r"nowhere, .* fold=0 .*synthesis\.early_model=null"),
        (["data.spacing_mm=[2,2,2]"], ConfigError, r"data\.spacing_mm is \[2\.0, 2\.0, 2\.0\]"),
        (["data.class_ratios=[0,0,0]"], ConfigError, r"data\.class_ratios"),
        (["data.crop=[16,32,16]"], ConfigError, r"rotation_probability=0"),
        (["augmentation.shift_probability=2"], ConfigError, r"augmentation\.shift_probability is 2"),
        (["training.warmup_epochs=9"], ConfigError, r"training\.warmup_epochs is 9"),
        (["validation.overlap=1"], ConfigError, r"validation\.overlap is 1"),
        (["fold=2"], ConfigError, r"Fold 2 does not exist"),
        (["folds.count=9"], CaseListError, r"4 patients cannot make 9 folds"),
        (["backbone.channels=[4]"], ConfigError, r"unet channels"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing_behind(tiny_segmentation, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message) as caught:
        run(tiny_segmentation(*overrides))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("debug", ["one_batch", "overfit", "profile"])
def test_debug_configs_run(tiny_segmentation, debug):
    assert read_config(run(tiny_segmentation(f"+debug={debug}", "trainer.max_epochs=1"))).complete


@pytest.mark.parametrize("backbone", SEGMENTERS)
def test_the_defaults_are_the_published_ones(backbone):
    config = compose_config("segmentation", ["organ=liver", f"backbone={backbone}", "fold=0"])
    assert (config.training.epochs, config.training.warmup_epochs, config.data.batch_size) == (2000, 100, 2)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.validation.overlap) == (2e-4, 1e-5, 0.75)
    sizes = {size: weight for size, weight in config.synthesis.sizes.items() if weight}
    assert sizes == {"early": 0.8, "medium": 0.1, "large": 0.1}
    published = {name: option.default for name, option in signature(SEGMENTERS[backbone]).parameters.items()}
    options = {k: tuple(v) if isinstance(v, ListConfig) else v for k, v in config.backbone.items()}
    assert options.pop("name") == backbone
    assert options == {name: published[name] for name in options}
    assert set(published) - set(options) == {"in_channels", "classes"}
