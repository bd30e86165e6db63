"""Latents on disk: one file per crop, named by all that decides its content, found whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from difftumor.errors import ConfigError
from difftumor.files.writing import written_whole

# Part of every key: raised when the same key would come to mean other numbers.
FORMAT_VERSION = 1


def latent_key(**parts: Any) -> str:
    """Return a key as text: the same for the same parts, whatever their order.

    Args:
        parts: All that decides the latent, JSON-able.
    """
    return json.dumps({"format": FORMAT_VERSION, **parts}, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class LatentCache:
    """A folder of latents, which any number of processes may fill and read at once.

    Files are written beside their place and moved there, and two that write the same key write the same: no locks.

    Args:
        folder: Made when the first latent is written.
    """

    folder: Path

    def file(self, key: str) -> Path:
        """Return where the latent of a key belongs."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of a key; None if there is no file, or it is damaged, or of another key."""
        try:
            # Not mapped into memory: a file that is cut short while it is in use would end the process.
            content = self.file(key).read_bytes()
            tensors = load(content)
        except (OSError, SafetensorError, KeyError):  # KeyError: a damaged type
            return None
        stated = _metadata(content)
        if stated.get("key") != key or stated.get("content_sha256") != _digest(tensors):
            return None
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of a key, in the place of what may be there.

        Raises:
            ConfigError: The folder cannot be written to, or is full.
        """
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            with written_whole(self.file(key)) as temporary:
                # Not with save_file, whose files nobody else may read.
                temporary.write_bytes(save(stored, {"key": key, "content_sha256": _digest(stored)}))
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{self.folder} cannot hold another latent ({error}): make room, or give latents.cache another folder."
            ) from error


def _metadata(content: bytes) -> dict[str, str]:
    """The words in a file's header: 8 bytes of its length, and JSON (https://github.com/huggingface/safetensors)."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length]).get("__metadata__", {}))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bits: a file of the right length may still have wrong bits."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()
