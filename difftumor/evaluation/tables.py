"""Tables of an evaluation: one row per case, one per lesion, and a summary as JSON and Markdown."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.evaluation.cohort import CaseResult
from difftumor.evaluation.detection import DetectionSummary, Rate, summarize_detection
from difftumor.evaluation.lesions import Lesion, LesionMap, find_lesions
from difftumor.files import written_whole
from difftumor.grids import Grid
from difftumor.organs import TUMOR

Value = str | int | float | None
Row = Mapping[str, Value]

SCORES = {"organ_dsc": "Organ DSC", "organ_nsd": "Organ NSD", "tumor_dsc": "Tumor DSC", "tumor_nsd": "Tumor NSD"}
CASE_COLUMNS = ("case", *SCORES)
RESULT_FILES = ("cases.csv", "lesions.csv", "summary.json", "summary.md")
LESION_COLUMNS = (
    "case", "kind", "diameter_mm", "volume_mm3", "right_mm", "anterior_mm", "superior_mm", "found_diameter_mm",
    "overlap_voxels",
)  # fmt: skip


def case_rows(results: Iterable[CaseResult]) -> list[Row]:
    """Return one row per case with the columns `CASE_COLUMNS`; scores are fractions."""
    return [{"case": result.case, **_scores(result)} for result in results]


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


def summarize(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Return the summary of a cohort, JSON-able; what is undefined is None.

    Scores are summarized over all cases and over those with tumor, since a healthy scan without a predicted tumor
    scores 1 and with one 0.
    """
    ill = [result for result in results if not result.detection.healthy]
    return {
        "cases": len(results),
        "cases_with_tumor": len(ill),
        "scores": {"all_cases": _score_summary(results), "cases_with_tumor": _score_summary(ill)},
        "detection": _detection_summary(summarize_detection(result.detection for result in results)),
    }


def write_results(folder: Path, results: Sequence[CaseResult], *, title: str, settings: Mapping[str, Value]) -> str:
    """Write `RESULT_FILES`.

    Args:
        folder: Where to; made if needed.
        results: One per case.
        title: Title of the Markdown summary.
        settings: How it was evaluated, kept in summary.json.

    Returns:
        The text of summary.md.
    """
    summary = {"settings": dict(settings), **summarize(results)}
    text = summary_markdown(summary, title=title)
    cases, lesions, summary_json, summary_md = (folder / name for name in RESULT_FILES)
    write_csv(cases, CASE_COLUMNS, case_rows(results))
    write_csv(lesions, LESION_COLUMNS, lesion_rows(results))
    write_json(summary_json, summary)
    with written_whole(summary_md) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def prediction_record(
    labels: NDArray[Any], grid: Grid, *, tumor_probability: NDArray[Any] | None = None
) -> dict[str, Any]:
    """Describe a predicted label map (0 background, 1 organ, 2 tumor), JSON-able.

    Args:
        labels: (X, Y, Z).
        grid: Where its voxels lie.
        tumor_probability: (X, Y, Z), at least where there is tumor.

    Returns:
        ``organ_mm3`` (tumors included), ``tumor_mm3``, and per lesion its voxels, ``volume_mm3``,
        ``equivalent_diameter_mm`` and ``center_mm`` (right, anterior, superior), the largest first; with probabilities
        also ``mean_tumor_probability``.
    """
    found = find_lesions(labels == TUMOR, grid)
    lesions = sorted(found.lesions, key=lambda lesion: -lesion.voxels)
    means = None if tumor_probability is None else _means(tumor_probability, found)
    return {
        "organ_mm3": int(np.count_nonzero(labels)) * grid.voxel_mm3,
        "tumor_mm3": sum(lesion.volume_mm3 for lesion in lesions),
        "lesions": [
            {
                "voxels": lesion.voxels,
                "volume_mm3": lesion.volume_mm3,
                "equivalent_diameter_mm": lesion.diameter_mm,
                "center_mm": list(lesion.center_mm),
                **({} if means is None else {"mean_tumor_probability": means[lesion.index]}),
            }
            for lesion in lesions
        ],
    }


