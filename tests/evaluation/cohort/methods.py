"""Methods with a few cases, made in memory."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from difftumor.datasets.cases import Case
from difftumor.evaluation.cohort.cases import ScoredCase, evaluate_case
from difftumor.evaluation.cohort.methods import Method
from difftumor.evaluation.cohort.pairs import Cohort, Pair, Truth
from difftumor.evaluation.metrics.froc import case_froc
from difftumor.scans.grid import Grid
from difftumor.scans.organs import OrganLabels, get_organ

GRID = Grid((16, 16, 16), np.diag([1.0, 1.0, 2.0, 1.0]))


def label_map(*tumors: int) -> np.ndarray:
    """Return an organ with tumors of 2 × 2 × 2 voxels that begin at these places along x."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:14, 2:14, 2:14] = 1
    for x in tumors:
        labels[x : x + 2, 4:6, 4:6] = 2
    return labels


def scored(
    case: str, predicted: tuple[int, ...], true: tuple[int, ...], *, patient: str = "", labeled: bool = True,
    froc: bool = False,
) -> ScoredCase:  # fmt: skip
    """Return a case with tumors at these places."""
    prediction, truth = label_map(*predicted), label_map(*true) if labeled else np.zeros(GRID.shape, np.uint8)
    listed = Case(case, Path(f"{case}.nii.gz"), Path(f"{case}.nii.gz"), patient) if labeled else None
    probability = np.where(prediction == 2, 0.9, 0.0).astype(np.float32)
    return ScoredCase(
        pair=Pair(case=case, prediction=Path(f"{case}.nii.gz"), truth=listed),
        result=evaluate_case(case, prediction, truth, GRID),
        froc=case_froc(case, truth == 2, probability, GRID, thresholds=(0.95, 0.5)) if froc else None,
    )


def method(name: str, *cases: ScoredCase, problems: Mapping[str, str] | None = None, missing: tuple[str, ...] = ()):
    """Return a method with these cases."""
    truth = Truth(
        source=Path("labels"), organ=get_organ("liver"), cases={}, label_names={}, labels=OrganLabels((1,), (2,))
    )
    cohort = Cohort(truth=truth, pairs=tuple(case.pair for case in cases), missing=missing)
    return Method(name=name, cohort=cohort, cases=cases, problems=problems or {})
