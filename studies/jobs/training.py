"""Stages and commands as processes of their own, as a user runs them."""

import shlex
import subprocess
import sys
from collections.abc import Sequence

from difftumor.errors import TrainingError


def train(stage: str, options: Sequence[str]) -> None:
    """Run a stage, or go on with it; a run that has finished takes a moment.

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
        name: Of the command, such as ``predict``.
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
