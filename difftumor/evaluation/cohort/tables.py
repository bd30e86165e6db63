"""Tables of an evaluation: cases and lesions one by one, and the tables of the papers from what ``summary.json`` holds.

DiffTumor prints means ± standard deviations over cases (Table 2), sensitivity to early tumors by organ (Tables 2 and
3), DSC and NSD by fold with their average (Tables 4 to 6), and DSC and NSD by organ (Table 7). Hu et al. print DSC and
NSD by method (Table 3) and by fold (Table 5).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from difftumor.evaluation.cohort.cases import FRACTIONS, SCORES, CaseResult, ScoredCase
from difftumor.evaluation.cohort.folds import fold_order
from difftumor.evaluation.cohort.summary import MEASURES
from difftumor.reporting.tables import Cell, Row, Table
from difftumor.scans.lesions import EARLY_DIAMETER_MM, Lesion

Summary = Mapping[str, Any]
NONE = "–"
CASE_COLUMNS = (
    "case", *SCORES, "organ_empty", "tumor_empty", "tumors", "tumors_found", "false_positives", "patient", "fold",
    "note",
)  # fmt: skip
LESION_COLUMNS = (
    "case", "kind", "diameter_mm", "volume_mm3", "right_mm", "anterior_mm", "superior_mm", "found_diameter_mm",
    "overlap_voxels",
)  # fmt: skip


def case_table(cases: Iterable[ScoredCase], folds: Mapping[str, str] | None = None) -> Table:
    """Return one row per case.

    DSC, NSD and volume errors are fractions. ``organ_empty`` and ``tumor_empty`` say which mask is empty, so that the
    scores are those of the rules for empty masks. Healthy scans without labels have no scores.

    Args:
        cases: The cases.
        folds: The fold of each case, by its id.
    """
    rows: list[Row] = [
        {
            "case": case.case,
            **(case.result.scores if case.labeled else {}),
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
    return Table.of_records(CASE_COLUMNS, rows)


def lesion_table(results: Iterable[CaseResult]) -> Table:
    """Return one row per lesion; kind is "found", "missed" or "false"."""
    rows: list[Row] = []
    for result in results:
        for match in result.detection.matches:
            if (found := match.prediction) is None:
                rows.append(_lesion(result.case, "missed", match.truth) | {"overlap_voxels": match.overlap_voxels})
            else:
                more = {"found_diameter_mm": found.diameter_mm, "overlap_voxels": match.overlap_voxels}
                rows.append(_lesion(result.case, "found", match.truth) | more)
        rows += [_lesion(result.case, "false", lesion) for lesion in result.detection.false_positives]
    return Table.of_records(LESION_COLUMNS, rows)


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


def scores_table(summary: Summary) -> Table:
    """Return the scores of one method with their intervals: of organs over all cases, of tumors over those with tumor.

    DSC and NSD of tumors are also given over all cases, where a healthy scan scores 1 or 0.
    """
    rows = [
        (
            label,
            words,
            shown(name, entry["mean"]),
            _range(name, entry["interval"]),
            shown(name, entry["sd"]),
            shown(name, entry["median"]),
            str(entry["count"]),
            str(entry["by_rule"]),
        )
        for group, words, names in (
            ("all_cases", "all cases", [name for name in SCORES if name.startswith("organ_") or name in FRACTIONS]),
            ("cases_with_tumor", "cases with tumor", [name for name in SCORES if name.startswith("tumor_")]),
        )
        for name in names
        for label, entry in [(SCORES[name], summary["scores"][group][name])]
    ]
    header = ("Score (DSC, NSD, volume error in %)", "over", "mean", _percent_of(summary), "SD", "median", "cases",
              "by rule")  # fmt: skip
    return Table(header, rows, title="Scores")


def detection_table(summary: Summary) -> Table:
    """Return the detection of one method."""
    detection = summary["detection"]
    rates = {
        "Tumor-wise sensitivity": detection["sensitivity"],
        **{f"– radius {name}": rate for name, rate in detection["sensitivity_by_radius"].items()},
        f"– early (diameter under {EARLY_DIAMETER_MM:g} mm)": detection["early_sensitivity"],
        "Precision": detection["precision"],
        "Patient-wise sensitivity": detection["patient_sensitivity"],
        "Patient-wise specificity": detection["patient_specificity"],
    }
    rows = [
        (
            name,
            percent(rate["value"]),
            _percent_range(rate["interval"]),
            _percent_range(rate.get("patients_interval")),
            f"{rate['hits']} / {rate['total']}",
        )
        for name, rate in rates.items()
    ]
    rows.append(("F1", percent(detection["f1"]), NONE, _percent_range(detection["f1_interval"]), NONE))
    false = detection["false_positives_per_scan_interval"]
    rows.append(
        (
            "False positives per scan (number)",
            number(detection["false_positives_per_scan"]),
            NONE,
            NONE if false is None else f"{number(false[0])} to {number(false[1])}",
            NONE,
        )
    )
    header = ("Detection", "%", f"{_percent_of(summary)} (Wilson)", "the same over patients (bootstrap)", "count")
    return Table(header, rows, title="Detection", note=str(summary["settings"]["matching"]))


def methods_table(summaries: Mapping[str, Summary]) -> Table:
    """Return mean ± SD of DSC and NSD by method (Table 7 of DiffTumor, Table 3 of Hu et al.); the best is bold."""
    columns = {"tumor_dsc": "cases_with_tumor", "tumor_nsd": "cases_with_tumor", "organ_dsc": "all_cases",
               "organ_nsd": "all_cases"}  # fmt: skip
    entries = [[summary["scores"][group][name] for name, group in columns.items()] for summary in summaries.values()]
    rows = tuple(
        (method, *(cell for entry in row for cell in (mean_sd(entry["mean"], entry["sd"]), str(entry["count"]))))
        for method, row in zip(summaries, entries, strict=True)
    )
    header = ("Method", *(text for name in columns for text in (f"{FRACTIONS[name]} (%)", "cases")))
    return Table(
        header,
        rows,
        title="Segmentation: mean ± SD, of tumors over the cases with tumor",
        note=nsd_note(summaries),
        bold=best(
            [[value for entry in row for value in (entry["mean"], None)] for row in entries],
            [[entry["count"] for entry in row for _ in range(2)] for row in entries],
        ),
    )


def sensitivity_table(summaries: Mapping[str, Summary]) -> Table:
    """Return sensitivity by size, precision and false positives by method; the best is bold."""
    bins = list(next(iter(summaries.values()))["detection"]["sensitivity_by_radius"])
    values, rows, totals = [], [], []
    for method, summary in summaries.items():
        detection = summary["detection"]
        rates = [
            detection["sensitivity"], detection["early_sensitivity"],
            *(detection["sensitivity_by_radius"][name] for name in bins), detection["precision"],
            detection["patient_sensitivity"], detection["patient_specificity"],
        ]  # fmt: skip
        false = detection["false_positives_per_scan"]
        values.append([None, None, *(rate["value"] for rate in rates), None if false is None else -false])
        # Precision is over what a method predicts, and so over the scans that it was given.
        sizes = [rate["total"] for rate in rates]
        sizes[len(bins) + 2] = summary["cases"]
        totals.append([0, 0, *sizes, summary["cases"]])
        counted = (str(summary["cases"]), str(rates[0]["total"]))
        rows.append((method, *counted, *(percent(rate["value"]) for rate in rates), number(false)))
    header = (
        "Method", "scans", "tumors", "Sensitivity (%)", "early", *(f"radius {name}" for name in bins),
        "Precision (%)", "Patient-wise sensitivity (%)", "Specificity (%)", "FP per scan",
    )  # fmt: skip
    return Table(
        header,
        rows,
        title="Detection, tumor by tumor and patient by patient",
        note=str(next(iter(summaries.values()))["settings"]["matching"]),
        bold=best(values, totals),
    )


def froc_table(curves: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the highest sensitivity at no more than some numbers of false positives per scan, and their mean."""
    rates = list(next((curve["sensitivity_at"] for curve in curves.values() if curve["sensitivity_at"]), {}))
    rows = [
        (
            method,
            str(curve["scans"]),
            *(percent((curve["sensitivity_at"] or {}).get(rate)) for rate in rates),
            percent(curve["mean_sensitivity"]),
        )
        for method, curve in curves.items()
    ]
    header = ("Method", "scans", *(f"{rate} FP" for rate in rates), "mean")
    return Table(header, rows, title="Free response: sensitivity (%) at false positives per scan")


