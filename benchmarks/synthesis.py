"""Time and memory of making tumors in crops and in whole scans: ``python benchmarks/synthesis.py --threads 2``.

Scans are made of noise and an ellipsoid of an organ, once, in a temporary folder. Each of them is measured in a process
of its own, so that its peak memory is its own. docs/benchmarks.md says how to read the figures.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring_command as common
import torch
from command import machine
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from synthesis_crops import STEPS, draw_in_crop, measure_steps
from synthesis_scans import MAKING, Run, make_scan, measure_scan

PARTS = ("drawing", "steps", "presets", "sizes", "counts", "diffusion")
_TIMES = ("median", "quartiles", "processor")
# What the published generator takes to draw a shape and a place, in seconds.
PUBLISHED_DRAWING_S = {"tiny": 0.0025, "small": 0.0025, "medium": 0.007, "large": 0.17}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crop", type=int, default=96, help="voxels along each side of a crop")
    parser.add_argument("--scan", type=int, nargs=3, default=[512, 512, 300], metavar=("X", "Y", "Z"), help="voxels")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16], help="tumors in one scan")
    parser.add_argument("--repeats", type=int, default=7, help="tumors that are made in a scan, each with its seed")
    parser.add_argument("--threads", type=int, help="threads; by default PyTorch's choice")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # where a child process finds scans
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a child process does
    options = parser.parse_args(given)
    if min(options.crop, *options.scan) < 32 or min(*options.counts, options.repeats) < 1:
        parser.error("give --crop and --scan of at least 32, and --counts and --repeats of at least 1")
    if options.threads is not None and options.threads < 1:
        parser.error("give --threads of at least 1")
    return options


def scan_runs(options: argparse.Namespace) -> dict[str, list[Run]]:
    """Return what is to be measured in scans, by part."""
    largest = tuple(options.scan)
    shapes = [tuple(max(32, side // share) for side in largest) for share in (4, 2, 1)]
    runs = {
        "presets": [Run(preset, size, 1, largest) for preset in ("training", "reader") for size in ("small", "large")],
        "sizes": [Run("training", "small", 1, shape) for shape in shapes],
        "counts": [Run(preset, "early", n, largest) for preset in ("training", "reader") for n in options.counts],
        "diffusion": [Run("diffusion", "small", 1, largest)],
    }
    return {part: members for part, members in runs.items() if part in options.parts}


def measure(one: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure in this process, which should be a fresh one."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if one == "drawing":
        return {size: draw_in_crop(size, options.crop, repeats=20 * options.repeats) for size in PUBLISHED_DRAWING_S}
    if one == "steps":
        return measure_steps(options.crop, repeats=3 * options.repeats)
    return measure_scan(Run.of(one), options.folder, repeats=options.repeats)


def measured(options: argparse.Namespace, given: list[str]) -> dict[str, Any]:
    """Return all figures, by part; no run is measured twice."""
    figures: dict[str, Any] = {
        part: common.in_child(__file__, part, given) for part in ("drawing", "steps") if part in options.parts
    }
    with tempfile.TemporaryDirectory() as folder:
        runs = scan_runs(options)
        for shape in {run.shape for members in runs.values() for run in members}:
            make_scan(Path(folder), shape)
        known: dict[Run, dict[str, Any]] = {}
        for part, members in runs.items():
            for run in members:
                if run not in known:
                    known[run] = common.in_child(__file__, str(run), [*given, "--folder", folder])
            figures[part] = [known[run] for run in members]
    for size, row in figures.get("drawing", {}).items():
        row["ratio"] = row["median_s"] / PUBLISHED_DRAWING_S[size]
    return figures


def tables(figures: dict[str, Any], options: argparse.Namespace) -> list[Table]:
    """Return the figures as tables; times in ms for crops, in s for scans, memory in GiB."""
    result = []
    crop = f"crop of {options.crop}³ (ms)"
    if "drawing" in figures:
        drawing = _table(f"Drawing in a {crop}", ["size", *_TIMES, "published", "ratio"])
        for size, row in figures["drawing"].items():
            published = f"{1000 * PUBLISHED_DRAWING_S[size]:g}"
            drawing.add_row(size, *_milliseconds(row), published, f"{row['ratio']:.2f}")
        result.append(drawing)
    if "steps" in figures:
        steps = _table(f"Steps of a medium tumor in a {crop}", ["step", *_TIMES])
        for name in STEPS:
            steps.add_row(name, *_milliseconds(figures["steps"][name]))
        result.append(steps)
    for part in ("presets", "sizes", "counts", "diffusion"):
        if part in figures:
            result.append(_scan_table(part, figures[part]))
    return result


def _scan_table(part: str, rows: Sequence[dict[str, Any]]) -> Table:
    diffusion = part == "diffusion"
    stages = [*MAKING, *(["patch", "on top"] if diffusion else [])]
    names = [
        "scan",
        "tumors",
        *stages,
        "whole",
        "processor",
        "first",
        "memory",
        "read",
        "preview",
        "write",
        "memory of writing",
    ]
    table = _table(f"Tumors in a scan: {part} (s, GiB)", names)
    for row in rows:
        times = [_seconds(row["stages"][name]["median_s"]) for name in stages]
        low, high = row["whole"]["quartiles_s"]
        whole = f"{_seconds(row['whole']['median_s'])} ({_seconds(low)}–{_seconds(high)})"
        processor = _seconds(row["whole"]["processor_s"])
        others = [_seconds(row[name]) for name in ("read_s", "preview_s", "write_s")]
        memory, writing = (f"{row[name]:.2f}" for name in ("growth_gib", "writing_growth_gib"))
        what = f"{row['tumors']} {row['size']}, {row['preset']}"
        shape = "×".join(map(str, row["shape"]))
        table.add_row(shape, what, *times, whole, processor, _seconds(row["first_s"]), memory, *others, writing)
    return table


def _table(title: str, names: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _milliseconds(row: dict[str, Any]) -> tuple[str, str, str]:
    low, high = (1000 * value for value in row["quartiles_s"])
    return f"{1000 * row['median_s']:.3g}", f"{low:.3g}–{high:.3g}", f"{1000 * row['processor_s']:.3g}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def main(given: list[str] | None = None) -> int:
    """Measure every part, print tables, write the JSON."""
    given = sys.argv[1:] if given is None else given
    options = arguments(given)
    if options.one:
        return common.answer(options, measure)
    figures = measured(options, given)
    console = Console()
    for table in tables(figures, options):
        Console(width=max(console.width, 200)).print(table)
    console.print(f"{machine()}, torch {torch.__version__}")
    if options.json:
        settings = {name: getattr(options, name) for name in ("crop", "scan", "counts", "repeats", "threads")}
        whole = {"machine": machine(), "torch": torch.__version__, "settings": settings, **figures}
        options.json.write_text(json.dumps(whole, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
