"""``difftumor import-published`` on checkpoints filled with the reference weights, and its artifacts in use."""

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from difftumor.models.artifact import load_artifact
from difftumor.models.artifact_config import read_config
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule, sample
from difftumor.scans.intensity import IntensityWindow
from difftumor.synthesis.blending import blend_change, blurred_weight
from difftumor.synthesis.generators.diffusion import DiffusionTexture
from stages.config.compose import compose_config
from tests.conftest import run
from tests.exchange.published.files import (
    autoencoder_entries,
    diffusion_checkpoint,
    lightning,
    saved,
    segmenter_checkpoint,
)
from tests.nifti import write_nifti
from tests.reference import load_reference, relative_error
from tests.synthesis.makers import ball


def imported(*words, expect: int = 0) -> None:
    assert run("import-published", *words) == expect


@pytest.fixture(scope="session")
def entries():
    return autoencoder_entries()


@pytest.fixture(scope="session")
def folder(tmp_path_factory, entries):
    """The published files and the artifacts made of them."""
    folder = tmp_path_factory.mktemp("published")
    saved(lightning(entries), folder / "AutoencoderModel.ckpt")
    imported("autoencoder", folder / "AutoencoderModel.ckpt", folder / "checkpoints" / "autoencoder")
    for name, stage, timesteps in (("liver_early", "early", 4), ("liver_noearly", "late", 200)):
        file = saved(diffusion_checkpoint(entries, timesteps=timesteps), folder / f"{name}.pt")
        out = folder / "checkpoints" / f"diffusion_liver_{stage}"
        parent = folder / "checkpoints" / "autoencoder"
        imported("diffusion", file, out, "--autoencoder", parent, "--organ", "liver")
    return folder


def artifact(folder: Path, name: str) -> Path:
    return folder / "checkpoints" / name


@torch.no_grad()
def test_reference_autoencoder(folder):
    network = load_artifact(artifact(folder, "autoencoder"), kind="autoencoder").network
    stored = {key: torch.from_numpy(value) for key, value in load_reference("autoencoder").items()}
    output = network(stored["ct"])
    assert relative_error(output.features, stored["features"]) < 1e-5
    assert torch.equal(output.quantized.indices, stored["indices"].long())
    assert relative_error(output.reconstruction, stored["reconstruction"]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("stage", ["early", "late"])
def test_reference_denoiser(folder, stage):
    network = load_artifact(artifact(folder, f"diffusion_liver_{stage}"), kind="diffusion").network
    stored = {key: torch.from_numpy(value) for key, value in load_reference("diffusion").items()}
    for time in (0, 3, 150):
        ours = network(stored["latent"], torch.tensor([time]), stored["cond"])
        assert relative_error(ours, stored[f"noise_pred_t{time}"]) < 1e-5


@pytest.mark.parametrize(("stage", "name"), [("early", "ddpm_T4_sample"), ("late", "ddim_S50_T200_sample")])
def test_reference_samples_with_the_settings_of_the_artifact(folder, stage, name):
    loaded = load_artifact(artifact(folder, f"diffusion_liver_{stage}"))
    settings = loaded.config.settings
    stored = {key: torch.from_numpy(value) for key, value in load_reference("diffusion").items()}
    schedule, sampler = NoiseSchedule(settings["timesteps"]), SamplerConfig(**settings["sampler"])
    ours = sample(loaded.network, stored["cond"], schedule, sampler, noise=stored["ddpm_noise"])
    assert relative_error(ours, stored[name]) < 1e-4


def test_reference_early_tumor(folder):
    stored = {name: torch.from_numpy(value) for name, value in load_reference("early_tumor").items()}
    loaded = load_artifact(artifact(folder, "diffusion_liver_early"))
    window = IntensityWindow(*loaded.config.preprocessing["window_hu"])
    texture = DiffusionTexture(
        codec=LatentCodec(loaded.parent("autoencoder").network),
        denoiser=loaded.network,
        schedule=NoiseSchedule(loaded.config.settings["timesteps"]),
        sampler=SamplerConfig(**loaded.config.settings["sampler"]),
        window=window,
        masked=loaded.config.settings["masked"],
    )
    ct_hu = window.from_unit(stored["ct"])
    tumor_hu = texture.make_from_noise(ct_hu, stored["tumor_mask"], stored["noise"])
    weight = blurred_weight(stored["tumor_mask"][0, 0], float(stored["blur_sigma"]))
    blended = window.to_unit(ct_hu[0, 0] + blend_change(ct_hu[0, 0], tumor_hu[0, 0], weight))
    assert relative_error(blended, stored["synthetic_ct"][0, 0]) < 1e-4


SEGMENTERS = [
    ("unet", "", {}),
    ("unet", "module.backbone.", {}),
    pytest.param("nnunet", "backbone.", {"affine_norm": False}, marks=pytest.mark.slow),
    pytest.param("nnunet", "", {"affine_norm": True}, marks=pytest.mark.slow),
    ("swinunetr", "backbone.module.", {"size": "tiny"}),
    pytest.param("swinunetr", "module.", {"size": "small"}, marks=pytest.mark.slow),
    pytest.param("swinunetr", "", {"size": "base"}, marks=pytest.mark.slow),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "prefix", "options"), SEGMENTERS)
