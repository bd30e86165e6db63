"""Cases that were read before: on disk for any number of jobs, or in memory as far as it reaches.

MONAI's ``PersistentDataset`` would do for one job: it writes pickles, reads whole files back for every crop, and moves
them into place in two steps if the folder and ``/tmp`` are on different file systems. The files here appear whole,
and are mapped into memory, so that a crop reads no more than it needs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from difftumor.datasets.cases import Case
from difftumor.datasets.transforms import Item
from difftumor.errors import ConfigError
from difftumor.files.writing import written_whole
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import is_nifti, read_grid

# Part of every key: raised when the same key would come to mean other content.
FORMAT_VERSION = 1
# HU as float32, and a label.
_BYTES_PER_VOXEL = 5
# Share of the free memory that cached cases may take; the rest is for crops, networks and the system's own cache.
_SHARE_OF_MEMORY = 0.5
# Headers that the size of all cases is estimated from.
_MOST_HEADERS = 32
# Files of limit and use of a control group, of version 2 and 1.
_V2 = ("memory.max", "memory.current")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


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


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that can still be used: what the system has, or what its control group (SLURM, Docker) leaves.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    if not (root / "proc/meminfo").is_file():  # not Linux: how much of it is free is unknown
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = (root / "proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    for names, group in _memory_groups(root):
        limit, used = (_number_in(group / name) for name in names)
        if limit is not None and used is not None:  # "max" is no limit
            free = min(free, max(0, limit - used + _reclaimable(group)))
    return free


def _memory_groups(root: Path) -> Iterator[tuple[tuple[str, str], Path]]:
    """Yield the files of limit and use, and the folder, of this process's control group and of all above it."""
    top, own = root / "sys/fs/cgroup", root / "proc/self/cgroup"
    found = {(_V2, top), (_V1, top / "memory")}  # a container sees its own group there
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        names, base = (_V2, top) if not controllers else (_V1, top / "memory")
        if not controllers or "memory" in controllers.split(","):
            inside = PurePosixPath(path.lstrip("/"))
            found |= {(names, base / part) for part in (inside, *inside.parents)}
    yield from sorted(found)


def _number_in(file: Path) -> int | None:
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdecimal() else None


def _reclaimable(group: Path) -> int:
    """Return what a group uses for files that were read, which the system takes back when it needs memory."""
    file = group / "memory.stat"
    counts = dict(line.split() for line in file.read_text().splitlines()) if file.is_file() else {}
    # Version 1 counts the groups below under the first name.
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


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
