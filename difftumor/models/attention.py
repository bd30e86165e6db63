"""Attention of the denoiser, factorized over axial slices and depth (DiffTumor, CVPR 2024, section 3.2).

Features are (B, C, Z, X, Y), best in channels-last memory, of which (B, Z, P, C) is a view. Attention within slices
sees one Z at a time; attention along depth sees one (x, y) at a time. The wrappers that only rearrange or normalize
hold what they wrap as ``fn``, so that state-dict names equal those of the published checkpoints.

Axis letters: B batch, C channels, Z X Y space, P positions of a slice (X * Y), S sequences that don't see each other,
N attended tokens, H heads, D features of a head.
"""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

ROTARY_BASE = 10_000.0
ROTARY_FEATURES = 32
# With the published 256 features per token, queries, keys and values of a piece take 2 MB each.
TOKENS_OF_A_PIECE = 2048


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
        rotated = x[..., : self.features]
        pairs = rotated.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
        if torch.compiler.is_compiling():
            # The compiler fuses these, but no complex numbers.
            even, odd = pairs.unbind(-1)
            turned = torch.stack((even * cosine_ND - odd * sine_ND, odd * cosine_ND + even * sine_ND), dim=-1)
        else:
            turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cosine_ND, sine_ND))
        turned = turned.flatten(-2).to(x.dtype)
        return turned if x.shape[-1] == self.features else torch.cat((turned, x[..., self.features :]), dim=-1)


class RelativePositionBias(nn.Module):
    """Bias of the attention logits learned per head and bucket of the distance between two tokens (T5, section 2.1).

    Half of the buckets are for keys after the query. Of each half, the first half holds one distance each; the others
    widen logarithmically up to ``max_distance``, and the last one takes all that is farther.
    """

    table: Tensor

    def __init__(self, *, heads: int, buckets: int = 32, max_distance: int = 32) -> None:
        super().__init__()
        self.buckets = buckets
        self.max_distance = max_distance
        self.relative_attention_bias = nn.Embedding(buckets, heads)
        # Where the network is, so that no call waits for a copy to a GPU.
        table = [self.bucket(offset) for offset in range(-max_distance, max_distance + 1)]
        self.register_buffer("table", torch.tensor(table), persistent=False)

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
        position = torch.arange(tokens, device=self.table.device)
        offset_NN = (position[None, :] - position[:, None]).clamp(-self.max_distance, self.max_distance)
        return self.relative_attention_bias(self.table[offset_NN + self.max_distance]).permute(2, 0, 1)