def test_reference_weights_of_segmenters(tmp_path, capsys, name, prefix, options):
    checkpoint, network = segmenter_checkpoint(name, prefix=prefix, **options)
    imported("segmenter", name, saved(checkpoint, tmp_path / "best.pt"), tmp_path / "out", "--organ", "Pancreas")
    printed = capsys.readouterr().out
    assert "out is the segmenter of best.pt (epoch 1999)." in printed
    assert ("Entries ignored: swinViT.norm.* (2)." in printed) == (name == "swinunetr")
    loaded = load_artifact(tmp_path / "out", kind="segmenter")
    assert loaded.config.organ == "pancreas"
    # As stage 3 describes its own; gradient checkpointing only decides what training costs.
    backbone = OmegaConf.to_container(compose_config("segmentation", [f"backbone={name}"]).backbone)
    backbone.pop("gradient_checkpointing", None)
    assert loaded.config.architecture == {**backbone, **options}
    x = torch.rand(1, 1, 32, 32, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.network(x), network.eval()(x))


@pytest.mark.parametrize("stage", ["early", "late"])
def test_artifacts_are_described_as_the_stages_do_with_published_settings(folder, stage):
    """What a stage or command asks of the artifacts of another stage, it finds in imported ones."""
    composed = OmegaConf.to_container(compose_config("autoencoder"))
    config = read_config(artifact(folder, "autoencoder"))
    assert config.architecture == {"name": "vqgan3d", **composed["network"]}
    assert config.preprocessing == {name: composed["data"][name] for name in ("spacing_mm", "window_hu", "crop")}

    composed = OmegaConf.to_container(compose_config("diffusion", [f"tumor_stage={stage}"]))
    config = read_config(artifact(folder, f"diffusion_liver_{stage}"))
    channels = {"latent_channels": 8, "condition_channels": 9}
    assert config.architecture == {"name": "factorized_unet", **channels, **composed["network"]}
    assert config.preprocessing == {name: composed["data"][name] for name in ("spacing_mm", "window_hu", "crop")}
    chosen = {name: composed["diffusion"][name] for name in ("timesteps", "masked", "sampler")}
    assert config.settings == {**chosen, "tumor_stage": composed["lesions"]["stage"]}


