"""The command line that all studies have: plan, run, submit, status and table."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Console

from difftumor.errors import ConfigError, counted
from stages.cluster.checkout import Checkout
from stages.cluster.jobs import Job
from stages.cluster.options import ClusterOptions, read_cluster
from stages.exit_status import reported
from studies.jobs.graph import Graph
from studies.jobs.measurement import first_line
from studies.jobs.running import run_here, submit_missing
from studies.jobs.states import TABLE, Standing, job_table, plan_table, queued_tables, remarks, standings

ACTIONS = {
    "plan": "show what is done and what is missing",
    "run": "do what is missing here, then write the tables",
    "submit": "submit what is missing to a cluster, and return",
    "status": "show where submitted jobs are",
    "table": "write the tables of what is done so far",
}
PAGE = "report.html"
REFRESH_S = 5
# Of tables in files, where no terminal says how wide it is.
WIDTH = 200
GraphT = TypeVar("GraphT", bound=Graph)


@dataclass(frozen=True)
class Study(Generic[GraphT]):
    """A study.

    Args:
        name: Name of its module.
        documentation: Docstring of its module, whose first line describes it.
        declare: Makes the graph of its jobs from the arguments.
        table: Writes tables and page from what is done; returns the page.
        add_options: Adds its own options to the parser.
        check: Checks before anything runs here what takes longer than a plan may.
        measures: Whether its table needs the GPU that trainings have, since it makes or times tumors.
        words: What its options that are no flags are, for its help; empty if it takes none.
    """

    name: str
    documentation: str | None
    declare: Callable[[argparse.Namespace], GraphT]
    table: Callable[[argparse.Namespace, GraphT], Path]
    add_options: Callable[[argparse.ArgumentParser], None] | None = None
    check: Callable[[GraphT], object] | None = None
    words: str = ""
    measures: bool = False

    @property
    def program(self) -> str:
        """How it is called."""
        return f"python -m studies.{self.name}"

    @property
    def actions(self) -> Mapping[str, str]:
        """What it can be asked to do."""
        return ACTIONS

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of its command line."""
        actions = "\n".join(f"  {name:8} {what}" for name, what in self.actions.items())
        parser = argparse.ArgumentParser(
            prog=self.program,
            description=first_line(self.documentation),
            epilog=f"actions:\n{actions}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        out = Path("runs") / self.name
        parser.set_defaults(cluster=None)
        parser.add_argument("action", choices=self.actions, help="what to do")
        parser.add_argument("--out", type=Path, default=out, help=f"folder of the study ({out})")
        parser.add_argument("--jobs", type=whole_number, default=1, help="jobs that run at the same time (run; 1)")
        parser.add_argument("--all", action="store_true", help="show every job (plan, status)")
        parser.add_argument("--watch", action="store_true", help="refresh until nothing is queued (status)")
        if self.add_options is not None:
            self.add_options(parser)
        words = f"{self.words}; and " if self.words else ""
        parser.add_argument("options", nargs="*", help=f"{words}cluster=NAME cluster.OPTION=VALUE (submit)")
        return parser

    def main(self, words: Sequence[str] | None = None) -> int:
        """Run the command line and return the exit status; errors are one sentence."""
        words = sys.argv[1:] if words is None else list(words)
        arguments = self.parser().parse_intermixed_args(words)
        place = words.index(arguments.action)
        arguments.words = [*words[:place], *words[place + 1 :]]
        arguments.command = shlex.join([*self.program.split(), *words])
        return reported(lambda: self._act(arguments))

    def _act(self, arguments: argparse.Namespace) -> None:
        cluster, options = read_cluster(arguments.options)
        if options and not self.words:
            raise ConfigError(f"The study takes no option {options[0]!r}: see {self.program} --help.")
        arguments.options = list(options)
        _check_flags(arguments, cluster)
        arguments.cluster = cluster
        self.act(arguments, Console(width=None if sys.stdout.isatty() else WIDTH))

    def act(self, arguments: argparse.Namespace, console: Console) -> None:
        """Do what the arguments say."""
        graph = self.declare(arguments)
        if arguments.action == "plan":
            self.show_plan(graph, console, every=arguments.all)
        elif arguments.action == "status":
            self._watch(graph, console, every=arguments.all, watch=arguments.watch)
        elif arguments.action == "submit":
            words = (TABLE, *arguments.words)
            table = Job(name=TABLE, module=f"studies.{self.name}", words=words, gpu=self.measures)
            if note := Checkout.now().note:
                console.print(note, highlight=False)
            for job in (sent := submit_missing(graph, arguments.cluster, last=table, page=graph.folder / PAGE)):
                console.print(f"{job.id}  {job.name}  {job.log}", highlight=False)
            console.print(f"{counted(len(sent), 'job')} submitted; {self.program} status … shows where they are.")
        else:
            if arguments.action == "run":
                self.run(arguments, graph)
            console.print(f"The report is at {self.table(arguments, graph).resolve()}", highlight=False)

    def run(self, arguments: argparse.Namespace, graph: GraphT) -> None:
        """Do what is missing here."""
        if self.check is not None:
            self.check(graph)
        run_here(graph, at_once=arguments.jobs)

    def found(self, graph: GraphT) -> dict[str, Standing]:
        """Return where the jobs are, by id."""
        return standings(graph)

    def show_counts(self, graph: GraphT, found: Mapping[str, Standing], console: Console) -> None:
        """Show how many jobs there are of each kind, and where."""
        console.print(plan_table(found))

    def show_plan(self, graph: GraphT, console: Console, *, every: bool) -> None:
        """Show what is done and what is missing; with ``every``, job by job."""
        found = self.found(graph)
        if every:
            console.print(job_table(found.values()))
        self.show_counts(graph, found, console)
        for remark in remarks(found):
            console.print(remark, highlight=False)

    def show_status(self, graph: GraphT, console: Console, *, every: bool) -> bool:
        """Show where submitted jobs are, or with ``every`` all jobs, and return whether any is queued."""
        found = self.found(graph)
        shown = [each for each in found.values() if every or each.status in ("running", "queued", "failed")]
        self.show_counts(graph, found, console)
        if shown:
            console.print(job_table(shown))
        for table in queued_tables(graph.folder).values():
            console.print(f"Job {table.id} writes the tables when all has ended: {table.log}", highlight=False)
        return any(each.status in ("running", "queued") for each in found.values())

    def _watch(self, graph: GraphT, console: Console, *, every: bool, watch: bool) -> None:
        while True:
            with console.capture() as shown:
                going_on = self.show_status(graph, console, every=every)
            if watch and console.is_terminal:
                console.clear()
            console.file.write(shown.get())
            if not watch or not going_on:
                return
            time.sleep(REFRESH_S)


def whole_number(text: str) -> int:
    """Read a whole number from 1 up, as the ``type`` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 up")
    return int(text)


def require_done(graph: Graph) -> None:
    """Refuse a table that needs all jobs of a graph.

    Raises:
        ConfigError: Names a job that is missing.
    """
    missing = [node for node in graph.nodes.values() if not node.is_done()]
    if missing:
        raise ConfigError(f"{missing[0].id} is missing ({counted(len(missing), 'job')} in all): run the study first.")


def _check_flags(arguments: argparse.Namespace, cluster: ClusterOptions) -> None:
    """Refuse what an action would ignore.

    Raises:
        ConfigError: Names it.
    """
    given = {"jobs": arguments.jobs > 1, "all": arguments.all, "watch": arguments.watch}
    of_actions = {"jobs": ("run",), "all": ("plan", "status"), "watch": ("status",)}
    for flag, actions in of_actions.items():
        if given[flag] and arguments.action not in actions:
            raise ConfigError(f"--{flag} has no meaning for {arguments.action}: leave it out.")
    if arguments.action == "run" and cluster.kind != "local":
        raise ConfigError("The action run runs jobs here: leave out cluster=…, or choose the action submit.")
