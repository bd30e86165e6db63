"""Commands and Python snippets of the documentation, and the files that the snippets read."""

import json
import re
import shlex
from pathlib import Path

import numpy as np

from tests.nifti import write_nifti
from tests.segmentation.makers import make_segmenter
from tests.synthesis.makers import ball, save_tiny_artifacts


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page's ``bash`` blocks as words, comments dropped, continued lines joined."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's blocks of code in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def prepare_synthesis(folder: Path) -> None:
    """Write what the snippets of README.md and docs/synthesis.md read."""
    shape = (40, 40, 40)
    values = np.random.default_rng(0).normal(100, 10, shape)
    values[:2] = -1000
    write_nifti(folder / "ct.nii.gz", values.astype(np.int16))
    write_nifti(folder / "liver.nii.gz", ball(shape, 17).astype(np.uint8))
    save_tiny_artifacts(folder / "checkpoints")


def prepare_evaluation(folder: Path) -> None:
    """Write what the snippets of docs/evaluation.md read."""
    truth = np.zeros((20, 20, 10), np.uint8)
    truth[2:18, 2:18, 2:8] = 1
    truth[5:9, 5:9, 4:6] = 2
    for case in range(3):
        for name, shift in (("labels", 0), ("predictions", 1), ("predictions_theirs", 2)):
            write_nifti(folder / name / f"case{case}.nii.gz", np.roll(truth, shift, axis=0))


def prepare_image_quality(folder: Path) -> None:
    """Write what the snippet of docs/image_quality.md reads."""
    for number, name in enumerate(("real", "synthetic")):
        values = np.random.default_rng(number).normal(100, 10, (30, 30, 12))
        values[:2] = -1000
        labels = np.ones(values.shape, np.uint8)
        labels[10:17, 10:17, 4:8] = 2
        write_nifti(folder / name / "ct.nii.gz", values.astype(np.int16))
        write_nifti(folder / name / "labels.nii.gz", labels)
        entries = [{"image": "ct.nii.gz", "label": "labels.nii.gz"}]
        names = {"background": 0, "liver": 1, "liver_tumor": 2}
        (folder / name / "dataset.json").write_text(json.dumps({"labels": names, "training": entries}))


def prepare_prediction(folder: Path) -> None:
    """Write what the snippets of docs/prediction.md read."""
    prepare_synthesis(folder)
    for fold in range(5):
        make_segmenter(folder / "checkpoints" / f"segmentation_liver_unet_mixed_fold{fold}", fold, crop=32)


def prepare_data(folder: Path) -> None:
    """Write what the snippet of docs/data.md reads."""
    for case in range(5):
        write_nifti(folder / "Task03_Liver" / f"liver_{case}.nii.gz", np.zeros((4, 4, 4), np.int16))


# How the folder is prepared in which a page's snippets run; a page with snippets must be among them.
PREPARE = {
    "README.md": prepare_synthesis,
    "synthesis.md": prepare_synthesis,
    "prediction.md": prepare_prediction,
    "evaluation.md": prepare_evaluation,
    "data.md": prepare_data,
    "image_quality.md": prepare_image_quality,
}
