"""Cached latents of stage 2: the same weights however the cache came about, and never another crop's latent."""

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from difftumor.datasets.transforms import RandomCrop
from difftumor.errors import ConfigError, TrainingError
from difftumor.models.artifact import load_artifact, save_artifact
from difftumor.models.artifact_config import read_config
from difftumor.models.latent_codec import LatentCodec
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.organs import Organ
from difftumor.seeding import derive_seed
from stages.diffusion.hosts import HeldOut
from stages.diffusion.latent_cache import LatentCache, latent_key
from stages.diffusion.latents import DrawLatent, PoolKeys
from stages.diffusion.train import build
from stages.run.run import run_stage
from tests.stages.builds import KINDS, Crash, built_from, crashing_at

CROPS = 3
LATENTS = 2 * CROPS + 1  # of two cases to learn, and around the one tumor that is held out
NO_HOSTS = "validation.synthesize_every_n_epochs=0"  # whose CTs are read in any case


def run(config: DictConfig, build=build):
    return run_stage(config, KINDS["diffusion"], build)


@pytest.fixture(scope="module")
def cached_in(diffusion_in):
    """Compose the config of a run of a name, with a cache of a name, in a folder."""

    def compose(folder: Path, name: str, *overrides: str, cache: str = "cache") -> DictConfig:
        places = (f"name={name}", f"artifact={folder}/{name}", f"latents.cache={folder}/{cache}")
        options = ("fold=0", "folds.count=2", f"latents.crops={CROPS}", "training.steps_per_epoch=3", NO_HOSTS)
        return diffusion_in(folder, *options, *places, *overrides)

    return compose


@pytest.fixture
def cached(cached_in, tmp_path):
    return partial(cached_in, tmp_path)


@pytest.fixture(scope="module")
def whole(cached_in, tmp_path_factory) -> Path:
    """The artifact of a run that found no cache, had no workers and never died."""
    return run(cached_in(tmp_path_factory.mktemp("whole"), "whole"))


def filled(config: DictConfig, *, device="cpu", change=lambda built: None):
    """Fill the cache of a config as training would, and return the data."""
    built = built_from(config, build)
    change(built)
    strategy = SimpleNamespace(root_device=torch.device(device))
    built.data.trainer = SimpleNamespace(lightning_module=built.module, strategy=strategy, global_rank=0, world_size=1)
    built.data.setup()
    return built.data


@pytest.fixture
def keys(monkeypatch):
    """Return the keys of the latents that training with a config would want."""

    class Stopped(Exception):  # noqa: N818
        pass

    def wanted(config: DictConfig, **options) -> set[str]:
        found: set[str] = set()

        def note(cache, wanted, **_):
            found.update(key for crops in wanted for key in crops.cuts)
            raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr("stages.diffusion.latents.fill", note)
            with pytest.raises(Stopped):
                filled(config, **options)
        return found

    return wanted


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def contents(folder: Path) -> dict[str, dict[str, bytes]]:
    """The bits of all tensors, by file."""
    return {
        file.name: {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}
        for file in files(folder)
    }


def check_same(one: Path, other: Path) -> None:
    """Two artifacts are the same to the last bit, and so is what validation found."""
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert read_config(one).metrics == read_config(other).metrics
    assert read_config(one).metrics


@pytest.mark.slow
def test_weights_are_the_same_whatever_was_there_before(cached, tmp_path, capsys):
    empty = run(cached("empty"))
    assert f"{LATENTS} of 0.0044 MB, 3e-05 GB in all; 0 are there, {LATENTS} to be made." in capsys.readouterr().out
    whole = contents(tmp_path / "cache")
    assert len(whole) == LATENTS
    check_same(run(cached("full")), empty)
    assert f"{LATENTS} are there, 0 to be made." in capsys.readouterr().out
    truncated, wrong, gone, swapped, other = files(tmp_path / "cache")[:5]
    truncated.write_bytes(truncated.read_bytes()[:-100])
    wrong.write_bytes(wrong.read_bytes()[:-1] + b"!")
    gone.unlink()
    shutil.copy(other, swapped)
    check_same(run(cached("partly")), empty)
    assert f"{LATENTS - 4} are there, 4 to be made." in capsys.readouterr().out
    assert contents(tmp_path / "cache") == whole
    check_same(run(cached("elsewhere", cache="another/cache")), empty)
    assert contents(tmp_path / "another" / "cache") == whole


def test_weights_are_the_same_with_two_workers(cached, whole):
    check_same(run(cached("two", "data.num_workers=2")), whole)


@pytest.mark.parametrize(("before", "after"), [pytest.param(0, 2, marks=pytest.mark.slow), (2, 0)])
def test_a_run_that_died_mid_epoch_ends_as_one_that_did_not(cached, whole, tmp_path, before, after):
    with pytest.raises(Crash):
        run(cached("parted", f"data.num_workers={before}"), crashing_at(build, 4))
    files(tmp_path / "cache")[0].unlink()
    check_same(run(cached("parted", f"data.num_workers={after}", cache="moved")), whole)


