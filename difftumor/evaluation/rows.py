"""Rows of the tables of an evaluation: one per case, one per lesion."""

from collections.abc import Iterable

from difftumor.evaluation.case_scores import CaseResult
from difftumor.evaluation.lesions import Lesion
from difftumor.tables import Row, Value

SCORES = {"organ_dsc": "Organ DSC", "organ_nsd": "Organ NSD", "tumor_dsc": "Tumor DSC", "tumor_nsd": "Tumor NSD"}
MEASURES = ("hd95_mm", "assd_mm", "volume_error_ml", "volume_error", "empty")
CASE_COLUMNS = ("case", *SCORES, *(f"{part}_{measure}" for part in ("organ", "tumor") for measure in MEASURES))
LESION_COLUMNS = (
    "case", "kind", "diameter_mm", "volume_mm3", "right_mm", "anterior_mm", "superior_mm", "found_diameter_mm",
    "overlap_voxels",
)  # fmt: skip


def case_rows(results: Iterable[CaseResult]) -> list[Row]:
    """Return one row per case with the columns `CASE_COLUMNS`; scores are fractions, None where there is no organ."""
    rows: list[Row] = []
    for result in results:
        parts = {"organ": result.organ, "tumor": result.tumor}
        measures = {
            f"{part}_{measure}": None if scores is None else getattr(scores, measure)
            for part, scores in parts.items()
            for measure in MEASURES
        }
        rows.append({"case": result.case, **dict.fromkeys(SCORES), **scores_of(result), **measures})
    return rows


def lesion_rows(results: Iterable[CaseResult]) -> list[Row]:
    """Return one row per lesion with the columns `LESION_COLUMNS`; kind is "found", "missed" or "false"."""
    rows: list[Row] = []
    for result in results:
        for match in result.detection.matches:
            found = match.prediction
            rows.append(
                {
                    **_lesion(result.case, "missed" if found is None else "found", match.truth),
                    "found_diameter_mm": None if found is None else found.diameter_mm,
                    "overlap_voxels": match.overlap_voxels,
                }
            )
        for lesion in result.detection.false_positives:
            empty = {"found_diameter_mm": None, "overlap_voxels": None}
            rows.append({**_lesion(result.case, "false", lesion), **empty})
    return rows


def _lesion(case: str, kind: str, lesion: Lesion) -> dict[str, Value]:
    right, anterior, superior = lesion.center_mm
    return {
        "case": case,
        "kind": kind,
        "diameter_mm": lesion.diameter_mm,
        "volume_mm3": lesion.volume_mm3,
        "right_mm": right,
        "anterior_mm": anterior,
        "superior_mm": superior,
    }


def scores_of(result: CaseResult) -> dict[str, float]:
    """Return the scores of one case under the names of `SCORES`, those of the organ only where it was scored."""
    organ = {} if result.organ is None else {"organ_dsc": result.organ.dsc, "organ_nsd": result.organ.nsd}
    return {**organ, "tumor_dsc": result.tumor.dsc, "tumor_nsd": result.tumor.nsd}
