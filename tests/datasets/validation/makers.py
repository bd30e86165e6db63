"""Small cohorts for checks: a body in air, with a liver (5), its tumor (6) and a spleen (7)."""

import json
from pathlib import Path

import numpy as np

from tests.nifti import LPS, write_nifti
from tests.synthesis.makers import ball

SHAPE = (24, 22, 20)
NAMES = {"background": 0, "liver": 5, "liver_tumor": 6, "spleen": 7}


def body(seed=0):
    """HU of soft tissue with air at one side."""
    values = np.random.default_rng(seed).normal(60, 15, SHAPE).astype(np.int16)
    values[:3] = -1000
    return values


def organs(*, tumor=True):
    """A label map that fits ``body``."""
    labels = (ball(SHAPE, 8) * 5).astype(np.uint8)
    labels[-2:, -2:, -2:] = 7
    if tumor:
        labels[11:14, 10:12, 10:12] = 6
    return labels


def write_case(folder, name, values=None, labels=None, affine=LPS, labels_affine=None):
    """Write a CT and a label map, and return their entry in a list."""
    seed = sum(map(ord, name))
    values, labels = body(seed) if values is None else values, organs() if labels is None else labels
    write_nifti(folder / f"{name}.nii.gz", values, affine)
    write_nifti(folder / "maps" / f"{name}.nii.gz", labels, affine if labels_affine is None else labels_affine)
    return {"id": name, "image": f"{name}.nii.gz", "label": f"maps/{name}.nii.gz"}


def write_list(folder, entries, *, validation=(), labels=NAMES, name="dataset.json"):
    """Write a list of entries, of which some are held out."""
    parts = {
        "training": [entry for entry in entries if entry["id"] not in validation],
        "validation": [entry for entry in entries if entry["id"] in validation],
    }
    Path(folder / name).write_text(json.dumps({"labels": labels, **parts}), encoding="utf-8")
    return folder / name
