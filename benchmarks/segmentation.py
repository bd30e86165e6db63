"""Time and memory of stage 3: ``python benchmarks/segmentation.py --backbone swinunetr --batch 2``.

Each part runs in a process of its own, so that its peak memory is its own. Networks have the published sizes and
random weights. The training steps are alike but for the tumors: none ("plain"), those of the published recipe
("published"), the same made one batch ahead ("ahead"), those of Hu et al. ("handcrafted"). docs/benchmarks.md says how
to read the figures.
"""

import argparse
import json
import sys
from typing import Any

import measuring_command as common
import torch
from rich.console import Console
from segmentation_parts import PARTS, TRAININGS, measure


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = common.parser((__doc__ or "").splitlines()[0], PARTS, precisions=("fp32", "bf16"))
    parser.add_argument("--backbone", choices=("unet", "nnunet", "swinunetr", "resenc", "mednext"), default="unet")
    parser.add_argument("--swin-size", choices=("tiny", "small", "base"), default="base", help="of swinunetr")
    parser.add_argument("--batch", type=int, default=2, help="crops of a step, and windows predicted together")
    parser.add_argument("--scan", type=int, nargs=3, default=[512, 512, 300], metavar=("X", "Y", "Z"), help="predicted")
    parser.add_argument("--overlap", type=float, default=0.75, help="of the windows")
    options = parser.parse_args(given)
    common.check(parser, options)
    if options.compile:
        parser.error("--compile has nothing to compile in stage 3")
    if any(n % 32 for n in options.size) or min(options.size) < 32 or options.batch < 1:
        parser.error("give a --size in multiples of 32, and --batch of at least 1")
    return options


def add_shares(parts: dict[str, dict[str, Any]]) -> None:
    """Add the part of the step that tumors take: what a step takes more than one without, over many steps."""
    if "plain" in parts:
        for name in TRAININGS[1:]:
            if name in parts:
                parts[name]["share"] = max(0.0, 1 - parts["plain"]["mean_s"] / parts[name]["mean_s"])


def main(given: list[str] | None = None) -> int:
    """Measure every part, print a table, write the JSON."""
    given = sys.argv[1:] if given is None else given
    options = arguments(given)
    if options.one:
        return common.answer(options, measure)
    ceilings = common.in_child(__file__, "ceilings", given)
    parts = {name: common.in_child(__file__, name, given) for name in options.parts}
    add_shares(parts)
    size = " × ".join(map(str, options.size))
    backbone = f"{options.backbone} {options.swin_size}" if options.backbone == "swinunetr" else options.backbone
    figures = {
        "title": f"{backbone}, batch {options.batch} of {size}, {options.precision}, torch {torch.__version__}",
        "settings": common.settings(options),
        "machine": ceilings.pop("machine"),
        "ceilings": ceilings,
        "parts": parts,
    }
    Console().print(common.table(figures, shares=True))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
