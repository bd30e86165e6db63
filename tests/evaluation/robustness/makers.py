"""A healthy scan, a segmenter that knows the truth, and what the tests of the benchmark share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from difftumor.evaluation.metrics.detection import Matching
from difftumor.evaluation.robustness.dimensions import Dimension, read_dimensions
from difftumor.evaluation.robustness.scan_run import Benchmark, ScanTest
from difftumor.evaluation.robustness.scoring import TumorRow
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import get_organ
from difftumor.synthesis.scan.inputs import ScanInputs
from difftumor.synthesis.synthesizer import TumorSynthesizer
from tests.nifti import write_nifti
from tests.synthesis.makers import ball

LIVER_HU = 110.0
SPACING_MM = 2.0


def write_scan(folder: Path, name: str = "a", *, tumor: bool = False, seed: int = 0) -> ScanInputs:
    """Write a ball of liver with some noise, in voxels of 2 mm, and its labels."""
    shape = (40, 38, 36)
    labels = ball(shape, 17.0).astype(np.uint8)
    labels[20:23, 20:23, 18:20] = 2 if tumor else 1
    noise = np.random.default_rng(seed).normal(0, 5, shape)
    # Liver goes on a little beyond its labels, so that resampling mixes nothing into them.
    ct = np.where(ball(shape, 18.5), LIVER_HU + noise, -900).astype(np.int16)
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    image = write_nifti(folder / "ct" / f"{name}.nii.gz", ct, affine)
    mask = write_nifti(folder / "labels" / f"{name}.nii.gz", labels, affine)
    return ScanInputs(ct=image, organ_masks=(mask,), organ_labels=(1,), tumor_labels=(2,))


def dimensions(*only: str, **changes: dict[str, float]) -> dict[str, Dimension]:
    """Return dimensions whose tumors of 12 mm have room, and differ in what is named; all by default."""
    small = {**read_dimensions(None, only)}
    small["size"] = replace(small["size"], mean=10.0, sd=1.2 if not only or "size" in only else 1.0)
    return {name: replace(one, **changes.get(name, {})) for name, one in small.items()}


class Oracle:
    """Predicts the very tumor that was made, where a rule says so.

    Args:
        monkeypatch: Lets it look at what is made.
        sees: Is given the tumor's diameter (mm) and its mean less the liver's (HU).
    """

    def __init__(self, monkeypatch: Any, sees: Callable[[float, float], bool] = lambda *_: True) -> None:
        self._truth: np.ndarray | None = None
        self._sees = sees
        self.calls = 0
        make = ScanTest.with_tumor

        def watched(test: ScanTest, made: Any) -> Any:
            ct_hu, self._truth = make(test, made)
            return ct_hu, self._truth

        monkeypatch.setattr(ScanTest, "with_tumor", watched)

    def __call__(self, ct: Volume) -> np.ndarray:
        """Return labels."""
        self.calls += 1
        labels = (ct.data > 0).astype(np.uint8)
        truth, self._truth = self._truth, None
        if truth is not None:
            diameter_mm = 2 * (3 * truth.sum() * ct.grid.voxel_mm3 / (4 * np.pi)) ** (1 / 3)
            if self._sees(diameter_mm, float(ct.data[truth].mean()) - LIVER_HU):
                labels[truth] = 2
        return labels


def benchmark(predict: Any, chosen: dict[str, Dimension] | None = None, **changes: Any) -> Benchmark:
    """Return a benchmark of the liver."""
    values: dict[str, Any] = {
        "synthesizer": TumorSynthesizer(organ=get_organ("liver")),
        "predict": predict,
        "dimensions": chosen or dimensions(),
        "seed": 0,
        "repeats": 1,
        "margin_mm": 10.0,
        "tolerance_mm": 2.0,
        "matching": Matching(),
        "about": {},
    }
    return Benchmark(**{**values, **changes})


def row(**changes: Any) -> TumorRow:
    """Return a tumor of 12 mm that was found."""
    values: dict[str, Any] = {
        "case": "a", "patient": "a", "repeat": 0, "dimension": "size", "level": 0, "value": 12.0, "clamped": False,
        "diameter_mm": 12.0, "contrast_hu": -40.0, "depth_mm": 20.0, "found": True, "dsc": 0.8, "nsd": 0.9,
        "false_positives": 0, "marked_before": False, "record": "records/size+0_0.json",
    }  # fmt: skip
    return TumorRow(**{**values, **changes})
