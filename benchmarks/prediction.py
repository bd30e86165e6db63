"""A large scan and a tiny segmenter to predict it with: ``python benchmarks/prediction.py FOLDER``.

Time and peak memory are then taken of the command that it prints. The network has random weights, but leans to
background, so that it finds specks all over the scan; with ``--noise`` it finds noise everywhere, which is the most
that the list of lesions can get to do.
"""

import argparse
import sys
from pathlib import Path

import torch
from synthesis_scans import make_scan

from difftumor.models.artifact import save_artifact
from difftumor.models.segmenters import build_segmenter

CHANNELS = [4, 8, 16]


def lean_to_background(network: torch.nn.Module) -> None:
    """Let one voxel of a thousand of a noisy window be organ or tumor."""
    with torch.no_grad():
        logits = network(torch.rand(1, 1, 96, 96, 96))
        margins = (logits[:, 1:].amax(1) - logits[:, 0]).flatten()
        biases = [p for name, p in network.named_parameters() if name.endswith("bias") and p.shape == logits.shape[1:2]]
        biases[-1][0] += margins.sort().values[int(0.999 * len(margins))]


def main() -> int:
    """Write scan, mask and artifact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 800], help="voxels of 0.8 x 0.8 x 1 mm")
    parser.add_argument("--noise", action="store_true", help="a network that finds a million lesions")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    make_scan(options.folder, tuple(options.shape))
    architecture = {"channels": CHANNELS, "residual_units": 1}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = build_segmenter("unet", **architecture)
        if not options.noise:
            lean_to_background(network)
    model = save_artifact(
        options.folder / "segmenter",
        kind="segmenter",
        architecture={"name": "unet", **architecture},
        network=network,
        preprocessing={"spacing_mm": [1.0, 1.0, 1.0], "window_hu": [-175, 250], "crop": [96, 96, 96]},
        organ="liver",
    )
    (ct,) = options.folder.glob("ct*.nii.gz")
    words = f"difftumor predict --ct {ct} --model {model} --out {options.folder / 'out'} --overlap 0.5 --device cpu"
    sys.stdout.write(f"python benchmarks/command.py {words}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
