"""Harm as it comes: processes that end at any call or byte, and files that want to run code."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

# What changes a folder, or waits for the disk: between any two of them a process may end.
CALLS = ("fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink")


def forked(work: Callable[[], object]) -> int:
    """Do something in a copy of this process, and return its exit code; that of a signal is negative."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 99
        try:
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def killed_at_call(number: int) -> Iterator[list[str]]:
    """Kill this process before or after one of the ``CALLS`` of the block: 0 is before the first, 1 after it.

    Yields:
        The calls so far.
    """
    calls: list[str] = []

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            place = 2 * len(calls)
            calls.append(name)
            if place == number:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*arguments, **options)
            finally:
                if place + 1 == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    with mock.patch.multiple(os, **{name: dying(name, getattr(os, name)) for name in CALLS}):
        yield calls


@contextmanager
def killed_at_byte(number: int) -> Iterator[None]:
    """Let the kernel end this process at this byte of any file that the block writes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def full_at_byte(number: int) -> Iterator[None]:
    """Let no file grow beyond this byte, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Payload:
    """Makes a folder when it is unpickled carelessly."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sentinel),)
