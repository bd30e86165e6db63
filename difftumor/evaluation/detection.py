"""Detection of lesions: which true ones were found, which predicted ones are false.

True and predicted lesions are matched one to one. Among all such matchings the one with the most voxels in common is
taken; lesions that share no voxel never match. So a prediction that runs over two lesions finds the one it covers
more of, and of two predictions in one lesion the smaller counts as false.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment

from difftumor.errors import ConfigError
from difftumor.evaluation.lesions import Lesion, LesionMap

# Lesions are sorted by equivalent radius: up to 5 mm, above 5 up to 10 mm, above 10 mm.
RADIUS_BINS_MM = (5.0, 10.0)
# Early-stage tumors are smaller than 2 cm across.
EARLY_DIAMETER_MM = 20.0


@dataclass(frozen=True, kw_only=True)
class Match:
    """A true lesion and the predicted one that found it.

    Attributes:
        truth: The true lesion.
        prediction: The predicted lesion, or None where the true one was missed.
        overlap_voxels: Voxels in common; 0 where it was missed.
    """

    truth: Lesion
    prediction: Lesion | None
    overlap_voxels: int


@dataclass(frozen=True, kw_only=True)
class CaseDetection:
    """Detection in one scan.

    Attributes:
        case: Id of the scan.
        matches: One per true lesion, in order of its index.
        false_positives: Predicted lesions that match none.
    """

    case: str
    matches: tuple[Match, ...]
    false_positives: tuple[Lesion, ...]

    @property
    def healthy(self) -> bool:
        """Whether the truth holds no tumor."""
        return not self.matches

    @property
    def predicted_tumor(self) -> bool:
        """Whether any tumor was predicted."""
        return bool(self.false_positives) or any(match.prediction for match in self.matches)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A part of a whole.

    Attributes:
        hits: How many of them.
        total: Out of how many.
    """

    hits: int
    total: int

    @property
    def value(self) -> float | None:
        """The fraction; None where the whole is empty."""
        return self.hits / self.total if self.total else None


@dataclass(frozen=True, kw_only=True)
class DetectionSummary:
    """Detection over a cohort.

    Attributes:
        sensitivity: True lesions found.
        sensitivity_by_radius: The same by equivalent radius, named like "5–10 mm".
        early_sensitivity: The same for lesions smaller than 20 mm in equivalent diameter.
        precision: Predicted lesions that are true.
        f1: Harmonic mean of sensitivity and precision, 2 TP / (2 TP + FP + FN); None without any lesion.
        false_positives_per_scan: Predicted lesions that are not true, per scan; None without scans.
        patient_sensitivity: Scans with tumor in which any tumor was predicted.
        patient_specificity: Healthy scans in which none was.
    """

    sensitivity: Rate
    sensitivity_by_radius: dict[str, Rate]
    early_sensitivity: Rate
    precision: Rate
    f1: float | None
    false_positives_per_scan: float | None
    patient_sensitivity: Rate
    patient_specificity: Rate


def match_lesions(case: str, truth: LesionMap, prediction: LesionMap, *, minimum_iou: float = 0.0) -> CaseDetection:
    """Match the lesions of one scan.

    Args:
        case: Id of the scan.
        truth: True lesions.
        prediction: Predicted lesions on the same grid.
        minimum_iou: Pairs whose intersection over union is smaller don't match; at 0 a common voxel is enough.

    Raises:
        ConfigError: ``minimum_iou`` is not in [0, 1].
        ValueError: The maps differ in shape.
    """
    if not 0 <= minimum_iou <= 1:
        raise ConfigError(f"minimum_iou {minimum_iou} is not in [0, 1]; 0 lets any common voxel count.")
    if truth.indices.shape != prediction.indices.shape:
        raise ValueError(f"truth {truth.indices.shape} and prediction {prediction.indices.shape} differ in shape")
    overlap = _overlaps(truth, prediction)
    sizes = [np.array([lesion.voxels for lesion in lesions.lesions]) for lesions in (truth, prediction)]
    union = sizes[0][:, None] + sizes[1][None, :] - overlap
    overlap = np.where(overlap >= minimum_iou * union, overlap, 0)
    found: dict[int, int] = {}
    for row, column in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
        if overlap[row, column] > 0:
            found[int(row)] = int(column)
    matches = tuple(
        Match(
            truth=lesion,
            prediction=prediction.lesions[found[row]] if row in found else None,
            overlap_voxels=int(overlap[row, found[row]]) if row in found else 0,
        )
        for row, lesion in enumerate(truth.lesions)
    )
    matched = set(found.values())
    false = tuple(lesion for column, lesion in enumerate(prediction.lesions) if column not in matched)
    return CaseDetection(case=case, matches=matches, false_positives=false)


def summarize_detection(
    cases: Iterable[CaseDetection],
    *,
    radius_bins_mm: Sequence[float] = RADIUS_BINS_MM,
    early_diameter_mm: float = EARLY_DIAMETER_MM,
) -> DetectionSummary:
    """Count over all scans; every lesion weighs the same.

    Args:
        cases: What `match_lesions` returned, one per patient.
        radius_bins_mm: Borders of the bins, rising; a lesion on a border belongs to the smaller bin.
        early_diameter_mm: Early lesions are smaller than this.
    """
    scans = list(cases)
    matches = [match for scan in scans for match in scan.matches]
    false = sum(len(scan.false_positives) for scan in scans)
    edges = [0.0, *radius_bins_mm, float("inf")]
    bins = {
        _bin_name(low, high): _found([match for match in matches if low < match.truth.radius_mm <= high])
        for low, high in pairwise(edges)
    }
    overall = _found(matches)
    lesions = overall.total + overall.hits + false
    ill = [scan for scan in scans if not scan.healthy]
    healthy = [scan for scan in scans if scan.healthy]
    return DetectionSummary(
        sensitivity=overall,
        sensitivity_by_radius=bins,
        early_sensitivity=_found([match for match in matches if match.truth.diameter_mm < early_diameter_mm]),
        precision=Rate(hits=overall.hits, total=overall.hits + false),
        f1=2 * overall.hits / lesions if lesions else None,
        false_positives_per_scan=false / len(scans) if scans else None,
        patient_sensitivity=Rate(hits=sum(scan.predicted_tumor for scan in ill), total=len(ill)),
        patient_specificity=Rate(hits=sum(not scan.predicted_tumor for scan in healthy), total=len(healthy)),
    )


def _overlaps(truth: LesionMap, prediction: LesionMap) -> np.ndarray:
    """Count common voxels, (true lesions, predicted lesions)."""
    shape = (len(truth.lesions) + 1, len(prediction.lesions) + 1)
    both = (truth.indices > 0) & (prediction.indices > 0)
    pairs = truth.indices[both].astype(np.int64) * shape[1] + prediction.indices[both]
    return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)[1:, 1:]


def _found(matches: Sequence[Match]) -> Rate:
    return Rate(hits=sum(match.prediction is not None for match in matches), total=len(matches))


def _bin_name(low: float, high: float) -> str:
    if low == 0:
        return f"up to {high:g} mm"
    return f"over {low:g} mm" if high == float("inf") else f"{low:g}–{high:g} mm"
