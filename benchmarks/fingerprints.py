"""What fingerprints miss and suspect wrongly: ``python benchmarks/fingerprints.py --lists CTS... [--json FILE]``.

Each scan is compared with changed copies of itself, where no likeness is a miss, and, as it is and changed, with every
other scan, where any likeness is a false alarm.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
from command import machine
from numpy.typing import NDArray
from scipy import ndimage

from difftumor.datasets.cases import read_case_list
from difftumor.reporting.tables import Table
from difftumor.scans.fingerprint import Fingerprint, fingerprint
from difftumor.scans.nifti import Volume, read_ct, volume_of

Change = Callable[[Volume, np.random.Generator], Volume]


def _like(ct: Volume, data: NDArray[np.float32], affine: NDArray[np.float64] | None = None) -> Volume:
    return volume_of(data, ct.grid.affine if affine is None else affine)


def cropped(*shares: float) -> Change:
    """Return a change that keeps a share of each axis, at a random place."""

    def change(ct: Volume, random: np.random.Generator) -> Volume:
        kept = [max(1, round(share * size)) for share, size in zip(shares, ct.grid.shape, strict=True)]
        starts = [int(random.integers(size - count + 1)) for size, count in zip(ct.grid.shape, kept, strict=True)]
        return _like(ct, ct.data[tuple(slice(a, a + n) for a, n in zip(starts, kept, strict=True))])

    return change


def resampled(*spacing_mm: float | None) -> Change:
    """Return a change to other voxels, linearly; None keeps an axis."""

    def change(ct: Volume, _: np.random.Generator) -> Volume:
        own = ct.grid.spacing_mm
        factors = [step / (new or step) for step, new in zip(own, spacing_mm, strict=True)]
        data = ndimage.zoom(ct.data, factors, order=1, mode="nearest", grid_mode=True)
        scale = [n / m for n, m in zip(ct.grid.shape, data.shape, strict=True)]
        return _like(ct, data, ct.grid.affine @ np.diag([*scale, 1.0]))

    return change


def windowed(low_hu: float, high_hu: float) -> Change:
    """Return a change to the HU of a window."""
    return lambda ct, _: _like(ct, ct.data.clip(low_hu, high_hu))


def _all_three(ct: Volume, random: np.random.Generator) -> Volume:
    smaller = cropped(0.8, 0.8, 0.8)(ct, random)
    return windowed(-160, 240)(resampled(2.0, 2.0, 2.0)(smaller, random), random)


CHANGES: dict[str, Change] = {
    "none (another name)": lambda ct, _: _like(ct, ct.data),
    "another header": lambda ct, _: _like(ct, ct.data, np.diag([-1.5, -1.5, 2.0, 1.0])),
    "mirrored": lambda ct, _: _like(ct, ct.data[::-1]),
    "cropped to 90 % of each axis": cropped(0.9, 0.9, 0.9),
    "80 %": cropped(0.8, 0.8, 0.8),
    "70 %": cropped(0.7, 0.7, 0.7),
    "60 %": cropped(0.6, 0.6, 0.6),
    "50 %": cropped(0.5, 0.5, 0.5),
    "half of the slices": cropped(1, 1, 0.5),
    "resampled to 2 mm": resampled(2.0, 2.0, 2.0),
    "resampled to 3 mm": resampled(3.0, 3.0, 3.0),
    "slices of 5 mm": resampled(None, None, 5.0),
    "windowed to [-175, 250] HU": windowed(-175, 250),
    "windowed to [-150, 150] HU": windowed(-150, 150),
    "80 %, 2 mm, [-160, 240] HU": _all_three,
}


def measured(files: Sequence[Path]) -> tuple[dict[str, list[Fingerprint]], list[float]]:
    """Return the fingerprints of all scans by change, and the processor seconds that each scan took unchanged."""
    prints: dict[str, list[Fingerprint]] = {name: [] for name in CHANGES}
    seconds = []
    for number, file in enumerate(files):
        ct = read_ct(file)
        start = time.process_time()
        fingerprint(ct)
        seconds.append(time.process_time() - start)
        for place, (name, change) in enumerate(CHANGES.items()):
            prints[name].append(fingerprint(change(ct, np.random.default_rng([number, place]))))
    return prints, seconds


def rates(prints: dict[str, list[Fingerprint]], groups: Sequence[Sequence[int]]) -> list[list[str | int]]:
    """Return a row per change: misses of each group of scans, and false alarms over all ordered pairs of scans."""
    originals = next(iter(prints.values()))
    rows: list[list[str | int]] = []
    for name, copies in prints.items():
        missed = [sum(originals[i].likeness(copies[i]) is None for i in group) for group in groups]
        pairs = list(permutations(range(len(originals)), 2))
        alarms = sum(originals[i].likeness(copies[j]) is not None for i, j in pairs)
        rows.append([
            name, *(f"{count} of {len(group)}" for count, group in zip(missed, groups, strict=True)),
            f"{alarms} of {len(pairs)}",
        ])  # fmt: skip
    return rows


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", type=Path, nargs="+", required=True, help="CTs, folders or lists; a column for each")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    lists = [[case.image for case in read_case_list(path).cases] for path in arguments.lists]
    files = [file for listed in lists for file in listed]
    starts = np.cumsum([0, *map(len, lists)])
    groups = [range(a, b) for a, b in pairwise(starts)]
    prints, seconds = measured(files)
    header = ["copy", *(f"missed of {path.name}" for path in arguments.lists), "false alarms"]
    table = Table(header, rates(prints, groups))
    seconds_each = round(float(np.median(seconds)), 3)
    if arguments.json:
        content = {"header": header, "rows": table.rows, "median_s": seconds_each, "machine": machine()}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    sys.stdout.write(f"{table.markdown()}\n\nProcessor time of a fingerprint: {seconds_each} s (median)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
