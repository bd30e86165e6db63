"""Attention and positions against explicit formulas, and what each kind may and may not see."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from difftumor.models import attention as module
from difftumor.models.attention import (
    Attention,
    ChannelNorm,
    LinearAttention,
    RelativePositionBias,
    RotaryEmbedding,
    depth_attention,
    linear_slice_attention,
    slice_attention,
)
from tests.conftest import randn
from tests.reference import relative_error

BLOCKS = [depth_attention, slice_attention, linear_slice_attention]


def shuffled(module, seed=0):
    """Give every parameter a random value, gains included."""
    for index, parameter in enumerate(module.parameters()):
        parameter.data = 0.5 * randn(*parameter.shape, seed=seed + index)
    return module


def test_channel_norm_is_layer_norm_over_channels():
    norm = shuffled(ChannelNorm(6))
    x = randn(2, 3, 20, 6)
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected * norm.gamma.flatten())


@pytest.mark.parametrize("form", ["_by_kernel", "_by_products"])
@pytest.mark.parametrize("rotary", [True, False])
def test_attention_is_its_formula(rotary, form):
    heads, D, N = 2, 4, 5
    attention = shuffled(Attention(6, heads=heads, head_dim=D, rotary=rotary))
    x, bias = randn(3, N, 6), randn(heads, N, N, seed=9)

    query, key, value = attention.to_qkv(x).chunk(3, dim=-1)
    outputs = []
    for head in range(heads):
        q, k, v = (part[..., head * D : (head + 1) * D] for part in (query, key, value))
        if rotary:
            q, k = (attention.rotary_emb(part, *attention.rotary_emb.angles(N)) for part in (q, k))
        outputs.append(((q / D**0.5) @ k.transpose(1, 2) + bias[head]).softmax(-1) @ v)
    attended = getattr(attention, form)(x, bias)
    torch.testing.assert_close(attended, torch.cat(outputs, dim=-1) @ attention.to_out.weight.T)


@pytest.mark.parametrize("X", [3, 1])  # more positions than channels, and fewer
def test_linear_attention_is_its_formula(X):
    heads, D, P, C = 2, 4, X * 5, 6
    attention = shuffled(LinearAttention(C, heads=heads, head_dim=D))
    x = randn(1, 2, P, C)
    y = attention(x)
    weights = attention.to_qkv.weight.flatten(1), attention.to_out.weight.flatten(1)
    for z in range(2):
        query, key, value = (weights[0] @ x[0, z].T).chunk(3)
        outputs = []
        for head in range(heads):
            q, k, v = (part[head * D : (head + 1) * D] for part in (query, key, value))
            similarity = q.softmax(0).T @ k.softmax(1) / D**0.5  # (query position, key position)
            outputs.append(v @ similarity.T)
        expected = weights[1] @ torch.cat(outputs) + attention.to_out.bias[:, None]
        torch.testing.assert_close(y[0, z].T, expected)


def test_linear_attention_refuses_a_bias():
    with pytest.raises(ValueError, match="no position bias"):
        LinearAttention(4, heads=1, head_dim=2)(randn(1, 2, 4, 4), randn(1, 2, 2))


@torch.no_grad()
@pytest.mark.parametrize("build", BLOCKS)
def test_attention_sees_its_axis_and_nothing_else(build):
    block = shuffled(build(6, heads=2, head_dim=4))
    x = randn(2, 6, 3, 4, 5)
    touched = x.clone()
    touched[0, :, 1, 2, 3] += randn(6, seed=5)
    changed = (block(touched) - block(x)).abs().amax(dim=1) > 1e-6

    seen = torch.zeros_like(changed)
    if build is depth_attention:
        seen[0, :, 2, 3] = True
    else:
        seen[0, 1] = True
    assert torch.equal(changed, seen)


def blocks_and_inputs(build):
    block = shuffled(build(6, heads=2, head_dim=4))
    x = randn(2, 6, 5, 4, 3).requires_grad_()
    bias = randn(2, 5, 5, seed=9).requires_grad_() if build is depth_attention else None
    return block, x, bias


def learned(run, x, bias, block=None):
    """Return the result of a block, run as itself or otherwise, and the gradients of all that it depends on."""
    y = run(x, bias)
    leaves = [x, *(block or run).parameters(), *([] if bias is None else [bias])]
    return y, torch.autograd.grad((y * randn(*y.shape, seed=3)).sum(), leaves)


@pytest.mark.parametrize("tokens", [1, 25, 10_000])  # pieces of one slice or position, of several and a rest, one
@pytest.mark.parametrize("build", BLOCKS)
def test_pieces_and_their_gradients_are_those_of_the_whole(build, tokens, monkeypatch):
    block, x, bias = blocks_and_inputs(build)
    monkeypatch.setattr(module, "TOKENS_OF_A_PIECE", tokens)
    y, gradients = learned(block, x, bias)
    monkeypatch.setattr(module, "_has_kernels", lambda x: True)
    torch.testing.assert_close((y, gradients), learned(block, x, bias))


@pytest.mark.parametrize("build", BLOCKS)
def test_what_is_frozen_gets_no_gradient(build):
    block, x, bias = blocks_and_inputs(build)
    _, (expected, *_) = learned(block, x, bias)
    block.requires_grad_(False)
    y = block(x, None if bias is None else bias.detach())
    torch.testing.assert_close(torch.autograd.grad((y * randn(*y.shape, seed=3)).sum(), x)[0], expected)


@pytest.mark.parametrize("build", BLOCKS)
def test_some_parameters_frozen_leave_the_others_their_gradients(build):
    block, x, bias = blocks_and_inputs(build)
    _, expected = learned(block, x, bias)
    frozen = list(block.parameters())[0::2]
    for parameter in frozen:
        parameter.requires_grad_(False)
    block(x, bias).mul(randn(*x.shape, seed=3)).sum().backward()
    for leaf, gradient in zip([x, *block.parameters(), *([] if bias is None else [bias])], expected, strict=True):
        if any(leaf is each for each in frozen):
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, gradient)


@pytest.mark.parametrize("build", BLOCKS)
def test_gradients_outlive_activation_checkpointing(build):
    block, x, bias = blocks_and_inputs(build)
    _, expected = learned(block, x, bias)
    _, found = learned(lambda *inputs: checkpoint(block, *inputs, use_reentrant=False), x, bias, block)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("build", BLOCKS)
def test_double_precision_is_kept_throughout(build):
    block, x, bias = blocks_and_inputs(build)
    inputs = [x.detach()[:1, :, :3, :2, :2].double().requires_grad_()]
    inputs += [] if bias is None else [bias.detach()[:, :3, :3].double().requires_grad_()]
    assert torch.autograd.gradcheck(block.double(), inputs)


@pytest.mark.parametrize("build", BLOCKS)
def test_only_the_input_is_kept_for_the_gradient(build):
    block, x, bias = blocks_and_inputs(build)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        block(x, bias)
    weights = {p.data_ptr() for p in (*block.parameters(), *(() if bias is None else (bias,)))}
    features = [t for t in kept if t.data_ptr() not in weights]
    assert [t.numel() for t in features] == [x.numel()]


@torch.no_grad()
@pytest.mark.parametrize("build", BLOCKS)
def test_an_element_is_the_same_bit_for_bit_in_a_batch(build):
    block, x, bias = blocks_and_inputs(build)
    together = block(x, bias)
    assert all(torch.equal(together[i : i + 1], block(x[i : i + 1], bias)) for i in range(2))


@pytest.mark.parametrize("build", BLOCKS)
def test_half_precision_is_close(build):
    block, x, bias = blocks_and_inputs(build)
    y, gradients = learned(block, x, bias)
    dtypes = []
    block.fn.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = block(x, bias)
        assert half.dtype == torch.float32  # the input's: what is added to it alone is rounded
    grads = torch.autograd.grad((half * randn(*y.shape, seed=3)).sum(), [x, *block.parameters()])
    assert dtypes == [torch.bfloat16] * 4  # two elements, in both directions
    assert relative_error(half, y) < 0.03
    assert all(relative_error(*pair) < 0.1 for pair in zip(grads, gradients, strict=False))


@torch.no_grad()
def test_depth_attention_knows_order_and_slice_attention_does_not():
    x = randn(1, 6, 4, 2, 2)
    along = shuffled(depth_attention(6, heads=2, head_dim=4))
    assert (along(x.flip(2)).flip(2) - along(x)).abs().max() > 1e-3
    within = shuffled(slice_attention(6, heads=2, head_dim=4))
    torch.testing.assert_close(within(x.flip(3)).flip(3), within(x))


def test_residual_without_output_weights_is_identity():
    block = depth_attention(6, heads=2, head_dim=4)
    block.fn.fn.fn.to_out.weight.data.zero_()
    x = randn(1, 6, 3, 2, 2)
    assert torch.equal(block(x), x)


@pytest.mark.gpu
@torch.no_grad()
def test_more_sequences_than_a_cuda_grid_holds():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    attention = Attention(4, heads=8, head_dim=32, rotary=True).to("cuda")
    x, bias = randn(70_000, 3, 4).to("cuda"), randn(8, 3, 3).to("cuda")
    y = attention(x, bias)
    torch.testing.assert_close(y[-4:], attention(x[-4:], bias), rtol=1e-3, atol=1e-4)


# Worked out by hand: 8 exact distances, then 8 + ⌊8 · log(d/8) / log 4⌋, at most 15; 16 more for keys after the query.
@pytest.mark.parametrize(
    ("offset", "bucket"),
    [
        (0, 0), (-1, 1), (-7, 7), (-8, 8), (-9, 8), (-10, 9), (-16, 12), (-22, 13), (-31, 15), (-32, 15), (-500, 15),
        (1, 17), (7, 23), (8, 24), (10, 25), (16, 28), (500, 31),
    ],
)  # fmt: skip
def test_position_buckets(offset, bucket):
    assert RelativePositionBias(heads=1).bucket(offset) == bucket


def test_position_bias_belongs_to_query_and_key():
    bias = RelativePositionBias(heads=2)
    with torch.no_grad():
        bias.relative_attention_bias.weight.copy_(torch.arange(64).reshape(32, 2))
    table = bias(4)
    assert table.shape == (2, 4, 4)
    assert table[0, 3, 1] == 2 * 2  # The key lies 2 before the query.
    assert table[1, 1, 3] == 2 * 18 + 1  # The key lies 2 after it.


def test_position_bias_of_any_length_is_that_of_its_buckets():
    bias = RelativePositionBias(heads=1, buckets=8, max_distance=4)
    with torch.no_grad():
        bias.relative_attention_bias.weight.copy_(torch.arange(8)[:, None])
    table = bias(9)[0]
    assert table.tolist() == [[bias.bucket(key - query) for key in range(9)] for query in range(9)]
    assert torch.equal(bias(1)[0], table[:1, :1])


def test_rotary_turns_neighboring_pairs():
    rotary = RotaryEmbedding(4)
    torch.testing.assert_close(rotary.freqs, torch.tensor([1.0, 0.01]))
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(3, 4)
    expected = [[math.cos(n), math.sin(n), -math.sin(n / 100), math.cos(n / 100)] for n in range(3)]
    torch.testing.assert_close(rotary(x, *rotary.angles(3)), torch.tensor(expected))


def test_rotary_products_depend_on_distance_only():
    rotary = RotaryEmbedding(8)
    query, key = randn(8, seed=1).expand(6, 8), randn(8, seed=2).expand(6, 8)
    products = rotary(query, *rotary.angles(6)) @ rotary(key, *rotary.angles(6)).T
    for distance in range(-5, 6):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert products[0].std() > 0.1


def test_rotary_leaves_features_beyond_its_own():
    rotary, x = RotaryEmbedding(4), randn(5, 10)
    turned = rotary(x, *rotary.angles(5))
    assert torch.equal(turned[:, 4:], x[:, 4:])
    assert not torch.equal(turned[1:, :4], x[1:, :4])
