"""The segmenters: shapes, parameter counts, refusals."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from difftumor.errors import ConfigError, DependencyError, ShapeError
from difftumor.models.artifact import load_artifact, save_artifact
from difftumor.models.segmenters import SEGMENTERS, build_segmenter, define_segmenter

SMALL = {
    "unet": {"channels": (4, 8, 16), "residual_units": 1},
    "nnunet": {"channels": (4, 8, 8), "strides": (1, 2, 2)},
    "swinunetr": {"size": "tiny", "depths": (1, 1, 1, 1)},
    "resenc": {"size": "M", "width": 2},
    "mednext": {"size": "S"},
}
SHAPES = {
    "unet": (8, 4, 12),
    "nnunet": (8, 4, 12),
    "swinunetr": (64, 32, 32),
    "resenc": (32, 16, 16),
    "mednext": (32, 16, 16),
}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("size", "millions"), [("tiny", 4.1), ("small", 15.7), ("base", 62.2)])
def test_swin_sizes(size, millions):
    assert round(parameters(build_segmenter("swinunetr", size=size)) / 1e6, 1) == millions


def test_default_sizes_are_the_published_ones():
    unet = build_segmenter("unet")
    assert parameters(unet) == 4_807_482
    assert unet.state_dict()["model.0.conv.unit0.conv.weight"].shape == (16, 1, 3, 3, 3)
    nnunet = build_segmenter("nnunet")
    assert parameters(nnunet) == 16_538_563
    assert nnunet.state_dict()["bottleneck.conv2.conv.weight"].shape == (320, 320, 3, 3, 3)
    assert parameters(build_segmenter("swinunetr")) == 62_186_757


@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.parametrize("training", [True, False])
def test_logits_have_the_size_of_the_input(name, training):
    network = build_segmenter(name, **SMALL[name]).train(training)
    x = torch.rand(1, 1, *SHAPES[name], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(x)
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (1, 3, *SHAPES[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "parameters_stated"),
    [
        ("resenc", "M", 62_810_412), ("resenc", "L", 102_350_575), ("mednext", "S", 5_550_947),
        ("mednext", "B", 10_510_883), ("mednext", "M", 17_533_539), ("mednext", "L", 61_726_787),
    ],
)  # fmt: skip
def test_sizes_that_papers_and_planner_state(name, size, parameters_stated):
    assert parameters(build_segmenter(name, size=size)) == parameters_stated


@pytest.mark.parametrize(("size", "crop"), [("M", 96), ("L", 128), ("L", 160)])
def test_the_residual_encoder_is_laid_out_as_nnunet_plans_it(size, crop):
    topology = pytest.importorskip("nnunetv2.experiment_planning.experiment_planners.network_topology")
    _, strides, kernels, shape, _ = topology.get_pool_and_conv_props((1, 1, 1), (crop,) * 3, 4, 999999)
    arguments = define_segmenter("resenc", size=size).arguments
    assert tuple(shape) == (crop,) * 3
    assert [tuple(stride) for stride in arguments["strides"]] == [tuple(stride) for stride in strides]
    assert [tuple(kernel) for kernel in arguments["kernel_sizes"]] == [tuple(kernel) for kernel in kernels]
    assert arguments["features_per_stage"] == [32, 64, 128, 256, 320, 320][: len(strides)]
    assert arguments["n_blocks_per_stage"] == [1, 3, 4, 6, 6, 6][: len(strides)]


def test_the_residual_encoder_starts_with_nnunets_weights():
    # Each residual block starts as the identity: its last norm has no gain.
    network = build_segmenter("resenc", **SMALL["resenc"])
    gains = [block.conv2.norm.weight for block in network.modules() if type(block).__name__ == "BasicBlockD"]
    assert gains
    assert all((gain == 0).all() for gain in gains)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures", None)
    for name in [name for name in sys.modules if name.startswith("dynamic_network_architectures.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        DependencyError, match=r"resenc needs the package dynamic_network.*pip install 'difftumor\[resenc\]'"
    ):
        build_segmenter("resenc")


@pytest.mark.parametrize("name", ["unet", "nnunet", "resenc", "mednext"])
def test_gradient_reaches_all_parameters(name):
    network = build_segmenter(name, **SMALL[name], classes=2)
    network(torch.rand(1, 1, *SHAPES[name], generator=torch.Generator().manual_seed(0))).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("name", "divisor"), [("unet", 4), ("nnunet", 4), ("swinunetr", 32), ("resenc", 16), ("mednext", 16)]
)
def test_wrong_inputs_are_refused(name, divisor):
    network = build_segmenter(name, **SMALL[name])
    with pytest.raises(ShapeError, match=f"{name} takes sizes that are multiples of {divisor}"):
        network(torch.zeros(1, 1, divisor, divisor, divisor + 2))
    with pytest.raises(ShapeError, match=f"more than {divisor} voxels"):
        network(torch.zeros(1, 1, divisor, divisor, divisor))
    with pytest.raises(ShapeError, match=r"takes \(B, 1, X, Y, Z\)"):
        network(torch.zeros(1, 2, divisor, divisor, divisor))


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ConfigError, match="choose one of unet, nnunet, swinunetr, resenc, mednext"):
        build_segmenter("vnet")
    with pytest.raises(ConfigError, match=r"no option depth, widht; it takes in_channels, classes, channels"):
        build_segmenter("unet", widht=3, depth=4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"channels": (8,)}, "at least 2"),
        ("unet", {"channels": (8, 0)}, "positive"),
        ("unet", {"classes": 0}, "must be positive"),
        ("nnunet", {"channels": (8, 8)}, "at least 3"),
        ("nnunet", {"strides": (1, 2)}, "one per level"),
        ("swinunetr", {"size": "huge"}, "tiny, small, base"),
        ("swinunetr", {"depths": (2, 2)}, "four positive"),
        ("resenc", {"size": "XL"}, "choose one of M, L"),
        ("resenc", {"width": 0}, "must be positive"),
        ("mednext", {"size": "tiny"}, "choose one of S, B, M, L"),
        ("mednext", {"kernel": 7}, "kernel 3 or 5"),
        ("swinunetr", {"size": "tiny", "heads": (5, 6, 12, 24)}, "divide the channels 12"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_segmenter(name, **options)


def test_an_artifact_holds_each_weight_once_and_loads_all_its_names(tmp_path):
    network = build_segmenter("resenc", **SMALL["resenc"])
    preprocessing = {"spacing_mm": [1.0] * 3, "window_hu": [-175.0, 250.0], "crop": [32] * 3}
    architecture = {"name": "resenc", **SMALL["resenc"]}
    folder = save_artifact(
        tmp_path / "segmenter",
        kind="segmenter",
        architecture=architecture,
        network=network,
        preprocessing=preprocessing,
    )
    assert sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values()) == parameters(network)
    loaded = load_artifact(folder).network.state_dict()
    assert len(loaded) > len(load_file(folder / "model.safetensors"))
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())
