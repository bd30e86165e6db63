"""What became of submitted jobs: SLURM's own view, or the states of the processes of this machine."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from difftumor.errors import ConfigError
from stages.cluster.jobs import Submitted
from stages.cluster.local import local_state

State = Literal[
    "pending", "running", "requeued", "completed", "failed", "cancelled", "timeout", "node_fail", "unknown"
]  # fmt: skip
# Jobs that will still run, and may be needed by others.
QUEUED: frozenset[State] = frozenset({"pending", "running", "requeued"})
# SLURM's words.
_STATES: Mapping[str, State] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "RUNNING": "running",
    "SUSPENDED": "running",
    "STOPPED": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "COMPLETING": "running",
    "REQUEUED": "requeued",
    "REQUEUE_HOLD": "requeued",
    "REQUEUE_FED": "requeued",
    "SPECIAL_EXIT": "requeued",
    "COMPLETED": "completed",
    "FAILED": "failed",
    "OUT_OF_MEMORY": "failed",
    "BOOT_FAIL": "node_fail",
    "NODE_FAIL": "node_fail",
    "PREEMPTED": "cancelled",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
}
_TAIL = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What became of a job.

    Args:
        name: Of the job.
        id: The scheduler's.
        state: Where it is.
        node: Where it runs or ran; empty if not known.
        seconds: How long it has run since it was last started; None if not known.
        error: The last line that says why it failed or waits; empty if there is none.
        log: What it prints.
    """

    name: str
    id: str
    state: State
    node: str = ""
    seconds: int | None = None
    error: str = ""
    log: Path

    @property
    def queued(self) -> bool:
        """Whether it runs or will run."""
        return self.state in QUEUED


@dataclass(frozen=True)
class _Seen:
    """What SLURM says of a job."""

    state: str
    node: str = ""
    seconds: int | None = None
    restarts: int = 0
    reason: str = ""


def job_states(submitted: Sequence[Submitted]) -> dict[str, JobState]:
    """Ask what became of jobs; the scheduler is asked once for all.

    Args:
        submitted: The jobs, of any submissions.

    Returns:
        By name.

    Raises:
        ConfigError: SLURM does not answer: its jobs may run, and must not be taken for forgotten ones.
    """
    on_slurm = [job for job in submitted if not job.id.startswith("local-")]
    seen = _ask_slurm(on_slurm) if on_slurm else {}
    return {
        job.name: _slurm_state(job, seen.get(job.id)) if job in on_slurm else _local_state(job) for job in submitted
    }


def _local_state(job: Submitted) -> JobState:
    state = local_state(job)
    seconds = None
    if "started" in state:
        ended = datetime.fromisoformat(state["ended"]) if "ended" in state else datetime.now(UTC)
        seconds = round((ended - datetime.fromisoformat(state["started"])).total_seconds())
    error = state.get("reason", "") or (last_error(job.errors) if state["state"] == "failed" else "")
    return JobState(name=job.name, id=job.id, state=state["state"], seconds=seconds, error=error, log=job.log)


def _slurm_state(job: Submitted, seen: _Seen | None) -> JobState:
    if seen is None:  # SLURM has forgotten it
        return JobState(
            name=job.name, id=job.id, state=_state_by_result(job), error=last_error(job.errors), log=job.log
        )
    # "CANCELLED by 1000" in accounting.
    state = _STATES.get(seen.state.split()[0].rstrip("+") if seen.state else "", "unknown")
    if state == "pending" and seen.restarts:
        state = "requeued"
    error = last_error(job.errors) if state in ("failed", "timeout", "node_fail", "cancelled") else ""
    if not error and seen.reason.lower() not in ("", "none", "(null)", "nonzeroexitcode"):
        error = seen.reason
    return JobState(
        name=job.name, id=job.id, state=state, node=seen.node, seconds=seen.seconds, error=error, log=job.log
    )


def _ask_slurm(jobs: Sequence[Submitted]) -> dict[str, _Seen]:
    """Ask the controller, which remembers jobs for some minutes, then accounting for the others."""
    # All jobs of the user: an id that the controller has forgotten would be an error.
    columns = "JobArrayID:.,State:.,NodeList:.,TimeUsed:.,RestartCnt:.,Reason:."
    columns = ",".join(name.replace(":.", ":.256") for name in columns.split(","))
    command = ["squeue", "-h", "-r", "-u", getpass.getuser(), "--states=all", "-O", columns]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError(
            "There is no squeue here to ask SLURM about its jobs: ask on a node of the cluster, or remove their "
            f"records from {jobs[0].log.parents[1]}."
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"squeue ends with {done.returncode}"])[-1].rstrip(".")
        raise ConfigError(f"SLURM's controller does not answer ({reason}): try again later.")
    found = {}
    for line in done.stdout.splitlines():
        identity, state, node, used, restarts, reason = (line[at : at + 256].strip() for at in range(0, 6 * 256, 256))
        found[identity] = _Seen(state, node, _seconds(used), int(restarts) if restarts.isdigit() else 0, reason)
    if missing := [job.id for job in jobs if job.id not in found]:
        found |= _ask_accounting(missing)
    return found


def _ask_accounting(ids: Sequence[str]) -> dict[str, _Seen]:
    """Ask accounting, which many clusters do not have."""
    wanted = "JobID,State,NodeList,ElapsedRaw"
    command = ["sacct", "-X", "-o", wanted, "--parsable2", *(f"-j{each}" for each in ids)]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines[1:]:
        row = dict(zip(lines[0].split("|"), line.split("|"), strict=False))
        seconds = row.get("ElapsedRaw", "")
        found[row.get("JobID", "")] = _Seen(
            row.get("State", ""), row.get("NodeList", ""), int(seconds) if seconds.isdigit() else None
        )
    return found


def _seconds(text: str) -> int | None:
    """Seconds of ``[D-][HH:]MM:SS``."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d\d)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _state_by_result(job: Submitted) -> State:
    """What a job that SLURM has forgotten has left: submitit's result, or only a log."""
    result = job.log.with_name(job.log.name.replace("_log.out", "_result.pkl"))
    try:
        # A pair of "success" or "error" and the result; of the first it is enough to see the word.
        return "completed" if b"success" in result.read_bytes()[:64] else "failed"
    except OSError:
        return "failed" if job.log.is_file() else "unknown"


def end_of(log: Path) -> str:
    """Return the last part of a log; empty if there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def last_error(file: Path) -> str:
    """Return the last line of an error log that says what is wrong: a sentence of ours, or the last line of all."""
    lines = [line.strip() for line in end_of(file).splitlines() if line.strip()]
    lines = [line for line in lines if not re.match(r"submitit (INFO|WARNING|ERROR)|Warning:|srun: launch", line)]
    ours = [line for line in lines if re.match(r"(Error|[\w.]*(Error|Exception)): ?", line)]
    return (ours or lines or [""])[-1]
