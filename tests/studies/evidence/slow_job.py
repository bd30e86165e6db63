"""A job for tests that saves and stops at SIGTERM: ``python -m tests.studies.evidence.slow_job OUTPUT``."""

import signal
import sys
import time
from pathlib import Path

output = Path(sys.argv[1])
output.mkdir(parents=True, exist_ok=True)


def stop(*_: object) -> None:
    (output / "saved").touch()
    sys.exit(143)


signal.signal(signal.SIGTERM, stop)
(output / "started").touch()
# Once it has been stopped, it has not much left to do.
time.sleep(0 if (output / "saved").is_file() else 60)
(output / "result").write_text("s")
