"""Where tokens stand: rotary embedding and position bias against values worked out by hand."""

import math

import pytest
import torch

from difftumor.models.attention import RelativePositionBias, RotaryEmbedding
from tests.conftest import randn


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
