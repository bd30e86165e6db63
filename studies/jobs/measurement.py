"""The command line of studies that train nothing: they measure, and leave a page."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.exit_status import reported


@dataclass(frozen=True)
class MeasuringStudy:
    """A study that trains nothing.

    Args:
        name: Name of its module.
        documentation: Docstring of the module, whose first line describes it.
        measure: Gets the arguments, with the whole command line as ``command``; returns the page it has written.
        add_options: Adds its options to the parser.
    """

    name: str
    documentation: str | None
    measure: Callable[[argparse.Namespace], Path]
    add_options: Callable[[argparse.ArgumentParser], None]

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of its command line."""
        parser = argparse.ArgumentParser(prog=self.program, description=first_line(self.documentation))
        self.add_options(parser)
        out = Path("runs") / self.name
        parser.add_argument("--out", type=Path, default=out, help=f"folder of the study ({out})")
        return parser

    @property
    def program(self) -> str:
        """How it is called."""
        return f"python -m studies.{self.name}"

    def main(self, words: Sequence[str] | None = None) -> int:
        """Run the command line and return the exit status; errors are one sentence."""
        words = sys.argv[1:] if words is None else list(words)
        arguments = self.parser().parse_args(words)
        arguments.command = shlex.join([*self.program.split(), *words])
        return reported(lambda: sys.stdout.write(f"The report is at {self.measure(arguments).resolve()}\n"))


def first_line(documentation: str | None) -> str:
    """Return the first line of a docstring, as the description of a command line."""
    return (documentation or "").splitlines()[0].replace("`", "")
