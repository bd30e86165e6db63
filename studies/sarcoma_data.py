"""The sarcoma patients as a data set for all stages: real tumors, with the body as the organ that hosts them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from difftumor.datasets.cases import Case, folds
from difftumor.errors import CaseListError, ConfigError
from difftumor.files.writing import folder_written_whole
from difftumor.scans.components import largest_component
from difftumor.scans.nifti import check_same_grid, read_ct, read_labels

LISTING = "dataset.json"
LABEL_NAMES = {"background": 0, "body": 1, "sarcoma": 2}
# Tissue above this, air below.
BODY_HU = -200
# The body as a user-defined organ, for every stage with one.
BODY = (
    "organ=liver", "organ.name=body", "organ.label_names=[body]", "organ.tumor_names=[sarcoma]", "organ.cyst_names=[]",
    "organ.minimum_radius_mm=10",
)  # fmt: skip


def body_mask(ct_hu_XYZ: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return the largest part of a scan that is not air, with its holes filled."""
    return ndimage.binary_fill_holes(largest_component(ct_hu_XYZ > BODY_HU))


def write_sarcoma(source: Path, folder: Path, *, count: int, fold: int, seed: int = 0) -> Path:
    """Write label maps, links to the CTs, and a ``dataset.json`` whose validation cases are the patients of one fold.

    Args:
        source: Folder of ``<patient>/ct.nii.gz`` and ``<patient>/tumor.nii.gz``.
        folder: Folder to make; kept if it has the same patients and fold, so that results based on it stay valid.
        count: Number of folds.
        fold: The fold to hold out, from 0.
        seed: Seed of the folds.

    Returns:
        The folder.

    Raises:
        CaseListError: The source has no patients.
        ConfigError: The folder holds another split, with which models beside it were trained.
    """
    patients = sorted(path.parent.name for path in source.glob("*/tumor.nii.gz"))
    if not patients:
        raise CaseListError(f"{source} holds no <patient>/tumor.nii.gz: give the folder with the sarcoma patients.")
    cases = [Case(patient, source / patient / "ct.nii.gz") for patient in patients]
    training, validation = folds(cases, count=count, fold=fold, seed=seed)
    listing = {
        "name": "Soft-tissue sarcoma",
        "labels": LABEL_NAMES,
        "training": _entries(training),
        "validation": _entries(validation),
    }
    if _is_there(listing, folder):
        return folder
    with folder_written_whole(folder) as staging:
        for case in cases:
            _write_case(source / case.id, staging, case.id)
        (staging / LISTING).write_text(json.dumps(listing, indent=2) + "\n")
    return folder


def _is_there(listing: Mapping[str, Any], folder: Path) -> bool:
    """Return whether the folder holds this split; refuse a folder with another."""
    if not (folder / LISTING).is_file():
        return False
    if json.loads((folder / LISTING).read_text()) != listing:
        raise ConfigError(
            f"{folder} holds other patients or another fold, on which models beside it were trained: "
            "give another --out."
        )
    return True


def _write_case(patient: Path, folder: Path, name: str) -> None:
    ct, tumor = read_ct(patient / "ct.nii.gz"), read_labels(patient / "tumor.nii.gz")
    check_same_grid(ct, tumor)
    labels = np.where(tumor.data > 0, 2, body_mask(ct.data)).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, ct.grid.affine), folder / f"{name}_labels.nii.gz")
    (folder / f"{name}.nii.gz").symlink_to((patient / "ct.nii.gz").resolve())


def _entries(cases: Sequence[Case]) -> list[dict[str, object]]:
    return [
        {
            "image": f"{case.id}.nii.gz",
            "label": f"{case.id}_labels.nii.gz",
            "patient": case.id,
            "tumor_organs": ["body"],
        }
        for case in cases
    ]
