"""The queue runs its jobs one after the other, on one core and at low priority, until it is paused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from difftumor.errors import ConfigError
from difftumor.files.lock import Holder, holder_of, locked
from difftumor.files.texts import read_json
from difftumor.files.writing import written_whole
from stages.cluster.status import JobState, last_error
from studies.jobs.graph import Node
from studies.jobs.states import Standing

LOCK, STATE, PAUSE = "queue", "queue.json", "queue.pause"
# Libraries that would otherwise take all cores.
ONE_CORE = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
NICENESS = 19
POLL_S = 0.5


class QueuePausedError(Exception):
    """The queue was asked to pause, and has saved where it is."""


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """What the queue knows of a job.

    Args:
        state: ``"running"``, or how its latest run has ended.
        seconds: How long it ran in all, before its present run.
        started: When its latest run started, as a time stamp.
    """

    state: Literal["running", "ended", "failed", "stopped"]
    seconds: float = 0.0
    started: float = 0.0


class Queue:
    """The queue of a folder.

    Args:
        folder: Folder of the study.
        poll_s: How often it looks whether it is to pause, s.
    """

    def __init__(self, folder: Path, *, poll_s: float = POLL_S) -> None:
        self.folder = folder
        self.poll_s = poll_s
        self._asked = threading.Event()

    @property
    def holder(self) -> Holder | None:
        """The process that runs the queue; None if none does."""
        return holder_of(self.folder / LOCK)

    @property
    def jobs(self) -> dict[str, QueuedJob]:
        """What is known of jobs that have been started, by id.

        Raises:
            ConfigError: The file is damaged.
        """
        file = self.folder / STATE
        try:
            return {name: QueuedJob(**job) for name, job in read_json(file).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file} is not the state of a queue: remove it, and only its times are lost.") from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the queue; a signal to end pauses it.

        Raises:
            ConfigError: Another process runs it.
        """
        if (holder := self.holder) is not None:
            raise ConfigError(
                f"The queue in {self.folder} is run by {holder}: wait until it has ended, or pause it first."
            )
        with locked(self.folder / LOCK), self._signals():
            self._asked.clear()
            (self.folder / PAUSE).unlink(missing_ok=True)
            yield

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(signum: int, frame: FrameType | None) -> None:
            self._asked.set()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signum: signal.signal(signum, ask) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def pause(self) -> bool:
        """Let the running training save and stop, and wait until it has; return whether anything ran."""
        if self.holder is None:
            return False
        (self.folder / PAUSE).touch()
        while self.holder is not None:
            time.sleep(self.poll_s)
        return True

    @property
    def asked(self) -> bool:
        """Whether it was asked to pause."""
        return self._asked.is_set() or (self.folder / PAUSE).exists()

    def run(self, node: Node, log: Path) -> int:
        """Run a job, and return its exit status.

        Raises:
            QueuePausedError: The queue is to pause; a training has saved and stopped, a short job has ended.
        """
        if self.asked:
            raise QueuePausedError
        sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {node.id}  {log}\n")
        sys.stdout.flush()
        log.parent.mkdir(parents=True, exist_ok=True)
        earlier, start = self.jobs.get(node.id, QueuedJob(state="running")), time.time()
        self._note(node, replace(earlier, state="running", started=start))
        # A session of its own: an interrupt from the keyboard would end a training before it has saved.
        with log.open("a", encoding="utf-8") as stream:
            process = subprocess.Popen(
                ["nice", "-n", str(NICENESS), sys.executable, "-m", node.module, *node.command],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ONE_CORE},
                start_new_session=True,
            )
        self._wait(process, stop=node.gpu)
        paused = self.asked
        done = process.returncode == 0 and node.is_done()
        state: Literal["ended", "stopped", "failed"] = "ended" if done else "stopped" if paused else "failed"
        self._note(node, QueuedJob(state=state, seconds=earlier.seconds + time.time() - start, started=start))
        if paused:
            raise QueuePausedError
        return process.returncode

    def _wait(self, process: subprocess.Popen[bytes], *, stop: bool) -> None:
        """Wait for a job; one that takes long is told to stop when the queue is to pause."""
        told = False
        while process.poll() is None:
            if stop and not told and self.asked:
                process.terminate()
                told = True
            try:
                process.wait(self.poll_s)
            except subprocess.TimeoutExpired:
                continue

    def _note(self, node: Node, job: QueuedJob) -> None:
        jobs = {**self.jobs, node.id: job}
        with written_whole(self.folder / STATE) as temporary:
            temporary.write_text(json.dumps({name: asdict(each) for name, each in jobs.items()}, indent=1))

    def overlaid(self, found: Mapping[str, Standing], logs: Mapping[str, Path]) -> dict[str, Standing]:
        """Return where jobs are, with what the queue knows of those that are to do.

        Args:
            found: By id.
            logs: Their logs, by id.
        """
        jobs, runs = self.jobs, self.holder is not None
        return {name: _overlaid(each, jobs.get(name), logs[name], runs) for name, each in found.items()}


def seconds_of(folder: Path | None, job: str) -> float | None:
    """Return how long a job of a queue took; None if that is unknown."""
    known: dict[str, Any] = {} if folder is None else dict(Queue(folder).jobs)
    return round(known[job].seconds) if job in known else None


def _overlaid(standing: Standing, job: QueuedJob | None, log: Path, runs: bool) -> Standing:
    if standing.status != "to do" or job is None:
        return standing
    if job.state == "running" and runs:
        state = JobState(
            name=standing.node.id, id="queue", state="running", log=log, seconds=round(time.time() - job.started)
        )
        return replace(standing, status="running", job=state)
    if job.state == "failed":
        state = JobState(name=standing.node.id, id="queue", state="failed", log=log, seconds=round(job.seconds))
        return replace(standing, status="failed", reason=last_error(log), job=state)
    return standing
