"""Attention of the denoiser, factorized over axial slices and depth (DiffTumor, CVPR 2024, section 3.2).

Features are (B, C, Z, X, Y). Attention within slices sees one Z at a time; attention along depth sees one (x, y) at a
time. The wrappers that only rearrange or normalize hold what they wrap as ``fn``, so that state-dict names equal those
of the published checkpoints.

Axis letters: B batch, C channels, Z X Y space, P positions of a slice (X * Y), H heads, N attended tokens, D features
of a head.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_FEATURES = 32
ROTARY_BASE = 10_000.0


class ChannelNorm(nn.Module):
    """Layer normalization over the channels of every voxel, with a gain and no offset."""

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, x_BCZXY: Tensor) -> Tensor:
        """Return the input with mean 0 and (biased) variance 1 over C, times the gain."""
        variance, mean = torch.var_mean(x_BCZXY, dim=1, correction=0, keepdim=True)
        return (x_BCZXY - mean) * torch.rsqrt(variance + self.eps) * self.gamma


class Residual(nn.Module):
    """Add to the input what ``fn`` makes of it."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x_BCZXY: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return ``x + fn(x, bias)``."""
        return x_BCZXY + self.fn(x_BCZXY, bias_HNN)


class PreNorm(nn.Module):
    """Apply ``fn`` to the channel-normalized input."""

    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = ChannelNorm(channels)

    def forward(self, x_BCZXY: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return ``fn(norm(x), bias)``."""
        return self.fn(self.norm(x_BCZXY), bias_HNN)


class AlongDepth(nn.Module):
    """Show ``fn`` the depth axis as tokens: one sequence of Z tokens for every position of a slice."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x_BCZXY: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return features of the input's shape; ``bias_HNN`` is (heads, Z, Z)."""
        B, C, Z, X, Y = x_BCZXY.shape
        x_BPZC = x_BCZXY.permute(0, 3, 4, 2, 1).reshape(B * X * Y, Z, C)
        return self.fn(x_BPZC, bias_HNN).reshape(B, X, Y, Z, -1).permute(0, 4, 3, 1, 2)


class WithinSlices(nn.Module):
    """Show ``fn`` the positions of a slice as tokens: one sequence of X * Y tokens for every slice."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x_BCZXY: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return features of the input's shape."""
        B, C, Z, X, Y = x_BCZXY.shape
        x_BZPC = x_BCZXY.permute(0, 2, 3, 4, 1).reshape(B * Z, X * Y, C)
        return self.fn(x_BZPC, bias_HNN).reshape(B, Z, X, Y, -1).permute(0, 4, 1, 2, 3)


class RotaryEmbedding(nn.Module):
    """Rotate pairs of neighboring features by angles that grow with the token's position (RoFormer, eq. 34).

    Args:
        features: How many of a head's leading features are rotated; even. The others pass through.
    """

    freqs: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        exponents = torch.arange(0, features, 2, dtype=torch.float32) / features
        self.register_buffer("freqs", 1.0 / ROTARY_BASE**exponents)

    def angles(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, each (tokens, features / 2), float32."""
        freqs = self.freqs.float()
        angles = torch.outer(torch.arange(tokens, device=freqs.device, dtype=torch.float32), freqs)
        return angles.cos(), angles.sin()

    def forward(self, x: Tensor, cosine_ND: Tensor, sine_ND: Tensor) -> Tensor:
        """Return (…, N, D) rotated, in the dtype of ``x``."""
        rotated, rest = x[..., : self.features], x[..., self.features :]
        even, odd = rotated[..., 0::2], rotated[..., 1::2]
        pairs = torch.stack((even * cosine_ND - odd * sine_ND, odd * cosine_ND + even * sine_ND), dim=-1)
        return torch.cat((pairs.flatten(-2).to(x.dtype), rest), dim=-1)


class RelativePositionBias(nn.Module):
    """Bias of the attention logits learned per head and bucket of the distance between two tokens (T5, section 2.1).

    Half of the buckets are for keys after the query. Of each half, the first half holds one distance each; the others
    widen logarithmically up to ``max_distance``, and the last one takes all that is farther.
    """

    def __init__(self, *, heads: int, buckets: int = 32, max_distance: int = 32) -> None:
        super().__init__()
        self.buckets = buckets
        self.max_distance = max_distance
        self.relative_attention_bias = nn.Embedding(buckets, heads)

    def bucket(self, offset: int) -> int:
        """Return the bucket of a key ``offset`` tokens after the query (negative: before it)."""
        half = self.buckets // 2
        exact = half // 2
        distance = abs(offset)
        if distance >= exact:
            growth = math.log(distance / exact) / math.log(self.max_distance / exact)
            distance = min(exact + int(growth * (half - exact)), half - 1)
        return distance + (half if offset > 0 else 0)

    def forward(self, tokens: int) -> Tensor:
        """Return the bias (H, N, N); entry (h, i, j) is added to the logit of query i and key j."""
        device = self.relative_attention_bias.weight.device
        table = torch.tensor([self.bucket(offset) for offset in range(1 - tokens, tokens)], device=device)
        position = torch.arange(tokens, device=device)
        buckets_NN = table[position[None, :] - position[:, None] + tokens - 1]
        return self.relative_attention_bias(buckets_NN).permute(2, 0, 1)


class Attention(nn.Module):
    """Multi-head softmax attention over a sequence, without biases in its projections.

    Args:
        channels: Features of a token.
        heads: Number of heads.
        head_dim: Features of a head.
        rotary: Rotate queries and keys by their positions.
    """

    def __init__(self, channels: int, *, heads: int, head_dim: int, rotary: bool) -> None:
        super().__init__()
        self.heads = heads
        self.rotary_emb = RotaryEmbedding(min(ROTARY_FEATURES, head_dim)) if rotary else None
        self.to_qkv = nn.Linear(channels, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, channels, bias=False)

    def forward(self, x_BNC: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return attended tokens (B, N, C); ``bias_HNN`` is added to the logits."""
        B, N, _ = x_BNC.shape
        query, key, value = self.to_qkv(x_BNC).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.rotary_emb is not None:
            cosine_ND, sine_ND = self.rotary_emb.angles(N)
            query, key = (self.rotary_emb(x, cosine_ND, sine_ND) for x in (query, key))
        mask = None if bias_HNN is None else bias_HNN.to(query.dtype).expand(B, -1, -1, -1)
        attended_BHND = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.to_out(attended_BHND.transpose(1, 2).reshape(B, N, -1))


class LinearAttention(nn.Module):
    """Attention within slices whose cost is linear in their size (Shen et al., Efficient Attention, eq. 6).

    Queries are normalized over features and keys over positions, so keys and values meet first, in a (D, D) matrix per
    head, and no (P, P) matrix is ever made.
    """

    def __init__(self, channels: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        # Two-dimensional, because that is how the published checkpoints store them.
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head_dim, channels, 1)

    def forward(self, x_BCZXY: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return attended features of the input's shape; a bias has no place here and is refused."""
        if bias_HNN is not None:
            raise ValueError("linear attention takes no position bias")
        B, C, Z, X, Y = x_BCZXY.shape
        x_SCXY = x_BCZXY.transpose(1, 2).reshape(B * Z, C, X, Y)
        query, key, value = self.to_qkv(x_SCXY).view(B * Z, 3, self.heads, self.head_dim, X * Y).unbind(1)
        query = query.softmax(dim=-2) * self.head_dim**-0.5
        key = key.softmax(dim=-1)
        context_SHDD = key @ value.transpose(-1, -2)
        attended_SHDP = context_SHDD.transpose(-1, -2) @ query
        y_SCXY = self.to_out(attended_SHDP.reshape(B * Z, -1, X, Y))
        return cast(Tensor, y_SCXY).view(B, Z, C, X, Y).transpose(1, 2)


def depth_attention(channels: int, *, heads: int, head_dim: int) -> Residual:
    """Return residual attention along Z, with rotary positions; called with (x_BCZXY, bias_HZZ)."""
    attention = Attention(channels, heads=heads, head_dim=head_dim, rotary=True)
    return Residual(PreNorm(channels, AlongDepth(attention)))


def slice_attention(channels: int, *, heads: int, head_dim: int) -> Residual:
    """Return residual full attention within slices, blind to positions; called with (x_BCZXY)."""
    attention = Attention(channels, heads=heads, head_dim=head_dim, rotary=False)
    return Residual(PreNorm(channels, WithinSlices(attention)))


def linear_slice_attention(channels: int, *, heads: int, head_dim: int) -> Residual:
    """Return residual linear attention within slices; called with (x_BCZXY)."""
    return Residual(PreNorm(channels, LinearAttention(channels, heads=heads, head_dim=head_dim)))
