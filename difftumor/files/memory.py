"""How much memory there is: what the system has left, or the control group of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Files of limit and use of a control group, of version 2 and 1.
_V2 = ("memory.max", "memory.current")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


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
