"""The command line of a study: errors as one sentence, as those of stages are."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from difftumor.errors import DiffTumorError


def whole_number(text: str) -> int:
    """Read a whole number from 1 up, as the ``type`` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 up")
    return int(text)


def run_command(
    parser: argparse.ArgumentParser,
    study: Callable[[argparse.Namespace], Path],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the command line, run a study, and return the exit status.

    Args:
        parser: Its ``prog`` is how the study is called.
        study: Gets the options, and the whole line as ``command``; returns the page that it has written.
        arguments: Words of the command line; those of the process when None.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_intermixed_args(words)
    options.command = shlex.join([*str(parser.prog).split(), *words])
    try:
        page = study(options)
    except DiffTumorError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    sys.stdout.write(f"The report is at {page.resolve()}\n")
    return 0
