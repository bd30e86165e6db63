"""The lock of a folder that is written to: two jobs never write there at once, and one that died keeps nobody out."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from difftumor.errors import ConfigError, TrainingError
from difftumor.files.processes import is_alive, machine, mark, marks_of, started
from difftumor.files.recovery import recover
from difftumor.files.texts import read_json
from difftumor.files.writing import LOCK, guarded, own_prefix

RENEW_S = 60.0
LAPSE_S = 600.0  # without renewal, a lock of another machine counts as left behind


class LockPlaceError(ConfigError):
    """A lock cannot be written where it belongs."""


def slurm_job() -> str | None:
    """Return SLURM's number of this job as squeue takes it; None outside of SLURM."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        # One task of an array has the array's own number, which stands for all tasks.
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock.

    Args:
        token: Different each time that a lock is taken.
        host: Name of the machine.
        machine: What no other machine, boot or container has the same.
        pid: Number of the process.
        started: When it was started, which tells it from a later one of the same number.
        job: SLURM's number of the job; None outside of SLURM.
        restarts: How often SLURM has started the job again.
        cluster: SLURM's name of the cluster.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    job: str | None = None
    restarts: int = 0
    cluster: str | None = None

    @classmethod
    def here(cls) -> Holder:
        """Return this process."""
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            machine=machine(),
            pid=os.getpid(),
            started=started(os.getpid()),
            job=slurm_job(),
            restarts=int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            cluster=os.environ.get("SLURM_CLUSTER_NAME"),
        )

    def keeps_out(self, other: Holder, *, age_s: float, by_job: bool = False) -> bool:
        """Whether this holder, who renewed the lock so long ago, may still write where another wants to.

        Args:
            other: Who wants the lock.
            age_s: How long ago it was renewed, s.
            by_job: Whether a later step of the same job may have it.
        """
        if self.is_requeued_as(other):
            return False
        if self.machine == other.machine:
            return self.is_alive
        if by_job and self._is_of_job(other):
            return False
        return age_s < LAPSE_S and not self._has_ended(other)

    def is_requeued_as(self, other: Holder) -> bool:
        """Whether another is of the same job, which SLURM has started again since."""
        return self._is_of_job(other) and self.restarts < other.restarts

    def _is_of_job(self, other: Holder) -> bool:
        return self.job is not None and (self.job, self.cluster) == (other.job, other.cluster)

    @property
    def is_alive(self) -> bool:
        """Whether the process is there, on this machine."""
        return is_alive(self.pid, self.started)

    def _has_ended(self, other: Holder) -> bool:
        """Whether SLURM says that the job is over; False if it cannot be asked."""
        if self.job is None or self.cluster != other.cluster:
            return False
        words = ["squeue", "--noheader", "--jobs", self.job, "--format=%T"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        # A job that SLURM has forgotten is "invalid".
        return not done.stdout.strip() and (done.returncode == 0 or "Invalid job id" in done.stderr)

    def __str__(self) -> str:
        """Who it is, for people."""
        job = f"job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}"


class FolderLock:
    """The lock of a folder, or of a file, held by this process.

    Args:
        folder: What is locked; the lock is a file beside it, since the folder itself may be removed and made again.
        remedy: What else the user can do, for messages.
        by_job: Whether a later step of the holder's job, on another node, may take it over.
    """

    def __init__(self, folder: Path, *, remedy: str = "give another folder", by_job: bool = False) -> None:
        self.folder = folder
        self.remedy = remedy
        self.by_job = by_job
        self.file, *self._others = _lock_files(folder.resolve())
        self.holder = Holder.here()
        self.ended: str | None = None  # the marks of the process that held it before the job was requeued
        self._renewed = 0.0

    def take(self) -> None:
        """Take the lock; what this job has left in the folder before it was requeued is finished or removed.

        Raises:
            ConfigError: Somebody else holds it, or the place cannot be written to.
        """
        new = self._temporary()
        try:
            self._write(new)
            while not _linked(new, self.file):
                self._remove_left_behind(now=new.stat().st_mtime)
        finally:
            with suppress(OSError):
                new.unlink()
        self._renewed = time.time()
        for file in self._others:  # where another user may have to hold it
            if (holder := self._holder(file)) is not None:
                self.release()
                raise self._in_use(holder, file)
        if self.ended is not None:
            recover(self.folder, ended=self.ended)

    def _temporary(self) -> Path:
        """Return a name that `recover` knows, should this process be killed."""
        inside = self.file.name == LOCK
        return self.file.with_name(f".{mark()}" if inside else f"{own_prefix(self.folder.resolve())}{mark()}")

    def _write(self, file: Path) -> None:
        try:
            file.write_text(json.dumps(asdict(self.holder)), encoding="utf-8")
            file.chmod(0o644)  # for others to read
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise LockPlaceError(f"{self.folder} cannot be written ({reason}): {self.remedy}.") from error

    @property
    def other_holder(self) -> Holder | None:
        """Who else holds the lock and keeps this process out."""
        return next((holder for file in (self.file, *self._others) if (holder := self._holder(file))), None)

    def _holder(self, file: Path) -> Holder | None:
        try:
            holder, age_s = _read(file), time.time() - file.stat().st_mtime
        except OSError:
            return None
        return holder if holder is not None and self._is_kept_out(holder, age_s) else None

    def _is_kept_out(self, holder: Holder, age_s: float) -> bool:
        return holder.keeps_out(self.holder, age_s=age_s, by_job=self.by_job)

    def _in_use(self, holder: Holder, file: Path) -> ConfigError:
        return ConfigError(
            f"{self.folder} is in use by {holder}: wait until it has ended, or {self.remedy} (remove {file} "
            "if you know that it is gone)."
        )

    def _remove_left_behind(self, *, now: float) -> None:
        """Move the lock of a holder that is gone out of the way; ``now`` is the file server's clock, not ours."""
        try:
            holder, age_s = _read(self.file), now - self.file.stat().st_mtime
        except FileNotFoundError:
            return
        if holder is not None and self._is_kept_out(holder, age_s):
            raise self._in_use(holder, self.file)
        if holder is not None and holder.is_requeued_as(self.holder) and holder.machine != self.holder.machine:
            self.ended = marks_of(holder.machine, holder.pid, holder.started)
        aside = self._temporary()
        with suppress(FileNotFoundError):
            os.rename(self.file, aside)
            if _read(aside) != holder:  # somebody else was faster
                _linked(aside, self.file)
            aside.unlink()

    def renew(self) -> None:
        """Say that this process goes on.

        Raises:
            TrainingError: The lock was taken over.
        """
        with suppress(OSError):  # a file server that is away for a while
            try:
                holder = _read(self.file)
            except FileNotFoundError:
                holder = None
            if holder != self.holder:
                taker = f"is now in use by {holder}" if holder else "has lost its lock"
                raise TrainingError(f"{self.folder} {taker}, since this process stood still: let the other one go on.")
            os.utime(self.file)
            self._renewed = time.time()

    def check(self) -> None:
        """Make sure, before something is written, that the lock is still ours.

        Raises:
            TrainingError: It was taken over.
        """
        if time.time() - self._renewed > 2 * RENEW_S:
            self.renew()

    def keep(self, released: threading.Event) -> None:
        """Renew again and again, until the lock is released."""
        while not released.wait(RENEW_S):
            try:
                self.renew()
            except TrainingError:  # `check` will say so where it is heard
                self._renewed = 0.0
                return

    def release(self) -> None:
        """Give the lock up, if it is still ours."""
        with suppress(OSError):
            if _read(self.file) == self.holder:
                self.file.unlink()


def holder_of(folder: Path) -> Holder | None:
    """Return who holds the lock of a folder; None if nobody does, or one who is gone."""
    return FolderLock(folder).other_holder


@contextmanager
def locked(folder: Path, *, remedy: str = "give another folder", by_job: bool = False) -> Iterator[FolderLock]:
    """Hold the lock of a folder, or of a file, that is written to.

    Results that are put in their place meanwhile, see `written_whole`, are refused if the lock was taken over.

    Args:
        folder: What is locked; need not exist.
        remedy: What else the user can do, for messages.
        by_job: Whether a later step of the holder's job, on another node, may take it over.

    Raises:
        ConfigError: Somebody else holds it, or the place cannot be written to.
        TrainingError: It was taken over, since this process stood still.
    """
    lock, released = FolderLock(folder, remedy=remedy, by_job=by_job), threading.Event()
    missing = [parent for parent in lock.file.parents if not parent.exists()]
    with suppress(OSError):  # `take` says what is wrong
        lock.file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.take()
        threading.Thread(target=lock.keep, args=(released,), daemon=True, name="folder lock").start()
        with guarded(lock.check):
            yield lock
    finally:
        released.set()
        lock.release()
        with suppress(OSError):
            for parent in missing:  # those that are empty
                parent.rmdir()


def _lock_files(folder: Path) -> tuple[Path, ...]:
    """Where a lock may be, the place of this process first; another user may have to take the other one.

    It is beside the folder, or inside of one whose surroundings cannot be written to, such as a mounted disk.
    """
    beside, inside = folder.parent / f".{folder.name}.lock", folder / LOCK
    if not folder.is_dir():
        return (beside,)
    if folder == folder.parent:
        return (inside,)
    return (beside, inside) if os.access(folder.parent, os.W_OK) else (inside, beside)


def _linked(source: Path, target: Path) -> bool:
    """Give a file a second name, whole and at once on NFS too; False if the name is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with target.open("x", encoding="utf-8") as stream:
                stream.write(source.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _read(file: Path) -> Holder | None:
    """Return who holds a lock; None if the file is damaged."""
    try:
        return Holder(**read_json(file))
    except (ValueError, TypeError):
        return None
