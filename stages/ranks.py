"""What one of the processes of a run says and reads first; without PyTorch, so that plans take seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

from lightning_utilities.core.rank_zero import rank_zero_only

T = TypeVar("T")


def say(sentence: str) -> None:
    """Print a sentence, once for all ranks."""
    if is_rank_zero():
        print(sentence, flush=True)


def is_rank_zero() -> bool:
    """Whether this process is the only one or the first of several."""
    # Lightning sets the rank on the function from the launcher's environment, before any process group exists.
    return getattr(rank_zero_only, "rank", 0) == 0


def own_share_first(items: Sequence[T]) -> list[T]:
    """Return items from this process's share on, so that ranks started together read different files first."""
    rank = getattr(rank_zero_only, "rank", None) or 0
    ranks = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    start = len(items) * (rank % ranks) // ranks
    return [*items[start:], *items[:start]]