class ChannelNorm(nn.Module):
    """Layer normalization over the channels of every token, with a gain and no offset."""

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, C) with mean 0 and (biased) variance 1 over C, times the gain."""
        gain_C = self.gamma.flatten()
        return F.layer_norm(x, gain_C.shape, weight=gain_C, eps=self.eps)


class Residual(nn.Module):
    """Add to the input what ``fn`` makes of it; on a CPU, piece by piece along the axis that ``fn`` may be cut at."""

    def __init__(self, fn: "PreNorm") -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x_BCZXY: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return ``x + fn(x, bias)``, in channels-last memory."""
        x_BZPC = x_BCZXY.permute(0, 2, 3, 4, 1).flatten(2, 3)
        if _has_kernels(x_BZPC):
            y_BZPC = self.sum(x_BZPC, bias_HNN)
        else:
            y_BZPC = _InPieces.apply(self, x_BZPC, bias_HNN, *self.parameters())
        return y_BZPC.unflatten(2, x_BCZXY.shape[3:]).permute(0, 4, 1, 2, 3)

    def sum(self, x_BZPC: Tensor, bias_HNN: Tensor | None) -> Tensor:
        """Return the same of a whole or a piece, as (B, Z, P, C)."""
        return x_BZPC + self.fn(x_BZPC, bias_HNN)

    def pieces(self, x_BZPC: Tensor) -> Iterator[Tensor]:
        """Give views of parts of single elements, so that an element's numbers don't depend on the batch."""
        axis = cast(AlongDepth | WithinSlices | LinearAttention, self.fn.fn).axis
        size = max(1, TOKENS_OF_A_PIECE * x_BZPC.shape[axis] // (x_BZPC.shape[1] * x_BZPC.shape[2]))
        return (piece for x_1ZPC in x_BZPC.split(1) for piece in x_1ZPC.split(size, axis))


class _InPieces(torch.autograd.Function):
    """A residual block, piece by piece, that keeps only its input and computes each piece again for its gradient.

    Queries, keys and values are ten times larger than what they are made of. Those of a piece stay in the processor's
    caches, and nobody keeps them.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, block: Residual, x_BZPC: Tensor, bias_HNN: Tensor | None, *parameters: Tensor) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x_BZPC, bias_HNN, *parameters)
        y_BZPC = x_BZPC.new_empty(x_BZPC.shape)
        for source, target in zip(block.pieces(x_BZPC), block.pieces(y_BZPC), strict=True):
            target.copy_(block.sum(source, bias_HNN))
        return y_BZPC

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(  # type: ignore[override]
        ctx: Any, grad_BZPC: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_BZPC, *others = ctx.saved_tensors
        bias_HNN = others[0]
        learning = [tensor for tensor in others if tensor is not None and tensor.requires_grad]
        totals = [torch.zeros_like(tensor) for tensor in learning]
        grad_x_BZPC = x_BZPC.new_empty(x_BZPC.shape)
        pieces = (ctx.block.pieces(tensor) for tensor in (x_BZPC, grad_BZPC, grad_x_BZPC))
        for source, grad, target in zip(*pieces, strict=True):
            with torch.enable_grad():
                leaf = source.detach().requires_grad_()
                y = ctx.block.sum(leaf, bias_HNN)
            grad_source, *grads = torch.autograd.grad(y, [leaf, *learning], grad)
            target.copy_(grad_source)
            for total, found in zip(totals, grads, strict=True):
                total += found
        left = iter(totals)
        return None, grad_x_BZPC, *(next(left) if t is not None and t.requires_grad else None for t in others)


class PreNorm(nn.Module):
    """Apply ``fn`` to the channel-normalized input."""

    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = ChannelNorm(channels)

    def forward(self, x_BZPC: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return ``fn(norm(x), bias)``."""
        return cast(Tensor, self.fn(self.norm(x_BZPC), bias_HNN))


class AlongDepth(nn.Module):
    """Show ``fn`` the depth axis as tokens: one sequence of Z tokens for every position of a slice."""

    axis = 2  # positions don't see each other

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x_BZPC: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return features of the input's shape; ``bias_HNN`` is (heads, Z, Z)."""
        y_SZC = cast(Tensor, self.fn(x_BZPC.transpose(1, 2).flatten(0, 1), bias_HNN))
        return y_SZC.unflatten(0, (len(x_BZPC), -1)).transpose(1, 2)


class WithinSlices(nn.Module):
    """Show ``fn`` the positions of a slice as tokens: one sequence of X * Y tokens for every slice."""

    axis = 1  # slices don't see each other

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x_BZPC: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return features of the input's shape."""
        y_SPC = cast(Tensor, self.fn(x_BZPC.flatten(0, 1), bias_HNN))
        return y_SPC.unflatten(0, x_BZPC.shape[:2])


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

    def forward(self, x_SNC: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return attended tokens (S, N, C); ``bias_HNN`` is added to the logits."""
        return self._by_kernel(x_SNC, bias_HNN) if _has_kernels(x_SNC) else self._by_products(x_SNC, bias_HNN)

    def _by_kernel(self, x_SNC: Tensor, bias_HNN: Tensor | None) -> Tensor:
        query, key, value = self.to_qkv(x_SNC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self._turned(query, key)
        mask = None if bias_HNN is None else bias_HNN.to(query.dtype).expand(len(x_SNC), -1, -1, -1)
        attended_SHND = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return cast(Tensor, self.to_out(attended_SHND.transpose(1, 2).flatten(2)))

    def _by_products(self, x_SNC: Tensor, bias_HNN: Tensor | None) -> Tensor:
        # With tokens before sequences, sequences and heads are one axis without a copy.
        x_NSC = x_SNC.transpose(0, 1)
        to_query, to_key, to_value = self.to_qkv.weight.chunk(3)
        to_query = to_query * (len(to_query) // self.heads) ** -0.5
        query, key, value = (
            F.linear(x_NSC, weight).unflatten(-1, (self.heads, -1)).flatten(1, 2).transpose(0, 1)
            for weight in (to_query, to_key, to_value)
        )
        query, key = self._turned(query, key)
        logits = torch.bmm(query, key.mT)
        if bias_HNN is not None:
            logits.unflatten(0, (-1, self.heads)).add_(bias_HNN)
        attended_NSHD = torch.bmm(_softmax(logits), value).transpose(0, 1)
        return cast(Tensor, self.to_out(attended_NSHD.reshape(*x_NSC.shape[:2], -1))).transpose(0, 1)

    def _turned(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.rotary_emb is None:
            return query, key
        angles = self.rotary_emb.angles(query.shape[-2])
        return self.rotary_emb(query, *angles), self.rotary_emb(key, *angles)


class LinearAttention(nn.Module):
    """Attention within slices whose cost is linear in their size (Shen et al., Efficient Attention, eq. 6).

    Queries are normalized over features and keys over positions, so keys and values meet first, in a (D, D) matrix per
    head, and no (P, P) matrix is ever made.
    """

    axis = WithinSlices.axis

    def __init__(self, channels: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        # Two-dimensional, because that is how the published checkpoints store them.
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head_dim, channels, 1)

    def forward(self, x_BZPC: Tensor, bias_HNN: Tensor | None = None) -> Tensor:
        """Return attended features of the input's shape; a bias is refused, because it cannot be used here."""
        if bias_HNN is not None:
            raise ValueError("linear attention takes no position bias")
        x_SPC = x_BZPC.flatten(0, 1)
        by_head = (self.heads, self.head_dim)
        to_query, to_key, to_value = self.to_qkv.weight.flatten(1).chunk(3)
        query_SPHD = _softmax(F.linear(x_SPC, to_query).unflatten(-1, by_head))
        key_SEP = _softmax(to_key @ x_SPC.mT)  # E: features of all heads
        to_out_HDC = self.to_out.weight.flatten(1).mT.unflatten(0, by_head) * self.head_dim**-0.5
        bias = cast(Tensor, self.to_out.bias)
        # Products of matrices may be made in any order; the smaller of positions and channels goes first.
        if x_SPC.shape[2] < x_SPC.shape[1]:
            context_SHDD = (key_SEP @ x_SPC).unflatten(1, by_head) @ to_value.unflatten(0, by_head).mT
            y_SPC = torch.baddbmm(bias, query_SPHD.flatten(2), (context_SHDD @ to_out_HDC).flatten(1, 2))
        else:
            value_SPHD = F.linear(x_SPC, to_value).unflatten(-1, by_head)
            context_SHDD = key_SEP.unflatten(1, by_head) @ value_SPHD.transpose(1, 2)
            attended_SHPD = query_SPHD.transpose(1, 2) @ context_SHDD
            y_SPC = F.linear(attended_SHPD.transpose(1, 2).flatten(2), to_out_HDC.flatten(0, 1).mT, bias)
        return y_SPC.unflatten(0, x_BZPC.shape[:2])


def _softmax(x: Tensor) -> Tensor:
    # Autocast would give float32, only to round it again for the product that follows.
    return x.softmax(-1, dtype=x.dtype)


def _has_kernels(x: Tensor) -> bool:
    """Whether fused kernels serve this best, rather than plain products on pieces that fit a processor's caches."""
    return torch.compiler.is_compiling() or x.device.type != "cpu"


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
