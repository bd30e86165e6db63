"""Time and memory of scoring predictions: ``python benchmarks/evaluation.py --threads 1``.

Each part is measured in a process of its own, so that its peak memory is its own. docs/benchmarks.md says how to read
the figures.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measuring_command as common
import numpy as np
import torch
from command import machine
from measuring import PeakMemory, forget_peak, summary
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from difftumor.evaluation.cohort.cases import evaluate_case
from difftumor.evaluation.metrics.detection import Matching, assign
from difftumor.evaluation.metrics.overlap import dice
from difftumor.scans.components import find_components
from difftumor.scans.grid import Grid

PAIRS = ("blobs", "noise 50 %", "noise 5 %")
SCANS = ("liver", "body")
GOALS_S = {**dict.fromkeys(PAIRS, 0.1), **dict.fromkeys(SCANS, 10.0)}
SPACING_MM = (0.8, 0.8, 1.0)
# Centers and radii of tumors in mm from the middle of the organ.
TUMORS_MM = (((0, 0, 0), 16), ((20, 24, -10), 10), ((-16, -16, 20), 5), ((-8, 0, 30), 3))
Pair = tuple[NDArray[Any], NDArray[Any]]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="voxels along each side of a random mask")
    parser.add_argument("--pairs", type=int, default=200, help="random pairs of each kind")
    parser.add_argument("--scan", type=int, nargs=3, default=[512, 512, 300], metavar=("X", "Y", "Z"), help="voxels")
    parser.add_argument("--repeats", type=int, default=5, help="runs of a scan that count")
    parser.add_argument("--threads", type=int, help="threads; by default PyTorch's choice")
    parser.add_argument("--parts", nargs="+", choices=GOALS_S, default=tuple(GOALS_S), help="what to measure")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--one", choices=GOALS_S, help=argparse.SUPPRESS)  # what a child process does
    options = parser.parse_args(given)
    if min(options.size, *options.scan) < 16 or min(options.pairs, options.repeats, options.threads or 1) < 1:
        parser.error("give --size and --scan of at least 16, and --pairs, --repeats and --threads of at least 1")
    if options.threads == 0:
        parser.error("give --threads of at least 1")
    return options


def random_pairs(kind: str, size: int, count: int) -> Iterator[Pair]:
    """Yield pairs of masks: single random voxels, or the 5 % that are highest in smooth noise."""
    generator = np.random.default_rng(0)

    def mask() -> NDArray[np.bool_]:
        if kind == "blobs":
            values = ndimage.gaussian_filter(generator.standard_normal((size,) * 3, dtype=np.float32), 4)
            return values > np.quantile(values, 0.95)
        return generator.random((size,) * 3, dtype=np.float32) < (0.5 if kind == "noise 50 %" else 0.05)

    for _ in range(count):
        yield mask(), mask()


def count_pair(prediction: NDArray[Any], truth: NDArray[Any]) -> tuple[float, int, int, int]:
    """Return DSC, and lesions found, missed and false."""
    true, predicted = find_components(truth), find_components(prediction)
    found = len(assign(true, predicted, Matching()).truth)
    return dice(prediction, truth), found, len(true.voxels) - found, len(predicted.voxels) - found


def plain_components(prediction: NDArray[Any], truth: NDArray[Any]) -> int:
    """Count the lesions of both masks with SciPy and nothing else, to compare `count_pair` with."""
    return sum(int(ndimage.label(mask, np.ones((3, 3, 3)))[1]) for mask in (prediction, truth))


def scan_pair(kind: str, shape: tuple[int, ...]) -> tuple[Pair, Grid]:
    """Return two label maps, one moved by three voxels, in the order of memory that files have, and their grid.

    The liver is an ellipsoid of 1.6 L in the largest scan and as large a part of smaller ones; the body fills the scan
    up to two voxels from its border. Both have four tumors.
    """
    middle = np.array(shape) * (0.36, 0.5, 0.53)

    def labels(moved: int) -> NDArray[np.uint8]:
        result = np.zeros(shape, np.uint8, order="F")
        center = middle + np.array((moved, 0, 0))
        away = [np.arange(size, dtype=np.float32) - c for size, c in zip(shape, center, strict=True)]
        radii = np.array(shape) * (0.195, 0.147, 0.267)
        if kind == "body":
            result[2 : -2 - moved, 2:-2, 2:-2] = 1
        else:
            result[sum(np.ix_(*[(a / r) ** 2 for a, r in zip(away, radii, strict=True)])) <= 1] = 1
        for center, radius in TUMORS_MM:
            squares = [(a * s - c) ** 2 for a, s, c in zip(away, SPACING_MM, center, strict=True)]
            result[sum(np.ix_(*squares)) <= radius**2] = 2
        return result

    x, y, z = shape
    return (labels(3), labels(0)), Grid((x, y, z), np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0]))


def clocked(run: Callable[..., Any], *given: Any) -> tuple[float, float]:
    """Return wall time and processor time of a run in seconds."""
    start, processor = time.perf_counter(), time.process_time()
    run(*given)
    return time.perf_counter() - start, time.process_time() - processor


def measure(one: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one part in this process, which should be a fresh one.

    Returns:
        Wall times, the median of processor times, and its ratio to the goal.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    times, plain = [], []
    extra: dict[str, Any]
    if one in PAIRS:
        for number, pair in enumerate(random_pairs(one, options.size, options.pairs)):
            times.append(clocked(count_pair, *pair))
            if number < 20:
                plain.append(clocked(plain_components, *pair))
        extra = {"plain_processor_s": float(np.median(plain, axis=0)[1]), "last_result": count_pair(*pair)}
    else:
        pair, grid = scan_pair(one, tuple(options.scan))
        forget_peak()
        memory = PeakMemory(torch.device("cpu"))
        times = [clocked(evaluate_case, one, *pair, grid) for _ in range(options.repeats)]
        extra = memory.figures()
    wall, processor = zip(*times, strict=True)
    median = float(np.median(processor))
    goal = {"goal_s": GOALS_S[one], "ratio": median / GOALS_S[one]}
    return {**summary(list(wall)), "longest_s": max(wall), "processor_s": median, **goal, **extra}


def table(parts: dict[str, dict[str, Any]], options: argparse.Namespace) -> Table:
    """Return the figures as a table, times in s, memory in GiB."""
    result = Table(title="Scores of predictions (s, GiB)", caption=machine(), box=SIMPLE_HEAD)
    names = (
        "median",
        "quartiles",
        "longest",
        "processor",
        "goal",
        "ratio",
        "SciPy labels",
        "of 5000",
        "peak",
        "growth",
    )
    for number, name in enumerate(("part", *names)):
        result.add_column(name, justify="right" if number else "left", no_wrap=True)
    for name, row in parts.items():
        low, high = row["quartiles_s"]
        shape = "×".join(map(str, [options.size] * 3 if name in PAIRS else options.scan))
        times = (f"{row['median_s']:.3g}", f"{low:.3g}–{high:.3g}", f"{row['longest_s']:.3g}")
        goal = (f"{row['processor_s']:.3g}", f"{row['goal_s']:g}", f"{row['ratio']:.2f}")
        if name in PAIRS:
            rest = (f"{row['plain_processor_s']:.3g}", f"{5000 * row['processor_s']:.0f}", "", "")
        else:
            rest = ("", "", f"{row['peak_gib']:.2f}", f"{row['growth_gib']:.2f}")
        result.add_row(f"{name}, {shape}", *times, *goal, *rest)
    return result


def main(given: list[str] | None = None) -> int:
    """Measure every part, print a table, write the JSON."""
    given = sys.argv[1:] if given is None else given
    options = arguments(given)
    if options.one:
        return common.answer(options, measure)
    parts = {part: common.in_child(__file__, part, given) for part in options.parts}
    Console(width=max(Console().width, 160)).print(table(parts, options))
    if options.json:
        whole = {"machine": machine(), "torch": torch.__version__, "settings": common.settings(options), "parts": parts}
        options.json.write_text(json.dumps(whole, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
