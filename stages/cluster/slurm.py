"""Jobs on SLURM, by submitit."""

from __future__ import annotations

import io
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from submitit import Job as SubmititJob
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from difftumor.errors import ConfigError
from stages.cluster.checkout import REPOSITORY, Checkout
from stages.cluster.jobs import Job, Submitted, needed_ids
from stages.cluster.options import ClusterOptions
from stages.cluster.task import Task

_LONGEST_ARRAY = 1000  # SLURM's default
# Options of sbatch that ask for GPUs in place of cluster.gpus_per_node.
_GPU_OPTIONS = {"gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"}


def send_slurm(
    jobs: Sequence[Job], cluster: ClusterOptions, *, folder: Path, queued: Mapping[str, str], checkout: Checkout
) -> Iterator[tuple[Submitted, ...]]:
    """Submit jobs to SLURM.

    Args:
        jobs: In an order in which every job comes after what it needs.
        cluster: What each gets.
        folder: New folder of this submission.
        queued: By name, the ids of earlier jobs that may be needed.
        checkout: The code that they are submitted with.

    Yields:
        What was submitted by one sbatch, in the order of the jobs.

    Raises:
        ConfigError: SLURM is not there or refuses.
    """
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise ConfigError(f"There is no {program} here: submit on a node of the cluster, or choose cluster=local.")
    ids = dict(queued)
    sent: list[Submitted] = []
    for group in _groups(jobs):
        try:
            with _outside_of_jobs():
                handles = _send(group, cluster, ids, sent, checkout, folder)
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise _refused(str(error), cluster) from error
        for job, handle in zip(group, handles, strict=True):
            ids[job.name] = handle.job_id
            sent.append(Submitted(name=job.name, id=handle.job_id, log=handle.paths.stdout, errors=handle.paths.stderr))
        yield tuple(sent[-len(group) :])


def cancel_slurm(ids: Sequence[str]) -> None:
    """Cancel jobs."""
    if ids:
        subprocess.run(["scancel", *ids], capture_output=True, check=False)


def _groups(jobs: Sequence[Job]) -> list[Sequence[Job]]:
    """Return the arrays to submit: all jobs if none needs another and all need the same, else one per job."""
    alike = len({(job.trains, job.gpu, frozenset(job.needs)) for job in jobs}) == 1
    needed = {name for job in jobs for name in job.needs}
    if len(jobs) > 1 and alike and not needed & {job.name for job in jobs}:
        return [jobs[at : at + _LONGEST_ARRAY] for at in range(0, len(jobs), _LONGEST_ARRAY)]
    return [[job] for job in jobs]


def _send(
    group: Sequence[Job],
    cluster: ClusterOptions,
    ids: Mapping[str, str],
    sent: Sequence[Submitted],
    checkout: Checkout,
    folder: Path,
) -> list[SubmititJob[None]]:
    first = group[0]
    after = {"afterok": needed_ids(first, ids), "afterany": ()}
    # With arrays SLURM holds the limit itself. Job by job, each waits for the one so many places before it.
    if cluster.at_once is not None and len(sent) >= cluster.at_once and len(group) == 1:
        after["afterany"] = (sent[-cluster.at_once].id,)
    python = cluster.python or shlex.quote(sys.executable)
    # A new one each time, since one executor waits between submissions. Without -P the folder of the submission would
    # come first on the path, with all that it may hold.
    executor = SlurmExecutor(folder, max_num_timeout=cluster.max_requeues, python=f"{python} -P")
    executor.update_parameters(**_parameters(first, cluster, after, several=len(group)))
    tasks = [
        Task(
            module=job.module,
            words=job.placed(nodes=cluster.nodes, gpus=cluster.gpus_per_node),
            token=secrets.token_hex(8),
            max_requeues=cluster.max_requeues,
            checkout=checkout,
        )
        for job in group
    ]
    with redirect_stderr(io.StringIO()):  # submitit prints there what it raises
        return list(executor.submit_array(tasks)) if len(tasks) > 1 else [executor.submit(tasks[0])]


