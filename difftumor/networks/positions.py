"""What tells the denoiser's attention where tokens stand: rotary embedding, and a bias by distance.

Axis letters: N tokens, H heads, D features of a head.
"""

import math

import torch
from torch import Tensor, nn

ROTARY_BASE = 10_000.0


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
