"""Jobs as processes of this machine: a small program starts each when what it needs has ended well."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from difftumor.files.texts import read_json
from difftumor.files.writing import written_whole
from stages.cluster.checkout import REPOSITORY, Checkout
from stages.cluster.jobs import Job, Submitted, needed_ids
from stages.cluster.options import ClusterOptions

PLAN, LOCK = "plan.json", "runner.lock"
# Of a job that will not change any more.
ENDED = ("completed", "failed", "cancelled")
_POLL_S = 0.2


def send_local(
    jobs: Sequence[Job], cluster: ClusterOptions, *, folder: Path, queued: Mapping[str, str], checkout: Checkout
) -> Iterator[tuple[Submitted, ...]]:
    """Start a program in the background that runs the jobs.

    Args:
        jobs: In an order in which every job comes after what it needs.
        cluster: How many run at once, on how many GPUs.
        folder: New folder of this submission.
        queued: By name, the ids of earlier jobs that may be needed.
        checkout: The code that they are submitted with.

    Yields:
        All jobs at once.
    """
    folder.mkdir(parents=True)
    ids, sent, steps = dict(queued), [], []
    for number, job in enumerate(jobs):
        file = folder / f"{number:03d}_{re.sub(r'[^A-Za-z0-9_.+=-]', '_', job.name)}"
        ids[job.name] = f"local-{folder.name}-{number}"
        files = {"log": file.with_name(f"{file.name}.out"), "errors": file.with_name(f"{file.name}.err")}
        sent.append(Submitted(name=job.name, id=ids[job.name], **files))
        words = job.placed(nodes=1, gpus=cluster.gpus_per_node)
        # Of earlier submissions only the files are known: they lie in the folder that their id names.
        needs = [str(_state_file(folder.parent, need)) for need in needed_ids(job, ids)]
        steps.append({"id": ids[job.name], "command": _command(job, cluster, words), "needs": needs, "gpu": job.gpu})
    plan = {"steps": steps, "at_once": cluster.at_once or len(jobs), "gpus": cluster.gpus_per_node}
    plan |= {"environment": cluster.variables, "checkout": asdict(checkout)}
    plan |= {"logs": {each.id: [str(each.log), str(each.errors)] for each in sent}}
    for each in sent:
        _write_state(_state_file(folder.parent, each.id), {"state": "pending"})
    (folder / PLAN).write_text(json.dumps(plan, indent=1), encoding="utf-8")
    with (folder / "runner.log").open("w") as log:
        environment = {**os.environ, "PYTHONPATH": _path(os.environ)}
        command = [sys.executable, "-P", "-m", "stages.cluster.local", str(folder)]
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    yield tuple(sent)


def local_state(submitted: Submitted) -> dict[str, Any]:
    """Return what is known of a job: ``state``, and maybe ``started``, ``ended``, ``code``, ``reason``."""
    return _read_state(_state_file(submitted.log.parents[1], submitted.id))


def cancel_local(submitted: Sequence[Submitted]) -> None:
    """End the programs that run these jobs, and what they run."""
    for folder in {job.log.parent for job in submitted}:
        held, process = _lock_of(folder)
        if held and process:
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGTERM)


def _command(job: Job, cluster: ClusterOptions, words: Sequence[str]) -> list[str]:
    python = shlex.split(cluster.python) if cluster.python else [sys.executable]
    command = [*python, "-P", "-m", job.module, *words]
    if cluster.setup:
        return ["bash", "-c", "\n".join(["set -e", *cluster.setup, f"exec {shlex.join(command)}"])]
    return command


def _path(environment: Mapping[str, str]) -> str:
    """Return the path on which Python finds the checkout first."""
    return os.pathsep.join(filter(None, (str(REPOSITORY), environment.get("PYTHONPATH"))))


def _state_file(submissions: Path, identity: str) -> Path:
    stamp, _, number = identity.removeprefix("local-").rpartition("-")
    return submissions / stamp / f"{number}.json"


def _write_state(file: Path, state: Mapping[str, Any]) -> None:
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(state), encoding="utf-8")


def _read_state(file: Path) -> dict[str, Any]:
    """Return what is known of a job; one whose program has gone will not end any more."""
    try:
        state: dict[str, Any] = read_json(file)
        if state["state"] not in ENDED and not _has_runner(file.parent, since=file):
            # It may have ended in between.
            state = read_json(file)
            if state["state"] not in ENDED:
                reason = "the program that runs the jobs has gone: submit again"
                return {**state, "state": "cancelled", "reason": reason}
    except (OSError, ValueError):
        return {"state": "unknown"}
    return state


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, by which others see that the program is alive."""
    with (folder / LOCK).open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _has_runner(folder: Path, *, since: Path, start_s: float = 30.0) -> bool:
    """Whether the program is alive, or so new that it has not taken its lock yet."""
    held, process = _lock_of(folder)
    return held or (not process and time.time() - since.stat().st_mtime < start_s)


