"""What a command line says when it ends early: errors and interruptions are one sentence, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

from difftumor.errors import told
from difftumor.files.processes import Terminated, ended_cleanly
from stages.ranks import is_rank_zero


def reported(work: Callable[[], object]) -> int:
    """Do what a command line asks for, and return its exit status.

    Args:
        work: Raises an error if something is wrong; the traceback is shown if
            ``HYDRA_FULL_ERROR`` is set, as Hydra's own are.

    Returns:
        0; 1 after an error; 130 or 143 where Ctrl-C or SIGTERM has ended it.
    """
    try:
        with ended_cleanly():
            work()
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            traceback.print_exc()
        sys.stderr.write(f"Error: {told(error, debug='HYDRA_FULL_ERROR=1')}\n")
        return 1
    except (KeyboardInterrupt, Terminated) as stop:
        if is_rank_zero():
            sys.stderr.write("Interrupted: rerun the same command to go on.\n")
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    return 0
