"""Fused norm, activation and padding against the plain operations, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from difftumor.models.layers import norm_silu_replicate, replicate

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
