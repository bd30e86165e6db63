"""All scores of one case: overlap of organ and tumor, and detection of lesions."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from difftumor.evaluation.detection import CaseDetection, Matching, match_lesions
from difftumor.evaluation.lesions import find_lesions
from difftumor.evaluation.overlap import TOLERANCE_MM, OverlapScores, overlap_scores
from difftumor.grids import Grid
from difftumor.organs import ORGAN, TUMOR


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Scores of one case.

    Attributes:
        case: Its id.
        organ: Overlap of the organ with its tumors, so that a missed tumor is not counted twice; None where the labels
            have no organ.
        tumor: Overlap of the tumors.
        detection: Lesions found, missed and false.
    """

    case: str
    organ: OverlapScores | None
    tumor: OverlapScores
    detection: CaseDetection


def evaluate_case(
    case: str,
    prediction: NDArray[Any],
    truth: NDArray[Any],
    grid: Grid,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    matching: Matching = Matching(),  # noqa: B008 (frozen)
    with_organ: bool = True,
) -> CaseResult:
    """Evaluate one pair of label maps (X, Y, Z): 0 background, 1 organ, 2 tumor.

    Args:
        case: Its id.
        prediction: Predicted labels.
        truth: True labels.
        grid: Where the voxels of both lie.
        tolerance_mm: Tolerance of the normalized surface distance.
        matching: When a predicted lesion finds a true one.
        with_organ: Whether the labels have the organ; else it is not scored.

    Raises:
        ConfigError: The tolerance is negative or not finite.
        ValueError: The label maps are not on the grid.
    """

    def scores(least: int) -> OverlapScores:
        return overlap_scores(
            prediction >= least,
            truth >= least,
            spacing_mm=grid.spacing_mm,
            voxel_mm3=grid.voxel_mm3,
            tolerance_mm=tolerance_mm,
        )

    true_lesions, predicted_lesions = find_lesions(truth == TUMOR, grid), find_lesions(prediction == TUMOR, grid)
    return CaseResult(
        case=case,
        organ=scores(ORGAN) if with_organ else None,
        tumor=scores(TUMOR),
        detection=match_lesions(case, true_lesions, predicted_lesions, matching=matching),
    )