@pytest.mark.slow
def test_a_run_draws_other_crops_without_a_cache_and_may_not_change_over(cached, tmp_path):
    with pytest.raises(Crash):
        run(cached("run"), crashing_at(build, 4))
    for changed in ("latents.cache=null", "latents.crops=4"):
        with pytest.raises(ConfigError, match=r"was started with latents\."):
            run(cached("run", changed))
    kept = run(cached("run"))
    with pytest.raises(Crash):
        run(cached("plain", "latents.cache=null"), crashing_at(build, 4))
    assert len(files(tmp_path / "cache")) == LATENTS
    with pytest.raises(ConfigError, match=r"was started with latents\.cache=None"):
        run(cached("plain"))
    plain = run(cached("plain", "latents.cache=null", "latents.crops=9"))  # of no matter there
    assert (plain / "model.safetensors").read_bytes() != (kept / "model.safetensors").read_bytes()


def test_each_latent_is_that_of_its_crop_encoded_alone(cached, tmp_path, untrained):
    data = filled(cached("run", "augmentation.rotation_probability=0.5"))
    codec = LatentCodec(load_artifact(untrained / "autoencoder").network)
    crops = data.reader.fixed_crops(data.validation, limit=9)
    for case in data.train:
        for number in range(CROPS):
            cut = RandomCrop((16, 16, 16), foreground_ratio=1.0, rotation_probability=0.5)
            cut.set_random_state(seed=derive_seed(0, "latents", case.id, number) % 2**32)
            crops.append(cut(data.reader(case)))
    expected = set()
    for crop in crops:
        signed = IntensityWindow().to_signed(crop["ct"][None])
        condition = codec.condition(signed, crop["labels"][None] == 2, masked="image")
        expected.add((codec.encode(signed).numpy().tobytes(), condition.numpy().tobytes()))
    found = {(bits["latent"], bits["condition"]) for bits in contents(tmp_path / "cache").values()}
    assert found == expected
    assert len(found) == LATENTS


def test_held_out_crops_are_those_of_a_run_without_a_cache(cached):
    options = ("folds.count=3", "validation.crops=9")
    for fold in range(3):
        plain = filled(cached("plain", *options, f"fold={fold}", "latents.cache=null")).fixed
        with_cache = filled(cached("cached", *options, f"fold={fold}")).fixed
        assert [(item["case"], item["key"]) for item in with_cache] == [(i["case"], i["key"]) for i in plain]
        assert all(set(item) == {"latent", "condition", "case", "key"} for item in with_cache)
    assert not filled(cached("none", "fold=null")).fixed


def test_no_more_held_out_crops_are_encoded_than_are_asked_for(cached, tmp_path):
    data = filled(cached("run", "validation.crops=1", "folds.count=3"))
    assert len(data.fixed) == 1
    assert len(files(tmp_path / "cache")) == len(data.train) * CROPS + 1


def test_a_full_cache_is_all_that_is_read(cached, tmp_path, monkeypatch):
    monkeypatch.setattr(HeldOut, "learned", ())  # whose CTs are read for the artifact in any case
    first = run(cached("first"))

    def refuse(*_, **__):
        raise AssertionError("a CT was read")

    monkeypatch.setattr("stages.diffusion.data.load_case", refuse)
    check_same(run(cached("second")), first)
    files(tmp_path / "cache")[0].unlink()
    with pytest.raises(AssertionError, match="a CT was read"):
        run(cached("third"))


def test_draws_are_even_and_depend_on_the_seed_alone(tmp_path):
    cache = LatentCache(tmp_path)
    keys = tuple(latent_key(number=number) for number in range(4))
    for number, key in enumerate(keys):
        cache.write(key, {"latent": torch.tensor([number]), "condition": torch.tensor([number])})
    case = PoolKeys({"a": keys})(SimpleNamespace(id="a"))
    draw = DrawLatent(cache)
    drawn = [draw.set_random_state(seed=seed)(case)["latent"].item() for seed in range(400)]
    # 100 each; the standard deviation is sqrt(400 * 1/4 * 3/4) = 8.7.
    assert all(drawn.count(number) == pytest.approx(100, abs=40) for number in range(4))
    assert [draw.set_random_state(seed=seed)(case)["latent"].item() for seed in reversed(range(400))] == drawn[::-1]


@pytest.mark.parametrize(
    ("override", "new"),
    [
        ("diffusion.masked=latent", LATENTS),
        ("lesions.early_radius_mm=9", LATENTS),
        ("lesions.minimum_voxels=7", LATENTS),
        ("data.crop=[16,16,8]", LATENTS),
        ("data.labels=msd_liver", LATENTS),
        ("data.foreground_ratio=3", LATENTS - 1),
        ("augmentation.rotation_probability=0.5", LATENTS - 1),
        ("seed=1", LATENTS - 1),
        ("latents.crops=5", 4),
        ("latents.crops=2", 0),
        ("data.max_tumors=1", CROPS),
        ("data.batch_size=1", 0),
        ("data.cache_rate=0", 0),
        ("optimizer.lr=0.1", 0),
        ("diffusion.loss=l2", 0),
        ("tumor_stage=early", 0),
        ("ema.start=1", 0),
    ],
)
def test_what_decides_a_latent_is_part_of_its_key(cached, keys, override, new):
    before, after = keys(cached("run")), keys(cached("run", override))
    assert len(before) == LATENTS
    assert len(after - before) == new


