"""Time and memory of stage 2 and of making early tumors: ``python benchmarks/diffusion.py --batch 1 4 16``.

Each part runs in a process of its own, so that its peak memory is its own. Networks have the published sizes and random
weights. "tumor" is the whole, as it is used: encoding, four denoising steps, decoding; "training" is a whole training
step with encoding, run by Lightning. docs/benchmarks.md says how to read the figures.
"""

import argparse
import json
import sys
from typing import Any

import measuring_command as common
import torch
from diffusion_parts import PARTS, STAGES, measure
from rich.console import Console


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line; in the process of a part ``batch`` is one number."""
    parser = common.parser((__doc__ or "").splitlines()[0], PARTS, precisions=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="tumors at once; several: one after another")
    parser.add_argument("--training-batch", type=int, default=2, help="crops of a training step")
    parser.add_argument("--graphs", action="store_true", help="with --compile: CUDA graphs for the denoiser")
    options = parser.parse_args(given)
    common.check(parser, options)
    X, Y, Z = options.size
    if X % 32 or Y % 32 or Z % 4 or min(options.size) < 16:
        parser.error("give a --size in multiples of 32 along X and Y, of 4 along Z, and of at least 16")
    if min(*options.batch, options.training_batch) < 1:
        parser.error("give --batch and --training-batch of at least 1")
    if options.graphs and not (options.compile and options.device == "cuda"):
        parser.error("--graphs needs --compile and --device cuda")
    return options


def add_shares(parts: dict[str, dict[str, Any]]) -> None:
    """Add the part of a tumor's time that each of its stages takes."""
    if "tumor" in parts:
        for name in STAGES:
            if name in parts:
                parts[name]["share"] = parts[name]["median_s"] / parts["tumor"]["median_s"]


def measured(batch: int, names: list[str], limits: dict[str, Any], given: list[str]) -> dict[str, Any]:
    """Return the figures of tumors made so many at once, or of training steps of so many crops."""
    options = arguments(given)
    parts = {name: common.in_child(__file__, name, [*given, "--batch", str(batch)]) for name in names}
    common.add_rates(parts, compiled=options.compile)
    add_shares(parts)
    size = " × ".join(map(str, options.size))
    extras = [name for name in ("compile", "graphs") if getattr(options, name)]
    figures = {
        "title": ", ".join([f"batch {batch} of {size}", options.precision, *extras, f"torch {torch.__version__}"]),
        "batch": batch,
        **limits,
        "parts": parts,
    }
    if "tumor" in parts:
        figures["tumors_per_s"] = batch / parts["tumor"]["median_s"]
    return figures


def show(figures: dict[str, Any], console: Console) -> None:
    """Print a table, and how many tumors are made in a second."""
    console.print(common.table(figures, shares=True))
    if "tumors_per_s" in figures:
        rate = figures["tumors_per_s"]
        console.print(f"{rate:.3g} early tumors per second, {1000 / rate:.3g} ms each\n")


def main(given: list[str] | None = None) -> int:
    """Measure every part at every batch size, print tables, write the JSON."""
    given = sys.argv[1:] if given is None else given
    options = arguments(given)
    if options.one:
        (options.batch,) = options.batch
        return common.answer(options, measure)
    ceilings = common.in_child(__file__, "ceilings", [*given, "--batch", "1"])
    limits = {"machine": ceilings.pop("machine"), "ceilings": ceilings}
    inference = [name for name in options.parts if name != "training"]
    runs = [(batch, inference) for batch in options.batch if inference]
    if "training" in options.parts:
        runs.append((options.training_batch, ["training"]))
    results = []
    for batch, names in runs:
        results.append(measured(batch, names, limits, given))
        show(results[-1], Console())
    if options.json:
        figures = {"settings": common.settings(options), "batches": results}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
