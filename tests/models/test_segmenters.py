"""The segmenters: shapes, parameter counts, refusals."""

import pytest
import torch

from difftumor.errors import ConfigError, ShapeError
from difftumor.models.segmenters import SEGMENTERS, build_segmenter

SMALL = {
    "unet": {"channels": (4, 8, 16), "residual_units": 1},
    "nnunet": {"channels": (4, 8, 8), "strides": (1, 2, 2)},
    "swinunetr": {"size": "tiny", "depths": (1, 1, 1, 1)},
}
SHAPES = {"unet": (8, 4, 12), "nnunet": (8, 4, 12), "swinunetr": (64, 32, 32)}


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


@pytest.mark.parametrize("name", ["unet", "nnunet"])
def test_gradient_reaches_all_parameters(name):
    network = build_segmenter(name, **SMALL[name], classes=2)
    network(torch.rand(1, 1, *SHAPES[name], generator=torch.Generator().manual_seed(0))).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("name", "divisor"), [("unet", 4), ("nnunet", 4), ("swinunetr", 32)])
def test_wrong_inputs_are_refused(name, divisor):
    network = build_segmenter(name, **SMALL[name])
    with pytest.raises(ShapeError, match=f"{name} takes sizes that are multiples of {divisor}"):
        network(torch.zeros(1, 1, divisor, divisor, divisor + 2))
    with pytest.raises(ShapeError, match=f"more than {divisor} voxels"):
        network(torch.zeros(1, 1, divisor, divisor, divisor))
    with pytest.raises(ShapeError, match=r"takes \(B, 1, X, Y, Z\)"):
        network(torch.zeros(1, 2, divisor, divisor, divisor))


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ConfigError, match="choose one of unet, nnunet, swinunetr"):
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
        ("swinunetr", {"size": "tiny", "heads": (5, 6, 12, 24)}, "divide the channels 12"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_segmenter(name, **options)
