"""Stage 3's options: other tumors, ratios, normalization, tumors made ahead or before, and how long it trains."""

import json
import math
import pickle
import shutil
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file

from difftumor.errors import CaseListError, ConfigError
from difftumor.models.artifact_config import read_config
from difftumor.scans.intensity import Normalization
from difftumor.scans.organs import ORGANS
from difftumor.synthesis.draw import wanted_tumors
from stages.segmentation.train import build
from stages.segmentation.tumors import finished
from tests.conftest import run as run_command
from tests.stages.builds import Crash, built_from
from tests.stages.ranks import trainer_of
from tests.stages.segmentation.test_train import built, first_batch, run
from tests.stages.tumor_cohort import with_validation


def test_crafted_tumors_need_no_model_and_follow_the_organ(tiny_segmentation, tmp_path):
    config = tiny_segmentation("tumors=handcrafted", "synthesis.probability=1", "synthesis.early_model=nowhere")
    stage = built(config)
    batch = first_batch(stage)
    made = finished(batch, stage.module.tumors)
    assert made["synthetic"] == 3
    for element in range(3):
        tumor = (made["labels"][element] == 2) & (batch["labels"][element] == 1)
        change = (made["ct"][element] - batch["ct"][element])[tumor].mean()
        assert change < -10  # darker than the liver of 110 HU, as in Table 1
    artifact = run(config)
    assert artifact.name == "segmentation_liver_unet_handcrafted_fold0"
    assert read_config(artifact).parents == {}


def test_mixed_tumors_may_come_from_both_generators(tiny_segmentation):
    both = "synthesis.generators={diffusion: 1, handcrafted: 1}"
    stage = built(tiny_segmentation(both, "synthesis.probability=1", "synthesis.late_model=null"))
    drawn = [stage.module.tumors.mix.draw(seed) for seed in range(300)]
    assert {spec.generator for spec in drawn} == {"diffusion", "handcrafted"}
    sizes = {generator: set() for generator in ("diffusion", "handcrafted")}
    for spec in drawn:
        sizes[spec.generator] |= set(spec.weights)
    assert sizes == {"diffusion": {"early"}, "handcrafted": {"early", "medium", "large"}}


@pytest.mark.parametrize("organ", ["pancreas", "kidney"])
def test_a_livers_model_makes_tumors_in_other_organs(tiny_segmentation, tumor_cohort, tmp_path, organ):
    folder = shutil.copytree(tumor_cohort, tmp_path / organ)
    listing = json.loads((folder / "dataset.json").read_text().replace("liver", organ))
    (folder / "dataset.json").write_text(json.dumps(listing))
    stage = built(tiny_segmentation(f"data.root={folder}", f"organ={organ}", "synthesis.probability=1"))
    assert stage.module.tumors.synthesizer.organ.name == organ
    batch = first_batch(stage)
    made = finished(batch, stage.module.tumors)
    assert made["synthetic"] + made["rejected"] == 3
    assert made["synthetic"] >= 2
    assert not torch.equal(made["ct"], batch["ct"])


def test_every_scan_has_its_own_scale_with_zscore(tiny_segmentation):
    stage = built(tiny_segmentation("data.normalization=zscore", "data.window_hu=[-21,189]", "tumors=handcrafted"))
    stage.data.setup()
    item = stage.data.validation_set[(0, 0)]
    clipped = item["ct"].numpy().clip(-21, 189)
    assert item["offset_hu"] == pytest.approx(clipped.mean(), abs=1e-3)
    assert item["scale_hu"] == pytest.approx(clipped.std(), rel=1e-4)
    batch = first_batch(stage)
    batch["shift"] = torch.zeros(len(batch["shift"]), dtype=torch.float64)
    scaled = stage.module.scaled(batch).numpy()
    for element in range(len(scaled)):
        offset, scale = batch["offset_hu"][element].item(), batch["scale_hu"][element].item()
        expected = (batch["ct"][element].numpy().clip(-21, 189) - offset) / scale
        np.testing.assert_allclose(scaled[element], expected, atol=1e-5)
    assert len(set(batch["offset_hu"].tolist())) == len(scaled)


def test_the_artifact_says_how_it_wants_its_scans(tiny_segmentation):
    config = tiny_segmentation(
        "experiment=label_free", "training.epochs=1", "training.warmup_epochs=0", "backbone.channels=[4,8]"
    )
    stored = read_config(run(config))
    assert Normalization.of(stored.preprocessing).kind == "zscore"
    assert stored.preprocessing["window_hu"] == [-21.0, 189.0]
    assert stored.training["cases"]["training"] == ["healthy0", "healthy1", "silent_healthy"]


