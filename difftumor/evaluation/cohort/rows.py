"""Rows of the tables of an evaluation: one per case, one per lesion."""

from collections.abc import Iterable, Mapping

from difftumor.evaluation.cohort.methods import CaseResult, ScoredCase
from difftumor.reporting.tables import Cell, Row
from difftumor.scans.lesions import Lesion

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
CASE_COLUMNS = (
    "case", *SCORES, "organ_empty", "tumor_empty", "tumors", "tumors_found", "false_positives", "patient", "fold",
    "note",
)  # fmt: skip
LESION_COLUMNS = (
    "case", "kind", "diameter_mm", "volume_mm3", "right_mm", "anterior_mm", "superior_mm", "found_diameter_mm",
    "overlap_voxels",
)  # fmt: skip


def case_rows(cases: Iterable[ScoredCase], folds: Mapping[str, str] | None = None) -> list[Row]:
    """Return one row per case with the columns `CASE_COLUMNS`.

    DSC, NSD and volume errors are fractions. ``organ_empty`` and ``tumor_empty`` say which mask is empty, so that the
    scores are those of the rules for empty masks. Healthy scans without labels have no scores.

    Args:
        cases: The cases.
        folds: The fold of each case, by its id.
    """
    return [
        {
            "case": case.case,
            **(scores_of(case.result) if case.labeled else dict.fromkeys(SCORES)),
            "organ_empty": None if case.result.organ is None else case.result.organ.empty,
            "tumor_empty": case.result.tumor.empty,
            "tumors": len(case.result.detection.matches),
            "tumors_found": case.result.detection.found,
            "false_positives": len(case.result.detection.false_positives),
            "patient": case.pair.patient,
            "fold": (folds or {}).get(case.case),
            "note": case.note or None,
        }
        for case in cases
    ]


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


def scores_of(result: CaseResult) -> dict[str, float | None]:
    """Return the scores of one case under the names of `SCORES`; those of an organ without labels are None."""
    parts = {"organ": result.organ, "tumor": result.tumor}
    found = {}
    for name in SCORES:
        part, metric = name.split("_", 1)
        scores = parts[part]
        found[name] = None if scores is None else float(getattr(scores, metric))
    return found


def _lesion(case: str, kind: str, lesion: Lesion) -> dict[str, Cell]:
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
