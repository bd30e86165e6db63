"""All scores of one case: overlap of organ and tumor, and detection of lesions."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from difftumor.evaluation.detection import CaseDetection, match_lesions
from difftumor.evaluation.lesions import find_lesions
from difftumor.evaluation.overlap import TOLERANCE_MM, OverlapScores, overlap_scores
from difftumor.grids import Grid
from difftumor.organs import TUMOR


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Scores of one case.

    Attributes:
        case: Its id.
        organ: Overlap of the organ with its tumors, so that a missed tumor is not counted twice.
        tumor: Overlap of the tumors.
        detection: Lesions found, missed and false.
    """

    case: str
    organ: OverlapScores
    tumor: OverlapScores
    detection: CaseDetection


def evaluate_case(
    case: str,
    prediction: NDArray[Any],
    truth: NDArray[Any],
    grid: Grid,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    minimum_iou: float = 0.0,
) -> CaseResult:
    """Evaluate one pair of label maps (X, Y, Z): 0 background, 1 organ, 2 tumor.

    Args:
        case: Its id.
        prediction: Predicted labels.
        truth: True labels.
        grid: Where the voxels of both lie.
        tolerance_mm: Tolerance of the normalized surface distance.
        minimum_iou: Least overlap of matched lesions, see `match_lesions`.
    """
    scores = {
        name: overlap_scores(prediction >= least, truth >= least, spacing_mm=grid.spacing_mm, tolerance_mm=tolerance_mm)
        for name, least in (("organ", 1), ("tumor", TUMOR))
    }
    true_lesions, predicted_lesions = find_lesions(truth == TUMOR, grid), find_lesions(prediction == TUMOR, grid)
    detection = match_lesions(case, true_lesions, predicted_lesions, minimum_iou=minimum_iou)
    return CaseResult(case=case, organ=scores["organ"], tumor=scores["tumor"], detection=detection)