def test_provenance_names_file_checksum_steps_and_what_was_ignored(folder, tmp_path, capsys):
    file = folder / "AutoencoderModel.ckpt"
    imported("autoencoder", file, tmp_path / "out")
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'out'} is the autoencoder of AutoencoderModel.ckpt (epoch 6, global_step 200000).\n" in printed
    groups = {"image_discriminator.*": 18, "video_discriminator.*": 18, "perceptual_model.*": 2}
    assert "Entries ignored: " + ", ".join(f"{name} ({count})" for name, count in groups.items()) + ".\n" in printed
    assert "Not read: pytorch-lightning_version, loops, callbacks, optimizer_states," in printed
    training = read_config(tmp_path / "out").training
    assert training["imported_from"].pop("sha256") == hashlib.sha256(file.read_bytes()).hexdigest()
    assert training["imported_from"] == {"file": "AutoencoderModel.ckpt", "epoch": 6, "global_step": 200_000}
    assert training["ignored"] == groups
    assert "hyper_parameters" in training["unread"]
    late = read_config(artifact(folder, "diffusion_liver_late"))
    assert late.training["imported_from"]["step"] == 60_000
    assert late.training["ignored"] == {f"vqgan.{name}": count for name, count in groups.items()}
    assert late.training["unread"] == ["model", "scaler"]
    assert run("info", artifact(folder, "diffusion_liver_late")) == 0
    assert "vqgan.image_discriminator.*: 18" in capsys.readouterr().out


def scan(folder: Path, shape) -> list[object]:
    values = np.random.default_rng(0).normal(60, 15, shape)
    values[:2] = -1000
    write_nifti(folder / "ct.nii.gz", values.astype(np.int16))
    write_nifti(folder / "liver.nii.gz", ball(shape, min(shape) // 2 - 2).astype(np.uint8))
    return ["--ct", folder / "ct.nii.gz", "--organ-mask", folder / "liver.nii.gz", "--device", "cpu"]


@pytest.mark.slow
def test_synthesize_with_an_imported_model(folder, tmp_path, monkeypatch):
    """In the usual place, which it finds by itself."""
    monkeypatch.chdir(folder)
    words = ["--organ", "liver", "--size", "tiny", "--out", tmp_path / "out"]
    assert run("synthesize", *scan(tmp_path, (64, 64, 64)), *words) == 0
    labels = np.asarray(nibabel.load(tmp_path / "out" / "labels.nii.gz").dataobj)
    assert (labels == 2).sum() > 30


@pytest.mark.slow
def test_predict_with_an_imported_segmenter(tmp_path):
    checkpoint, _ = segmenter_checkpoint("unet", prefix="module.")
    imported("segmenter", "unet", saved(checkpoint, tmp_path / "best.pt"), tmp_path / "unet", "--organ", "liver")
    words = ["--model", tmp_path / "unet", "--out", tmp_path / "out", "--overlap", 0.25]
    assert run("predict", *scan(tmp_path, (40, 36, 32)), *words) == 0
    assert nibabel.load(tmp_path / "out" / "ct.nii.gz").shape == (40, 36, 32)


def refused(capsys, *words) -> str:
    capsys.readouterr()
    imported(*words, expect=1)
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    return error


def test_another_autoencoder_is_refused_by_name(folder, entries, tmp_path, capsys):
    name = "encoder.conv_blocks.0.res.conv1.conv.bias"
    changed = {**entries, name: entries[name] + 1e-3}
    other = saved(lightning(changed), tmp_path / "Other.ckpt")
    imported("autoencoder", other, tmp_path / "other")
    words = ("diffusion", folder / "liver_early.pt", tmp_path / "out", "--autoencoder", tmp_path / "other")
    error = refused(capsys, *words)
    assert f"another autoencoder than {tmp_path / 'other'} (vqgan.{name} differs)" in error
    assert not (tmp_path / "out").exists()
    # An average of equal numbers, rounded, is no difference.
    rounded = {key: value * (1 + 1e-7) if value.is_floating_point() else value for key, value in entries.items()}
    file = saved(diffusion_checkpoint(rounded), tmp_path / "early.pt")
    imported("diffusion", file, tmp_path / "out", "--autoencoder", artifact(folder, "autoencoder"))
    assert read_config(tmp_path / "out").organ is None


def test_another_artifact_and_what_is_beside_it_stay_unless_asked(tmp_path, capsys):
    out = tmp_path / "out"
    words = ("segmenter", "unet", saved(segmenter_checkpoint("unet")[0], tmp_path / "p.pt"), out, "--organ", "liver")
    imported(*words)
    imported(*words)  # of the same file
    (out / "notes.md").write_text("mine")
    assert "already holds notes.md: give another folder, or" in refused(capsys, *words)
    (out / "notes.md").unlink()
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "training": {"run": "mine"}}))
    assert "already holds another artifact" in refused(capsys, *words)
    imported(*words, "--overwrite")


