"""What the commands of both stages' benchmarks share: options, a process for every part, tables."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table


def parser(description: str, parts: Sequence[str], *, precisions: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser of the options that both have."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--size", type=int, nargs=3, default=[96, 96, 96], metavar=("X", "Y", "Z"), help="voxels")
    result.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--precision", choices=precisions, default="fp32")
    result.add_argument("--compile", action="store_true", help="compile the networks as training.compile=true does")
    result.add_argument("--threads", type=int, help="threads on the CPU; by default PyTorch's choice")
    result.add_argument("--repeats", type=int, default=10, help="runs that count")
    result.add_argument("--warmups", type=int, default=2, help="runs before them")
    result.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to measure")
    result.add_argument("--json", type=Path, help="also write the figures to this file")
    result.add_argument("--one", choices=(*parts, "ceilings"), help=argparse.SUPPRESS)  # what a child process does
    return result


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what makes no sense for either."""
    if min(options.repeats, options.threads or 1) < 1 or options.warmups < 0 or options.threads == 0:
        parser.error("give --repeats and --threads of at least 1, and --warmups of at least 0")


def in_child(script: str, part: str, given: list[str]) -> dict[str, Any]:
    """Measure a part in a fresh process with the same command line."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        # The last --json wins.
        command = [sys.executable, script, *given, "--one", part, "--json", str(file)]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            raise SystemExit(f"measuring {part} has failed:\n{child.stderr}")
        figures: dict[str, Any] = json.loads(file.read_text())
        return figures


def answer(options: argparse.Namespace, measure: Callable[[str, argparse.Namespace], dict[str, Any]]) -> int:
    """Do what `in_child` asks of its process."""
    options.json.write_text(json.dumps(measure(options.one, options)))
    return 0


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that figures depend on."""
    return {name: value for name, value in vars(options).items() if name not in ("json", "one", "parts")}


def add_rates(parts: dict[str, dict[str, Any]], *, compiled: bool) -> None:
    """Add TFLOP/s and GB/s to the parts whose work was counted."""
    for figures in parts.values():
        if "tflop" in figures:
            figures["tflops"] = figures["tflop"] / figures["median_s"]
            # The compiler moves less than the plain operations do, and nobody has counted how much.
            figures["gbs"] = None if compiled else figures["traffic_gb"] / figures["median_s"]


def table(figures: dict[str, Any], *, shares: bool = False) -> Table:
    """Return the figures as a table, with the parts' shares of the whole where asked."""
    ceiling = figures["ceilings"]
    result = Table(title=figures["title"], caption=f"{figures['machine']}; times in s, memory in GiB", box=SIMPLE_HEAD)
    result.add_column("part", no_wrap=True)
    for name in ("median", "quartiles", *(["share"] if shares else []), "peak", "growth", "TFLOP/s", "GB/s"):
        result.add_column(name, justify="right", no_wrap=True)
    for name, part in figures["parts"].items():
        low, high = part["quartiles_s"]
        share = [f"{part['share']:.0%}" if "share" in part else ""] if shares else []
        rates = (_number(part.get("tflops")), _number(part.get("gbs")))
        seconds = (f"{part['median_s']:.3g}", f"{low:.3g}–{high:.3g}")
        result.add_row(name, *seconds, *share, f"{part['peak_gib']:.2f}", f"{part['growth_gib']:.2f}", *rates)
    result.add_section()
    empty = [""] * (5 if shares else 4)
    result.add_row("ceilings", *empty, _number(ceiling["matmul_tflops"]), _number(ceiling["copy_gbs"]))
    return result


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
