"""Doing what is missing of a graph: here, one job after the other or several at once, or on a cluster."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from difftumor.errors import TrainingError, counted
from difftumor.files.processes import Terminated
from stages.cluster.jobs import Job, Submitted
from stages.cluster.options import ClusterOptions
from stages.cluster.submission import read_submissions, submit
from studies.jobs.graph import Graph, Node
from studies.jobs.states import TABLE, Standing, queued_tables, standings

LOGS = "logs"


def run_here(graph: Graph, *, at_once: int = 1, run: Callable[[Node, Path], int] | None = None) -> None:
    """Run what is not done, each job after what it needs; a failure stops what needs it, and nothing else.

    Args:
        graph: The jobs.
        at_once: Processes at a time. With several, each writes a log of its own, as lines of all would mix.
        run: Runs a job, given its log, and returns its exit status; an error that it raises ends everything.

    Raises:
        TrainingError: Jobs have failed, or are blocked.
    """
    found = standings(graph)
    failed: list[Node] = [each.node for each in found.values() if each.status in ("blocked", "queued", "running")]
    why = {each.node.id: each.reason or f"it is {each.status} on the cluster" for each in found.values()}
    waiting = [each.node for each in found.values() if each.status in ("to do", "failed")]
    running: dict[Future[int], Node] = {}
    logged = at_once > 1 or run is not None

    def start(node: Node) -> int:
        log = log_of(graph, node)
        return _run(node, log if logged else None, processes) if run is None else run(node, log)

    with ThreadPoolExecutor(at_once) as pool, _stopped_with_this_one() as processes:
        while waiting or running:
            lost = [node for node in waiting if any(need in failed for need in node.needs)]
            failed += lost
            waiting = [node for node in waiting if node not in lost]
            ready = [node for node in waiting if all(need.is_done() for need in node.needs)]
            for node in ready[: at_once - len(running)]:
                waiting.remove(node)
                running[pool.submit(start, node)] = node
            if not running:
                failed += waiting
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                node = running.pop(future)
                if future.result() or not node.is_done():
                    failed.append(node)
    if failed:
        first = failed[0]
        if found[first.id].status in ("to do", "failed"):
            reason = f"see {log_of(graph, first)}" if logged else "see its message above"
        else:
            reason = why[first.id]
        more = f" ({counted(len(failed), 'job')} in all)" if len(failed) > 1 else ""
        raise TrainingError(f"{first.id} is not done{more}: {reason}; then rerun this command.")


class JobProcesses:
    """Processes that threads start, and that are told to stop together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: list[subprocess.Popen[bytes]] = []
        self._stopping = False

    def start(self, command: Sequence[str], log: IO[str] | None) -> subprocess.Popen[bytes]:
        """Start a process, which writes to the log, if there is one.

        Raises:
            Terminated: All were told to stop.
        """
        errors = None if log is None else subprocess.STDOUT
        with self._lock:  # one is either stopped with the others or never started
            if self._stopping:
                raise Terminated
            self._started.append(process := subprocess.Popen(command, stdout=log, stderr=errors))
        return process

    def stop(self) -> None:
        """Tell all that run to stop, and start no more."""
        with self._lock:
            self._stopping = True
            for process in self._started:
                process.terminate()


@contextmanager
def _stopped_with_this_one() -> Iterator[JobProcesses]:
    """Yield processes that get a SIGTERM of this one too: unlike Ctrl-C, only this one may have got it."""
    processes = JobProcesses()
    try:
        yield processes
    except Terminated:
        processes.stop()
        raise


def submit_missing(
    graph: Graph, cluster: ClusterOptions, *, last: Job | None = None, page: Path = Path()
) -> tuple[Submitted, ...]:
    """Submit what is neither done nor queued, and return at once.

    Args:
        graph: The jobs.
        cluster: Where to.
        last: What writes the table, after all others; submitted with others, or if its page lacks results.
        page: Its page.

    Raises:
        DiffTumorError: The scheduler refuses.
    """
    found = standings(graph)
    queued = {name: each.job.id for name, each in found.items() if each.status in ("running", "queued") and each.job}
    jobs = [_job(each, found) for each in found.values() if each.status in ("to do", "failed")]
    if last is not None:
        tables = queued_tables(graph.folder)
        if jobs or (not tables and _is_older(page, found.values())):
            queued |= {name: table.id for name, table in tables.items()}  # two never write at the same time
            name = f"{TABLE}-{len(read_submissions(graph.folder))}"
            jobs.append(replace(last, name=name, needs=(*(job.name for job in jobs), *queued)))
    return submit(jobs, cluster, folder=graph.folder, queued=queued)


def _is_older(page: Path, found: Iterable[Standing]) -> bool:
    """Whether a page lacks results that are there."""
    newest = max((each.node.finished for each in found if each.status == "done"), default=0)
    return newest > (page.stat().st_mtime if page.is_file() else 0)


def _job(each: Standing, found: dict[str, Standing]) -> Job:
    node = each.node
    needs = tuple(need.id for need in node.needs if found[need.id].status != "done")
    return Job(name=node.id, module=node.module, words=node.command, needs=needs, gpu=node.gpu)


def log_of(graph: Graph, node: Node) -> Path:
    """Return where a job that runs here writes what it prints."""
    return graph.folder / LOGS / f"{node.id}.log"


def _run(node: Node, log: Path | None, processes: JobProcesses) -> int:
    words = node.command
    typed: Sequence[str] = (*(() if node.module == "difftumor" else ("python", "-m")), node.module, *words)
    sys.stdout.write(f"$ {shlex.join(typed)}\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", node.module, *words]
    with ExitStack() as stack:
        stream = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(log.open("w", encoding="utf-8"))
        return stack.enter_context(processes.start(command, stream)).wait()
