"""Evidence for what synthetic tumors teach: ``python -m studies.evidence run``, ``pause``, ``status``, ``table``.

A queue of entries, each a graph of jobs that ends in records: one small file per cell in ``docs/evidence``, from which
the tables are made. ``docs/evidence.md`` is the protocol: questions, endpoints and what would count as failure, written
down before anything runs. One job runs at a time, on one core and at low priority; all of it resumes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table as Screen

from difftumor.errors import ConfigError, DiffTumorError, TrainingError, counted
from difftumor.reporting.report import Report
from stages.cluster.checkout import Checkout
from studies.evidence.entries import ENTRIES
from studies.evidence.graph import EvidenceGraph, QueueEntry
from studies.evidence.queue import Queue, QueuePausedError
from studies.evidence.tables import write_tables
from studies.jobs.running import log_of, run_here
from studies.jobs.states import STATUSES, Standing
from studies.jobs.study import ACTIONS, PAGE, Study

RECORDS = Path("docs/evidence")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        choices=("small", "full", "trial"),
        default="small",
        help="small: one core of a CPU, days; full: for GPUs; trial: a few steps of everything, to see that it works",
    )
    known = ",".join(entry.name for entry in ENTRIES)
    parser.add_argument("--entries", type=_entries, default=ENTRIES, metavar="NAMES", help=f"some of {known} (all)")
    parser.add_argument("--sarcoma", type=Path, metavar="DIR", help="folder of <patient>/ct.nii.gz and tumor.nii.gz")
    parser.add_argument(
        "--records", type=Path, default=RECORDS, metavar="DIR", help=f"folder of the records ({RECORDS})"
    )


def _entries(text: str) -> tuple[QueueEntry, ...]:
    known = {entry.name: entry for entry in ENTRIES}
    names = text.split(",")
    if len(set(names)) < len(names) or not set(names) <= set(known):
        raise argparse.ArgumentTypeError(f"{text!r}: give some of {','.join(known)}, each once")
    return tuple(entry for name, entry in known.items() if name in names)


def declare(arguments: argparse.Namespace) -> EvidenceGraph:
    """Return the jobs of the chosen entries."""
    return EvidenceGraph(
        arguments.entries,
        arguments.out,
        records=arguments.records / arguments.size,
        size=arguments.size,
        sarcoma=arguments.sarcoma,
        cluster=arguments.cluster,
    )


def write_page(arguments: argparse.Namespace, graph: EvidenceGraph) -> Path:
    """Write the tables of the records that there are, beside them, and one page with all of them."""
    report = Report("Evidence", subtitle=f"size {graph.size}; {date.today().isoformat()}")
    for entry in arguments.entries:
        records = graph.recorded(entry.name)
        report.heading(entry.name.replace("_", " "))
        cells = counted(len(graph.cells(entry.name)), "cell")
        report.paragraph(f"{entry.question} {len(records)} of {cells} so far.")
        if others := len(list((graph.records / entry.name).glob("*.json"))) - len(records):
            report.paragraph(f"Records of other options or cells, which do not count: {others}.")
        for table in write_tables(entry, records, graph.records):
            report.table(table)
        if entry.further is not None and records:
            further = graph.folder / "tables" / entry.name
            entry.further(records, further)
            report.paragraph(f"Further tables and figures are in {further}.")
    return report.write(graph.folder / PAGE)


@dataclass(frozen=True)
class EvidenceStudy(Study[EvidenceGraph]):
    """The study whose jobs are a queue."""

    @property
    def actions(self) -> Mapping[str, str]:
        """What it can be asked to do."""
        return {**ACTIONS, "run": "run the queue, one job at a time", "pause": "let the running training save and stop"}

    def act(self, arguments: argparse.Namespace, console: Console) -> None:
        """Do the action; ``pause`` needs no graph."""
        if arguments.jobs > 1:
            raise ConfigError("The queue runs one job at a time: leave --jobs out.")
        if arguments.action == "pause":
            console.print("Paused." if Queue(arguments.out).pause() else "The queue is not running.")
            return
        super().act(arguments, console)

    def run(self, arguments: argparse.Namespace, graph: EvidenceGraph) -> None:
        """Run all that can run, until nothing is left or the queue is paused; tables are also written after a failure.

        Raises:
            TrainingError: Jobs have failed, or are blocked.
        """
        if note := Checkout.now().note:
            sys.stderr.write(f"{note}\n")
        with graph.queue.held():
            try:
                run_here(graph, run=graph.queue.run)
            except TrainingError:
                try:
                    self.table(arguments, graph)
                except DiffTumorError as error:  # which must not hide what has failed
                    sys.stderr.write(f"The tables are not written: {error}\n")
                raise

    def found(self, graph: EvidenceGraph) -> dict[str, Standing]:
        """Return where the jobs are, with what the queue knows of them."""
        logs = {name: log_of(graph, node) for name, node in graph.nodes.items()}
        return graph.queue.overlaid(super().found(graph), logs)

    def show_counts(self, graph: EvidenceGraph, found: Mapping[str, Standing], console: Console) -> None:
        """Show how many jobs each entry has, and where they are; then by kind."""
        console.print(_entry_table(graph, found))
        super().show_counts(graph, found, console)

    def show_status(self, graph: EvidenceGraph, console: Console, *, every: bool) -> bool:
        """Show where each entry is, and return whether anything runs."""
        going_on = super().show_status(graph, console, every=every)
        if (holder := graph.queue.holder) is not None:
            console.print(f"The queue is run by {holder}.", highlight=False)
        return going_on or holder is not None


def _entry_table(graph: EvidenceGraph, found: Mapping[str, Standing]) -> Screen:
    """Return the numbers of jobs of each entry by where they are, with cells, and hours spent."""
    table = Screen("entry", "cells", *STATUSES, "hours spent")
    jobs = graph.queue.jobs
    for entry in dict.fromkeys(graph.entry_of.values()):
        own = [each for name, each in found.items() if graph.entry_of[name] == entry]
        cells = [each for each in own if each.node.kind == "record"]
        counts = Counter(each.status for each in own)
        seconds = sum(jobs[each.node.id].seconds for each in own if each.node.id in jobs)
        seconds += sum(each.job.seconds or 0 for each in own if each.status == "running" and each.job is not None)
        table.add_row(
            entry, f"{sum(each.status == 'done' for each in cells)} of {len(cells)}",
            *(str(counts[status] or "") for status in STATUSES), f"{seconds / 3600:.1f}",
        )  # fmt: skip
    return table


STUDY = EvidenceStudy("evidence", __doc__, declare, write_page, _add_options)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        return STUDY.main(words)
    except QueuePausedError:
        sys.stdout.write("Paused: run goes on from here.\n")
        return 0
