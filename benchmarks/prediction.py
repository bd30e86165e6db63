"""A large scan and a tiny segmenter to predict it with: ``python benchmarks/prediction.py FOLDER``.

Time and peak memory are then taken of the command that it prints. The network has random weights: what it finds is
noise all over the scan, which is the most that filters and lists of lesions can get to do.
"""

import argparse
import sys
from pathlib import Path

import torch
from synthesis_scans import make_scan

from difftumor.artifacts import save_artifact
from difftumor.networks.segmenters import build_segmenter

CHANNELS = [4, 8, 16]


def main() -> int:
    """Write scan, mask and artifact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 800], help="voxels of 0.8 x 0.8 x 1 mm")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    make_scan(options.folder, tuple(options.shape))
    torch.manual_seed(0)
    architecture = {"channels": CHANNELS, "residual_units": 1}
    model = save_artifact(
        options.folder / "segmenter",
        kind="segmenter",
        architecture={"name": "unet", **architecture},
        network=build_segmenter("unet", **architecture),
        preprocessing={"spacing_mm": [1.0, 1.0, 1.0], "window_hu": [-175, 250], "crop": [96, 96, 96]},
        organ="liver",
    )
    (ct,) = options.folder.glob("ct*.nii.gz")
    words = f"difftumor predict --ct {ct} --model {model} --out {options.folder / 'out'} --overlap 0.5 --device cpu"
    sys.stdout.write(f"python benchmarks/command.py {words}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
