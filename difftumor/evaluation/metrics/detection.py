"""Detection of lesions: which true ones were found, which predicted ones are false.

True and predicted lesions are matched one to one, among the pairs that a rule allows. The matching with the most voxels
in common counts, and among equals one with the most lesions found. So a prediction that covers two lesions finds the
one it covers more of, and of two predictions in one lesion the smaller one is false.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.errors import ConfigError
from difftumor.scans.components import Components
from difftumor.scans.lesions import Lesion, LesionMap, size_group

Indices = NDArray[np.int64]


def common_voxels(truth: Components, prediction: Components) -> tuple[Indices, Indices, Indices]:
    """Return true lesion, predicted lesion and number of common voxels of each pair that has any; lesions from 0."""
    box = truth.box.intersection(prediction.box)
    places = np.flatnonzero((truth.indices[box.slices] > 0) & (prediction.indices[box.slices] > 0))
    rows, columns = (found.indices[box.slices].ravel()[places].astype(np.int64) - 1 for found in (truth, prediction))
    pairs, voxels = np.unique(rows * len(prediction.voxels) + columns, return_counts=True)
    return *np.divmod(pairs, max(1, len(prediction.voxels))), voxels


def center_hits(truth: Components, prediction: Components) -> tuple[Indices, Indices]:
    """Return the pairs whose predicted center of mass lies in the true lesion; lesions from 0."""
    nearest = np.floor(prediction.centroids + 0.5).astype(np.int64)
    hit = truth.indices[tuple(nearest.T)].astype(np.int64) - 1
    columns = np.flatnonzero(hit >= 0)
    return hit[columns], columns


def one_to_one(rows: Indices, columns: Indices, voxels: Indices, shape: tuple[int, int]) -> Indices:
    """Return the pairs of the one-to-one matching with the most voxels, and among equals the most pairs."""
    degree = np.bincount(rows, minlength=shape[0])[rows] + np.bincount(columns, minlength=shape[1])[columns]
    alone = degree == 2  # in no other pair, like most, which leaves a small problem
    contested = np.flatnonzero(~alone)
    if not contested.size:
        return np.flatnonzero(alone)
    lesions, row = np.unique(rows[contested], return_inverse=True)
    predictions, column = np.unique(columns[contested], return_inverse=True)
    # Every lesion has a partner of its own that stands for being missed. Its weight is 1, because a sparse matrix drops
    # zeros; all other weights are 1 higher, too.
    weights = 1 + voxels[contested] * (1 + min(len(lesions), len(predictions))) + 1
    numbers = np.arange(len(lesions))
    table = scipy.sparse.coo_array(
        (
            np.concatenate([weights, np.ones(len(lesions), np.int64)]).astype(np.float64),
            (np.concatenate([row, numbers]), np.concatenate([column, len(predictions) + numbers])),
        )
    ).tocsr()
    matched_row, matched_column = scipy.sparse.csgraph.min_weight_full_bipartite_matching(table, maximize=True)
    partner = np.full(len(lesions), -1)
    partner[matched_row] = matched_column
    return np.concatenate([np.flatnonzero(alone), contested[partner[row] == column]])


Rule = Literal["overlap", "iou", "center"]


@dataclass(frozen=True, kw_only=True)
class Matching:
    """When a predicted lesion may match a true one.

    Args:
        rule: "overlap": they share a voxel. "iou": their intersection over union is at least ``minimum_iou``. "center":
            the voxel nearest to the predicted lesion's center of mass (the higher one of two equally near) belongs to
            the true lesion, so that a reader who looks where the prediction points sees the lesion, and a large
            prediction that only grazes it does not count.
        minimum_iou: For "iou" only, above 0 and at most 1.

    Raises:
        ConfigError: There is no such rule, or ``minimum_iou`` does not go with it.
    """

    rule: Rule = "overlap"
    minimum_iou: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ConfigError(f"There is no matching rule {self.rule!r}; give one of {', '.join(get_args(Rule))}.")
        if self.rule == "iou" and not 0 < self.minimum_iou <= 1:
            raise ConfigError(f"minimum_iou {self.minimum_iou} is not above 0 and at most 1; give one such as 0.1.")
        if self.rule != "iou" and self.minimum_iou != 0:
            raise ConfigError(f"minimum_iou does not go with the matching rule {self.rule!r}; give the rule 'iou'.")

    def __str__(self) -> str:
        """One sentence, printed with every result; stored results are compared by it, so it must not change."""
        condition = {
            "overlap": "they have a voxel in common",
            "iou": f"their intersection over union is at least {self.minimum_iou:g}",
            "center": "its center of mass lies in the true one",
        }[self.rule]
        return (
            f"A predicted lesion can find a true one where {condition}; they are matched one to one, with the most "
            "voxels in common."
        )


# Bins of equivalent radii, each without its lower end and with its upper one.
RADIUS_BINS_MM = {"up to 5 mm": (0.0, 5.0), "5–10 mm": (5.0, 10.0), "over 10 mm": (10.0, math.inf)}


@dataclass(frozen=True, kw_only=True)
class Match:
    """A true lesion and the predicted one that found it.

    Attributes:
        truth: The true lesion.
        prediction: The predicted lesion, or None if the true one was missed.
        overlap_voxels: Voxels in common; 0 if it was missed, and possibly if it was found by its center.
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
        false_positives: Predicted lesions without a match.
    """

    case: str
    matches: tuple[Match, ...]
    false_positives: tuple[Lesion, ...]

    @property
    def healthy(self) -> bool:
        """Whether the truth holds no tumor."""
        return not self.matches

    @property
    def found(self) -> int:
        """Number of true lesions that were found."""
        return _found(self.matches).hits

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
        """The fraction; None if the total is 0."""
        return self.hits / self.total if self.total else None


@dataclass(frozen=True, kw_only=True)
class DetectionSummary:
    """Detection over a cohort.

    Attributes:
        sensitivity: True lesions found.
        sensitivity_by_radius: The same by equivalent radius, named like "5–10 mm".
        early_sensitivity: The same for early lesions, as `difftumor.scans.lesions.size_group` says.
        precision: Predicted lesions that are true.
        f1: Harmonic mean of sensitivity and precision, 2 TP / (2 TP + FP + FN); None without any lesion.
        false_positives_per_scan: Predicted lesions that are not true, per scan; None without scans.
        patient_sensitivity: Patients with tumor, found if any tumor was predicted in one of their scans with tumor.
        patient_specificity: Healthy patients, right if no tumor was predicted in any of their scans.
    """

    sensitivity: Rate
    sensitivity_by_radius: dict[str, Rate]
    early_sensitivity: Rate
    precision: Rate
    f1: float | None
    false_positives_per_scan: float | None
    patient_sensitivity: Rate
    patient_specificity: Rate


@dataclass(frozen=True, kw_only=True, eq=False)
class Assignment:
    """A matching of lesions, counted from 0.

    Attributes:
        truth: True lesions that were found, in order.
        prediction: The predicted lesion that found each.
        overlap_voxels: The voxels they have in common.
    """

    truth: Indices
    prediction: Indices
    overlap_voxels: Indices


def assign(truth: Components, prediction: Components, matching: Matching) -> Assignment:
    """Match the lesions of one scan.

    Args:
        truth: True lesions.
        prediction: Predicted lesions on the same grid.
        matching: Which pairs may match.

    Raises:
        ValueError: The maps differ in shape.
    """
    if truth.indices.shape != prediction.indices.shape:
        raise ValueError(f"truth {truth.indices.shape} and prediction {prediction.indices.shape} differ in shape")
    rows, columns, voxels = common_voxels(truth, prediction)
    shape = (len(truth.voxels), len(prediction.voxels))
    if matching.rule == "center":
        common = scipy.sparse.coo_array((voxels, (rows, columns)), shape=shape).tocsr()
        rows, columns = center_hits(truth, prediction)
        voxels = common[rows, columns] if rows.size else rows
    elif matching.rule == "iou":
        union = truth.voxels[rows] + prediction.voxels[columns] - voxels
        near = voxels / union >= matching.minimum_iou
        rows, columns, voxels = rows[near], columns[near], voxels[near]
    chosen = one_to_one(rows, columns, voxels, shape)
    chosen = chosen[np.argsort(rows[chosen])]
    return Assignment(truth=rows[chosen], prediction=columns[chosen], overlap_voxels=voxels[chosen])


def match_lesions(
    case: str,
    truth: LesionMap,
    prediction: LesionMap,
    *,
    matching: Matching = Matching(),
) -> CaseDetection:
    """Match the lesions of one scan.

    Args:
        case: Id of the scan.
        truth: True lesions.
        prediction: Predicted lesions on the same grid.
        matching: Which pairs may match.

    Raises:
        ValueError: The maps differ in shape.
    """
    found = assign(truth.components, prediction.components, matching)
    pairs = zip(found.truth.tolist(), found.prediction.tolist(), found.overlap_voxels.tolist(), strict=True)
    partners = {row: (prediction.lesions[column], voxels) for row, column, voxels in pairs}
    missed = None, 0
    matches = []
    for row, lesion in enumerate(truth.lesions):
        partner, voxels = partners.get(row, missed)
        matches.append(Match(truth=lesion, prediction=partner, overlap_voxels=voxels))
    true = set(found.prediction.tolist())
    false = tuple(lesion for column, lesion in enumerate(prediction.lesions) if column not in true)
    return CaseDetection(case=case, matches=tuple(matches), false_positives=false)


def summarize_detection(
    cases: Iterable[CaseDetection], *, patients: Mapping[str, str] | None = None
) -> DetectionSummary:
    """Count over all scans; every lesion weighs the same.

    Args:
        cases: What `match_lesions` returned, one per scan.
        patients: The patient of each scan, by case; a scan that is not in it is a patient of its own.
    """
    scans = list(cases)
    matches = [match for scan in scans for match in scan.matches]
    false = sum(len(scan.false_positives) for scan in scans)
    bins = {
        name: _found([match for match in matches if low < match.truth.radius_mm <= high])
        for name, (low, high) in RADIUS_BINS_MM.items()
    }
    overall = _found(matches)
    lesions = overall.total + overall.hits + false
    by_patient: dict[str, list[CaseDetection]] = {}
    for scan in scans:
        by_patient.setdefault((patients or {}).get(scan.case, scan.case), []).append(scan)
    ill = [[scan for scan in some if not scan.healthy] for some in by_patient.values()]
    ill = [some for some in ill if some]
    healthy = [some for some in by_patient.values() if all(scan.healthy for scan in some)]
    return DetectionSummary(
        sensitivity=overall,
        sensitivity_by_radius=bins,
        early_sensitivity=_found([match for match in matches if size_group(match.truth.diameter_mm) == "early"]),
        precision=Rate(hits=overall.hits, total=overall.hits + false),
        f1=2 * overall.hits / lesions if lesions else None,
        false_positives_per_scan=false / len(scans) if scans else None,
        patient_sensitivity=Rate(hits=sum(_any_tumor(some) for some in ill), total=len(ill)),
        patient_specificity=Rate(hits=sum(not _any_tumor(some) for some in healthy), total=len(healthy)),
    )


def _any_tumor(scans: Sequence[CaseDetection]) -> bool:
    return any(scan.predicted_tumor for scan in scans)


def _found(matches: Sequence[Match]) -> Rate:
    return Rate(hits=sum(match.prediction is not None for match in matches), total=len(matches))