def folds_table(summaries: Mapping[str, Summary]) -> Table | None:
    """Return DSC and NSD of tumors by fold (Tables 4 to 6 of DiffTumor, Table 5 of Hu et al.); None without folds.

    The average is that of the folds' means, as in the papers; beside it is the mean over all cases pooled.
    """
    if not all(summary.get("folds") for summary in summaries.values()):
        return None
    names = sorted({name for summary in summaries.values() for name in summary["folds"]["names"]}, key=fold_order)
    rows = []
    for method, summary in summaries.items():
        for score in ("tumor_dsc", "tumor_nsd"):
            entry = summary["folds"]["scores"][score]
            means = (percent(entry["by_fold"].get(name)) for name in names)
            average = mean_sd(entry["average"], entry["sd"])
            rows.append((method, f"{score[-3:].upper()} (%)", *means, average, percent(entry["pooled"])))
    header = ("Method", "metric", *(f"fold {name}" for name in names), "average ± SD of folds", "pooled")
    return Table(header, rows, title="Tumor segmentation by fold")


def tests_table(first: str, compared: Mapping[str, Mapping[str, Any]], *, level: float) -> Table:
    """Return the differences of other methods from the first, with their tests."""
    rows = [
        (
            name,
            f"{MEASURES[measure]}" + (" (%)" if measure != "false_positives" else ""),
            _shown_measure(measure, row["first"]),
            _shown_measure(measure, row["second"]),
            _shown_measure(measure, row["difference"], sign=True),
            _ends(row["interval"], lambda value, measure=measure: _shown_measure(measure, value, sign=True)),
            str(row["patients"]),
            *(p_value(row[f"{test}_{kind}"]) for test in ("wilcoxon", "permutation") for kind in ("p", "holm")),
        )
        for name, measures in compared.items()
        for measure, row in measures.items()
    ]
    header = (
        "Method", "measure", first, "other", "difference", f"{100 * level:g} % interval", "patients", "Wilcoxon p",
        "Holm (Wilcoxon)", "permutation p", "Holm (permutation)",
    )  # fmt: skip
    note = "Means are over the patients of the scans that both methods have."
    return Table(header, rows, title=f"Paired tests against {first}", note=note)


