"""One tumor scored, and what a scan's tumors add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import counted
from difftumor.evaluation.metrics.detection import Matching, match_lesions
from difftumor.evaluation.metrics.overlap import TOLERANCE_MM, overlap_scores
from difftumor.scans.grid import Grid
from difftumor.scans.lesions import find_lesions
from difftumor.scans.organs import TUMOR

Status = Literal["done", "done before", "skipped", "failed"]
SUMMARY_COLUMNS = ("case", "status", "tumors", "found", "notes", "error")


@dataclass(frozen=True, kw_only=True)
class TumorScore:
    """How a segmenter does on one tumor.

    Attributes:
        found: Whether a predicted lesion matches the tumor.
        dsc: Dice similarity coefficient of the predicted lesions that touch the tumor.
        nsd: Normalized surface distance of the same lesions.
        false_positives: Predicted lesions that do not touch the tumor.
        marked_before: Whether the segmenter already predicted tumor at this place before the tumor was inserted.
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

    Lesions predicted elsewhere have nothing to do with this tumor: they are counted, and do not lower its DSC.

    Args:
        prediction: (X, Y, Z) labels: 0 background, 1 organ, 2 tumor.
        truth: (X, Y, Z) mask of the tumor; not empty.
        before: Prediction of the same scan without the tumor.
        grid: Grid of the three arrays.
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


@dataclass(frozen=True, kw_only=True)
class TumorRow:
    """One tumor in one cell of the benchmark; None for what could not be measured.

    Attributes:
        case: Id of the scan.
        patient: Who was scanned.
        repeat: Number of the tumor in its scan, from 0.
        dimension: Dimension that is varied.
        level: Level in σ from the mean.
        value: Requested value of the dimension.
        clamped: Whether the value is held at a limit of the dimension.
        diameter_mm: Diameter of the ball of the tumor's volume on the scan's grid.
        contrast_hu: Mean of the tumor less that of the organ around it.
        depth_mm: Distance of its center from the organ's surface.
        found: Whether a predicted lesion matches the tumor.
        dsc: Dice similarity coefficient.
        nsd: Normalized surface distance.
        false_positives: Predicted lesions that do not touch the tumor.
        marked_before: Whether tumor was predicted here before it was inserted.
        record: Record that makes the tumor again, relative to the scan's folder.
    """

    case: str
    patient: str
    repeat: int
    dimension: str
    level: int
    value: float
    clamped: bool
    diameter_mm: float
    contrast_hu: float | None
    depth_mm: float
    found: bool
    dsc: float
    nsd: float
    false_positives: int
    marked_before: bool
    record: str


@dataclass(frozen=True)
class ScanResult:
    """What became of a scan.

    Args:
        case: Its id.
        status: Whether it was done (now or by an earlier run), skipped, or failed.
        rows: Its tumors.
        notes: Which tumors were impossible, or why the scan was skipped or failed; sentences.
        healthy_lesions: Number of lesions predicted in the scan without a tumor; None if nothing was predicted.
    """

    case: str
    status: Status
    rows: tuple[TumorRow, ...] = ()
    notes: tuple[str, ...] = ()
    healthy_lesions: int | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """Its row in ``summary.csv``, with the columns `SUMMARY_COLUMNS`."""
        notes = " ".join(self.notes)
        made = {row.record: row.found for row in self.rows}
        failed = self.status == "failed"
        values = (
            self.case,
            self.status,
            len(made),
            sum(made.values()),
            "" if failed else notes,
            notes if failed else "",
        )
        return dict(zip(SUMMARY_COLUMNS, values, strict=True))

    @property
    def sentence(self) -> str:
        """What became of it, in a line."""
        if not self.rows:
            return f"{self.case}: {self.status}, {' '.join(self.notes)}"
        before = ", done before" if self.status == "done before" else ""
        marked = len({row.record for row in self.rows if row.found and row.marked_before})
        more = f", {marked} of them marked as tumor before they were there" if marked else ""
        return f"{self.case}: {self.summary['found']} of {counted(self.summary['tumors'], 'tumor')} found{more}{before}"
