"""What a job does on its nodes: run the command, and have submitit requeue it when it was stopped before its end."""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission

from difftumor.files.lock import slurm_job
from stages.cluster.checkout import Checkout
from stages.cluster.jobs import STAGES

# How long a process waits for the scheduler to end it, once its job was requeued.
_END_S = 600


@dataclass(frozen=True, kw_only=True)
class Task:
    """One process of a job, which submitit calls.

    submitit's own handler of SIGUSR2 is there first: as long as there is nothing to save it requeues the job at once.
    While a stage trains, its handlers save, and end the process with 128 plus the signal, as shells do.

    Args:
        module: What runs.
        words: Its command line.
        token: Identifies the job, however often it is requeued.
        max_requeues: How often it may start again.
        checkout: The code that it was submitted with.
    """

    module: str
    words: tuple[str, ...]
    token: str
    max_requeues: int
    checkout: Checkout

    def __call__(self) -> None:
        """Run to the end, or save and be requeued; the process never ends with 0 otherwise.

        Raises:
            SystemExit: The command has failed, or the job has started too often.
        """
        if warning := self.checkout.warning(Checkout.now()):
            print(warning, file=sys.stderr, flush=True)
        self._check_starts(_restarts())
        try:
            code = _exit_code(self._run)
            if code == 128 + signal.SIGUSR2 or (code == 128 + signal.SIGTERM and _is_running()):
                self._requeue()
        except FileNotFoundError as error:
            if error.filename not in ("scontrol", "squeue"):
                raise
            raise SystemExit(
                f"Error: the job cannot be requeued, since there is no {error.filename} here: bind it into the "
                "container (docs/cluster.md), and submit the job again to go on where it was."
            ) from error
        if code:
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit starts when the job has been requeued: the same, which resumes from its checkpoint."""
        self._check_starts(_restarts() + 1)
        return DelayedSubmission(self)

    def _run(self) -> None:
        if self.module in STAGES:
            importlib.import_module(f"{self.module}.train").main(self.words, self.token)
        else:
            sys.argv = [self.module, *self.words]
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)

    def _requeue(self) -> None:
        """Let submitit requeue the job; does not return."""
        signal.raise_signal(JobEnvironment._usr_sig())
        # submitit leaves it to the first process; the scheduler ends the others.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_END_S)
        raise SystemExit(128 + signal.SIGTERM)

    def _check_starts(self, restarts: int) -> None:
        if restarts > self.max_requeues:
            raise SystemExit(
                f"Error: the job was requeued {self.max_requeues} times, as often as cluster.max_requeues allows: "
                "submit it again to go on where it was."
            )


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _exit_code(run: object) -> int:
    """Call a function and return the exit code that its process would have."""
    assert callable(run)
    try:
        run()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr, flush=True)
        return 1
    return 0


def _is_running() -> bool:
    """Whether the scheduler still counts this job as running: it is being preempted, and not canceled."""
    if (job := slurm_job()) is None:
        return False
    done = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
    return done.stdout.strip() == "RUNNING"
