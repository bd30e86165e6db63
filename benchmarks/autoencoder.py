"""Time and memory of the autoencoder: ``python benchmarks/autoencoder.py --size 96 96 96 --batch 1``.

Each part runs in a process of its own, so that its peak memory is its own. Networks have the published sizes and random
weights. "decode" includes quantization; "joint" is a whole training step of autoencoder, codebook and discriminators,
run by Lightning. docs/benchmarks.md says how to read the figures.
"""

import argparse
import json
import sys
from typing import Any

import measuring_command as common
import torch
from autoencoder_parts import PARTS, measure
from parts import DTYPES
from rich.console import Console


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = common.parser((__doc__ or "").splitlines()[0], PARTS, precisions=tuple(DTYPES))
    parser.add_argument("--batch", type=int, default=1, help="crops at once")
    parser.add_argument("--perceptual", action="store_true", help="with LPIPS on VGG (random weights)")
    options = parser.parse_args(given)
    common.check(parser, options)
    if any(size < 16 or size % 4 for size in options.size):
        parser.error("give a --size of at least 16, in multiples of 4")
    if options.batch < 1:
        parser.error("give a --batch of at least 1")
    if options.device == "cpu" and options.precision == "fp16":
        parser.error("--precision fp16 needs --device cuda")
    return options


def add_rates(parts: dict[str, dict[str, Any]], *, compiled: bool) -> None:
    """Add TFLOP/s and GB/s; a joint step does the work of a generator's and a discriminators' step."""
    if {"joint", "generator", "discriminators"} <= set(parts):
        for name in ("tflop", "traffic_gb"):
            parts["joint"][name] = parts["generator"][name] + parts["discriminators"][name]
    common.add_rates(parts, compiled=compiled)


def main(given: list[str] | None = None) -> int:
    """Measure every part, print the table, write the JSON."""
    given = sys.argv[1:] if given is None else given
    options = arguments(given)
    if options.one:
        return common.answer(options, measure)
    limits = common.in_child(__file__, "ceilings", given)
    parts = {part: common.in_child(__file__, part, given) for part in options.parts}
    add_rates(parts, compiled=options.compile)
    size = " × ".join(map(str, options.size))
    extras = [name for name in ("compile", "perceptual") if getattr(options, name)]
    title = ", ".join([f"batch {options.batch} of {size}", options.precision, *extras, f"torch {torch.__version__}"])
    figures = {
        "title": title,
        "machine": limits.pop("machine"),
        "settings": common.settings(options),
        "ceilings": limits,
        "parts": parts,
    }
    Console().print(common.table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
