"""A job that takes long: ``python -m tests.faults.sleeping FILE`` says in a file that it runs, or was told to stop."""

import sys
import time
from pathlib import Path

from difftumor.files.processes import Terminated, ended_cleanly

file = Path(sys.argv[1])
try:
    with ended_cleanly():
        file.write_text("runs")
        time.sleep(60)
except Terminated:
    file.write_text("was told to stop")
    raise
