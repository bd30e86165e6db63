"""Vector quantization with a codebook that follows its vectors by moving averages or by gradient.

Shapes: B batch, D numbers per code, Z, X, Y latent voxels, N = B·Z·X·Y vectors, K codes.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from difftumor.errors import ConfigError, ShapeError, TrainingError

Learning = Literal["ema", "gradient"]
# Keeps the average count of an unused code away from 0.
COUNT_EPS = 1e-7
# Repeated draws, needed if there are fewer vectors than codes, differ by this fraction of the vectors' deviation.
JITTER = 0.01
# Codes are searched in blocks of so many.
BLOCK = 128
# Distances (float32) that are held at once: on the CPU what caches hold.
_SEARCH_NUMBERS = {"cpu": 2**20}
_SEARCH_NUMBERS_ELSEWHERE = 2**26


@dataclass(frozen=True, eq=False)
class Quantized:
    """What quantization gives.

    Attributes:
        embeddings: (B, D, Z, X, Y) nearest codes; the gradient passes straight through to the features.
        indices: (B, Z, X, Y) int64 numbers of the codes.
        codebook_loss: Scalar, mean ‖sg[f] − c‖² over all numbers, sg stopping the gradient; pulls codes that learn by
            gradient toward their features, and has no gradient otherwise.
        commitment_loss: Scalar, mean ‖sg[c] − f‖²; pulls the features toward their codes.
        perplexity: Scalar in [1, K]; how many codes the batch uses, as exp of the entropy of their frequencies.
    """

    embeddings: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    perplexity: Tensor


class Codebook(nn.Module):
    """Codes that follow the vectors nearest to them.

    The forward pass changes nothing; training calls `initialize` once, on the features of its first batch, and
    `update` after each step. Both draw from the generator handed in.

    In a distributed run all ranks hand in generators of the same state and batches of the same size. Rank r of W
    holds elements r, r + W, … of a joint batch; all ranks end with the codes that one process with the joint batch
    would end with.

    Args:
        codes: Number of codes, K.
        dimensions: Numbers per code, D.
        learning: "ema": `update` moves the codes to exponential moving averages. "gradient": the codes are parameters
            that the codebook loss moves through an optimizer, as in eq. 1; `update` only counts and restarts.
        decay: Decay of the moving averages, in [0, 1).
        restart_below: A code whose average count per batch falls under this restarts at a random vector of the
            batch; 0 turns restarts off.
        search_chunk: Vectors compared with all codes at once; bounds the memory of the search to
            ``search_chunk · K`` float32 numbers. None chooses what is fast: 4 MB on the CPU, where caches hold
            it, and 256 MB elsewhere.

    Attributes:
        embeddings: (K, D) codes.
        N: (K,) average number of vectors per batch assigned to each code; all zero until the codebook is initialized.
        z_avg: (K, D) average sum of these vectors; N times the codes if they learn by gradient.

    Raises:
        ConfigError: An option is out of its range.
    """

    embeddings: Tensor
    N: Tensor
    z_avg: Tensor

    def __init__(
        self,
        *,
        codes: int,
        dimensions: int,
        learning: Learning = "ema",
        decay: float = 0.99,
        restart_below: float = 1.0,
        search_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if min(codes, dimensions, 1 if search_chunk is None else search_chunk) < 1:
            raise ConfigError(
                f"codes {codes}, dimensions {dimensions} and search_chunk {search_chunk} must be positive."
            )
        if learning not in get_args(Learning):
            raise ConfigError(f"codebook update {learning!r} is unknown; choose 'ema' or 'gradient'.")
        if not 0 <= decay < 1:
            raise ConfigError(f"codebook decay {decay} must be in [0, 1).")
        self.codes = codes
        self.dimensions = dimensions
        self.learning = learning
        self.decay = decay
        self.restart_below = restart_below
        self.search_chunk = search_chunk
        if learning == "gradient":
            self.embeddings = nn.Parameter(torch.zeros(codes, dimensions))
        else:
            self.register_buffer("embeddings", torch.zeros(codes, dimensions))
        self.register_buffer("N", torch.zeros(codes))
        self.register_buffer("z_avg", torch.zeros(codes, dimensions))

    @property
    def needs_init(self) -> bool:
        """Whether no batch has initialized the codes yet; part of the saved state, since counts are then all zero."""
        return not bool(self.N.any())

    @torch.no_grad()
    def nearest(self, features_BCZXY: Tensor) -> Tensor:
        """Return the numbers (B, Z, X, Y), int64, of the codes nearest to features (B, D, Z, X, Y)."""
        vectors_ND = self._vectors(features_BCZXY)
        chunk = self.search_chunk or max(
            1, _SEARCH_NUMBERS.get(vectors_ND.device.type, _SEARCH_NUMBERS_ELSEWHERE) // self.codes
        )
        filling = -self.codes % BLOCK
        with torch.autocast(vectors_ND.device.type, enabled=False):
            squares_1K = F.pad(self.embeddings.square().sum(1)[None], (0, filling), value=torch.inf)
            codes_DK = _for_product(F.pad(self.embeddings, (0, 0, 0, filling)), left=False).T
            # ‖x − e‖² = ‖x‖² − 2 x·e + ‖e‖², and ‖x‖² is the same for all codes.
            found = [
                _argmin(torch.addmm(squares_1K, _for_product(part, left=True), codes_DK, alpha=-2))
                for part in vectors_ND.split(chunk)
            ]
        batch, _, *size = features_BCZXY.shape
        # Infinite features make NaN of the filling, and NaN wins; what they are worth is for the training step to say.
        return torch.cat(found).clamp_(max=self.codes - 1).view(batch, *size)

    def lookup(self, indices_BZXY: Tensor) -> Tensor:
        """Return the codes (B, D, Z, X, Y), channels last in memory, with the given numbers (B, Z, X, Y)."""
        return F.embedding(indices_BZXY, self.embeddings).movedim(-1, 1)

    def forward(self, features_BCZXY: Tensor) -> Quantized:
        """Quantize features (B, D, Z, X, Y)."""
        indices = self.nearest(features_BCZXY)
        codes = self.lookup(indices)
        fixed = codes.detach()
        # The sum is exactly the code; only the gradient is that of the features.
        embeddings = fixed + (features_BCZXY - features_BCZXY.detach()) if features_BCZXY.requires_grad else fixed
        frequencies = torch.bincount(indices.flatten(), minlength=self.codes) / indices.numel()
        return Quantized(
            embeddings=embeddings,
            indices=indices,
            codebook_loss=F.mse_loss(codes, features_BCZXY.detach().float()),
            commitment_loss=F.mse_loss(features_BCZXY.float(), fixed),
            perplexity=torch.special.entr(frequencies).sum().exp(),
        )

    @torch.no_grad()
    def initialize(self, features_BCZXY: Tensor, *, generator: torch.Generator) -> None:
        """Place every code on a random vector of the (joint) batch.

        Args:
            features_BCZXY: (B, D, Z, X, Y) encoder output.
            generator: CPU generator, of the same state on all ranks.
        """
        self.embeddings.copy_(self._candidates(features_BCZXY, generator))
        self.z_avg.copy_(self.embeddings)
        self.N.fill_(1)

    @torch.no_grad()
    def update(self, features_BCZXY: Tensor, indices_BZXY: Tensor, *, generator: torch.Generator) -> Tensor:
        """Move the codes toward the vectors assigned to them and restart those that are hardly used.

        Args:
            features_BCZXY: (B, D, Z, X, Y) encoder output.
            indices_BZXY: (B, Z, X, Y) what `nearest` gave for it.
            generator: CPU generator for the restarts, of the same state on all ranks.

        Returns:
            Number of codes whose average count was under ``restart_below``, before they restart; 0-dim int64.

        Raises:
            TrainingError: The codebook has not been initialized.
        """
        if self.needs_init:
            raise TrainingError("the codebook is empty; call initialize on the features of the first batch.")
        vectors_ND, indices_N = self._vectors(features_BCZXY), indices_BZXY.flatten()
        counts_K = torch.bincount(indices_N, minlength=self.codes).to(self.N)
        _sum_over_ranks(counts_K)
        self.N.lerp_(counts_K, 1 - self.decay)
        if self.learning == "ema":
            self._follow(vectors_ND, indices_N)
        dead_K = self.N.lt(self.restart_below)
        if self.restart_below > 0:
            self._restart(dead_K, self._candidates(features_BCZXY, generator))
        if self.learning == "gradient":
            self.z_avg.copy_(self.N[:, None] * self.embeddings)
        return dead_K.sum()

    def _follow(self, vectors_ND: Tensor, indices_N: Tensor) -> None:
        """Move the codes to the moving averages of the vectors assigned to them."""
        sums_KD = torch.zeros_like(self.z_avg).index_add_(0, indices_N, vectors_ND)
        _sum_over_ranks(sums_KD)
        self.z_avg.lerp_(sums_KD, 1 - self.decay)
        # Additive smoothing of the counts that keeps their total.
        total = self.N.sum()
        smoothed_K = (self.N + COUNT_EPS) / (total + self.codes * COUNT_EPS) * total
        self.embeddings.copy_(self.z_avg / smoothed_K[:, None])

    def _restart(self, dead_K: Tensor, candidates_KD: Tensor) -> None:
        """Give codes with low average counts a new place, and a count of 1 to live on, as after `initialize`."""
        self.embeddings.copy_(torch.where(dead_K[:, None], candidates_KD, self.embeddings))
        self.z_avg.copy_(torch.where(dead_K[:, None], candidates_KD, self.z_avg))
        self.N.masked_fill_(dead_K, 1)

    def _vectors(self, features_BCZXY: Tensor) -> Tensor:
        """Return the features as (N, D) float32; a view if the memory format allows it."""
        if features_BCZXY.ndim != 5 or features_BCZXY.shape[1] != self.dimensions:
            raise ShapeError(
                f"features of shape {tuple(features_BCZXY.shape)} don't fit the codebook; "
                f"it takes (B, {self.dimensions}, Z, X, Y)."
            )
        return features_BCZXY.detach().movedim(1, -1).reshape(-1, self.dimensions).float()

    def _candidates(self, features_BCZXY: Tensor, generator: torch.Generator) -> Tensor:
        """Return (K, D) random vectors of the joint batch, the same on all ranks."""
        vectors_ND, ranks = self._vectors(features_BCZXY), _world_size()
        per_element, count = features_BCZXY[0, 0].numel(), len(vectors_ND) * ranks
        repeats = -(-self.codes // count)
        order_K = torch.cat([torch.randperm(count, generator=generator) for _ in range(repeats)])[: self.codes]
        # The joint batch deals its elements out like cards: element e is on rank e mod ranks, at place e div ranks.
        element_K, offset_K = order_K // per_element, order_K % per_element
        places_K = element_K // ranks * per_element + offset_K
        candidates_KD = vectors_ND[places_K.to(vectors_ND.device)]
        if ranks > 1:
            others_K = (element_K % ranks != dist.get_rank()).to(vectors_ND.device)
            candidates_KD.masked_fill_(others_K[:, None], 0)
            _sum_over_ranks(candidates_KD)
        if repeats > 1:
            noise = torch.randn(self.codes - count, self.dimensions, generator=generator).to(candidates_KD)
            # The first draws are each vector of the joint batch once.
            candidates_KD[count:] += JITTER * candidates_KD[:count].std(0, correction=0) * noise
        return candidates_KD


def _argmin(x_NK: Tensor) -> Tensor:
    """Return (N,) where each row is lowest, the first place of several; K is a multiple of `BLOCK`.

    The plain argmin over long rows takes as long as the product before it; minima of blocks take a tenth of that.
    """
    blocks_NMB = x_NK.unflatten(1, (-1, BLOCK))
    block_N1 = blocks_NMB.amin(2).argmin(1, keepdim=True)
    within_N1 = blocks_NMB.take_along_dim(block_N1[..., None], 1).argmin(2)
    return (block_N1 * BLOCK + within_N1).squeeze(1)


def _for_product(x_ND: Tensor, *, left: bool) -> Tensor:
    """Prepare a factor of a product; only a GPU may round it to TF32."""
    return split_factor(x_ND, left=left) if x_ND.device.type == "cuda" else x_ND


def split_factor(x_ND: Tensor, *, left: bool) -> Tensor:
    """Return a factor (N, 3·D) whose product keeps float32 accuracy though the factors are rounded to TF32.

    TF32 keeps 10 bits of the mantissa. With x = high + low, where high has no more bits than that,
    x·e ≈ high·high + high·low + low·high, which one product of three times the inner size sums up.
    """
    high = (x_ND.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
    low = x_ND - high
    return torch.cat([high, high, low] if left else [high, low, high], dim=1)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _sum_over_ranks(*tensors: Tensor) -> None:
    """Sum tensors over all ranks, in place; nothing outside a distributed run."""
    if _world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
