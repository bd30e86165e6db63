"""The page of an evaluation: what was compared, how, with which result, and what to look at."""

from datetime import date

from difftumor.evaluation.cohort.paper_tables import detection_table, scores_table
from difftumor.evaluation.cohort.results import Evaluation, Findings, counts, troubles_of
from difftumor.evaluation.cohort.rows import FRACTIONS, case_rows
from difftumor.reporting.report import Report
from difftumor.reporting.tables import Table

_CAPTIONS = {
    "scores": "DSC and NSD of each case: median, quartiles, and whiskers to the last case within 1.5 times their "
    "distance. Tumors are those of the cases with tumor.",
    "sensitivity": "Share of the tumors that were found, by size. Whiskers are 95 % Wilson intervals.",
    "froc": "Free-response curve: sensitivity and false positives as the threshold on the tumor's probability falls.",
    "worst_cases": "The worst cases, in radiological convention, in the slice through the largest missed or false "
    "piece of tumor. Without a CT the organ is flat gray.",
}
_MOST_ROWS = 400


def evaluation_page(evaluation: Evaluation, findings: Findings, *, command: str) -> Report:
    """Return the page.

    Args:
        evaluation: What was evaluated.
        findings: What came of it.
        command: What was typed.
    """
    first = evaluation.method
    summary = findings.summaries[first.name]
    report = Report(f"Evaluation: {evaluation.organ}", subtitle=f"{first.name}; {date.today().isoformat()}")
    report.paragraph(counts(summary))
    for remark in findings.remarks:
        report.paragraph(remark)
    _troubles(report, findings)
    report.heading("Results")
    for table in findings.tables:
        report.table(table)
    report.heading("Figures")
    for name in ("scores", "sensitivity", "froc"):
        if name in findings.figures:
            report.figure(findings.figures[name], caption=_caption(name, evaluation.level))
    if "worst_cases" in findings.figures:
        report.heading("Worst cases")
        report.figure(findings.figures["worst_cases"], caption=_CAPTIONS["worst_cases"])
    report.heading("All numbers")
    report.table(scores_table(summary))
    report.table(detection_table(summary))
    _cases(report, evaluation)
    _how(report, evaluation, command)
    return report


def _caption(name: str, level: float) -> str:
    return _CAPTIONS[name].replace("95 %", f"{100 * level:g} %")


def _troubles(report: Report, findings: Findings) -> None:
    lines = [(name, *line.split(": ", 1)) for name, each in findings.summaries.items() for line in troubles_of(each)]
    if lines:
        report.table(Table(("method", "case", "not evaluated, because"), lines, title="Cases that do not count"))
    notes = [(name, *note) for name, each in findings.summaries.items() for note in each["notes"].items()]
    if notes:
        report.table(Table(("method", "case", "note"), notes))


def _cases(report: Report, evaluation: Evaluation) -> None:
    rows = case_rows(evaluation.method.cases, evaluation.folds)
    columns = {"case": "case", **FRACTIONS, "tumor_hd95_mm": "Tumor HD95 (mm)", "tumors": "tumors",
               "tumors_found": "found", "false_positives": "false"}  # fmt: skip
    report.heading("Case by case", level=3)
    if len(rows) > _MOST_ROWS:
        report.paragraph(f"The first {_MOST_ROWS} of {len(rows)}; all are in cases.csv.")
    cells = [[row[column] for column in columns] for row in rows[:_MOST_ROWS]]
    report.table(Table(list(columns.values()), cells, title="DSC and NSD are fractions."))


def _how(report: Report, evaluation: Evaluation, command: str) -> None:
    rules = evaluation.rules
    report.heading("How it was evaluated")
    report.key_values(
        {
            "matching of lesions": str(rules.matching),
            "tolerance of the NSD": f"{rules.tolerance_mm:g} mm",
            "organ": "its tumors included",
            "empty masks": "Both empty: DSC and NSD 1, distances and volume errors 0. One empty: DSC and NSD 0, HD95 "
            "and ASSD the diagonal of the scan. The tables say for how many cases (by rule).",
            "volume error": "predicted less true volume, over the mean of both",
            "intervals": f"{100 * evaluation.level:g} %; Wilson's of shares of tumors and patients; of means, F1, and "
            "(as tumors of one patient are alike) of shares of tumors once more, percentiles of the bootstrap over "
            f"patients, seed {evaluation.seed}",
            "tests": "on patients' means: Wilcoxon's signed-rank test (Pratt), and permutation of the methods within "
            "patients; Holm's correction over all rows of the table",
            "command": command,
        }
    )
