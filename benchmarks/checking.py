"""What ``difftumor check`` costs beyond reading: ``python benchmarks/checking.py --lists LIST[=CONVENTION]...``.

For each case, CPU time of reading its CT and labels, and of the rest of its check: with its fingerprint known, as in
every check but the first, and with the fingerprint to be made.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from command import machine

from difftumor.datasets.cases import Case, read_case_labels
from difftumor.datasets.validation.case import CaseRules, check_case
from difftumor.datasets.validation.lists import list_to_check
from difftumor.reporting.tables import Table
from difftumor.scans.nifti import read_ct


def seconds(case: Case, rules: CaseRules) -> tuple[float, float, float]:
    """Return CPU seconds of reading, of the rest of a later check, and of the rest of the first one."""
    times = []
    with tempfile.TemporaryDirectory() as cache:
        own = replace(rules, cache=Path(cache))
        for check in (False, True, True):
            begin = time.process_time()
            if check:
                check_case(case, own)
            else:
                read_ct(case.image, accept_hu=True)
                if case.labels is not None:
                    read_case_labels(case, rules.label_names)
            times.append(time.process_time() - begin)
    read, first, later = times
    return read, later - read, first - read


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lists", nargs="+", required=True, help="as difftumor check takes them, perhaps =CONVENTION")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for word in arguments.lists:
        source, _, convention = word.partition("=")
        listed = list_to_check(Path(source), convention=convention or None)
        voxels = np.median([np.prod(read_ct(case.image).grid.shape) for case in listed.cases.cases])
        measured = np.array(
            [seconds(case, listed.rules) for case in listed.cases.cases for _ in range(arguments.repeats)]
        )
        typical, most = np.median(measured, axis=0), measured.max(axis=0)
        cells = [f"{a:.3f} ({b:.3f})" for a, b in zip(typical, most, strict=True)]
        rows.append([source, len(listed.cases.cases), f"{voxels / 1e6:.1f}", *cells])
    header = ["list", "cases", "million voxels", "reading", "check beyond it", "with its fingerprint"]
    print(Table(header, rows).markdown())
    print(f"CPU seconds of a case: median (most) of {arguments.repeats} runs. {machine()}")


if __name__ == "__main__":
    main()
