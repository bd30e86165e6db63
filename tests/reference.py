"""Deterministic weights behind the stored reference values in ``tests/data/*.npz``.

A checkpoint entry is drawn from NumPy's legacy generator, which is frozen across NumPy versions, seeded by the CRC-32
of the entry's published name. The key list alone thus rebuilds every tensor of a network, whatever its size.

Usage::

    network = reference_state(Autoencoder())                      # names as published
    denoiser = reference_state(Denoiser(), prefix="denoise_fn.")  # names that carry a prefix in the checkpoint
    assert relative_error(network.encode(ct), stored["features"]) < 1e-5
"""

import math
import zlib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path(__file__).resolve().parent / "data"

# Parts of names of the entries that a fresh network computes by itself; these keep the values they have.
COMPUTED = ("num_batches_tracked", "rotary_emb.freqs", "betas", "alphas", "posterior", "sqrt_", "log_one")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def reference_weight(key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the value of the entry with published name ``key`` as float32, or None for a computed entry."""
    if any(part in key for part in COMPUTED):
        return None
    if key == "codebook.N":
        return np.ones(shape, np.float32)
    # The running sums start at the codes themselves, as after a first batch that uses every code once.
    name = "codebook.embeddings" if key == "codebook.z_avg" else key
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "codebook" in name:
        value = 0.5 * draw
    elif "relative_attention_bias" in name:
        value = 0.2 * draw
    elif len(shape) >= 2 and not name.endswith("gamma"):
        value = draw / np.sqrt(math.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(draw)
    elif name.endswith(("weight", "gamma")):
        value = 1 + 0.1 * draw
    else:
        value = 0.1 * draw
    return value.astype(np.float32)


def reference_state(module: ModuleT, prefix: str = "") -> ModuleT:
    """Fill the state of ``module`` in place with the reference weights and return it in eval mode.

    Args:
        module: Network whose state-dict names, with ``prefix`` in front, are the published ones.
        prefix: What the published checkpoint puts before the module's own names, such as ``"denoise_fn."``.
    """
    state = module.state_dict()
    for key, old in state.items():
        value = reference_weight(prefix + key, tuple(old.shape))
        if value is not None:
            state[key] = torch.from_numpy(value).to(old)
    module.load_state_dict(state, strict=True)
    return module.eval()


def relative_error(ours: Any, reference: Any) -> float:
    """Return ‖ours − reference‖ / ‖reference‖ in float64; raises ValueError when the shapes differ."""
    a, b = (np.asarray(x.detach().cpu().numpy() if isinstance(x, Tensor) else x, np.float64) for x in (ours, reference))
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def load_reference(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of ``tests/data/<name>.npz``."""
    with np.load(DATA / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def published_keys(name: str, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Return names and shapes, in order, of the entries under ``prefix`` in ``tests/data/<name>_keys.tsv``.

    The prefix is stripped from the names.
    """
    keys = {}
    for line in (DATA / f"{name}_keys.tsv").read_text(encoding="utf-8").splitlines():
        key, shape, _ = line.split("\t")
        if key.startswith(prefix):
            keys[key.removeprefix(prefix)] = () if shape == "scalar" else tuple(int(n) for n in shape.split("x"))
    return keys