def test_what_no_option_changes_alone_is_part_of_the_key_too(cached, tmp_path, untrained, keys):
    before = keys(cached("run"))

    def window(built):
        built.module.window = IntensityWindow(-175.0, 251.0)

    def spacing(built):
        built.data.reader = replace(built.data.reader, spacing_mm=(3.0, 3.0, 2.0))

    def organ(built):
        other = Organ(name="liver_tumor", minimum_radius_mm=1)  # the same label map means something else
        built.data.reader = replace(built.data.reader, organ=other)

    for change in ({"change": window}, {"change": spacing}, {"change": organ}, {"device": "meta"}):
        after = keys(cached("run"), **change)
        assert len(after) == LATENTS
        assert not after & before
    parent = shutil.copytree(untrained / "autoencoder", tmp_path / "same")
    assert keys(cached("run", f"autoencoder.artifact={parent}")) == before
    old = load_artifact(parent)
    next(old.network.parameters()).mul_(1.01)
    save_artifact(
        tmp_path / "other",
        kind="autoencoder",
        architecture=old.config.architecture,
        network=old.network,
        preprocessing=old.config.preprocessing,
    )
    assert not keys(cached("run", f"autoencoder.artifact={tmp_path}/other")) & before


def touch(file: Path) -> None:
    """Change a file's time by the least there is."""
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def test_a_case_whose_files_change_is_encoded_again(cached, tumor_cohort, tmp_path):
    folder = shutil.copytree(tumor_cohort, tmp_path / "copy")
    config = cached("run", f"data.root={folder}")
    data = filled(config)
    for times, part in ((1, "imagesTr"), (2, "labelsTr")):
        before = contents(tmp_path / "cache")
        touch(folder / part / f"{data.train[0].id}.nii.gz")
        filled(config)
        after = contents(tmp_path / "cache")
        assert len(after) == LATENTS + times * CROPS
        assert before.items() <= after.items()


def test_a_structure_whose_file_changes_is_read_again(cached, tumor_cohort, tmp_path, keys):
    """Labels as a folder of one file per structure."""
    for image in sorted((tumor_cohort / "imagesTr").iterdir()):
        folder = tmp_path / "cases" / image.name.removesuffix(".nii.gz")
        (folder / "segmentations").mkdir(parents=True)
        shutil.copy(image, folder / "ct.nii.gz")
        stored = nib.load(tumor_cohort / "labelsTr" / image.name)
        labels = np.asarray(stored.dataobj)
        for name, mask in (("liver", labels > 0), ("liver_tumor", labels == 2)):
            nib.save(nib.Nifti1Image(mask.astype(np.uint8), stored.affine), folder / "segmentations" / f"{name}.nii.gz")
    config = cached("run", f"data.root={tmp_path}/cases")
    before = keys(config)
    assert len(before) == LATENTS
    touch(tmp_path / "cases" / "early0" / "segmentations" / "liver_tumor.nii.gz")
    assert len(keys(config) - before) in (1, CROPS)  # held out, or learned


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_latent_that_goes_during_training_is_named_and_made_again(cached, tmp_path, workers):
    whole = run(cached("whole", cache="other"))

    def losing(settings):
        built = build(settings)
        inner = built.module.training_step

        def training_step(batch, batch_idx):
            if built.module.steps_done == 2:
                for file in files(tmp_path / "cache"):
                    file.write_bytes(b"")
            return inner(batch, batch_idx)

        built.module.training_step = training_step
        return built

    config = cached("run", f"data.num_workers={workers}")
    with pytest.raises(TrainingError, match=r"cache/\w+\.safetensors has gone .* rerun the same command") as caught:
        run(config, losing)
    assert "\n" not in str(caught.value)
    check_same(run(config), whole)


def test_a_disk_without_room_is_said_before_anything_is_made(cached, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.diffusion.latent_filling.shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(ConfigError, match=r"latents\.cache is .*: make room, give another folder, or fewer") as caught:
        run(cached("run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("latents.crops=0", r"latents\.crops is 0: give a whole number"),
        ("latents.crops=1.5", r"latents\.crops is 1\.5"),
        ("latents.cache=true", r"latents\.cache is True: give a folder"),
        ("latents.cache=''", r"latents\.cache is ''"),
        ("+latents.bogus=1", r"Unknown option 'latents\.bogus'"),
        (f"latents.cache={__file__}", r"latents\.cache .* is a file: give a folder"),
        (f"latents.cache={__file__}/deep", r"latents\.cache .* lies inside the file"),
        ("latents.cache=/proc/nowhere", r"^latents\.cache /proc/nowhere cannot be written"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing_behind(cached, tmp_path, capsys, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run(cached("run", override))
    assert not capsys.readouterr().out  # label maps, which take long, are not yet read
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
