"""Summary of an evaluation, as JSON and as tables, and the files of its results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from difftumor.evaluation.case_scores import CaseResult
from difftumor.evaluation.detection import DetectionSummary, Rate, summarize_detection
from difftumor.evaluation.rows import CASE_COLUMNS, LESION_COLUMNS, SCORES, case_rows, lesion_rows, scores_of
from difftumor.files import written_whole
from difftumor.tables import Value, markdown_table, write_csv, write_json

RESULT_FILES = ("cases.csv", "lesions.csv", "summary.json", "summary.md")


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


def _score_summary(results: Sequence[CaseResult]) -> dict[str, dict[str, float | int | None]]:
    rows = [scores_of(result) for result in results]
    return {score: _statistics([row[score] for row in rows if score in row]) for score in SCORES}


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
