"""Which process has made something, so that another one can tell whether it still runs; and ending one cleanly."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

# How a process marks what it is writing: machine, number, start, and a number of its own for each thing.
MARK = r"[0-9a-f]{8}-\d+-\d*-[0-9a-f]{8}"
# What a process of another machine has not touched for so long is left behind.
LAPSE_S = 24 * 3600.0


def machine() -> str:
    """Return what no other machine, boot or container has the same."""
    return f"{socket.gethostname()} {_text('/proc/sys/kernel/random/boot_id')} {_link('/proc/self/ns/pid')}"


def started(pid: int) -> str:
    """Return when a process was started, in ticks since the boot; empty for one that is gone or where none can tell."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else fields[18]


def is_alive(pid: int, start: str) -> bool:
    """Whether a process is there, on this machine; one that has ended but was not waited for is not.

    Args:
        pid: Its number.
        start: When it was started, which tells it from a later one of the same number.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's, of which /proc may tell nothing (hidepid)
        if not os.access(f"/proc/{pid}/stat", os.R_OK):
            return True
    return started(pid) == start


def mark() -> str:
    """Return a name for what this process is about to write; see `MARK`."""
    return marks_of(machine(), os.getpid(), started(os.getpid())) + secrets.token_hex(4)


def marks_of(where: str, pid: int, start: str) -> str:
    """Return how each `mark` of a process begins, given its `machine`, number and start."""
    return f"{_short(where)}-{pid}-{start}-"


def is_left_behind(name: str, *, age_s: float) -> bool:
    """Whether the process that made a `mark` is gone, or if it is another machine's, has long not gone on."""
    where, pid, start, _ = name.split("-")
    if where != _short(machine()):
        return age_s > LAPSE_S
    return not is_alive(int(pid), start)


class Terminated(SystemExit):
    """SIGTERM ends the process, with the exit status 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def ended_cleanly() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, by `Terminated`, so that nothing half-written stays.

    A second one ends the process at once. Where the signal is handled already, as by a scheduler's library, nothing is
    changed.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _text(file: str) -> str:
    with suppress(OSError):
        return Path(file).read_text().strip()
    return ""


def _link(file: str) -> str:
    with suppress(OSError):
        return os.readlink(file)
    return ""