def _lock_of(folder: Path) -> tuple[bool, str]:
    """Return whether a program holds the folder's lock, and the id of the last that did; by now it may be another's."""
    try:
        with (folder / LOCK).open("r") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True, lock.read()
            return False, lock.read()
    except FileNotFoundError:
        return False, ""


@dataclass
class LocalRunner:
    """Runs the jobs of one submission.

    Args:
        folder: Of the submission.
    """

    folder: Path
    running: dict[str, tuple[subprocess.Popen[bytes], int, dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan = read_json(self.folder / PLAN)
        self.waiting = list(self.plan["steps"])
        self.stopped = False

    def run(self) -> None:
        """Run all."""
        signal.signal(signal.SIGTERM, self._stop)
        ended = False
        while self.waiting or self.running:
            self._reap()
            if not self.stopped:
                self._start_what_may()
            elif not ended:
                self._end_all()
                ended = True
            time.sleep(_POLL_S)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """Leave the rest to the loop: the signal may come in the midst of starting a job."""
        self.stopped = True

    def _end_all(self) -> None:
        """Let no job start any more, and end those that run."""
        for step in self.waiting:
            self._write(step, {"state": "cancelled", "reason": "cancelled"})
        self.waiting = []
        for process, _, _ in self.running.values():
            os.killpg(process.pid, signal.SIGTERM)

    def _reap(self) -> None:
        for identity, (process, _, state) in list(self.running.items()):
            if (code := process.poll()) is not None:
                end = "completed" if code == 0 else "cancelled" if self.stopped else "failed"
                self._write({"id": identity}, {**state, "state": end, "code": code, "ended": _now()})
                del self.running[identity]

    def _start_what_may(self) -> None:
        for step in list(self.waiting):
            if self.stopped:
                return
            states = [_read_state(Path(need))["state"] for need in step["needs"]]
            if any(state in (*ENDED[1:], "unknown") for state in states):
                self.waiting.remove(step)
                self._write(step, {"state": "cancelled", "reason": "a job that it needs did not end well"})
            elif len(self.running) < self.plan["at_once"] and all(state == "completed" for state in states):
                self.waiting.remove(step)
                self._start(step)

    def _start(self, step: Mapping[str, Any]) -> None:
        slot = min(set(range(self.plan["at_once"])) - {slot for _, slot, _ in self.running.values()})
        environment = {**os.environ, **self.plan["environment"], **_visible(step, slot, self.plan["gpus"])}
        environment["PYTHONPATH"] = _path(environment)
        state: dict[str, Any] = {"state": "running", "started": _now()}
        log, errors = self.plan["logs"][step["id"]]
        with open(log, "ab") as out, open(errors, "ab") as err:
            if warning := Checkout(**self.plan["checkout"]).warning(Checkout.now()):
                err.write(f"{warning}\n".encode())
                err.flush()
            try:
                process = subprocess.Popen(
                    step["command"],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                err.write(f"Error: {step['command'][0]} cannot be run ({error.strerror}).\n".encode())
                self._write(step, {**state, "state": "failed", "code": 127, "ended": _now()})
                return
        state["pid"] = process.pid
        self.running[step["id"]] = (process, slot, state)
        self._write(step, state)

    def _write(self, step: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        _write_state(_state_file(self.folder.parent, step["id"]), state)


def _visible(step: Mapping[str, Any], slot: int, each: int) -> dict[str, str]:
    """Return the variable that gives a job GPUs of its own, as far as there are enough."""
    if not step["gpu"] or not (devices := _gpus()) or each < 1:
        return {} if step["gpu"] else {"CUDA_VISIBLE_DEVICES": ""}
    chosen = [devices[(slot * each + number) % len(devices)] for number in range(min(each, len(devices)))]
    return {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}


def _gpus() -> list[str]:
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [each for each in given.split(",") if each]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return [str(number) for number, line in enumerate(re.findall(r"^GPU \d+:", done.stdout, re.MULTILINE)) if line]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with _locked(place):
        LocalRunner(place).run()