def test_the_label_free_preset_is_that_of_hu_et_al(tiny_segmentation):
    config = tiny_segmentation("experiment=label_free")
    mix = built(config).module.tumors.mix
    assert config.tumors == "handcrafted"
    assert built_from(tiny_segmentation("experiment=label_free", "training.epochs=4000"), build).epochs == 4000
    specs = {seed: mix.draw(seed) for seed in range(600)}
    assert {(spec.generator, spec.count) for spec in specs.values()} == {("handcrafted", "paper")}
    sizes = [
        {next(iter(tumor.spec.weights)) for tumor in wanted_tumors([spec], seed=seed)} for seed, spec in specs.items()
    ]
    # Two of five modes have large tumors, two have none but tiny or small ones (Table 6).
    for share in ([large for large in sizes if "large" in large], [one for one in sizes if one <= {"tiny", "small"}]):
        assert len(share) / 600 == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 600))


@pytest.mark.parametrize(("share", "made"), [(0.5, 5), (0.2, 2), ("null", 6)])
def test_crops_come_in_the_stated_ratio(tiny_segmentation, share, made):
    stage = built(tiny_segmentation(f"data.made_share={share}", "synthesis.probability=0", "data.batch_size=1"))
    stage.data.setup()
    stage.data.trainer = trainer_like(epoch=0)
    loader = stage.data.train_dataloader()
    healthy = 0
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        healthy += sum(int(batch["healthy"]) for batch in loader)
    assert healthy == made  # of ten


def trainer_like(epoch, device="cpu"):
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(global_rank=0, world_size=1, current_epoch=epoch, lightning_module=None, strategy=strategy)


def test_tumors_made_ahead_are_those_of_the_step(tiny_segmentation):
    batches = {}
    for prefetch in ("false", "true"):
        stage = built(tiny_segmentation(f"synthesis.prefetch={prefetch}", "synthesis.probability=1"))
        stage.data.setup()
        stage.data.trainer = trainer_like(epoch=0)
        loader = stage.data.train_dataloader()
        assert len(loader) == 3
        batches[prefetch] = list(loader)
    for plain, ahead in zip(batches["false"], batches["true"], strict=True):
        assert plain["case"] == ahead["case"]
        made = finished(plain, stage.module.tumors)
        assert torch.equal(made["labels"], ahead["labels"])
        assert torch.allclose(made["ct"], ahead["ct"], atol=1e-2)
        assert (made["synthetic"], made["rejected"]) == (ahead["synthetic"], ahead["rejected"])
    assert sum(batch["synthetic"] for batch in batches["true"]) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tumors_made_ahead_on_a_gpu_are_those_of_the_cpu(tiny_segmentation):
    batches = {}
    for device in ("cpu", "cuda"):
        stage = built(tiny_segmentation("synthesis.prefetch=true", "synthesis.probability=1"))
        stage.module.tumors.to(device)
        stage.data.setup()
        stage.data.trainer = trainer_like(epoch=0, device=device)
        batches[device] = [
            {name: batch[name].cpu() for name in ("ct", "labels")} for batch in stage.data.train_dataloader()
        ]
    for one, other in zip(batches["cpu"], batches["cuda"], strict=True):
        assert torch.equal(one["labels"], other["labels"])
        assert torch.allclose(one["ct"], other["ct"], atol=0.5)


@pytest.mark.slow
def test_a_run_with_tumors_made_ahead_ends_with_nearly_the_same_weights(tiny_segmentation, tmp_path):
    metrics = []
    for prefetch in ("false", "true"):
        config = tiny_segmentation(
            f"synthesis.prefetch={prefetch}", f"name=run{prefetch}", f"artifact={tmp_path}/{prefetch}",
            "synthesis.probability=1",
        )  # fmt: skip
        metrics.append(read_config(run(config)).metrics)
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)


def test_a_failure_while_making_tumors_ahead_stops_the_run(tiny_segmentation, monkeypatch):
    stage = built(tiny_segmentation("synthesis.prefetch=true", "synthesis.probability=1"))
    stage.data.setup()
    stage.data.trainer = trainer_like(epoch=0)

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(stage.module.tumors.synthesizer, "apply", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stage.data.train_dataloader())


@pytest.mark.parametrize("prefetch", ["false", "true"])
def test_the_share_of_the_step_that_tumors_take_is_logged(tiny_segmentation, prefetch):
    history = []

    def noting_build(settings):
        stage = build(settings)
        log = stage.module.log

        def noting(name, value, **more):
            if name == "training/synthesis_share":
                history.append(value)
            log(name, value, **more)

        stage.module.log = noting
        return stage

    run(tiny_segmentation(f"synthesis.prefetch={prefetch}", "synthesis.probability=1"), noting_build)
    assert len(history) == 3
    assert all(0 < share < 1 for share in history)