def test_an_output_never_replaces_an_input(folder, tmp_path, capsys):
    parent = artifact(folder, "autoencoder")
    before = (parent / "config.json").read_bytes()
    error = refused(capsys, "diffusion", folder / "liver_early.pt", parent, "--autoencoder", parent, "--overwrite")
    assert f"OUT {parent} holds the input {parent}, which would be replaced" in error
    assert (parent / "config.json").read_bytes() == before
    checkpoint, _ = segmenter_checkpoint("unet")
    file = saved(checkpoint, tmp_path / "best.pt")
    imported("segmenter", "unet", file, tmp_path / "out", "--organ", "liver")
    inside = file.rename(tmp_path / "out" / "best.pt")
    assert "which would be replaced" in refused(
        capsys, "segmenter", "unet", inside, tmp_path / "out", "--organ", "liver", "--overwrite"
    )
    assert inside.is_file()


def test_an_older_artifact_is_replaced_and_nothing_else(folder, tmp_path, capsys):
    checkpoint, _ = segmenter_checkpoint("unet")
    file = saved(checkpoint, tmp_path / "best.pt")
    words = ("segmenter", "unet", file, tmp_path / "out", "--organ")
    imported(*words, "liver")
    imported(*words, "kidney")
    assert read_config(tmp_path / "out").organ == "kidney"
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    file.write_bytes(file.read_bytes()[:-100])
    assert "damaged" in refused(capsys, *words, "liver", "--overwrite")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    good = saved(checkpoint, tmp_path / "best.pt")
    assert "already holds notes.txt" in refused(
        capsys, "segmenter", "unet", good, tmp_path / "mine", "--organ", "liver"
    )
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "mine", "out"]


def test_wrong_words_are_refused_before_anything_is_read(folder, tmp_path, capsys):
    file = tmp_path / "empty.pt"
    file.touch()
    assert "'unetr' is unknown" in refused(capsys, "segmenter", "unetr", file, tmp_path / "out", "--organ", "liver")
    assert "'livr'" in refused(capsys, "segmenter", "unet", file, tmp_path / "out", "--organ", "livr")
    words = ("diffusion", file, tmp_path / "out", "--autoencoder")
    assert "no artifact folder" in refused(capsys, *words, tmp_path / "nothing")
    early = artifact(folder, "diffusion_liver_early")
    assert "'diffusion', not 'autoencoder'" in refused(capsys, *words, early)
    assert run("import-published", "segmenter", "unet", file, tmp_path / "out") == 2
    missing = ("segmenter", "unet", tmp_path / "none.pt", tmp_path / "out", "--organ", "liver")
    assert "There is no file at" in refused(capsys, *missing)


def test_files_of_other_kinds_are_refused(folder, tmp_path, capsys):
    early, autoencoder = folder / "liver_early.pt", folder / "AutoencoderModel.ckpt"
    assert "holds no 'state_dict' (it holds step, model, ema" in refused(capsys, "autoencoder", early, tmp_path / "out")
    parent = artifact(folder, "autoencoder")
    words = ("diffusion", autoencoder, tmp_path / "out", "--autoencoder", parent)
    assert "holds no 'ema'" in refused(capsys, *words)
    words = (autoencoder, tmp_path / "out", "--organ", "liver")
    assert "lacks model.0.conv.unit0.conv.weight" in refused(capsys, "segmenter", "unet", *words)
    assert "not a published Swin UNETR" in refused(capsys, "segmenter", "swinunetr", *words)
    assert not (tmp_path / "out").exists()
