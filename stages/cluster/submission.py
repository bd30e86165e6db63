"""Submitting jobs: to SLURM or as processes of this machine, with a record of what was submitted."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from difftumor.errors import ConfigError
from difftumor.files.results import check_folder
from difftumor.files.texts import read_json
from difftumor.files.writing import written_whole
from stages.cluster.checkout import Checkout
from stages.cluster.jobs import Job, Submitted, check_order
from stages.cluster.local import cancel_local, send_local
from stages.cluster.options import ClusterOptions
from stages.cluster.slurm import cancel_slurm, send_slurm

SUBMISSIONS = "submissions"


@dataclass(frozen=True)
class Submission:
    """What was submitted at one time.

    Args:
        file: Its record.
        time: When, as ISO 8601.
        commit: Of the checkout; None without git.
        dirty: Whether the checkout had changes that are not committed.
        jobs: Its jobs.
    """

    file: Path
    time: str
    commit: str | None
    dirty: bool
    jobs: tuple[Submitted, ...]


def submit(
    jobs: Sequence[Job], cluster: ClusterOptions, *, folder: Path, queued: Mapping[str, str] | None = None
) -> tuple[Submitted, ...]:
    """Submit jobs and return at once.

    Args:
        jobs: In an order in which every job comes after what it needs.
        cluster: Where to.
        folder: Gets ``submissions/``: a record, the logs and the scheduler's files of each submission.
        queued: By name, the ids of jobs of earlier submissions that are pending or running, and may be needed.

    Returns:
        The jobs, with their ids and logs.

    Raises:
        ConfigError: The order is wrong, the folder cannot be written to, or the scheduler refuses; then nothing is.
    """
    check_order(jobs, queued or {})
    _check_kind(jobs, cluster, queued or {})
    if not jobs:
        return ()
    place = (folder / SUBMISSIONS).absolute()
    check_folder(place)
    checkout, now = Checkout.now(), datetime.now(UTC)
    stamp = f"{now:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"
    mine = place / stamp
    record: dict[str, Any] = {"time": now.isoformat(timespec="seconds"), "checkout": checkout.record()}
    record |= {"cluster": asdict(cluster), "jobs": []}
    file = place / f"{stamp}.json"
    send: Callable[..., Iterator[tuple[Submitted, ...]]] = send_slurm if cluster.kind == "slurm" else send_local
    submitted: tuple[Submitted, ...] = ()
    try:
        for group in send(jobs, cluster, folder=mine, queued=dict(queued or {}), checkout=checkout):
            submitted += group
            record["jobs"] = [_job_record(job, sent) for job, sent in zip(jobs, submitted, strict=False)]
            # Each time: what is killed between two calls of sbatch can clean up nothing.
            with written_whole(file) as temporary:
                temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    except BaseException:  # jobs that nobody knows of must not run
        cancel(submitted)
        file.unlink(missing_ok=True)
        shutil.rmtree(mine, ignore_errors=True)
        raise
    return submitted


def _check_kind(jobs: Sequence[Job], cluster: ClusterOptions, queued: Mapping[str, str]) -> None:
    for job in jobs:
        for name in (name for name in job.needs if name in queued):
            if queued[name].startswith("local-") != (cluster.kind == "local"):
                raise ConfigError(
                    f"Job {job.name} needs {name}, which was not submitted to cluster={cluster.kind}: wait until it "
                    "has ended, or submit both to one cluster."
                )


def cancel(submitted: Sequence[Submitted]) -> None:
    """Cancel jobs that have not ended."""
    of_here = [job for job in submitted if job.id.startswith("local-")]
    cancel_local(of_here)
    cancel_slurm([job.id for job in submitted if job not in of_here])


def read_submissions(folder: Path) -> tuple[Submission, ...]:
    """Return all submissions of a folder, the oldest first.

    Raises:
        ConfigError: A record is damaged.
    """
    return tuple(_read(file) for file in sorted((folder / SUBMISSIONS).glob("*.json")))


def latest(submissions: Sequence[Submission]) -> dict[str, Submitted]:
    """Return, by name, the job as it was submitted last."""
    return {job.name: job for submission in submissions for job in submission.jobs}


def _job_record(job: Job, sent: Submitted) -> dict[str, Any]:
    return {**asdict(job), "id": sent.id, "log": str(sent.log), "errors": str(sent.errors)}


def _read(file: Path) -> Submission:
    try:
        record = read_json(file)
        jobs = tuple(
            Submitted(name=job["name"], id=job["id"], log=Path(job["log"]), errors=Path(job["errors"]))
            for job in record["jobs"]
        )
        checkout = record["checkout"]
        return Submission(file, record["time"], checkout["commit"], checkout["dirty"], jobs)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not a record of submitted jobs: remove it.") from error
