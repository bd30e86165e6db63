"""Wall time and peak memory of a command with all its children: ``python benchmarks/command.py make demo``.

Memory is the largest sum, over the process tree, of proportional set sizes (shared pages count once), read from
``/proc`` four times a second. The figures in docs/benchmarks.md come from here.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path


def descendants(root: int) -> set[int]:
    """Return the process and all its living descendants, from ``/proc``."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended meanwhile
                continue
            # The command name stands in parentheses and may hold blanks; the parent follows the state behind it.
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = set(), [root]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += children.get(pid, [])
    return found


def proportional_set_size_kib(pid: int) -> int:
    """Return a process's proportional set size in KiB, 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def machine() -> str:
    """Return the processor's name, the number of cores this process may use, and the memory."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def main() -> int:
    """Run the command and print the figures; the exit status is the command's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command with its arguments")
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("give a command to run")
    start = time.perf_counter()
    process = subprocess.Popen(arguments.command)
    peak_kib = 0
    while process.poll() is None:
        peak_kib = max(peak_kib, sum(map(proportional_set_size_kib, descendants(process.pid))))
        time.sleep(0.25)
    figures = {
        "command": " ".join(arguments.command),
        "exit_status": process.returncode,
        "wall_s": round(time.perf_counter() - start, 1),
        "peak_memory_gib": round(peak_kib / 2**20, 2),
        "machine": machine(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in figures.items()))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
