"""The denoiser against stored values, published names, and its own invariants."""

import pytest
import torch
from torch import nn

from difftumor.errors import ConfigError, ShapeError
from difftumor.models.denoiser import (
    RESAMPLE,
    Denoiser,
    ResnetBlock,
    SliceConv,
    SliceConvTranspose,
    TimeEmbedding,
)
from tests.reference import load_reference, published_keys, reference_state, relative_error

SMALL = {"latent_channels": 4, "condition_channels": 5, "width": 8, "multipliers": (1, 2), "heads": 2, "head_dim": 8}


@pytest.fixture(scope="module")
def published():
    return reference_state(Denoiser(), prefix="denoise_fn.")


@pytest.fixture(scope="module")
def stored():
    return {key: torch.from_numpy(value) for key, value in load_reference("diffusion").items()}


@pytest.fixture(scope="module")
def small():
    return reference_state(Denoiser(**SMALL, norm_groups=4))


def inputs(*size_ZXY, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(batch, 4, *size_ZXY, generator=generator)
    condition = torch.randn(batch, 5, *size_ZXY, generator=generator)
    return noisy, torch.arange(batch), condition


def test_state_names_and_shapes_are_the_published_ones():
    expected = published_keys("diffusion", "denoise_fn.")
    with torch.device("meta"):
        state = Denoiser().state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert list(state) == list(expected)
    assert {value.dtype for value in state.values()} == {torch.float32}


@torch.no_grad()
@pytest.mark.parametrize("time", [0, 3, 150])
def test_reference_noise_prediction(published, stored, time):
    ours = published(stored["latent"], torch.tensor([time]), stored["cond"])
    assert relative_error(ours, stored[f"noise_pred_t{time}"]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 4, 4), (3, 2, 6), (7, 8, 2), (40, 2, 2)])
def test_any_depth_and_any_even_slice(small, size):
    noise = small(*inputs(*size))
    assert noise.shape == (1, 4, *size)
    assert noise.isfinite().all()


@torch.no_grad()
def test_batch_equals_its_elements(small):
    noisy, time, condition = inputs(3, 4, 6, batch=3)
    together = small(noisy, time, condition)
    alone = [small(noisy[i : i + 1], time[i : i + 1], condition[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_time_and_every_condition_channel_matter(small):
    noisy, time, condition = inputs(3, 4, 4)
    before = small(noisy, time, condition)
    assert (small(noisy, time + 1, condition) - before).abs().max() > 1e-3
    for channel in range(condition.shape[1]):
        changed = condition.clone()
        changed[:, channel] += 1
        assert (small(noisy, time, changed) - before).abs().max() > 1e-3


def test_every_parameter_learns():
    network = reference_state(Denoiser(**SMALL, norm_groups=4)).train()
    noise = network(*inputs(3, 4, 4))
    noise.square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("kernel", [1, 3])
def test_slice_convolution_is_the_3d_one(kernel):
    conv = SliceConv(3, 5, (1, kernel, kernel), padding=(0, kernel // 2, kernel // 2))
    x = torch.randn(2, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv(x), torch.nn.Conv3d.forward(conv, x))
    assert conv(x).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(("ours", "theirs"), [(SliceConv, nn.Conv3d), (SliceConvTranspose, nn.ConvTranspose3d)])
def test_resampling_of_slices_is_the_3d_one(ours, theirs):
    conv = ours(3, 5, **RESAMPLE)
    x = torch.randn(2, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv(x), theirs.forward(conv, x))


@pytest.mark.slow
def test_compiled_denoiser_gives_the_same_values_and_gradients(small):
    """The compiler sees plain operations, and all of them."""
    example = inputs(3, 4, 4, batch=2)
    found = [small(*example), torch.compile(small, backend="eager", fullgraph=True)(*example)]
    torch.testing.assert_close(*found)
    mine, theirs = (torch.autograd.grad(y.square().mean(), list(small.parameters())) for y in found)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 3, 4), (4, 4, 5)])
def test_odd_slices_are_refused(small, size):
    with pytest.raises(ShapeError, match="must be a multiple of 2"):
        small(*inputs(*size))


def test_other_misfits_are_refused(small):
    noisy, time, condition = inputs(2, 4, 4, batch=2)
    with pytest.raises(ShapeError, match=r"noisy latent must be \(B, 4"):
        small(condition, time, condition)
    with pytest.raises(ShapeError, match=r"noisy latent must be \(B, 4"):
        small(torch.zeros(4, 5), time, condition)
    with pytest.raises(ShapeError, match="condition of a latent"):
        small(noisy, time, condition[:, :, :1])
    with pytest.raises(ShapeError, match="time steps of a batch of 2"):
        small(noisy, time[:1], condition)
    with pytest.raises(ShapeError, match="noisy latent"):
        small(noisy[0], time, condition)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("width", 12), ("width", 0), ("heads", 0), ("head_dim", 7), ("multipliers", ()), ("multipliers", (1, 0)),
        ("norm_groups", 3), ("position_buckets", 6), ("max_distance", 8), ("latent_channels", 0),
    ],
)  # fmt: skip
def test_bad_sizes_name_the_option(option, value):
    with pytest.raises(ConfigError, match=option):
        Denoiser(**{**SMALL, "norm_groups": 8, option: value})


def test_divisor_follows_levels(small, published):
    assert (small.in_slice_divisor, published.in_slice_divisor) == (2, 8)


def test_time_embedding_of_zero_and_of_first_frequency():
    embedding = TimeEmbedding(6)(torch.tensor([0, 2]))
    torch.testing.assert_close(embedding[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    angles = torch.tensor([2.0, 2e-2, 2e-4])
    torch.testing.assert_close(embedding[1], torch.cat((angles.sin(), angles.cos())))


def test_scale_of_minus_one_leaves_only_the_shift():
    block = ResnetBlock(4, 4, time_features=2, norm_groups=2)
    torch.nn.init.zeros_(block.mlp[1].weight)
    block.mlp[1].bias.data = torch.tensor([-1.0] * 4 + [0.0] * 4)  # Scale first, shift second.
    x = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    without_input = block.block2(torch.zeros_like(x)) + x
    torch.testing.assert_close(block(x, torch.ones(1, 2)), without_input)
