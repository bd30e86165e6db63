"""Random generators derived from (seed, keys), so that nothing depends on order, workers, ranks or interruptions.

The same seed and keys give the same stream on every machine; different keys give independent streams. No function
here reads or writes global random state.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = int | str


def derive_seed(seed: int, *keys: Key) -> int:
    """Hash a seed and keys such as ``("epoch", 3, "sample", 17)`` to a non-negative 63-bit integer."""
    # Type and length are part of the text, so that (1, "1") and ("11",) never collide.
    text = "|".join(f"{type(key).__name__}:{len(str(key))}:{key}" for key in (int(seed), *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, *keys: Key) -> torch.Generator:
    """Return a CPU generator for (seed, keys).

    Draw on the CPU and move the result: CPU and CUDA runs then see the same numbers.
    """
    import torch  # here, because it takes seconds to load, and names and NumPy generators need none of it

    return torch.Generator(device="cpu").manual_seed(derive_seed(seed, *keys))


def numpy_generator(seed: int, *keys: Key) -> np.random.Generator:
    """Return a NumPy generator for (seed, keys)."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *keys)))
