"""Wall time of making phantom cases: ``python benchmarks/phantom.py --cases 10 --size 128``.

Each case has tumors in all organs, and nothing is written to disk. The first case is made once more before the clock
starts, so that loading libraries does not count.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from command import machine

from difftumor.datasets.phantom import TUMOR_ORGANS, PhantomConfig, make_case


def seconds_per_case(config: PhantomConfig, cases: int) -> list[float]:
    """Return the wall time of each case, in seconds."""
    organs = tuple(TUMOR_ORGANS)
    make_case(seed=0, index=0, config=config, organs=organs)
    times = []
    for index in range(cases):
        start = time.perf_counter()
        make_case(seed=0, index=index, config=config, organs=organs)
        times.append(time.perf_counter() - start)
    return times


def main() -> int:
    """Make the cases and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10, help="how many cases to make")
    parser.add_argument("--size", type=int, nargs="+", default=[128], help="voxels per side, or along X, Y, Z")
    parser.add_argument("--spacing", type=float, nargs=3, help="voxel size in mm; by default for a view of 320 mm")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.cases < 1 or len(arguments.size) not in (1, 3):
        parser.error("give --cases of at least 1, and one or three sizes")
    x, y, z = arguments.size * (3 if len(arguments.size) == 1 else 1)
    spacing = None if arguments.spacing is None else tuple(arguments.spacing)
    config = PhantomConfig(shape=(x, y, z), spacing_mm=spacing, healthy=0.0)
    times = seconds_per_case(config, arguments.cases)
    low, high = np.percentile(times, (25, 75))
    figures = {
        "shape": list(config.shape),
        "spacing_mm": list(config.voxel_mm),
        "cases": len(times),
        "median_s": round(statistics.median(times), 3),
        "quartiles_s": [round(float(low), 3), round(float(high), 3)],
        "range_s": [round(min(times), 3), round(max(times), 3)],
        "machine": machine(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
