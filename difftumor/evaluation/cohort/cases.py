"""Scores of one case: from two label maps, or from the files of a pair."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.datasets.label_folders import holds_tumors_only
from difftumor.errors import DiffTumorError, sentence_of
from difftumor.evaluation.cohort.pairs import Pair, Truth, read_pair
from difftumor.evaluation.metrics.detection import CaseDetection, Matching, match_lesions
from difftumor.evaluation.metrics.froc import CaseFroc, case_froc, falling_thresholds
from difftumor.evaluation.metrics.overlap import TOLERANCE_MM, OverlapScores, overlap_scores
from difftumor.evaluation.metrics.surfaces import check_tolerance
from difftumor.scans.grid import Grid, compare_grids
from difftumor.scans.label_maps import carried, resampled
from difftumor.scans.lesions import find_lesions
from difftumor.scans.nifti import Volume, check_same_grid
from difftumor.scans.organs import ORGAN, TUMOR
from difftumor.segmentation.probability_file import read_tumor_probability

# Fractions are shown in percent, others as they are.
FRACTIONS = {"organ_dsc": "Organ DSC", "organ_nsd": "Organ NSD", "tumor_dsc": "Tumor DSC", "tumor_nsd": "Tumor NSD"}
_MORE = {
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "volume_error": "volume error",
    "volume_error_ml": "volume error (ml)",
}
SCORES = FRACTIONS | {
    f"{part}_{name}": f"{part.title()} {label}" for part in ("organ", "tumor") for name, label in _MORE.items()
}
RESAMPLED = "prediction resampled to the grid of the labels"
NO_ORGAN = "no organ in the labels, and so no scores of it"
TUMOR_ONLY = "tumors alone are predicted, and so no scores of the organ"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How cases are evaluated; checked here, once for all cases.

    Args:
        tolerance_mm: Tolerance of the normalized surface distance.
        matching: Which lesions count as found.
        resample: Resample predictions to the grid of their labels, by nearest neighbor, if they differ.
        tumor_only: Score tumors alone: what is predicted of the organ does not count.
        thresholds: Probabilities at which the free-response curve is measured; none for no curve. Kept falling.

    Raises:
        ConfigError: The tolerance or a threshold is out of range.
    """

    tolerance_mm: float = TOLERANCE_MM
    matching: Matching = field(default_factory=Matching)
    resample: bool = False
    tumor_only: bool = False
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance_mm)
        object.__setattr__(self, "thresholds", falling_thresholds(self.thresholds))


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Scores of one case.

    Attributes:
        case: Its id.
        organ: Overlap of the organ with its tumors, so that a missed tumor is not counted twice; None if the labels
            have no organ or tumors alone are scored.
        tumor: Overlap of the tumors.
        detection: Lesions found, missed and false.
    """

    case: str
    organ: OverlapScores | None
    tumor: OverlapScores
    detection: CaseDetection

    @property
    def healthy(self) -> bool:
        """Whether the truth holds no tumor."""
        return self.detection.healthy

    @cached_property
    def scores(self) -> dict[str, float | None]:
        """The overlap scores under the names of `SCORES`; those of an organ without labels are None."""
        parts = {"organ": self.organ, "tumor": self.tumor}
        found: dict[str, float | None] = {}
        for name in SCORES:
            part, metric = name.split("_", 1)
            scores = parts[part]
            found[name] = None if scores is None else float(getattr(scores, metric))
        return found


def evaluate_case(
    case: str,
    prediction: NDArray[Any],
    truth: NDArray[Any],
    grid: Grid,
    *,
    rules: Rules = Rules(),
) -> CaseResult:
    """Evaluate one pair of label maps (X, Y, Z): 0 background, 1 organ, 2 tumor.

    Args:
        case: Its id.
        prediction: Predicted labels.
        truth: True labels; if they hold no organ, it is not scored.
        grid: Where the voxels of both lie.
        rules: Tolerance and matching, and whether tumors alone are scored.

    Raises:
        ValueError: The label maps are not on the grid.
    """

    def scores(least: int) -> OverlapScores:
        return overlap_scores(
            prediction >= least,
            truth >= least,
            spacing_mm=grid.spacing_mm,
            voxel_mm3=grid.voxel_mm3,
            tolerance_mm=rules.tolerance_mm,
        )

    true_lesions, predicted_lesions = find_lesions(truth == TUMOR, grid), find_lesions(prediction == TUMOR, grid)
    return CaseResult(
        case=case,
        organ=scores(ORGAN) if not rules.tumor_only and np.any(truth == ORGAN) else None,
        tumor=scores(TUMOR),
        detection=match_lesions(case, true_lesions, predicted_lesions, matching=rules.matching),
    )


@dataclass(frozen=True, kw_only=True)
class ScoredCase:
    """A case of a cohort that was evaluated.

    Attributes:
        pair: Its files.
        result: Its scores.
        note: What was done to it, in words; empty for nothing.
        froc: Its part of the free-response curve; None without one.
        froc_problem: Why it has none although it was asked for, in a sentence; empty otherwise.
    """

    pair: Pair
    result: CaseResult
    note: str = ""
    froc: CaseFroc | None = None
    froc_problem: str = ""

    @property
    def case(self) -> str:
        """Its id."""
        return self.result.case

    @property
    def healthy(self) -> bool:
        """Whether its truth holds no tumor."""
        return self.result.healthy

    @property
    def labeled(self) -> bool:
        """Whether it has labels; healthy scans need none."""
        return self.pair.truth is not None

    def score(self, name: str) -> float | None:
        """Return one of `SCORES`; None without labels, and for tumor scores of a healthy scan, which do not count."""
        if not self.labeled or (name.startswith("tumor_") and self.healthy):
            return None
        return self.result.scores[name]


def score_pair(pair: Pair, truth: Truth, rules: Rules) -> ScoredCase:
    """Read and evaluate one pair.

    Raises:
        VolumeError: A file cannot be used, or holds labels other than 0, 1 and 2.
        GridMismatchError: Prediction and truth differ in grid, and the rules don't allow it.
    """
    if holds_tumors_only(pair.prediction):
        rules = replace(rules, tumor_only=True)
    read, labels, ignored = read_pair(pair, truth)
    prediction, labels = on_one_grid(read, labels, rules, ignored)
    result = evaluate_case(pair.case, prediction.data, labels.data, labels.grid, rules=rules)
    notes = [] if read.grid.matches(labels.grid) else [RESAMPLED]
    if ignored is not None:
        notes.append(f"{ignored.mean():.1%} of the scan is labeled to be ignored, and not scored")
    if pair.truth is not None and result.organ is None:
        notes.append(TUMOR_ONLY if rules.tumor_only else NO_ORGAN)
    froc, problem = _froc(pair, labels, rules, ignored) if rules.thresholds else (None, "")
    return ScoredCase(pair=pair, result=result, note="; ".join(notes), froc=froc, froc_problem=problem)


def on_one_grid(
    prediction: Volume, truth: Volume, rules: Rules, ignored: NDArray[np.bool_] | None
) -> tuple[Volume, Volume]:
    """Return both, the prediction resampled to the grid of the truth if they differ and the rules allow it.

    What is predicted where the truth is labeled to be ignored becomes background, as the truth is there.

    Raises:
        GridMismatchError: They differ in grid, and the rules don't allow it.
        VolumeError: They do not overlap.
    """
    if not rules.resample:
        check_same_grid(prediction, truth)
    if not prediction.grid.matches(truth.grid):
        prediction = resampled(prediction, truth)
    if ignored is not None:
        prediction = replace(prediction, data=np.where(ignored, np.uint8(0), prediction.data))
    return prediction, truth


def _froc(pair: Pair, truth: Volume, rules: Rules, ignored: NDArray[np.bool_] | None) -> tuple[CaseFroc | None, str]:
    """Return the case's part of the curve, or why there is none."""
    try:
        probability, grid, path = read_tumor_probability(pair.prediction)
        if not grid.matches(truth.grid):
            if not rules.resample:
                compare_grids(grid, truth.grid, path, truth.path)
            probability = carried(probability, grid, path, truth, order=1)
        if ignored is not None:
            probability = np.where(ignored, np.float32(0), probability)
        return (
            case_froc(
                pair.case,
                truth.data == TUMOR,
                probability,
                truth.grid,
                thresholds=rules.thresholds,
                matching=rules.matching,
            ),
            "",
        )
    except DiffTumorError as error:
        return None, sentence_of(error)