@pytest.fixture(scope="module")
def offline(tumor_cohort, tmp_path_factory):
    """A folder of the cohort's healthy scans with tumors made before."""
    return synthesized(tumor_cohort, tmp_path_factory.mktemp("offline"))


def test_scans_with_tumors_made_before_take_the_place_of_healthy_ones(tiny_segmentation, offline):
    stage = built(tiny_segmentation(f"synthesis.offline={offline}", "data.class_ratios=[0,0,1]"))
    assert stage.module.tumors is None
    assert stage.module.parents == {}
    folder = {case.id: case.image.parent for case in stage.data.train}
    assert folder["healthy0"] == offline / "healthy0"
    assert set(folder) == {"early1", "early2", "healthy0", "healthy1", "silent_healthy"}
    batch = first_batch(stage)
    assert not batch["healthy"].any()
    assert all((labels == 2).any() for labels in batch["labels"])


def test_scans_made_from_held_out_patients_are_left_out(tiny_segmentation, tumor_cohort, offline, tmp_path, capsys):
    listing = json.loads((tumor_cohort / "dataset.json").read_text())
    for entry in listing["training"]:
        for part in ("image", "label"):
            entry[part] = str(tumor_cohort / entry[part])
        if "early0" in entry["image"] or "healthy0" in entry["image"]:
            entry["patient"] = "both"  # early0 is held out in fold 0
    (tmp_path / "patients.json").write_text(json.dumps(listing))
    options = [f"data.root={tmp_path}/patients.json", f"synthesis.offline={offline}", "tumors=diffusion"]
    fold = next(number for number in count() if held_out(tiny_segmentation(*options, f"fold={number}")))
    stage = built(tiny_segmentation(*options, f"fold={fold}"))
    assert "early0" in {case.id for case in stage.data.validation}
    assert {case.id for case in stage.data.train} == {"healthy1", "silent_healthy"}
    assert "healthy0 was made from a scan that is held out" in capsys.readouterr().out


def test_scans_made_from_validation_cases_of_the_healthy_list_are_left_out(tiny_segmentation, tumor_cohort, tmp_path):
    folder = with_validation(tumor_cohort, tmp_path / "stated", "healthy0")
    offline = synthesized(folder, tmp_path, "training", "validation")
    options = [f"data.healthy_root={folder}", f"synthesis.offline={offline}", "tumors=diffusion"]
    assert {case.id for case in built(tiny_segmentation(*options)).data.train} == {"healthy1", "silent_healthy"}


def test_scans_made_from_a_held_out_scan_under_another_name_are_refused(tiny_segmentation, tumor_cohort, tmp_path):
    folder = shutil.copytree(tumor_cohort, tmp_path / "copied")
    for name in ("healthy0", "healthy1", "silent_healthy"):
        shutil.copy(tumor_cohort / "imagesTr" / "early0.nii.gz", folder / "imagesTr" / f"{name}.nii.gz")
    made = synthesized(folder, tmp_path)
    with pytest.raises(
        CaseListError, match=r"copied/imagesTr/healthy0.nii.gz, the same scan \(identical\) as .*early0"
    ):
        built(tiny_segmentation(f"synthesis.offline={made}"))


def test_the_reader_of_scans_made_before_can_be_sent_to_other_processes(tiny_segmentation, offline):
    stage = built(tiny_segmentation(f"synthesis.offline={offline}"))
    case = stage.data.train[-1]
    assert pickle.loads(pickle.dumps(stage.data.reader)).about(case) == stage.data.reader.about(case)


def held_out(config):
    return "early0" in {case.id for case in built(config).data.validation}


def test_scans_of_unknown_origin_are_noted(tiny_segmentation, tumor_cohort, offline, tmp_path, capsys):
    moved = shutil.copytree(tumor_cohort, tmp_path / "moved")
    built(tiny_segmentation(f"synthesis.offline={offline}", f"data.root={moved}"))
    assert "Note: 3 scans of" in capsys.readouterr().out


def test_a_scan_in_both_lists_counts_once(tiny_segmentation, tumor_cohort):
    stage = built(tiny_segmentation(f"data.healthy_root={tumor_cohort}", "tumors=diffusion"))
    assert [case.id for case in stage.data.train] == ["healthy0", "healthy1", "silent_healthy"]


