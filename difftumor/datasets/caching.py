"""Cases that were read before: on disk for any number of jobs, or in memory as far as it reaches.

MONAI's ``PersistentDataset`` would do for one job: it writes pickles, reads whole files back for every crop, and moves
them into place in two steps if the folder and ``/tmp`` are on different file systems. The files here appear whole,
and are mapped into memory, so that a crop reads no more than it needs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from difftumor.datasets.cases import Case
from difftumor.datasets.transforms import Item
from difftumor.errors import ConfigError
from difftumor.files.memory import free_memory_bytes
from difftumor.files.writing import written_whole
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import read_grid
from difftumor.scans.stored.header import is_nifti

# Part of every key: raised when the same key would come to mean other content.
FORMAT_VERSION = 1
# HU as float32, and a label.
_BYTES_PER_VOXEL = 5
# Share of the free memory that cached cases may take; the rest is for crops, networks and the system's own cache.
_SHARE_OF_MEMORY = 0.5
# Headers that the size of all cases is estimated from.
_MOST_HEADERS = 32


def file_facts(case: Case) -> list[list[Any]]:
    """Return path, size and time of change of each file of a case: what is read changes with them."""
    labels = case.labels
    if labels is None:
        files = [case.image]
    else:
        files = [case.image, *(sorted(filter(is_nifti, labels.iterdir())) if labels.is_dir() else [labels])]
    facts = [(str(file.resolve()), file.stat()) for file in files]
    return [[path, stat.st_size, stat.st_mtime_ns] for path, stat in facts]


@dataclass(frozen=True)
class CachedOnDisk:
    """A reader of cases that keeps what it has read in a folder, which any number of jobs may share.

    Files are written beside their place and moved there, and two that write the same key write the same: no locks.

    Args:
        load: Reads a case into tensors, arrays, lists of arrays, and what JSON can say.
        about: Everything besides the case's own files that decides what is read; JSON-able.
        folder: Made when the first case is written.
    """

    load: Callable[[Case], Item]
    about: Callable[[Case], Mapping[str, Any]]
    folder: Path
    _keys: dict[Case, str] = field(default_factory=dict, repr=False)

    def __call__(self, case: Case) -> Item:
        """Return the case; its tensors are mapped from the file, and not to be written to.

        Raises:
            ConfigError: The folder cannot be written to, or is full.
            DiffTumorError: As ``load``.
        """
        if case not in self._keys:  # looked up once, as many files on a network take their time
            self._keys[case] = self.key(case)
        key = self._keys[case]
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
        if (item := _read(file, key)) is not None:
            return item
        item = self.load(case)
        # If another job was faster, its file stays: that job reads from it, and NFS drops files that are replaced.
        if (theirs := _read(file, key)) is not None:
            return theirs
        try:
            with written_whole(file) as temporary:
                _write(temporary, key, item)
                temporary.chmod(0o644)  # safetensors makes files that nobody else may read
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{self.folder} cannot hold another case ({error}): make room, or give data.cache_dir another folder."
            ) from error
        # Mapped from now on, so that the first pass takes no more memory than later ones.
        return _read(file, key) or item

    def key(self, case: Case) -> str:
        """Return all that decides the content of a case's file, as text."""
        parts = {"format": FORMAT_VERSION, "case": case.id, "files": file_facts(case), **self.about(case)}
        return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def cache_rate(
    cases: Sequence[Case], *, spacing_mm: Sequence[float], processes: int = 1, free_bytes: int | None = None
) -> float:
    """Return which share of the cases half of the free memory holds.

    Args:
        cases: All cases to keep.
        spacing_mm: Voxel size at which they are kept.
        processes: Number of processes on this machine, each of which keeps its own.
        free_bytes: Free memory; by default that of this machine, or what its control group has left.
    """
    if not cases:
        return 1.0
    free = free_memory_bytes() if free_bytes is None else free_bytes
    step = math.ceil(len(cases) / _MOST_HEADERS)
    shapes = [ModelSpace(read_grid(case.image), spacing_mm).grid.shape for case in cases[::step]]
    each = sum(math.prod(shape) for shape in shapes) / len(shapes) * _BYTES_PER_VOXEL
    return min(1.0, _SHARE_OF_MEMORY * free / processes / (each * len(cases)))


def _write(file: Path, key: str, item: Item) -> None:
    """Write tensors as such; the metadata say what was an array, a list, or no tensor at all."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for name, value in item.items():
        parts = value if isinstance(value, list) else [value]
        if not parts or not all(isinstance(part, Tensor | np.ndarray) for part in parts):
            rest[name] = value
            continue
        kinds[name] = [len(parts) if isinstance(value, list) else None, isinstance(parts[0], np.ndarray)]
        for number, part in enumerate(parts):
            tensors[f"{name}.{number}"] = torch.as_tensor(part).contiguous()
    save_file(tensors, file, {"key": key, "rest": json.dumps(rest), "kinds": json.dumps(kinds)})


def _read(file: Path, key: str) -> Item | None:
    """Return what was written; None if there is no file, or it is damaged or has another key."""
    try:
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("key") != key:
                return None
            item: Item = json.loads(metadata["rest"])
            for name, (count, is_array) in json.loads(metadata["kinds"]).items():
                parts = [stored.get_tensor(f"{name}.{number}") for number in range(count or 1)]
                values = [part.numpy() for part in parts] if is_array else parts
                item[name] = values[0] if count is None else values
    except (OSError, SafetensorError):
        return None
    return item
