"""How well stage 1 can learn a few crops of real CT: ``python benchmarks/overfit.py --data ../shared/data``.

Cuts crops of 1 mm out of the abdomen and of three sarcomas (docs/results.md says where they come from), trains the
published networks on them for ``--steps`` steps, measures the same crops at the end of every epoch, and judges the
autoencoder with ``difftumor evaluate-autoencoder``. A training that cannot learn four crops by heart can learn nothing.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from difftumor.files.writing import folder_written_whole, written_whole
from difftumor.reporting.pictures import mask_center
from difftumor.reporting.plots import curves, save_png
from difftumor.scans.grid import Box
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import read_ct, read_labels
from stages.run.pictures import read_curves

SARCOMA = 90
LABEL_NAMES = {"background": 0, "spleen": 1, "kidney_right": 2, "liver": 5, "sarcoma": SARCOMA}
# Name of the crop: CT, label map, the map's number of what the crop sits on, its number in our labels.
CROPS = {
    "liver": ("abdomen/ct.nii.gz", "abdomen/organs.nii.gz", 5, 5),
    "kidney": ("abdomen/ct.nii.gz", "abdomen/organs.nii.gz", 2, 2),
    "STS_002": ("sarcoma/STS_002/ct.nii.gz", "sarcoma/STS_002/tumor.nii.gz", 1, SARCOMA),
    "STS_042": ("sarcoma/STS_042/ct.nii.gz", "sarcoma/STS_042/tumor.nii.gz", 1, SARCOMA),
}


def cut(data: Path, name: str, size: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return CT in HU and labels of a crop, (size, size, size) voxels of 1 mm in RAS."""
    ct_file, labels_file, sits_on, number = CROPS[name]
    ct, labels = read_ct(data / ct_file), read_labels(data / labels_file)
    space = ModelSpace(ct.grid)
    labels_XYZ = space.to_model(labels.data, kind="labels")
    box = Box.centered(mask_center(labels_XYZ == sits_on), (size,) * 3, within=labels_XYZ.shape)
    known = np.isin(labels_XYZ[box.slices], list(LABEL_NAMES.values()))
    own = np.where(known, labels_XYZ[box.slices], 0) if number != SARCOMA else labels_XYZ[box.slices] * number
    return space.to_model(ct.data, kind="image", box=box), own.astype(np.uint8)


def write_crops(data: Path, folder: Path, size: int) -> None:
    """Write the crops, ``crops.json``, and ``dataset.json``, in which they are validation cases too."""
    with folder_written_whole(folder) as staging:
        for name in CROPS:
            for part, values in zip(("ct", "labels"), cut(data, name, size), strict=True):
                nib.save(nib.Nifti1Image(values, np.eye(4)), staging / f"{name}_{part}.nii.gz")
        cases = [{"id": name, "image": f"{name}_ct.nii.gz", "label": f"{name}_labels.nii.gz"} for name in CROPS]
        # Validation cases of the same patients would be refused, and rightly so.
        again = [{**case, "id": f"{case['id']}_again", "patient": f"{case['id']}_again"} for case in cases]
        for file, more in (("crops.json", {}), ("dataset.json", {"validation": again})):
            listing = {"labels": LABEL_NAMES, "training": cases, **more}
            (staging / file).write_text(json.dumps(listing, indent=2) + "\n")


def train(dataset: Path, out: Path, arguments: argparse.Namespace) -> Path:
    """Run stage 1 on the crops, or resume it, and return the run's folder."""
    options = {
        "name": "overfit", "data.root": dataset, "runs_dir": out / "runs", "checkpoints_dir": out / "checkpoints",
        "trainer": arguments.trainer, "trainer.log_every_n_steps": 5, "trainer.validate_every_n_epochs": 1,
        "data.crop": f"[{arguments.size},{arguments.size},{arguments.size}]", "data.batch_size": 2,
        "data.num_workers": 0, "data.cache_rate": 1.0, "validation.scans": len(CROPS),
        "pictures.scans": len(CROPS), "pictures.every_n_epochs": 5,
        "network.codes": arguments.codes, "discriminators.start_step": arguments.discriminators_from,
        "perceptual.weight": 0.0, "optimizer.lr": 3e-4, "optimizer.betas": "[0.9,0.999]", "optimizer.clip_norm": "null",
        "optimizer.milestones": "[]", "codebook.updates_per_step": 1, "augmentation.rotation_probability": 0.0,
        "trainer.precision": "32-true", "training.steps": arguments.steps, "training.steps_per_epoch": 50,
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in options.items()] + arguments.override
    subprocess.run([sys.executable, "-m", "stages.autoencoder", *words], check=True)
    return out / "runs" / "autoencoder" / "overfit"


def main() -> int:
    """Cut, train, judge; write the curve and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with abdomen/ and sarcoma/")
    parser.add_argument("--out", type=Path, default=Path("runs/overfit"), help="folder for everything")
    parser.add_argument("--size", type=int, default=48, help="voxels of 1 mm per side of a crop")
    parser.add_argument("--codes", type=int, default=512, help="codes; four crops hold few vectors")
    parser.add_argument("--steps", type=int, default=1000, help="a multiple of 50")
    parser.add_argument("--discriminators-from", type=int, default=700, help="step at which the discriminators join")
    parser.add_argument("--trainer", default="cpu", help="cpu or gpu")
    parser.add_argument("override", nargs="*", help="further options of stage 1, such as seed=1")
    arguments = parser.parse_args()
    crops = arguments.out / "crops"
    write_crops(arguments.data, crops, arguments.size)
    run = train(crops / "dataset.json", arguments.out, arguments)
    series = read_curves(run, ("validation/psnr", "validation/ssim", "validation/mae_hu", "validation/codes_used"))
    with written_whole(arguments.out / "curves.json") as temporary:
        temporary.write_text(json.dumps(series, indent=2) + "\n")
    figure = curves({"whole crops": series["validation/psnr"]}, y_label="PSNR (dB)", title="Overfitting four crops")
    save_png(figure, arguments.out / "psnr.png")
    judge = [
        sys.executable,
        "-m",
        "difftumor",
        "evaluate-autoencoder",
        str(arguments.out / "checkpoints/autoencoder_best"),
    ]
    subprocess.run([*judge, str(crops / "crops.json"), "--out", str(arguments.out / "card"), "--overwrite"], check=True)
    sys.stdout.write(f"  step  {'  '.join(series)}\n")
    for step, *values in zip(series["validation/psnr"][0], *(values for _, values in series.values()), strict=True):
        sys.stdout.write(f"{step:6d}  " + "  ".join(f"{value:8.3f}" for value in values) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