def test_without_real_tumors_in_training_few_of_them_are_all_validated_on(tiny_segmentation):
    stage = built(tiny_segmentation("tumors=handcrafted", "folds.count=9"))
    assert [case.id for case in stage.data.validation] == ["early0", "early1", "late0", "early2"]
    assert {case.id for case in stage.data.train} == {"healthy0", "healthy1", "silent_healthy"}


def test_scans_made_before_have_to_be_there_and_in_the_organ(tiny_segmentation, offline, tmp_path):
    with pytest.raises(CaseListError, match=r"synthesis\.offline=nowhere holds no scan with tumors"):
        built(tiny_segmentation("synthesis.offline=nowhere"))
    offline = shutil.copytree(offline, tmp_path / "copy")
    record = offline / "healthy0" / "record.json"
    record.write_text(record.read_text().replace('"organ": "liver"', '"organ": "kidney"'))
    with pytest.raises(CaseListError, match=r"has tumors in the kidney, not in the liver"):
        built(tiny_segmentation(f"synthesis.offline={offline}"))


def synthesized(cohort, tmp_path, *parts):
    """Return a folder in which ``difftumor synthesize`` has made tumors in the healthy scans of the cohort."""
    listing = json.loads((cohort / "dataset.json").read_text())
    entries = [e for part in parts or ("training",) for e in listing.pop(part) if "healthy" in e["image"]]
    for entry in entries:
        entry.update({part: str(cohort / entry[part]) for part in ("image", "label")})
    (tmp_path / "healthy.json").write_text(json.dumps({**listing, "training": entries}))
    out = tmp_path / "made"
    words = ["--cases", tmp_path / "healthy.json", "--organ", "liver", "--generator", "handcrafted", "--size", "small"]
    assert run_command("synthesize", *words, "--device", "cpu", "--out", out) == 0
    return out


def test_accumulated_batches_are_one_larger_batch(tiny_segmentation, tmp_path):
    weights = []
    for number, options in enumerate((["data.batch_size=1", "training.accumulate=2"], ["data.batch_size=2"])):
        config = tiny_segmentation(
            "name=" + str(number), f"artifact={tmp_path}/{number}", "synthesis.probability=0", "training.epochs=2",
            "data.class_ratios=[0,1,0]", *options,
        )  # fmt: skip
        history = []

        def keeping(settings, history=history):
            stage = build(settings)
            step = stage.module.optimizer_step
            stage.module.optimizer_step = lambda *args, **more: (history.append(1), step(*args, **more))[1]
            return stage

        artifact = run(config, keeping)
        assert len(history) == 6  # five crops an epoch are filled up to three steps of two
        weights.append(load(artifact))
    for name, value in weights[0].items():
        if name.endswith("weight"):  # biases before a norm follow rounding alone
            assert torch.allclose(weights[1][name], value, atol=1e-5), name


def load(artifact):
    return load_file(artifact / "model.safetensors")


EARLY = ("training.epochs=50", "training.patience=2", "optimizer.lr=1e-12")


def test_training_ends_early_when_nothing_gets_better(tiny_segmentation, tmp_path):
    config = tiny_segmentation(*EARLY)
    stored = read_config(run(config))
    assert stored.complete
    assert stored.training["validation_epoch"] == 3  # the first is the best, and two follow
    assert run(config).is_dir()  # a rerun finds it finished
    assert read_config(run(config)).identity == stored.identity


def test_a_run_that_ended_early_and_died_then_trains_no_further(tiny_segmentation, monkeypatch):
    def dying(*_):
        raise Crash

    config = tiny_segmentation(*EARLY)
    with monkeypatch.context() as patch:
        patch.setattr("stages.run.run._export", dying)
        with pytest.raises(Crash):
            run(config)
    stored = read_config(run(config))
    assert (stored.training["steps"], stored.training["validation_epoch"]) == (9, 3)
    # Nor does one that is asked for again with an option that changes no result.
    again = read_config(run(tiny_segmentation(*EARLY, "validation.windows_per_batch=1")))
    assert again.identity == stored.identity


@pytest.mark.slow
def test_bfloat16_trains_on_the_same_tumors(tiny_segmentation, tmp_path):
    batch = None
    made = []
    for precision in ("32-true", "bf16-mixed"):
        stage = built(tiny_segmentation("synthesis.probability=1"))
        batch = first_batch(stage)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            made.append(finished(batch, stage.module.tumors)["ct"])
    assert torch.equal(*made)
    config = tiny_segmentation("trainer.precision=bf16-mixed", "synthesis.probability=1")
    assert read_config(run(config)).complete


