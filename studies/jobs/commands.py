"""Command lines: that of a study, and those of the stages and commands that it runs as processes."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from difftumor.errors import DiffTumorError, TrainingError


def whole_number(text: str) -> int:
    """Read a whole number from 1 up, as the ``type`` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 up")
    return int(text)


def run_command(
    parser: Callable[[], argparse.ArgumentParser],
    study: Callable[[argparse.Namespace], Path],
    words: Sequence[str] | None = None,
) -> int:
    """Parse the command line of a study, run it, and return the exit status; errors are one sentence.

    Args:
        parser: Returns the parser, whose ``prog`` is how the study is called.
        study: Gets the arguments, with the whole command line as ``command``; returns the page it has written.
        words: Words of the command line; those of the process when None.
    """
    words = sys.argv[1:] if words is None else list(words)
    parsing = parser()
    arguments = parsing.parse_intermixed_args(words)
    arguments.command = shlex.join([*str(parsing.prog).split(), *words])
    try:
        page = study(arguments)
    except DiffTumorError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    sys.stdout.write(f"The report is at {page.resolve()}\n")
    return 0


def train(stage: str, options: Sequence[str]) -> None:
    """Run a stage, or resume it; a finished run takes a moment.

    Args:
        stage: ``autoencoder``, ``diffusion`` or ``segmentation``.
        options: Its overrides.

    Raises:
        TrainingError: It has failed.
    """
    _run(f"Stage '{stage}'", ["python", "-m", f"stages.{stage}", *options], ["-m", f"stages.{stage}", *options])


def command(name: str, words: Sequence[str]) -> None:
    """Run one of difftumor's commands.

    Args:
        name: Name of the command, such as ``predict``.
        words: Its options.

    Raises:
        TrainingError: It has failed.
    """
    _run(f"difftumor {name}", ["difftumor", name, *words], ["-m", "difftumor", name, *words])


def _run(what: str, typed: Sequence[str], words: Sequence[str]) -> None:
    sys.stdout.write(f"$ {shlex.join(typed)}\n")
    sys.stdout.flush()
    status = subprocess.run([sys.executable, *words], check=False).returncode
    if status:
        raise TrainingError(
            f"{what} has failed (exit status {status}): see its message above, then rerun this command."
        )
