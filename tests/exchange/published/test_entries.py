"""Entries: used, named as ignored, or an error that names them."""

import pytest
import torch
from torch import nn

from difftumor.errors import PublishedFileError
from difftumor.exchange.published.diffusion import import_diffusion
from difftumor.exchange.published.entries import check_copy, ignored_entries, load_entries
from difftumor.exchange.published.segmenter import import_segmenter
from difftumor.models.artifact import save_artifact
from difftumor.models.autoencoder import Autoencoder
from tests.exchange.published.files import diffusion_checkpoint, saved, schedule, segmenter_checkpoint
from tests.reference import reference_state

FILE = "weights.pt"


def network() -> nn.Module:
    made = nn.ModuleDict({"conv": nn.Conv1d(2, 3, 1), "norm": nn.BatchNorm1d(3)})
    return made.requires_grad_(False)


def entries(prefix: str = "") -> dict[str, torch.Tensor]:
    state = network().state_dict()
    return {prefix + name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "net."])
def test_entries_are_loaded(prefix):
    made, given = network(), entries(prefix)
    used = load_entries(made, {**given, "other.x": torch.ones(1)}, source=FILE, prefix=prefix)
    assert used == set(given)
    assert all(torch.equal(value, given[prefix + name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv.bias": None}, r"weights\.pt lacks conv\.bias"),
        ({"conv.bias": torch.ones(4)}, r"conv\.bias as \(4,\) float32, .* as \(3,\) float32"),
        ({"conv.weight": torch.ones(3, 2)}, r"conv\.weight as \(3, 2\) float32"),
        ({"conv.bias": torch.ones(3).half()}, r"conv\.bias as \(3,\) float16"),
        ({"conv.bias": torch.tensor([1.0, float("nan"), 1.0])}, r"conv\.bias with impossible values"),
        ({"conv.bias": torch.tensor([1.0, float("inf"), 1.0])}, r"conv\.bias with impossible values"),
        ({"norm.num_batches_tracked": torch.tensor(3)}, r"norm\.num_batches_tracked with impossible values"),
        ({"conv.more": torch.ones(1)}, r"conv\.more, which the published network does not have"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "net."])
def test_what_does_not_fit_is_an_error_that_names_the_entry(prefix, change, words):
    given = {name: value for name, value in {**entries(), **change}.items() if value is not None}
    made = network()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises(PublishedFileError, match=words.replace(r"conv\.", rf"{prefix}conv\.", 1)):
        load_entries(made, {prefix + name: value for name, value in given.items()}, source=FILE, prefix=prefix)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_two_names_of_one_module_must_agree():
    made = nn.ModuleDict({"a": nn.Linear(1, 1)}).requires_grad_(False)
    made["b"] = made["a"]
    given = {name: torch.ones_like(value) for name, value in made.state_dict().items()}
    assert load_entries(made, given, source=FILE) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    with pytest.raises(PublishedFileError, match=r"holds a a\.bias that differs"):
        load_entries(made, {**given, "b.bias": torch.zeros(1)}, source=FILE)


def test_ignored_entries_are_named_by_the_shortest_beginning_of_their_own():
    used = {"encoder.a.weight", "swin.patch.weight", "betas", "copy.encoder.weight"}
    names = [*used, "disc.0.w", "disc.1.w", "swin.norm.weight", "swin.norm.bias", "alone", "encoder.b", "copy.disc.w"]
    expected = {"disc.*": 2, "swin.norm.*": 2, "alone": 1, "encoder.b": 1, "copy.disc.*": 1}
    assert ignored_entries(names, used) == expected
    assert ignored_entries(used, used) == {}


def test_copies_are_compared_up_to_rounding():
    original = network()
    original["conv"].bias.fill_(2.0)
    given = {f"copy.{name}": value.clone() for name, value in original.state_dict().items()}
    names = check_copy(given, original, source=FILE, prefix="copy.", of="there")
    assert names == set(given)
    given["copy.conv.bias"] = torch.full((3,), 2.0 * (1 + 3e-6))
    check_copy(given, original, source=FILE, prefix="copy.", of="there")
    given["copy.conv.bias"] = torch.full((3,), 2.0 * (1 + 3e-5))
    with pytest.raises(PublishedFileError, match=r"another autoencoder than there \(copy\.conv\.bias differs\)"):
        check_copy(given, original, source=FILE, prefix="copy.", of="there")
    del given["copy.conv.bias"]
    with pytest.raises(PublishedFileError, match=r"lacks copy\.conv\.bias"):
        check_copy(given, original, source=FILE, prefix="copy.", of="there")


def test_copies_of_zeros_are_zeros():
    original = network()
    original["conv"].bias.zero_()
    given = dict(original.state_dict())
    check_copy(given, original, source=FILE, prefix="", of="there")
    with pytest.raises(PublishedFileError, match=r"conv\.bias differs"):
        check_copy({**given, "conv.bias": torch.full((3,), 1e-9)}, original, source=FILE, prefix="", of="there")


SMALL = {"base_channels": 4, "norm_groups": 4, "codes": 32}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An autoencoder that is quick to compare."""
    autoencoder = reference_state(Autoencoder(**SMALL))
    folder = save_artifact(
        tmp_path_factory.mktemp("small") / "autoencoder",
        kind="autoencoder",
        architecture={"name": "vqgan3d", **SMALL},
        network=autoencoder,
        preprocessing={"spacing_mm": [1, 1, 1], "window_hu": [-175, 250], "crop": [96, 96, 96]},
    )
    return folder, diffusion_checkpoint(autoencoder.state_dict())


def resized(steps: int) -> dict[str, torch.Tensor]:
    return {name: torch.ones(steps) for name in schedule(4)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"betas": None}, r"noise schedule \(betas\) of no timesteps"),
        (resized(5), r"\(betas\) of 5 timesteps, and the published ones have 4 or 200"),
        ({"betas": torch.ones(4, 1)}, r"of no timesteps"),
        ({"posterior_variance": None}, r"lacks the table posterior_variance"),
        ({"posterior_mean_coef1": torch.ones(5)}, r"lacks the table posterior_mean_coef1"),
        *(
            ({name: table * 1.001 + 1e-6}, rf"another noise schedule \({name} is")
            for name, table in schedule(4).items()
        ),
        ({"vqgan.encoder.conv_first.conv.bias": None}, r"lacks vqgan\.encoder\.conv_first\.conv\.bias"),
        ({"vqgan.codebook.N": torch.zeros(32)}, r"vqgan\.codebook\.N differs"),
        ({"vqgan.codebook.N": torch.ones(33)}, r"vqgan\.codebook\.N as \(33,\)"),
        ({"denoise_fn.init_conv.weight": None}, r"lacks denoise_fn\.init_conv\.weight"),
        ({"denoise_fn.more": torch.ones(1)}, r"denoise_fn\.more, which the"),
    ],
)
def test_diffusion_files_that_do_not_fit_are_refused(tmp_path, small, change, words):
    autoencoder, sound = small
    ema = {name: value for name, value in {**sound["ema"], **change}.items() if value is not None}
    file = saved({**sound, "ema": ema}, tmp_path / "early.pt")
    with pytest.raises(PublishedFileError, match=words):
        import_diffusion(file, tmp_path / "out", autoencoder=autoencoder)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def unet():
    return segmenter_checkpoint("unet")[0]


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("model.0.conv.unit0.conv.bias", None, r"lacks model\.0\.conv\.unit0\.conv\.bias"),
        ("module.model.0.conv.unit0.conv.bias", torch.ones(16), "holds model.0.conv.unit0.conv.bias twice"),
        ("model.3.conv.bias", torch.ones(16), r"model\.3\.conv\.bias, which the"),
        ("model.2.0.conv.bias", torch.ones(4), r"model\.2\.0\.conv\.bias as \(4,\)"),
    ],
)
def test_segmenters_that_do_not_fit_are_refused(tmp_path, unet, name, changed, words):
    state = {key: value for key, value in {**unet["state_dict"], name: changed}.items() if value is not None}
    file = saved({**unet, "state_dict": state}, tmp_path / "best.pt")
    with pytest.raises(PublishedFileError, match=words):
        import_segmenter("unet", file, tmp_path / "out", organ="liver")


@pytest.mark.parametrize("embedding", [None, torch.ones(36, 1, 2, 2, 2), torch.tensor(12.0)])
def test_swin_sizes_that_were_not_published_are_refused(tmp_path, embedding):
    state = {} if embedding is None else {"swinViT.patch_embed.proj.weight": embedding}
    file = saved({"state_dict": state}, tmp_path / "best.pt")
    with pytest.raises(PublishedFileError, match="not a published Swin UNETR"):
        import_segmenter("swinunetr", file, tmp_path / "out", organ="liver")