class KeepState(Callback):
    def __init__(self, folder):
        self.folder = str(folder)

    def on_train_end(self, trainer, module):
        torch.save(module.state_dict(), f"{self.folder}/{trainer.world_size}-{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_joint_batch(tiny_segmentation, tmp_path):
    for ranks, size in ((1, 2), (2, 1)):
        options = [f"data.batch_size={size}", "synthesis.probability=1", "optimizer.lr=1e-3"]
        stage = built_from(tiny_segmentation(*options), build)
        trainer_of(ranks, callbacks=[KeepState(tmp_path)], max_epochs=2).fit(stage.module, stage.data)
    joint, one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name, value in joint.items():
        assert torch.equal(one[name], two[name])
        # Biases before a norm have no gradient but rounding, of which Adam makes steps.
        if name.endswith("weight"):
            assert torch.allclose(one[name], value, atol=1e-6), name


class KeepMetrics(Callback):
    def __init__(self, folder):
        self.folder = str(folder)

    def on_validation_end(self, trainer, module):
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "validation" in name}
        torch.save(metrics, f"{self.folder}/{trainer.world_size}-{trainer.global_rank}.pt")


@pytest.mark.slow
def test_every_scan_counts_once_in_validation_on_any_number_of_ranks(tiny_segmentation, tumor_cohort, tmp_path):
    folder = with_validation(tumor_cohort, tmp_path / "stated", "early0", "early1", "late0")
    for ranks in (1, 2):
        stage = built_from(tiny_segmentation(f"data.root={folder}", "tumors=real", "optimizer.lr=1e-12"), build)
        trainer_of(ranks, callbacks=[KeepMetrics(tmp_path)], max_epochs=1).fit(stage.module, stage.data)
    one, two, other = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert two == other == pytest.approx(one, abs=1e-6)
    assert 0 < one["validation/organ_dsc"] < 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.normalization=minmax"], r"data\.normalization is 'minmax': choose unit or zscore"),
        (["synthesis.probability=1.5"], r"synthesis\.probability is 1\.5: give a number from 0 to 1"),
        (["synthesis.sizes.early=-1"], r"synthesis\.sizes\.early is -1"),
        (["+synthesis.sizes.huge=1"], r"Unknown option 'synthesis\.sizes\.huge'"),
        (["synthesis.most_early=0"], r"synthesis\.most_early is 0"),
        (["+synthesis.generators.brush=1"], r"Unknown option 'synthesis\.generators\.brush'"),
        (["synthesis.placement=left"], r"synthesis\.placement is 'left': choose"),
        (["synthesis.irregularity=soft"], r"synthesis\.irregularity is 'soft': give a number, \{uniform"),
        (["data.made_share=1"], r"data\.made_share is 1"),
        (["training.accumulate=0"], r"training\.accumulate is 0"),
        (["training.patience=0"], r"training\.patience is 0"),
        (["training.patience=1", "fold=null"], r"training\.patience is 1, but no scan is held out"),
        (["training.epochs=2.5"], r"training\.epochs is 2\.5"),
        (["data.batch_size=1.5"], r"data\.batch_size is 1\.5"),
        (["data.made_share=half"], r"data\.made_share is 'half'"),
        (["validation.overlap=some"], r"validation\.overlap is 'some'"),
        (["optimizer.weight_decay=-1"], r"optimizer\.weight_decay is -1"),
        (["augmentation.shift=little"], r"augmentation\.shift is 'little'"),
        (["synthesis.prefetch=2"], r"synthesis\.prefetch is 2"),
        (["organ.blend=decoded", "synthesis.center=0.5"], r"synthesis\.center is 0\.5, but crops of the liver"),
        (["synthesis.generators={diffusion: 0, handcrafted: 0}"], r"synthesis\.generators has no weight"),
    ],
)
def test_bad_options_are_named(tiny_segmentation, overrides, message):
    with pytest.raises(ConfigError, match=message):
        built(tiny_segmentation(*overrides))


def test_presets_differ_where_the_paper_and_the_code_do(tiny_segmentation):
    organ = ORGANS["pancreas"]
    assert organ.blend == "decoded"
    published, paper = (tiny_segmentation(f"experiment={name}", backbone=()) for name in ("published", "paper"))
    assert (published.backbone.name, paper.backbone.name, paper.backbone.size) == ("unet", "swinunetr", "base")
    assert (published.synthesis.placement, paper.synthesis.placement) == ("slice", "uniform")
    # One early size for all tumors of a crop.
    mix = built(tiny_segmentation("experiment=published")).module.tumors.mix
    drawn = [mix.draw(seed) for seed in range(60)]
    assert {(*spec.weights,) for spec in drawn if spec} == {("tiny",), ("small",), ("medium",), ("large",)}
