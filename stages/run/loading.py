"""Processes that load: they leave signals to the training, and one that is lost ends it with a sentence."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import sharedctypes
from multiprocessing.context import DefaultContext
from pathlib import Path
from typing import Any, ClassVar

from difftumor.datasets.cases import Case
from difftumor.datasets.transforms import Item
from difftumor.files.processes import is_alive, started

# What schedulers send to all processes of a job to have it save, and what submitit has handlers for.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
LOOK_S = 5.0
# A process that stands still for so long while the training goes on will not be let go on.
STOPPED_S = 30.0
# Longer than any batch takes, even from a file server that is away for a while.
WAIT_S = 1800.0
# Bytes of a path that are kept.
_PATH_BYTES = 1024


class LoadingProcess(multiprocessing.Process):
    """A process that loads, and leaves it to the training to answer what schedulers signal to all processes of a job.

    Otherwise it would requeue the job, by handlers that it inherits, or die while the training still needs batches
    to get to where it saves. It ends when the training ends it, and when it finds that the training is gone. One that
    is stopped while the training is not is killed, which PyTorch notices.
    """

    # Those that this process has started, as long as somebody holds them.
    started: ClassVar[weakref.WeakSet[LoadingProcess]] = weakref.WeakSet()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._file = sharedctypes.RawArray("c", _PATH_BYTES)

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
        self.started.add(self)
        threading.Thread(target=_kill_if_stopped, args=(self.pid,), daemon=True, name="loading").start()

    def run(self) -> None:
        """Load."""
        threading.Thread(target=_end_with_training, daemon=True, name="signals").start()
        super().run()

    def note(self, file: Path) -> None:
        """Say, from within it, what it reads."""
        self._file.value = os.fsencode(file)[-_PATH_BYTES + 1 :]


def _end_with_training() -> None:
    """End this process at a SIGTERM, if it is the training that sends it."""
    while (received := signal.sigwaitinfo(_SIGNALS)).si_signo != signal.SIGTERM or received.si_pid != os.getppid():
        pass
    os._exit(0)


def _kill_if_stopped(pid: int, *, look_s: float = LOOK_S, stopped_s: float = STOPPED_S) -> None:
    """Kill a process of this one that stands still; returns when it is gone."""
    ended, stopped, start = threading.Event(), 0.0, started(pid)
    while start and is_alive(pid, start):  # its number may be another's afterwards
        stopped = stopped + look_s if _state(pid) == "T" else 0.0
        if stopped > stopped_s:
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
    return {"num_workers": number, "multiprocessing_context": context, "timeout": WAIT_S}


@dataclass(frozen=True)
class Noting:
    """A reader that notes what it reads, for the message should its process be lost.

    Args:
        load: Reads a case.
    """

    load: Callable[[Case], Item]

    def __call__(self, case: Case) -> Item:
        """Read a case."""
        if isinstance(process := multiprocessing.current_process(), LoadingProcess):
            process.note(case.image)
        return self.load(case)


def lost_loading_process(error: BaseException) -> str | None:
    """Return what is wrong, if an error says that a process that loads is gone or does not answer; else None."""
    text = str(error)
    if text.startswith("DataLoader timed out"):
        return f"no batch came for {WAIT_S / 60:g} minutes" + _last_read(list(LoadingProcess.started))
    dead = r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+))?"
    # The signal is told to whatever waits for a batch at that moment, which tells the processes alone.
    found = re.match(dead, str(error.__cause__)) or re.match(dead, text)
    if found is None:
        return None
    numbers, name = found.groups()
    often = {"Killed": "often because memory has run out", "Bus error": "often because shared memory has run out"}
    why = f" by signal {name}{f', {often[name]}' if name in often else ''}" if name else ""
    lost = [process for process in LoadingProcess.started if str(process.pid) in numbers.split(", ")]
    return f"the loading process {numbers} was ended{why}" + _last_read(lost)


def _last_read(processes: list[LoadingProcess]) -> str:
    files = sorted({process.file for process in processes if process.file})
    return f"; it last read {', '.join(files)}" if files else ""
