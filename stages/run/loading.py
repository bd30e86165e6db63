"""Processes that load: they leave signals to the training, and one that is lost ends it with a sentence."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import sharedctypes
from multiprocessing.context import DefaultContext
from pathlib import Path
from typing import Any, ClassVar

from difftumor.datasets.cases import Case
from difftumor.datasets.transforms import Item
from difftumor.files.processes import started

# What schedulers send to all processes of a job to have it save, and what submitit has handlers for.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
LOOK_S = 5.0
# A process that stands still for so long while the training goes on will not be let go on.
STOPPED_S = 30.0
# Longer than any file takes, even from a file server that is away for a while.
READ_S = 1800.0
# Bytes of a path that are kept.
_PATH_BYTES = 1024


class LoadingProcess(multiprocessing.Process):
    """A process that loads, and leaves it to the training to answer what schedulers signal to all processes of a job.

    Otherwise it would requeue the job, by handlers that it inherits, or die while the training still needs batches
    to get to where it saves. It ends when the training ends it, and when it finds that the training is gone. One that
    is stopped while the training is not, or reads one file for half an hour, is killed, which PyTorch notices.
    """

    # Those that this process has started, as long as somebody holds them.
    made: ClassVar[weakref.WeakSet[LoadingProcess]] = weakref.WeakSet()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._file = sharedctypes.RawArray("c", _PATH_BYTES)
        self._since = sharedctypes.RawValue("d", 0.0)

    @property
    def file(self) -> str:
        """The file that it reads, or has read last; empty if none yet."""
        return self._file.value.decode(errors="replace")

    def start(self) -> None:
        """Start it; it inherits that the signals are blocked. PyTorch sets a handler of SIGTERM: ignoring won't do."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.made.add(self)
        assert self.pid is not None
        watch = partial(_kill_if_stuck, self.pid, self._since)
        threading.Thread(target=watch, daemon=True, name="loading").start()

    def run(self) -> None:
        """Load."""
        threading.Thread(target=_end_with_training, daemon=True, name="signals").start()
        super().run()

    @contextmanager
    def reading(self, file: Path) -> Iterator[None]:
        """Say, from within it, what it reads while the block runs."""
        self._file.value = os.fsencode(file)[-_PATH_BYTES + 1 :]
        self._since.value = time.monotonic()  # the same clock in all processes
        try:
            yield
        finally:
            self._since.value = 0.0


def _end_with_training() -> None:
    """End this process at a SIGTERM, if it is the training that sends it."""
    while (received := signal.sigwaitinfo(_SIGNALS)).si_signo != signal.SIGTERM or received.si_pid != os.getppid():
        pass
    os._exit(0)


def _kill_if_stuck(
    pid: int, since: Any, *, look_s: float = LOOK_S, stopped_s: float = STOPPED_S, read_s: float = READ_S
) -> None:
    """Kill a process of this one that stands still; returns when it is gone.

    Args:
        pid: Of the process.
        since: Shared value: when it began to read a file, by the monotonic clock; 0 while it reads none.
        look_s: From one look to the next.
        stopped_s: How long it may be stopped.
        read_s: How long it may read one file.
    """
    ended, stopped, begun = threading.Event(), 0.0, started(pid)
    # Another process may get its number.
    while begun and started(pid) == begun:
        stopped = stopped + look_s if _state(pid) == "T" else 0.0
        if stopped > stopped_s or (since.value and time.monotonic() - since.value > read_s):
            os.kill(pid, signal.SIGKILL)
        ended.wait(look_s)


def _state(pid: int) -> str:
    """Return the letter of a process's state, as in ``ps``; empty if it is gone, or where there is no ``/proc``."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class _LoadingContext(DefaultContext):
    Process = LoadingProcess


def loading_processes(number: int) -> dict[str, Any]:
    """Return the arguments of a ``DataLoader`` for so many processes that load; 0 loads in this one."""
    if not number:
        return {"num_workers": 0}
    context = _LoadingContext(multiprocessing.get_context())
    return {"num_workers": number, "multiprocessing_context": context}


@dataclass(frozen=True)
class Noting:
    """A reader that notes what it reads, for the message should its process be lost.

    Args:
        load: Reads a case.
    """

    load: Callable[[Case], Item]

    def __call__(self, case: Case) -> Item:
        """Read a case."""
        process = multiprocessing.current_process()
        with process.reading(case.image) if isinstance(process, LoadingProcess) else nullcontext():
            return self.load(case)


def lost_loading_process(error: BaseException) -> str | None:
    """Return what is wrong, if an error says that a process that loads is gone or does not answer; else None."""
    text = str(error)
    dead = r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+))?"
    # The signal is told to whatever waits for a batch at that moment, which tells the processes alone.
    found = re.match(dead, str(error.__cause__)) or re.match(dead, text)
    if found is None:
        return None
    numbers, name = found.groups()
    lost = [process for process in LoadingProcess.made if str(process.pid) in numbers.split(", ")]
    codes = [process.exitcode for process in lost if process.exitcode is not None and process.exitcode < 0]
    name = name or (signal.strsignal(-codes[0]) if codes else None)
    often = {
        "Killed": "often because memory has run out or a file server does not answer",
        "Bus error": "often because shared memory has run out",
    }
    why = f" by signal {name}{f', {often[name]}' if name in often else ''}" if name else ""
    return f"the loading process {numbers} was ended{why}" + _last_read(lost)


def _last_read(processes: list[LoadingProcess]) -> str:
    files = sorted({process.file for process in processes if process.file})
    return f"; it last read {', '.join(files)}" if files else ""
