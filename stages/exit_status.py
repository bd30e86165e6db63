"""What a command line says when it ends early: errors and interruptions are one sentence, and leave nothing behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from difftumor.errors import DiffTumorError, sentence_of
from difftumor.files.processes import Terminated, ended_cleanly
from stages.ranks import is_rank_zero


def reported(work: Callable[[], object]) -> int:
    """Do what a command line asks for, and return its exit status.

    Args:
        work: Raises a ``DiffTumorError`` or ``OSError`` if something is wrong.

    Returns:
        0; 1 after an error; 130 or 143 where Ctrl-C or SIGTERM has ended it.
    """
    try:
        with ended_cleanly():
            work()
    except (DiffTumorError, OSError) as error:
        sys.stderr.write(f"Error: {sentence_of(error)}\n")
        return 1
    except (KeyboardInterrupt, Terminated) as stop:
        if is_rank_zero():
            sys.stderr.write("Interrupted: rerun the same command to go on.\n")
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    return 0
