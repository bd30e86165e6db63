"""A job for tests: ``python -m tests.studies.jobs.leave OUTPUT [NEEDED …]`` writes a file, or fails without those."""

import sys
from pathlib import Path

output, *needed = map(Path, sys.argv[1:])
if "fail" in output.name or not all((path / "result").is_file() for path in needed):
    sys.exit(1)
output.mkdir(parents=True)
(output / "result").write_text("".join((path / "result").read_text() for path in needed) + output.name[0])