def _parameters(
    job: Job, cluster: ClusterOptions, after: Mapping[str, Sequence[str]], *, several: int
) -> dict[str, Any]:
    """Return submitit's parameters; several jobs of an array share a name."""
    more = {name.replace("_", "-"): value for name, value in cluster.more.items()}
    if not job.gpu:
        more = {name: value for name, value in more.items() if name not in _GPU_OPTIONS}
    elif not job.trains:
        more = {name: _of_one_gpu(name, value) if name in _GPU_OPTIONS else value for name, value in more.items()}
    gpus = cluster.gpus_per_node if job.trains else min(1, cluster.gpus_per_node)
    # Training runs a process per GPU; all else is one process.
    tasks = max(1, cluster.gpus_per_node) if job.trains else 1
    dependency = ",".join(":".join([kind, *ids]) for kind, ids in after.items() if ids)
    parameters = {
        "job_name": job.name if several == 1 else job.module.rpartition(".")[2],
        "partition": cluster.partition if job.gpu else cluster.cpu_partition or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "mem": cluster.memory,
        "dependency": dependency or None,
        "gpus-per-node": gpus if job.gpu and gpus and not _GPU_OPTIONS & set(more) else None,
        "kill-on-invalid-dep": "yes",
        # SLURM itself requeues what it has preempted or lost with its node.
        "requeue" if cluster.max_requeues else "no-requeue": True,
    }
    # By SLURM's own names, since submitit changes the meaning of some.
    return {
        "nodes": cluster.nodes if job.trains else 1,
        "ntasks_per_node": tasks,
        "cpus_per_task": cluster.cpus,
        "time": cluster.time,
        "signal_delay_s": cluster.warning_s,
        "array_parallelism": cluster.at_once or several,
        "setup": _setup(cluster),
        # From SLURM 22.05 on srun does not inherit the first; by the second one failed process ends all.
        "srun_args": [f"--cpus-per-task={cluster.cpus}", "--kill-on-bad-exit=1"],
        "wckey": None,
        "additional_parameters": {k: v for k, v in {**parameters, **more}.items() if v is not None},
    }


def _of_one_gpu(name: str, value: Any) -> str:
    """``gpu:a100:4`` becomes ``gpu:a100:1``; where GPUs alone are asked for, ``a100:4`` becomes ``a100:1``."""
    count = r"(\bgpu(?::[^:,]+)?:)\d+(?=[,(]|$)" if name == "gres" else r"(^|:)\d+(?=,|$)"
    return re.sub(count, r"\g<1>1", str(value))


def _setup(cluster: ClusterOptions) -> list[str]:
    variables = [f"export {name}={shlex.quote(value)}" for name, value in cluster.variables.items()]
    path = f"export PYTHONPATH={shlex.quote(str(REPOSITORY))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return ["set -e", *cluster.setup, *variables, path]


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide from sbatch that this is itself a job, whose variables the new ones would inherit."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    kept = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or name.startswith("SBATCH_")}
    with clean_env():
        os.environ.update(kept)
        yield


def _refused(text: str, cluster: ClusterOptions) -> ConfigError:
    """One sentence from what sbatch says."""
    lines = [re.sub(r"^sbatch: (error: |fatal: )?", "", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("Try ")]
    reason = (lines[-1] if lines else "no reason given").removeprefix("Batch job submission failed: ").rstrip(".")
    if ("contact" in text and "controller" in text) or "configuration source" in text:
        return ConfigError(f"SLURM's controller does not answer ({reason}): try again later.")
    if "nvalid partition" in text:
        wanted = cluster.partition or cluster.cpu_partition
        return ConfigError(f"SLURM has no partition '{wanted}': set cluster.partition to {_partitions()}.")
    first = lines[0] if lines and lines[0] != lines[-1] else ""
    detail = f"{first}; {reason}" if first and "Batch job" not in first else reason
    option = re.search(r"(?:unrecognized option|invalid option|ambiguous) '?(--[\w-]+)", text)
    remedy = f"correct {option[1]} in cluster.more" if option else "correct the options under cluster, or cluster.more"
    return ConfigError(f"SLURM refuses the job ({detail}): {remedy}.")


def _partitions() -> str:
    done = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False)
    names = sorted(set(done.stdout.split()))
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "one that sinfo lists"
