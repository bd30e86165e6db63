"""Stage 2: what it trains, what it leaves alone, and what resuming repeats."""

import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from difftumor.datasets.cases import read_case_labels
from difftumor.datasets.transforms import RandomCrop
from difftumor.errors import ArtifactError, CaseListError, ConfigError
from difftumor.models.artifact import Parent, load_artifact, save_artifact
from difftumor.models.artifact_config import read_config
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.models.latent_codec import LatentCodec
from difftumor.scans.intensity import IntensityWindow
from difftumor.synthesis.scan.loading import load_synthesizer
from difftumor.synthesis.spec import TumorSpec
from stages.config.comparing import flatten
from stages.config.compose import compose_config
from stages.config.options import AdamOptions
from stages.config.reading import to_plain
from stages.diffusion.data import share_seen
from stages.diffusion.module import DiffusionModule
from stages.diffusion.options import AverageOptions, DenoiserOptions, NoiseOptions
from stages.diffusion.train import build
from stages.run.run import run_stage
from tests.conftest import run as run_command
from tests.stages.builds import KINDS, Crash, built_from, crashing_at
from tests.stages.tumor_cohort import SMALL_DENOISER, small_autoencoder, with_validation


def run(config: DictConfig, build=build):
    return run_stage(config, KINDS["diffusion"], build)


def module(**changes) -> DiffusionModule:
    options = {
        "seed": 1,
        "network": DenoiserOptions(**SMALL_DENOISER),
        "codec": LatentCodec(small_autoencoder()),
        "autoencoder": Parent(Path("unused"), "none"),
        "size_group": "early",
        "ema": AverageOptions(start=0, every=1, decay=0.9),
        "optimizer": AdamOptions(lr=1e-3, betas=(0.9, 0.999)),
        "organ": "liver",
        "window": IntensityWindow(),
        "spacing_mm": (1.0, 1.0, 1.0),
        "crop": (16, 16, 16),
    }
    noise = {"timesteps": 4, "sampler": SamplerConfig(), "masked": "image", "loss": "l1"}
    noise |= {name: changes.pop(name) for name in noise if name in changes}
    made = DiffusionModule(**{**options, "diffusion": NoiseOptions(**noise), **changes})
    made.log = lambda *_, **__: None
    return made


