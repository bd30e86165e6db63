"""How well a prediction agrees with one tumor."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.evaluation.detection import Matching, match_lesions
from difftumor.evaluation.lesions import find_lesions
from difftumor.evaluation.overlap import TOLERANCE_MM, overlap_scores
from difftumor.grids import Grid
from difftumor.organs import TUMOR


@dataclass(frozen=True, kw_only=True)
class TumorScore:
    """What a segmenter says of one tumor.

    Attributes:
        found: Whether a predicted lesion matches it.
        dsc: Dice similarity coefficient of the predicted lesions that touch it.
        nsd: Their normalized surface distance.
        false_positives: Predicted lesions that do not touch it.
        marked_before: Whether tumor was predicted in its place before it was there.
    """

    found: bool
    dsc: float
    nsd: float
    false_positives: int
    marked_before: bool


def score_tumor(
    prediction: NDArray[Any],
    truth: NDArray[np.bool_],
    before: NDArray[Any],
    grid: Grid,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    matching: Matching = Matching(),  # noqa: B008 (frozen)
) -> TumorScore:
    """Score the only tumor of a scan.

    What is predicted elsewhere has nothing to do with this tumor: it is counted, and does not lower its DSC.

    Args:
        prediction: (X, Y, Z) labels: 0 background, 1 organ, 2 tumor.
        truth: The tumor; not empty.
        before: Prediction of the same scan without it.
        grid: Where the voxels lie.
        tolerance_mm: Tolerance of the normalized surface distance.
        matching: When a predicted lesion finds the tumor.
    """
    predicted, true = find_lesions(prediction == TUMOR, grid), find_lesions(truth, grid)
    matches = match_lesions("", true, predicted, matching=matching).matches
    touching = np.unique(predicted.indices[truth])
    touching = touching[touching > 0]
    overlap = overlap_scores(
        np.isin(predicted.indices, touching), truth, spacing_mm=grid.spacing_mm, tolerance_mm=tolerance_mm
    )
    return TumorScore(
        found=any(match.prediction is not None for match in matches),
        dsc=overlap.dsc,
        nsd=overlap.nsd,
        false_positives=len(predicted.lesions) - len(touching),
        marked_before=bool((before[truth] == TUMOR).any()),
    )
