"""Where the jobs of a study are: done, queued, running, failed, to do or blocked; and the tables that say so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Literal

from rich.table import Column, Table

from difftumor.errors import counted
from difftumor.models.artifact_config import read_config
from stages.cluster.status import JobState, end_of, job_states
from stages.cluster.submission import latest, read_submissions
from stages.config.kinds import STAGES
from studies.jobs.graph import Graph, Node

Status = Literal["done", "running", "queued", "failed", "to do", "blocked"]
STATUSES: tuple[Status, ...] = ("done", "running", "queued", "failed", "to do", "blocked")
# Names of the jobs that write tables start with it.
TABLE = "table"
# Lines of a training's log: "epoch 3/20  step 120  loss 0.3".
_EPOCH = re.compile(r"^epoch (\d+)/(\d+)\s+step (\d+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a job is.

    Args:
        node: The job.
        status: In one word.
        reason: Why it is blocked, or has failed; empty otherwise.
        job: What the scheduler says, if it was submitted and is not done.
    """

    node: Node
    status: Status
    reason: str = ""
    job: JobState | None = None

    @property
    def progress(self) -> str:
        """How far a training is, from its log."""
        if self.status != "running" or self.job is None:
            return ""
        found = _EPOCH.findall(end_of(self.job.log))
        return "epoch {}/{}, step {}".format(*found[-1]) if found else ""


def standings(graph: Graph) -> dict[str, Standing]:
    """Return where every job of a graph is, by id, in the graph's order."""
    done = {node.id for node in graph.nodes.values() if node.is_done()}
    submitted = latest(read_submissions(graph.folder))
    jobs = job_states([job for name, job in submitted.items() if name in graph.nodes and name not in done])
    return {
        node.id: Standing(node=node, status="done") if node.id in done else _standing(node, jobs.get(node.id))
        for node in graph.nodes.values()
    }


def queued_tables(folder: Path) -> dict[str, JobState]:
    """Return the jobs that write tables and run or will run, by name: each submission has one of its own."""
    submitted = latest(read_submissions(folder))
    states = job_states([job for name, job in submitted.items() if name.startswith(TABLE)])
    return {name: state for name, state in states.items() if state.queued}


def _standing(node: Node, job: JobState | None) -> Standing:
    """Return where a job is that is not done."""
    if node.lacks:
        return Standing(node=node, status="blocked", reason=node.lacks)
    if job is not None and job.queued:
        return Standing(node=node, status="running" if job.state == "running" else "queued", job=job)
    if job is not None and job.state != "completed":
        return Standing(node=node, status="failed", reason=job.error or job.state, job=job)
    return Standing(node=node, status="to do")


def plan_table(found: Mapping[str, Standing]) -> Table:
    """Return the numbers of jobs by kind and status, with the hours that those to do will take, as far as is known."""
    table = Table(Column("jobs", no_wrap=True), *STATUSES, "hours left")
    by_kind: dict[str, list[Standing]] = {}
    for each in found.values():
        by_kind.setdefault(each.node.kind, []).append(each)
    for kind, members in sorted(by_kind.items(), key=lambda item: _place(item[0])):
        table.add_row(kind, *_counts(members), _hours(members))
    table.add_section()
    table.add_row("all", *_counts(found.values()), "")
    return table


def job_table(found: Collection[Standing]) -> Table:
    """Return one row per job: where it is, how far, on which node, for how long, and where its log is."""
    rows = []
    for each in found:
        job = each.job
        time = "" if job is None or job.seconds is None else str(timedelta(seconds=job.seconds))
        rows.append(
            (each.status, each.progress, job.node if job else "", time, each.reason, str(job.log) if job else "")
        )
    names = ("status", "progress", "node", "time", "what is wrong", "log")
    shown = [place for place, _ in enumerate(names) if any(row[place] for row in rows)]
    table = Table(Column("job", overflow="fold"), *(Column(names[place], overflow="fold") for place in shown))
    for each, row in zip(found, rows, strict=True):
        table.add_row(each.node.id, *(row[place] for place in shown))
    return table


def remarks(found: Mapping[str, Standing]) -> list[str]:
    """Say what blocks jobs, and what was made with other options than now."""
    blocked = Counter(each.reason for each in found.values() if each.status == "blocked")
    said = [
        f"{counted(count, 'job')} {'is' if count == 1 else 'are'} blocked: {reason}."
        for reason, count in blocked.items()
    ]
    for each in found.values():
        # Of jobs whose needs have changed too, the first says enough.
        first = each.status == "to do" and all(found[need.id].status == "done" for need in each.node.needs)
        if first and (changed := each.node.changes()):
            said.append(f"{each.node.name} runs again, because it differs from {changed}.")
    return said


def _place(kind: str) -> int:
    """Return where a kind of job stands in the table: stages in their order, then the others."""
    first = kind.split()[0]
    return list(STAGES).index(first) if first in STAGES else len(STAGES)


def _counts(members: Iterable[Standing]) -> list[str]:
    counts = Counter(each.status for each in members)
    return [str(counts[status] or "") for status in STATUSES]


def _hours(members: Iterable[Standing]) -> str:
    """Return what the jobs to do will take, if trainings of their kind have been timed."""
    members = list(members)
    known = [
        read_config(each.node.output).training for each in members if each.status == "done" and not each.node.results
    ]
    seconds = [training["seconds"] * training.get("world_size", 1) for training in known if "seconds" in training]
    left = sum(each.status in ("queued", "running", "to do", "failed") for each in members)
    return f"{left * median(seconds) / 3600:.1f}" if seconds and left else ""