def best(values: Sequence[Sequence[float | None]], counts: Sequence[Sequence[int]]) -> frozenset[tuple[int, int]]:
    """Return the cells with the highest value of their column, if its rows differ and are over as many cases.

    Args:
        values: Rows of values, without the column of names before them.
        counts: How many cases each value was measured on; only values of as many cases are compared.
    """
    found: set[tuple[int, int]] = set()
    for column in range(len(values[0]) if values else 0):
        known = {row: value for row, line in enumerate(values) if (value := line[column]) is not None}
        alike = len({counts[row][column] for row in known}) == 1
        if alike and len(set(known.values())) > 1:
            highest = max(known.values())
            found |= {(row, column + 1) for row, value in known.items() if value == highest}
    return frozenset(found)


def nsd_note(summaries: Mapping[str, Summary]) -> str:
    """Return the note on the tolerance of the NSD."""
    tolerances = {float(summary["settings"]["tolerance_mm"]) for summary in summaries.values()}
    return f"NSD at {' and '.join(f'{tolerance:g}' for tolerance in sorted(tolerances))} mm."


def shown(score: str, value: float | None) -> str:
    """Return a score as text: fractions in percent, others with two digits."""
    return percent(value) if _is_fraction(score) else number(value)


def percent(value: float | None) -> str:
    """Return a fraction in percent."""
    return NONE if value is None or math.isnan(value) else _minus(f"{100 * value:.1f}")


def number(value: float | None) -> str:
    """Return a number with two digits."""
    return NONE if value is None or math.isnan(value) else _minus(f"{value:.2f}")


def mean_sd(mean: float | None, sd: float | None) -> str:
    """Return mean ± SD in percent, as the papers print it."""
    return percent(mean) if sd is None else f"{percent(mean)}±{percent(sd)}"


def p_value(value: float) -> str:
    """Return a p value; small ones as a bound."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _is_fraction(score: str) -> bool:
    return not score.endswith(("_mm", "_ml"))


def _shown_measure(measure: str, value: float, *, sign: bool = False) -> str:
    text = number(value) if measure == "false_positives" else percent(value)
    return f"+{text}" if sign and value > 0 else text


def _range(score: str, interval: Sequence[float] | None) -> str:
    return _ends(interval, lambda value: shown(score, value))


def _percent_range(interval: Sequence[float] | None) -> str:
    return _ends(interval, percent)


def _ends(interval: Sequence[float] | None, text: Any) -> str:
    return NONE if interval is None else f"{text(interval[0])} to {text(interval[1])}"


def _percent_of(summary: Summary) -> str:
    return f"{100 * float(summary['settings']['level']):g} % interval"


def _minus(text: str) -> str:
    return text.replace("-", "−")
