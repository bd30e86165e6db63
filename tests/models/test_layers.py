"""Padding, residual blocks and norm groups, on inputs whose answer is known by hand."""

import copy

import pytest
import torch

from difftumor.errors import ConfigError
from difftumor.models.layers import ResidualBlock, SameConv3d, SameConvTranspose3d, group_norm, same_padding


@pytest.mark.parametrize(
    ("kernel_size", "stride", "before", "after"), [(3, 1, 1, 1), (4, 2, 1, 1), (4, 1, 2, 1), (1, 1, 0, 0), (5, 2, 2, 1)]
)
def test_same_padding_puts_the_odd_voxel_before(kernel_size, stride, before, after):
    assert same_padding(kernel_size, stride) == (before, after) * 3


def test_conv_shifts_and_repeats_the_edge():
    conv = SameConv3d(1, 1, kernel_size=4)
    with torch.no_grad():
        conv.conv.weight.zero_()
        conv.conv.bias.zero_()
        conv.conv.weight[0, 0, 0, 2, 3] = 1  # two before along Z, in place along X, one after along Y
        x = torch.arange(5 * 5 * 5, dtype=torch.float32).view(1, 1, 5, 5, 5)
        y = conv(x)
    expected = x[:, :, [0, 0, 0, 1, 2]][..., [1, 2, 3, 4, 4]]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("kernel_size", [3, 4])
def test_conv_of_a_constant_is_constant(kernel_size):
    conv = SameConv3d(2, 3, kernel_size=kernel_size, stride=kernel_size - 2)
    y = conv(torch.full((1, 2, 4, 4, 4), 0.7))
    assert torch.allclose(y, y[:, :, :1, :1, :1].expand_as(y), atol=1e-6)


@pytest.mark.parametrize(("kernel_size", "stride"), [(4, 2), (2, 2), (3, 1), (6, 2)])
def test_transposed_conv_multiplies_the_size(kernel_size, stride):
    layer = SameConvTranspose3d(2, 3, kernel_size=kernel_size, stride=stride)
    assert layer(torch.zeros(1, 2, 3, 4, 5)).shape == (1, 3, 3 * stride, 4 * stride, 5 * stride)


def test_transposed_conv_spreads_a_voxel_over_its_own_place():
    layer = SameConvTranspose3d(1, 1, kernel_size=4, stride=2)
    with torch.no_grad():
        layer.convt.weight.fill_(1)
        layer.convt.bias.zero_()
        x = torch.zeros(1, 1, 5, 5, 5)
        x[0, 0, 2, 2, 2] = 1
        y = layer(x)[0, 0]
    # Voxel 2 covers outputs 4 and 5; a kernel of 4 reaches one further on both sides.
    assert y[3:7, 3:7, 3:7].eq(1).all()
    assert y.sum() == 4**3


def test_impossible_kernels_are_refused():
    with pytest.raises(ConfigError, match="smaller than stride"):
        SameConv3d(1, 1, kernel_size=2, stride=3)
    with pytest.raises(ConfigError, match="even kernel"):
        SameConvTranspose3d(1, 1, kernel_size=3, stride=2)


def test_residual_block_with_zero_weights_is_the_identity():
    block = ResidualBlock(4, norm_groups=2)
    with torch.no_grad():
        block.conv2.conv.weight.zero_()
        block.conv2.conv.bias.zero_()
    x = torch.randn(2, 4, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_residual_block_gives_the_same_values_and_gradients(checkpointed):
    """The compiler sees plain operations, and all of them."""
    block = ResidualBlock(4, norm_groups=2, checkpointed=checkpointed)
    x = torch.randn(2, 4, 3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, compiled = block(x), torch.compile(block, backend="eager", fullgraph=True)(x)
    assert torch.allclose(compiled, y, atol=1e-6)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    inputs = (x, *block.parameters())
    mine, theirs = (torch.autograd.grad((out * weight).sum(), inputs) for out in (y, compiled))
    for ours, plain in zip(mine, theirs, strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_residual_block_gives_the_same_values_and_gradients_on_a_gpu():
    block = ResidualBlock(8, norm_groups=2).double().to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 8, 6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", "cuda"):
        ours = copy.deepcopy(block).to(device)
        inputs = (x.to(device).requires_grad_(), *ours.parameters())
        y = ours(inputs[0])
        found.append([tensor.cpu() for tensor in (y.detach(), *torch.autograd.grad(y.square().sum(), inputs))])
    for here, there in zip(*found, strict=True):
        assert torch.allclose(here, there)


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_must_divide_the_channels(groups):
    with pytest.raises(ConfigError, match="doesn't divide 16 channels"):
        group_norm(groups, 16)
