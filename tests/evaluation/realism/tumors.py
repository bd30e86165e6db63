"""Tumors made of random numbers, for tests of what is computed from them."""

import json
from pathlib import Path

import numpy as np
import torch

from difftumor.evaluation.realism.distances import Sample
from difftumor.evaluation.realism.texture import Texture
from difftumor.evaluation.realism.tumor_samples import Tumor, hu_histogram
from difftumor.scans.appearance import EDGE_BINS_MM, Appearance
from difftumor.synthesis.scan.record import FORMAT_VERSION, RECORD_FILE


class Network:
    """What `difftumor.features` would give: the mean and the deviation of each slice or crop."""

    dimensions = 2

    def __init__(self, kind: str = "slices") -> None:
        self.kind = kind
        self.name = f"of_{kind}"

    @staticmethod
    def extract(batch: torch.Tensor) -> torch.Tensor:
        flat = batch.clip(-175, 250).flatten(1)  # air would hide all else
        return torch.stack([flat.mean(dim=1), flat.std(dim=1)], dim=1) / 100


def sample(patient: str, number: int = 1, *, mean: float = 40.0, sd: float = 12.0, seed: int = 0, **more) -> Sample:
    """Return a tumor whose numbers vary a little around what is given; no seed and name twice."""
    rng = np.random.default_rng([seed, number, *patient.encode()])
    own, spread = mean + rng.normal(0, 6), sd * rng.uniform(0.8, 1.2)
    hu = np.rint(rng.normal(own, spread, 400))
    tumor = Tumor(
        case=patient,
        patient=patient,
        number=number,
        diameter_mm=rng.uniform(8, 30),
        voxel_mm=more.get("voxel_mm", (0.8, 0.8, 3.0)),
        histogram_H=hu_histogram(hu),
        texture=Texture(contrast=spread, homogeneity=1 / spread, correlation=rng.uniform(0.3, 0.5), entropy=spread / 2),
        appearance=Appearance(
            contrast_hu=own - 100,
            sd_hu=spread,
            edge_hu=tuple(np.linspace(own - 100, 0, len(EDGE_BINS_MM) - 1)),
            voxels=400,
        ),
    )
    slices = torch.from_numpy(hu.reshape(1, 4, 100)).float()
    features = {
        "of_slices": torch.stack([Network.extract(slices[0] + plane) for plane in range(3)]),
        "of_crops": Network.extract(slices.flatten(1))[None],
    }
    return Sample(tumor, features)


def write_record(folder: Path, host: Path) -> None:
    """Write as much of a ``record.json`` as says which CT hosts the tumors."""
    inputs = {"ct": [{"path": str(host), "sha256": ""}], "organ_masks": [], "tumor_masks": [], "segments": []}
    content = {
        "format_version": FORMAT_VERSION, "models": {}, "tumors": [], "device": "cpu", "request": {"organ": "liver"},
        "inputs": {**inputs, "organ_labels": [], "tumor_labels": []},
    }  # fmt: skip
    (folder / RECORD_FILE).write_text(json.dumps(content))