def batch(size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.ones(size, 1, 16, 16, 16, dtype=torch.uint8)
    labels[:, :, 4:9, 5:10, 6:11] = 2
    return {"ct": 60 + 40 * torch.randn(labels.shape, generator=generator), "labels": labels}


def test_a_step_trains_the_denoiser_and_never_the_autoencoder():
    ours = module()
    autoencoder = ours.codec.autoencoder
    before = {k: v.clone() for k, v in autoencoder.state_dict().items()}
    weights = [p.detach().clone() for p in ours.denoiser.parameters()]
    optimizer = ours.configure_optimizers()
    losses = []
    for _ in range(30):
        ours.steps_done = 0  # the same noise each time
        loss = ours.training_step(batch(), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert any(not torch.equal(a, b) for a, b in zip(weights, ours.denoiser.parameters(), strict=True))
    assert all(torch.equal(before[k], v) for k, v in autoencoder.state_dict().items())
    assert all(p.grad is None for p in autoencoder.parameters())


def test_the_autoencoder_is_neither_counted_nor_saved():
    ours = module()
    denoiser = {f"denoiser.{name}" for name in ours.denoiser.state_dict()}
    assert set(ours.state_dict()) == denoiser
    assert {id(p) for p in ours.parameters()} == {id(p) for p in ours.denoiser.parameters()}
    checkpoint: dict = {}
    ours.on_save_checkpoint(checkpoint)
    assert set(checkpoint["ema"]["module"]) == set(ours.denoiser.state_dict())


def test_only_what_is_trained_is_compiled():
    ours = module(compiled=True)
    names = list(ours.state_dict())
    ours.on_fit_start()
    assert ours.denoiser._compiled_call_impl is not None
    assert ours.ema.module._compiled_call_impl is None
    assert ours.codec.autoencoder._compiled_call_impl is None
    assert list(ours.state_dict()) == names


@pytest.mark.slow
def test_a_compiled_denoiser_learns_the_same():
    losses = []
    for compiled in (False, True):
        ours = module(compiled=compiled)
        ours.on_fit_start()
        optimizer = ours.configure_optimizers()
        for _ in range(2):
            loss = ours.training_step(batch(), 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_loss_is_the_distance_between_noise_and_prediction():
    latent = torch.randn(2, 8, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4))
    seen = {}

    def denoiser(noisy, time, condition):
        seen["noisy"] = noisy
        return noise + torch.tensor([1.0, -3.0])[:, None, None, None, None]

    for kind, expected in (("l1", [1.0, 3.0]), ("l2", [1.0, 9.0])):
        ours = module(loss=kind)
        time_B = torch.tensor([0, 2])
        loss_B = ours.losses(denoiser, latent, None, time_B, noise)
        assert loss_B.tolist() == pytest.approx(expected, rel=1e-5)
        # z_t = √ᾱ_t z_0 + √(1 - ᾱ_t) ε, from the cosine schedule by hand
        f = np.cos((np.arange(5) / 4 + 0.008) / 1.008 * np.pi / 2) ** 2
        bars = torch.tensor(f[1:] / f[0], dtype=torch.float32)[time_B][:, None, None, None, None]
        assert torch.allclose(seen["noisy"], bars.sqrt() * latent + (1 - bars).sqrt() * noise, atol=1e-5)


def test_masking_in_the_latent_differs_from_masking_in_the_image():
    image, latent = (module(masked=masked).encoded(batch())[1] for masked in ("image", "latent"))
    assert torch.equal(image[:, -1], latent[:, -1])
    inside = image[:, -1:] > 0
    assert (latent[:, :-1] * inside).abs().max() == 0
    assert (image[:, :-1] * inside).abs().max() > 0


def test_noise_depends_on_step_and_element_but_not_on_batch_size():
    ours = module()
    latent = torch.zeros(3, 8, 4, 4, 4)
    time_B, noise = ours._drawn(latent)
    fewer_time_B, fewer = ours._drawn(latent[:2])
    assert torch.equal(time_B[:2], fewer_time_B)
    assert torch.equal(noise[:2], fewer)
    assert not torch.equal(noise[0], noise[1])
    ours.steps_done = 1
    assert not torch.equal(ours._drawn(latent)[1], noise)
    assert noise.mean().abs() < 0.1
    assert noise.std() == pytest.approx(1, abs=0.1)


def test_a_run_that_died_ends_with_the_weights_of_one_that_did_not(tiny_diffusion, tmp_path):
    folds = ("fold=0", "folds.count=2")
    whole = run(tiny_diffusion("name=whole", f"artifact={tmp_path}/whole", *folds))
    parted_config = tiny_diffusion("name=parted", f"artifact={tmp_path}/parted", *folds)
    with pytest.raises(Crash):
        run(parted_config, crashing_at(build, 4))
    parted = run(parted_config)
    assert (parted / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert read_config(parted).metrics == read_config(whole).metrics
    assert read_config(parted).real_tumors == read_config(whole).real_tumors
    checkpoint = torch.load(tmp_path / "runs/diffusion/whole/last.ckpt", weights_only=True)
    assert checkpoint["ema"]["step"] == checkpoint["steps_done"] == 6
    assert not any("autoencoder" in name or "codebook" in name for name in checkpoint["state_dict"])


def test_training_ends_when_the_held_out_loss_no_longer_falls(tiny_diffusion):
    words = ("training.steps=60", "training.steps_per_epoch=3", "training.patience=2", "optimizer.lr=1e-12")
    config = tiny_diffusion(*words, "fold=0", "folds.count=2", "validation.synthesize_every_n_epochs=0")
    artifact = run(config)
    stored = read_config(artifact)
    assert stored.complete
    assert stored.training["steps"] == 9  # the first validation is the best, and two follow
    assert read_config(artifact.with_name(f"{artifact.name}_best")).training["steps"] == 3
    assert read_config(run(config)).identity == stored.identity  # a rerun finds it finished


def test_the_artifact_holds_the_average_and_makes_tumors(tiny_diffusion, tmp_path, untrained):
    artifact = run(tiny_diffusion("ema.start=0", "ema.decay=0.99"))
    assert artifact == tmp_path / "checkpoints" / "diffusion_liver_early"
    loaded = load_artifact(artifact, kind="diffusion")
    assert loaded.config.settings["timesteps"] == 4
    assert loaded.config.settings["masked"] == "image"
    assert loaded.config.settings["tumor_stage"] == "early"
    assert loaded.config.organ == "liver"
    assert loaded.config.parents["autoencoder"].identity == read_config(untrained / "autoencoder").identity
    assert loaded.config.training["cases"]["training"] == {"early0": 1, "early1": 1, "early2": 1}
    state = torch.load(tmp_path / "runs/diffusion/liver_early/last.ckpt", weights_only=True)
    average = state["ema"]["module"]
    assert all(torch.equal(average[name], value) for name, value in loaded.network.state_dict().items())
    assert any(not torch.equal(average[name], state["state_dict"][f"denoiser.{name}"]) for name in average)
    synthesizer = load_synthesizer(artifact, organ="liver")
    organ = torch.ones(16, 16, 16, dtype=torch.uint8)
    records = synthesizer.draw(organ, TumorSpec(size="tiny"), seed=1)
    made = synthesizer.apply(torch.zeros(1, 1, 16, 16, 16), organ[None, None], [records])
    assert (made.labels == 2).any()


def test_an_autoencoder_that_changes_during_the_run_is_recorded_as_it_was_and_refused_later(
    tiny_diffusion, tmp_path, untrained
):
    parent = shutil.copytree(untrained / "autoencoder", tmp_path / "autoencoder")
    before = read_config(parent).identity

    def retrained_meanwhile(settings):
        built = build(settings)
        old = load_artifact(parent)
        next(old.network.parameters()).mul_(1.01)
        save_artifact(
            parent,
            kind="autoencoder",
            architecture=old.config.architecture,
            network=old.network,
            preprocessing=old.config.preprocessing,
        )
        return built

    options = (f"autoencoder.artifact={parent}",)
    artifact = run(tiny_diffusion(*options), retrained_meanwhile)
    assert read_config(artifact).parents["autoencoder"].identity == before != read_config(parent).identity
    sentence = r"autoencoder is not the autoencoder that .* was started with .*fresh=true"
    with pytest.raises(ConfigError, match=sentence):  # instead of "has finished"
        run(tiny_diffusion(*options))
    shutil.rmtree(artifact)
    with pytest.raises(ConfigError, match=sentence):  # instead of going on
        run(tiny_diffusion(*options))
    run(tiny_diffusion(*options, "fresh=true"))


def test_late_tumors_are_chosen_with_their_own_timesteps(tiny_diffusion, tmp_path, capsys):
    config = tiny_diffusion("tumor_stage=late", "training.steps=2")
    assert config.artifact.endswith("diffusion_liver_late")
    assert (config.diffusion.timesteps, config.diffusion.sampler.kind, config.diffusion.sampler.steps) == (
        200,
        "ddim",
        50,
    )
    stored = read_config(run(config))
    assert stored.training["cases"]["training"] == {"late0": 1}
    assert "1 late tumor in 1 case" in (said := capsys.readouterr().out)
    assert "left out for having none: 3 (early0, early1, early2)" in said


def test_early_training_crops_show_late_tumors_as_organ(tiny_diffusion):
    reader = built_from(tiny_diffusion(), build).data.reader
    cases = {case.id: case for case in reader.cases.cases}
    assert (reader(cases["early0"])["labels"] == 2).sum() == 27
    late = reader(cases["late0"])["labels"]
    assert not (late == 2).any()
    assert (late == 1).sum() == 16 * 13 * 16


def test_crops_sit_on_wanted_tumors_or_the_organ_at_the_stated_ratio(tiny_diffusion):
    data = built_from(tiny_diffusion("data.foreground_ratio=3"), build).data
    case = next(case for case in data.train if case.id == "early0")
    item = data.reader(case)
    # Boxes of the cohort: 27 voxels of tumor in 16 x 13 x 16 of organ.
    flat = item["labels"].numpy().ravel()
    assert len(item["foreground"]) == 27
    assert set(flat[item["foreground"]]) == {2}
    assert len(item["background"]) == 16 * 13 * 16 - 27
    assert set(flat[item["background"]]) == {1}
    assert data.transform.around.cropper.pos_ratio == 3 / 4
    crop = RandomCrop((1, 1, 1), foreground_ratio=3)
    centers = [int(crop.set_random_state(seed=seed)(item)["labels"]) for seed in range(400)]
    # 3 of 4; the standard deviation is sqrt(400 * 3/4 * 1/4) = 8.7.
    assert centers.count(2) == pytest.approx(300, abs=40)
    assert centers.count(1) == 400 - centers.count(2)
    assert data.reader.about(case)["background"] == "organ"  # caches of earlier versions hold other voxels


def test_an_organ_that_is_all_tumor_is_still_cropped_around(tiny_diffusion, tumor_cohort, tmp_path):
    folder = shutil.copytree(tumor_cohort, tmp_path / "copy")
    file = folder / "labelsTr" / "early0.nii.gz"
    stored = nib.load(file)
    labels = np.asarray(stored.dataobj)
    nib.save(nib.Nifti1Image(np.where(labels == 1, 0, labels).astype(np.uint8), stored.affine), file)
    data = built_from(tiny_diffusion(f"data.root={folder}"), build).data
    item = data.reader(next(case for case in data.train if case.id == "early0"))
    assert len(item["foreground"]) == 27
    # Never on background.
    assert sorted(item["background"]) == sorted(item["foreground"])


@pytest.fixture
def pairs(tumor_cohort, tmp_path):
    """The cohort with a second early tumor in every case that has one."""
    folder = shutil.copytree(tumor_cohort, tmp_path / "pairs")
    for name in ("early0", "early1", "early2"):
        file = folder / "labelsTr" / f"{name}.nii.gz"
        stored = nib.load(file)
        labels = np.asarray(stored.dataobj).copy()
        labels[14:17, 12:15, 12:15] = 2
        nib.save(nib.Nifti1Image(labels, stored.affine), file)
    return folder


def test_chosen_tumors_are_learned_and_the_others_count_as_organ(tiny_diffusion, pairs, capsys):
    chosen = []
    for count in range(1, 7):
        built = built_from(tiny_diffusion(f"data.root={pairs}", f"data.max_tumors={count}", "seed=5"), build)
        tumors = built.module.cases["tumors"]
        assert tumors[: count - 1] == chosen
        chosen = tumors
        assert f"Learning {count} of 6 early tumors" in (said := capsys.readouterr().out)
        assert said.count("radius 5.6 mm, at (") == count == len(tumors)
        assert {case.id for case in built.data.train} == {tumor["case"] for tumor in tumors}
        assert built.module.cases["training"] == dict(Counter(tumor["case"] for tumor in tumors))
        for case in built.data.train:
            labels = built.data.reader(case)["labels"][0]
            assert (labels > 0).sum() == 16 * 13 * 16
            centers = [tumor["center_mm"] for tumor in tumors if tumor["case"] == case.id]
            assert (labels == 2).sum() == 27 * len(centers)
            for center_mm in centers:  # 3 mm voxels, the first at the origin
                assert center_mm in ((24, 27, 24), (45, 39, 39))
                assert labels[tuple(round(value / 3) for value in center_mm)] == 2
            assert all(tumor["radius_mm"] == pytest.approx((3 * 27 * 27 / (4 * np.pi)) ** (1 / 3)) for tumor in tumors)


def test_held_out_tumors_are_all_kept_for_validation(tiny_diffusion, pairs):
    options = (f"data.root={pairs}", "fold=0", "folds.count=2", "validation.crops=99")
    every = built_from(tiny_diffusion(*options), build).data
    one = built_from(tiny_diffusion(*options, "data.max_tumors=1"), build).data
    assert one.validation == every.validation
    assert len(one.train) == 1 < len(every.train) + len(every.validation)
    for data in (every, one):
        data.setup()
    assert [item["key"] for item in one.fixed] == [item["key"] for item in every.fixed]
    assert one.train[0] in every.train


def test_one_tumor_trains_and_resumes(tiny_diffusion, pairs, tmp_path):
    options = (f"data.root={pairs}", "data.max_tumors=1")
    whole = run(tiny_diffusion("name=whole", f"artifact={tmp_path}/whole", *options))
    config = tiny_diffusion("name=parted", f"artifact={tmp_path}/parted", *options)
    with pytest.raises(Crash):
        run(config, crashing_at(build, 4))
    with pytest.raises(ConfigError, match=r"data\.max_tumors"):
        run(tiny_diffusion("name=parted", f"artifact={tmp_path}/parted", *options, "data.max_tumors=2"))
    parted = run(config)
    assert (parted / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    cases = read_config(parted).training["cases"]
    assert cases == read_config(whole).training["cases"]
    (tumor,) = cases["tumors"]
    assert cases["training"] == {tumor["case"]: 1}
    assert len(tumor["center_mm"]) == 3
    assert tumor["radius_mm"] == pytest.approx(5.6, abs=0.05)


def test_split_tumors_makes_lists_that_the_stage_reads(tiny_diffusion, tumor_cohort, tmp_path):
    """Each list has the tumors of its stage and no others, whatever the stage's own limit."""
    assert run_command("split-tumors", tumor_cohort, tmp_path / "split") == 0
    options = ("fold=0", "folds.count=2", "validation.crops=99")
    whole = built_from(tiny_diffusion(*options), build).data
    early = built_from(
        tiny_diffusion(*options, f"data.root={tmp_path}/split/early", "lesions.early_radius_mm=12"), build
    ).data
    for part in ("train", "validation"):
        assert [case.id for case in getattr(early, part)] == [case.id for case in getattr(whole, part)]
    for ours, theirs in zip(early.train, whole.train, strict=True):
        assert torch.equal(early.reader(ours)["labels"], whole.reader(theirs)["labels"])
        assert torch.equal(early.reader(ours)["ct"], whole.reader(theirs)["ct"])
    late = built_from(tiny_diffusion(f"data.root={tmp_path}/split/late", "tumor_stage=late"), build).data
    assert [case.id for case in late.train] == ["late0"]


def test_without_a_limit_the_artifact_lists_cases_alone(tiny_diffusion):
    assert "tumors" not in built_from(tiny_diffusion(), build).module.cases


def test_validation_crops_are_fixed_around_held_out_tumors(tiny_diffusion):
    data = built_from(tiny_diffusion("fold=0", "folds.count=2"), build).data
    data.setup()
    keys = [item["key"] for item in data.fixed]
    assert len(keys) == len(set(keys)) <= 2
    held_out = {case.id for case in data.validation}
    assert not held_out & {case.id for case in data.train}
    for item in data.fixed:
        assert item["case"] in held_out
        assert item["ct"].shape == (1, 16, 16, 16)
        assert (item["labels"] == 2).sum() == 27


def test_every_label_map_is_read_once_to_start(tiny_diffusion, monkeypatch):
    read = []

    def noted(case, *args, **kwargs):
        read.append(case.id)
        return read_case_labels(case, *args, **kwargs)

    monkeypatch.setattr("difftumor.datasets.tumor_cases.read_case_labels", noted)
    data = built_from(tiny_diffusion(), build).data
    assert sorted(read) == sorted(case.id for case in data.reader.cases.cases)


def test_stated_validation_cases_are_never_learned(tiny_diffusion, tumor_cohort, tmp_path, capsys):
    folder = with_validation(tumor_cohort, tmp_path / "stated", "early1", "late0")
    data = built_from(tiny_diffusion(f"data.root={folder}"), build).data
    assert {case.id for case in data.train} == {"early0", "early2"}
    assert {case.id for case in data.validation} == {"early1"}
    assert "Holding out the 2 validation cases" in (said := capsys.readouterr().out)
    assert "ignored" not in said


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("diffusion.loss=huber", ConfigError, r"loss is 'huber'"),
        ("diffusion.masked=both", ConfigError, r"masked is 'both'"),
        ("data.spacing_mm=[2,2,2]", ConfigError, r"data\.spacing_mm is \[2\.0, 2\.0, 2\.0\], but .* was trained with"),
        ("data.crop=[20,20,16]", ConfigError, r"multiples of 8 along X and Y"),
        ("training.steps=7", ConfigError, r"training\.steps is 7"),
        ("training.compile=1", ConfigError, r"training\.compile is 1: choose true or false"),
        ("diffusion.sampler.steps=9", ConfigError, r"steps"),
        ("autoencoder.artifact=nowhere", ArtifactError, r"no artifact folder at nowhere"),
        ("lesions.early_radius_mm=1", CaseListError, r"no early liver tumor"),
        ("optimizer.betas=0.9", ConfigError, r"optimizer\.betas is 0\.9: give two numbers"),
        ("training.patience=3", ConfigError, r"training\.patience is 3, but no tumor is held out"),
        ("data.max_tumors=0", ConfigError, r"data\.max_tumors is 0: give a whole number, 1 or more, or all"),
        ("data.max_tumors=some", ConfigError, r"data\.max_tumors is 'some'"),
        ("data.max_tumors=true", ConfigError, r"data\.max_tumors is True"),
        ("data.max_tumors=1.5", ConfigError, r"data\.max_tumors is 1\.5"),
        ("data.max_tumors=4", ConfigError, r"data\.max_tumors is 4, but of the early liver tumors .* 3 can be trained"),
        ("lesions.early_radius_mm=0", ConfigError, r"lesions\.early_radius_mm is 0"),
        ("lesions.minimum_voxels=0", ConfigError, r"lesions\.minimum_voxels is 0"),
        ("lesions.minimum_voxels=8.5", ConfigError, r"lesions\.minimum_voxels is 8\.5: give a whole number"),
        ("+ema.bogus=1", ConfigError, r"Unknown option 'ema\.bogus'"),
        ("+network.latent_channels=8", ConfigError, r"Unknown option 'network\.latent_channels'"),
        ("fold=7", ConfigError, r"Fold 7 does not exist"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing_behind(tiny_diffusion, tmp_path, override, error, message):
    with pytest.raises(error, match=message) as caught:
        run(tiny_diffusion(override))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("debug", ["one_batch", "overfit", "profile"])
def test_debug_configs_run(tiny_diffusion, debug):
    assert read_config(run(tiny_diffusion(f"+debug={debug}", "trainer.max_epochs=1"))).complete


def test_the_defaults_are_the_published_ones():
    config = compose_config("diffusion", ["organ=liver"])
    assert (config.diffusion.timesteps, config.diffusion.loss, config.diffusion.masked) == (4, "l1", "image")
    assert (config.training.steps, config.data.batch_size, config.optimizer.lr) == (60000, 10, 1e-4)
    assert (config.training.accumulate, config.data.foreground_ratio) == (2, 1)
    assert (config.augmentation.rotation_probability, config.lesions.early_includes_limit) == (0.1, False)
    assert (config.ema.decay, config.ema.start, config.ema.every) == (0.995, 2000, 10)
    assert list(config.data.crop) == [96, 96, 96]


def difference(config, other):
    """Names of the options that differ."""
    flat, others = flatten(to_plain(config)), flatten(to_plain(other))
    return {name for name in {**flat, **others} if flat.get(name) != others.get(name)}


@pytest.mark.parametrize("stage", ["early", "late"])
def test_presets_differ_as_documented(stage):
    options = ["organ=liver", f"tumor_stage={stage}"]
    default = compose_config("diffusion", options)
    published = compose_config("diffusion", [*options, "experiment=published"])
    assert difference(default, published) == {"lesions.early_includes_limit"}
    paper = compose_config("diffusion", [*options, "experiment=paper"])
    assert difference(default, paper) == {"name", "diffusion.loss", "diffusion.masked", "training.accumulate"}
    assert (paper.diffusion.loss, paper.diffusion.masked, paper.name) == ("l2", "latent", f"liver_{stage}_paper")
    assert paper.training.accumulate * paper.data.batch_size == 10


def test_two_batches_make_the_step_of_one_of_their_size(tiny_diffusion, tmp_path):
    def trained(name, *options):
        words = ("training.steps=4", "ema.decay=0.5", "augmentation.rotation_probability=0.5")
        artifact = run(tiny_diffusion(f"name={name}", f"artifact={tmp_path}/{name}", *words, *options))
        kept = torch.load(tmp_path / "runs" / "diffusion" / name / "last.ckpt", weights_only=True)
        steps = {kept["steps_done"], kept["ema"]["step"], kept["global_step"]}
        return load_artifact(artifact).network.state_dict(), steps, read_config(artifact).training["steps"]

    joint, *steps = trained("joint", "data.batch_size=4")
    halves, *same_steps = trained("halves", "data.batch_size=2", "training.accumulate=2")
    assert steps == same_steps == [{4}, 4]
    # Same crops, noise and times; batches of other sizes round differently.
    torch.testing.assert_close(halves, joint, rtol=1e-3, atol=2e-5)


def test_every_batch_of_a_step_has_its_own_noise():
    ours = module()
    latent = torch.zeros(2, 8, 4, 4, 4)
    joint_times, joint_noise = ours._drawn(torch.zeros(4, 8, 4, 4, 4))
    first = ours._drawn(latent)
    ours.on_train_batch_end(None, None, 0)  # without a step
    second = ours._drawn(latent)
    assert ours.steps_done == 0
    assert torch.equal(torch.cat([first[0], second[0]]), joint_times)
    assert torch.equal(torch.cat([first[1], second[1]]), joint_noise)


@pytest.mark.parametrize(("side", "share"), [(1, 1 / 64), (2, 8 / 64), (3, 27 / 64), (4, 1), (6, 1)])
def test_the_share_of_crops_in_which_a_mask_is_seen(side, share):
    box = np.argwhere(np.ones((side,) * 3)) + np.array([5, 6, 7])
    assert share_seen(box, 4) == share
    # As the codec reduces masks, at all 64 positions.
    mask = torch.zeros(1, 1, 24, 24, 24)
    mask[0, 0][tuple(box.T)] = 1
    found = [
        F.interpolate(mask[..., x : x + 16, y : y + 16, z : z + 16], size=(4, 4, 4), mode="nearest").any().item()
        for x, y, z in np.ndindex(4, 4, 4)
    ]
    assert np.mean(found) == share


def test_tumors_that_vanish_in_the_latent_are_named(tiny_diffusion, capsys):
    built_from(tiny_diffusion("fold=null"), build)
    said = capsys.readouterr().out
    # Boxes of 27 voxels of 27 mm³ take up 27 of 64 remainders.
    assert "Warning: the masks of 3 of 3 early tumors vanish in the latent" in said
    assert "early0 (radius 5.6 mm, 27 voxels) in 58%, early1" in said
    assert "finer data.spacing_mm" in said
    built_from(tiny_diffusion("tumor_stage=late", "fold=null"), build)
    assert "Warning" not in capsys.readouterr().out


def test_latents_that_one_code_compresses_are_warned_about(capsys):
    ours = module()
    ours.training_step(batch(), 0)
    assert "Warning" not in capsys.readouterr().out
    ours = module()
    ours.codec.autoencoder.codebook.embeddings[0, 0] = 1e4
    for _ in range(2):
        ours.training_step(batch(), 0)
    said = capsys.readouterr().out
    deviation = float(ours.encoded(batch())[0].std())
    assert 0 < deviation < 0.01
    assert said.count(f"standard deviation of {deviation:.3g}") == 1


def test_the_paper_preset_trains(tiny_diffusion):
    stored = read_config(run(tiny_diffusion("experiment=paper", "training.steps=2")))
    assert stored.settings["masked"] == "latent"
    assert stored.training["config"]["diffusion"]["loss"] == "l2"
