"""Padding, residual blocks and norm groups: known answers, and the plain operations they replace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from difftumor.errors import ConfigError
from difftumor.models.layers import (
    ResidualBlock,
    SameConv3d,
    SameConvTranspose3d,
    group_norm,
    norm_silu_replicate,
    replicate,
    same_padding,
)


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


PADDINGS = [(1, 1, 1, 1, 1, 1), (2, 1, 2, 1, 2, 1), (0, 0, 1, 0, 0, 2)]
FORMATS = {
    "channels first": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "channels last with gaps": lambda x: F.pad(x, (1, 2)).contiguous(memory_format=torch.channels_last_3d)[..., 1:-2],
    "other order": lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
}


def voxels(*shape, memory_format="channels first", dtype=torch.float64):
    x = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return FORMATS[memory_format](x).requires_grad_()


def norm(groups, channels, dtype=torch.float64):
    layer = nn.GroupNorm(groups, channels, eps=1e-6, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(channels, generator=generator))
    return layer


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_replicate_is_that_of_pytorch_in_channels_last(padding, memory_format):
    x = voxels(2, 3, 4, 5, 6, memory_format=memory_format)
    ours, plain = replicate(x, padding), F.pad(x, padding, mode="replicate")
    assert torch.equal(ours, plain)
    assert ours.is_contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(plain.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    weight = weight.contiguous(memory_format=torch.channels_last_3d)
    mine, theirs = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, plain))
    assert torch.allclose(mine, theirs)
    assert mine.is_contiguous(memory_format=torch.channels_last_3d)


def test_nothing_to_pad_copies_nothing():
    x = voxels(1, 2, 3, 3, 3)
    assert replicate(x, (0,) * 6) is x


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_fused_values_and_gradients_are_those_of_the_plain_operations(padding, memory_format, groups):
    x, layer = voxels(2, 6, 3, 4, 5, memory_format=memory_format), norm(groups, 6)
    ours, plain = norm_silu_replicate(x, layer, padding), F.pad(F.silu(layer(x)), padding, mode="replicate")
    assert torch.allclose(ours, plain)
    assert ours.is_contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(plain.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    inputs = (x, layer.weight, layer.bias)
    mine, theirs = (torch.autograd.grad((y * weight).sum(), inputs) for y in (ours, plain))
    for ours, plain in zip(mine, theirs, strict=True):
        assert torch.allclose(ours, plain)


def test_only_the_input_is_kept_for_the_backward_pass():
    kept = []
    x, layer = voxels(1, 4, 8, 8, 8), norm(2, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm_silu_replicate(x, layer, PADDINGS[0])
    large = [t for t in kept if t.numel() >= x.numel()]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32_and_gives_what_the_convolution_takes(dtype):
    x, layer = voxels(1, 4, 5, 5, 5, dtype=torch.float32), norm(2, 4, torch.float32)
    exact = norm_silu_replicate(x, layer, PADDINGS[0])
    with torch.autocast("cpu", dtype=dtype):
        under_autocast = norm_silu_replicate(x, layer, PADDINGS[0])
    assert under_autocast.dtype == dtype
    assert torch.equal(under_autocast, exact.to(dtype))
    half = x.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        norm_silu_replicate(half, layer, PADDINGS[0]).sum().backward()
    assert half.grad.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32
    plain = torch.autograd.grad(F.pad(F.silu(layer(x)), PADDINGS[0], mode="replicate").sum(), x)[0]
    assert torch.allclose(half.grad.float(), plain, atol=0.05)


class GpuNorm(TorchDispatchMode):
    """Refuses memory that the norm of a GPU refuses."""

    norms = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.native_group_norm.default:
            self.norms += 1
            assert args[0].is_contiguous()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_on_a_gpu(dtype):
    """Without one: tensors that only have shape and device."""
    layer = norm(2, 4, torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True), GpuNorm() as gpu:
        layer.to("cuda")
        x = torch.empty(2, 4, 3, 4, 5, device="cuda", dtype=dtype, memory_format=torch.channels_last_3d)
        y = norm_silu_replicate(x, layer, PADDINGS[0])
    assert gpu.norms == 1
    assert y.device.type == "cuda"
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
