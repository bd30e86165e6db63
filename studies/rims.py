"""How much of a tumor is left under a soft rim? ``python -m studies.rims``.

Makes hand-crafted tumors of every size in a synthetic liver, with the published rim, σ ~ U(0, 4) mm, and with one that
is a share of the radius; and measures the blend weight at their center and how much they change the CT inside their
label. Nothing is trained.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difftumor.reporting.tables import Row
from difftumor.scans.organs import get_organ
from difftumor.synthesis.blending import blurred_weight
from difftumor.synthesis.sizes import SIZES
from difftumor.synthesis.spec import TumorSpec
from difftumor.synthesis.synthesizer import TumorSynthesizer
from studies.jobs.measurement import MeasuringStudy
from studies.jobs.results import write_results
from studies.jobs.study import whole_number

RIMS: Mapping[str, Mapping[str, Any]] = {
    "σ U(0, 4) mm, as published": {"blur_mm": {"uniform": [0, 4]}},
    "σ U(0, 0.25) r": {"blur_share": {"uniform": [0, 0.25]}},
}
# A tumor is hardly blended in below this weight at its center.
LEAST_WEIGHT = 0.4
CHANGES_HU = (5.0, 10.0)
LIVER_HU, NOISE_HU = 110.0, 15.0


def measure(size: str, rim: Mapping[str, Any], *, count: int, crop: int) -> tuple[list[float], list[float]]:
    """Make tumors in crops full of liver.

    Args:
        size: Size class.
        rim: Fields of the tumors.
        count: How many, one in each crop.
        crop: Voxels of 1 mm along each side.

    Returns:
        Their weights at the center, and their mean changes inside the label in HU.
    """
    liver = TumorSynthesizer(organ=get_organ("liver"))
    organ = torch.ones(1, 1, crop, crop, crop, dtype=torch.bool)
    spec = TumorSpec.from_dict({"generator": "handcrafted", "size": size, **rim}, where="rims")
    weights, changes = [], []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        ct_hu = LIVER_HU + NOISE_HU * torch.randn(organ.shape, generator=generator)
        (record,) = liver.draw(organ[0, 0], spec, seed=seed, ct_hu_XYZ=ct_hu[0, 0])
        made = liver.apply(ct_hu, organ, [[record]])
        label = made.lesions[0, 0] > 0
        weights.append(float(blurred_weight(label, record.blur_sigma_voxels)[record.center_voxel]))
        changes.append(float(made.change_hu[0, 0][label].mean()))
    return weights, changes


def run_study(arguments: argparse.Namespace) -> Path:
    """Make the tumors, measure them, and write the results.

    Returns:
        The page.
    """
    rows: list[Row] = []
    for name, rim in RIMS.items():
        for size in SIZES:
            weights, changes = measure(size, rim, count=arguments.count, crop=arguments.crop)
            faint = {f"below_{least:g}_hu": _percent(np.abs(changes) < least) for least in CHANGES_HU}
            rows.append(
                {
                    "rim": name,
                    "size": size,
                    "center_weight_below_0.4": _percent(np.array(weights) < LEAST_WEIGHT),
                    "median_center_weight": round(float(np.median(weights)), 2),
                    "median_change_hu": round(float(np.median(changes)), 1),
                    **faint,
                }
            )
    return write_results(
        arguments.out,
        "rims",
        title="Tumors under soft rims",
        introduction=[
            f"Hand-crafted tumors in crops of {arguments.crop} voxels of 1 mm, all {LIVER_HU:g} ± {NOISE_HU:g} HU: "
            "shares of the tumors whose blend weight at the center is below 0.4, and of those that change the mean HU "
            "inside their label by less than 5 or 10 HU: these are what synthesis.minimum_change_hu leaves out."
        ],
        rows=rows,
        pictures={},
        details={"command": arguments.command, "tumors per size": arguments.count},
    )


def _percent(values: np.ndarray) -> str:
    return f"{100 * float(np.mean(values)):.0f} %"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=whole_number, default=100, help="tumors per size (100)")
    parser.add_argument("--crop", type=whole_number, default=96, help="voxels along each side of a crop (96)")


STUDY = MeasuringStudy("rims", __doc__, run_study, _add_options)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