@dataclass(frozen=True)
class SummaryTable:
    """One table of a summary, as text.

    Args:
        header: Names of the columns.
        rows: Their cells.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summary_tables(summary: Mapping[str, Any]) -> tuple[SummaryTable, SummaryTable]:
    """Return the scores in percent, and the detection, of what `summary.json` holds."""
    groups = (("all_cases", "all cases"), ("cases_with_tumor", "cases with tumor"))
    scores = [
        (name, label, _percent(entry["mean"]), _percent(entry["sd"]), _percent(entry["median"]), str(entry["count"]))
        for group, label in groups
        for score, name in SCORES.items()
        for entry in [summary["scores"][group][score]]
    ]
    detection = summary["detection"]
    rates = {
        "Tumor-wise sensitivity": detection["sensitivity"],
        **{f"– radius {name}": rate for name, rate in detection["sensitivity_by_radius"].items()},
        "– early stage (diameter under 20 mm)": detection["early_sensitivity"],
        "Precision": detection["precision"],
        "Patient-wise sensitivity": detection["patient_sensitivity"],
        "Patient-wise specificity": detection["patient_specificity"],
    }
    rows = [(name, _percent(rate["value"]), f"{rate['hits']} / {rate['total']}") for name, rate in rates.items()]
    rows.append(("F1", _percent(detection["f1"]), ""))
    false = detection["false_positives_per_scan"]
    rows.append(("False positives per scan", "–" if false is None else f"{false:.2f}", ""))
    return (
        SummaryTable(("Score (%)", "over", "mean", "SD", "median", "cases"), tuple(scores)),
        SummaryTable(("Detection", "%", "count"), tuple(rows)),
    )


def summary_markdown(summary: Mapping[str, Any], *, title: str) -> str:
    """Return a summary as Markdown: title, scores in percent, detection."""
    counts = f"{summary['cases']} cases, {summary['cases_with_tumor']} with tumor."
    tables = (markdown_table(table.header, table.rows) for table in summary_tables(summary))
    return "\n\n".join([f"# {title}", counts, *tables]) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> Path:
    """Write rows as CSV; None becomes an empty cell. The file is whole or absent."""
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write JSON that any parser reads: NaN and infinity are refused. The file is whole or absent."""
    with written_whole(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def _means(values: NDArray[Any], lesions: LesionMap) -> list[float]:
    """Return the mean of values in each lesion, at the place of its index."""
    inside = lesions.indices > 0
    indices = lesions.indices[inside]
    sums = np.bincount(indices, weights=values[inside])
    return [float(mean) for mean in sums / np.maximum(np.bincount(indices), 1)]


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


def _score_summary(results: Sequence[CaseResult]) -> dict[str, dict[str, float | int | None]]:
    rows = [_scores(result) for result in results]
    return {score: _statistics([row[score] for row in rows]) for score in SCORES}


def _scores(result: CaseResult) -> dict[str, float]:
    """Return the scores of one case under the names of `SCORES`."""
    return {
        "organ_dsc": result.organ.dsc,
        "organ_nsd": result.organ.nsd,
        "tumor_dsc": result.tumor.dsc,
        "tumor_nsd": result.tumor.nsd,
    }


def _statistics(values: Sequence[float]) -> dict[str, float | int | None]:
    return {
        "mean": fmean(values) if values else None,
        "sd": stdev(values) if len(values) > 1 else None,
        "median": median(values) if values else None,
        "count": len(values),
    }


def _detection_summary(summary: DetectionSummary) -> dict[str, Any]:
    return {name: _jsonable(value) for name, value in vars(summary).items()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Rate):
        return {"value": value.value, "hits": value.hits, "total": value.total}
    if isinstance(value, Mapping):
        return {name: _jsonable(entry) for name, entry in value.items()}
    return value


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"
