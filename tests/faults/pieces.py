"""Pieces of work for processes that come to harm; without PyTorch, which each of them would import."""

import os
import signal
import time

from difftumor.files.processes import started


def doubled(number, lethal):
    """Return twice a number, unless its process is killed at it."""
    if number in lethal:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def crowded(number, folder):
    """Be killed the first time, as if memory had not been enough for all."""
    if number == 2 and not (folder / "tried").exists():
        (folder / "tried").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def failing(number, folder):
    (folder / str(number)).touch()
    raise ValueError(number)


def waiting(folder):
    (folder / f"{os.getpid()} {started(os.getpid())}").touch()
    time.sleep(100)
