"""Stages as processes of their own, as a user runs them."""

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
    words = ["-m", f"stages.{stage}", *options]
    sys.stdout.write(f"$ {shlex.join(['python', *words])}\n")
    sys.stdout.flush()
    status = subprocess.run([sys.executable, *words], check=False).returncode
    if status:
        raise TrainingError(
            f"Stage '{stage}' has failed (exit status {status}): see its message above, then rerun this command."
        )
