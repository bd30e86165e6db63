"""Time and memory of the autoencoder: ``python benchmarks/autoencoder.py --size 96 96 96 --batch 1``.

Each part runs in a process of its own, so that its peak memory is its own. Networks have the published sizes and random
weights. "decode" includes quantization; "joint" is a whole training step of autoencoder, codebook and discriminators,
run by Lightning. docs/benchmarks.md says how to read the figures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from autoencoder_parts import DTYPES, PARTS, measure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[96, 96, 96], metavar=("X", "Y", "Z"), help="voxels")
    parser.add_argument("--batch", type=int, default=1, help="crops at once")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--compile", action="store_true", help="compile the networks as training.compile=true does")
    parser.add_argument("--perceptual", action="store_true", help="with LPIPS on VGG (random weights)")
    parser.add_argument("--threads", type=int, help="threads on the CPU; by default PyTorch's choice")
    parser.add_argument("--repeats", type=int, default=10, help="runs that count")
    parser.add_argument("--warmups", type=int, default=2, help="runs before them")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--one", choices=(*PARTS, "ceilings"), help=argparse.SUPPRESS)  # what a child process does
    options = parser.parse_args(given)
    if any(size < 16 or size % 4 for size in options.size):
        parser.error("give a --size of at least 16, in multiples of 4")
    if min(options.batch, options.repeats, options.threads or 1) < 1 or options.warmups < 0 or options.threads == 0:
        parser.error("give --batch, --repeats and --threads of at least 1, and --warmups of at least 0")
    if options.device == "cpu" and options.precision == "fp16":
        parser.error("--precision fp16 needs --device cuda")
    return options


def measure_in_child(part: str, given: list[str]) -> dict[str, Any]:
    """Measure a part in a fresh process with the same command line."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        # The last --json wins.
        command = [sys.executable, __file__, *given, "--one", part, "--json", str(file)]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            raise SystemExit(f"measuring {part} has failed:\n{child.stderr}")
        figures: dict[str, Any] = json.loads(file.read_text())
        return figures


def add_rates(parts: dict[str, dict[str, Any]], *, compiled: bool) -> None:
    """Add TFLOP/s and GB/s; a joint step does the work of a generator's and a discriminators' step."""
    if {"joint", "generator", "discriminators"} <= set(parts):
        for name in ("tflop", "traffic_gb"):
            parts["joint"][name] = parts["generator"][name] + parts["discriminators"][name]
    for figures in parts.values():
        if "tflop" in figures:
            figures["tflops"] = figures["tflop"] / figures["median_s"]
            # The compiler moves less than the plain operations do, and nobody has counted how much.
            figures["gbs"] = None if compiled else figures["traffic_gb"] / figures["median_s"]


def table(figures: dict[str, Any]) -> Table:
    """Return the figures as a table."""
    ceiling = figures["ceilings"]
    result = Table(title=figures["title"], caption=f"{figures['machine']}; times in s, memory in GiB", box=SIMPLE_HEAD)
    result.add_column("part", no_wrap=True)
    for name in ("median", "quartiles", "peak", "growth", "TFLOP/s", "GB/s"):
        result.add_column(name, justify="right", no_wrap=True)
    for name, part in figures["parts"].items():
        low, high = part["quartiles_s"]
        rates = (_number(part.get("tflops")), _number(part.get("gbs")))
        seconds = (f"{part['median_s']:.3g}", f"{low:.3g}–{high:.3g}")
        result.add_row(name, *seconds, f"{part['peak_gib']:.2f}", f"{part['growth_gib']:.2f}", *rates)
    result.add_section()
    limits = (_number(ceiling["matmul_tflops"]), _number(ceiling["copy_gbs"]))
    result.add_row("ceilings", "", "", "", "", *limits)
    return result


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def main(given: list[str] | None = None) -> int:
    """Measure every part, print the table, write the JSON."""
    given = sys.argv[1:] if given is None else given
    options = arguments(given)
    if options.one:
        options.json.write_text(json.dumps(measure(options.one, options)))
        return 0
    limits = measure_in_child("ceilings", given)
    parts = {part: measure_in_child(part, given) for part in options.parts}
    add_rates(parts, compiled=options.compile)
    size = " × ".join(map(str, options.size))
    extras = [name for name in ("compile", "perceptual") if getattr(options, name)]
    title = ", ".join([f"batch {options.batch} of {size}", options.precision, *extras, f"torch {torch.__version__}"])
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "one", "parts")}
    figures = {
        "title": title,
        "machine": limits.pop("machine"),
        "settings": settings,
        "ceilings": limits,
        "parts": parts,
    }
    Console().print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
