"""What an evaluation leaves behind: tables, figures, and one page with all of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftumor.errors import counted
from difftumor.evaluation.cohort.cases import FRACTIONS
from difftumor.evaluation.cohort.tables import detection_table, scores_table
from difftumor.files.results import ResultFolder
from difftumor.files.texts import read_json
from difftumor.files.writing import folder_written_whole
from difftumor.reporting.plots import to_png
from difftumor.reporting.report import Report
from difftumor.reporting.tables import Table, write_csv, write_json
from difftumor.segmentation.unseen import SeenScans

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT_FILES = (
    "cases.csv", "lesions.csv", "summary.json", "summary.md", "tables.tex", "report.html", "sensitivity.png",
    "scores.png", "froc.png", "worst_cases.png",
)  # fmt: skip
SUMMARY_FILE = "summary.json"
# Holds the scores of the other methods, a folder each.
COMPARED = "compared"
_CAPTIONS = {
    "scores": "DSC and NSD of each case: median, quartiles, and whiskers to the last case within 1.5 times the "
    "interquartile range. Tumors are those of the cases with tumor.",
    "sensitivity": "Share of the tumors that were found, by size. Whiskers are {level} Wilson intervals.",
    "froc": "Free-response curve: sensitivity and false positives as the threshold on the tumor's probability falls.",
    "worst_cases": "The worst cases, in radiological convention, in the slice through the largest missed or false "
    "piece of tumor. Without a CT the organ is flat gray.",
}
_MOST_ROWS = 400
_PAGE_COLUMNS = {"case": "case", **FRACTIONS, "tumor_hd95_mm": "Tumor HD95 (mm)", "tumors": "tumors",
                 "tumors_found": "found", "false_positives": "false"}  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Findings:
    """All that files and page are made of.

    Attributes:
        summaries: By method, the first one first.
        tests: By other method and measure.
        tables: In the shapes of the papers.
        cases: One row per case, by method.
        lesions: One row per lesion, by method.
        remarks: What a reader of the tables has to know.
        seen: Which models behind the predictions were trained on scans of the test.
        figures: By file name without suffix.
    """

    summaries: Mapping[str, Mapping[str, Any]]
    tests: Mapping[str, Mapping[str, Any]]
    tables: Sequence[Table]
    cases: Mapping[str, Table]
    lesions: Mapping[str, Table]
    remarks: Sequence[str]
    seen: Sequence[SeenScans]
    figures: Mapping[str, Figure]

    @property
    def first(self) -> Mapping[str, Any]:
        """Summary of the first method."""
        return next(iter(self.summaries.values()))

    @property
    def title(self) -> str:
        """Title of page and Markdown."""
        return f"Evaluation: {self.first['settings']['organ']}"

    @cached_property
    def pictures(self) -> Mapping[str, bytes]:
        """The figures as PNG, which takes a while; once for files and page."""
        return {name: to_png(figure) for name, figure in self.figures.items()}


def write_results(
    folder: Path, findings: Findings, *, command: str = "", request: Mapping[str, Any] | None = None
) -> str:
    """Write `RESULT_FILES`, and cases and lesions of the other methods.

    Files of an earlier evaluation that this one does not have are removed.

    Args:
        folder: Where to.
        findings: What to write.
        command: The command line, for the page; empty for none.
        request: What was asked for, by which `is_same_request` knows the results.

    Returns:
        The text of ``summary.md``.
    """
    first, *others = findings.summaries
    text = summary_markdown(findings)
    without = _earlier_alone(folder, others, findings.figures)
    with folder_written_whole(folder, keep_others=True, last=SUMMARY_FILE, without=without) as staging:
        for name in findings.summaries:
            place = staging if name == first else staging / COMPARED / name
            write_csv(place / "cases.csv", findings.cases[name])
            write_csv(place / "lesions.csv", findings.lesions[name])
        (staging / "summary.md").write_text(text, encoding="utf-8")
        latex = "\n".join(table.latex() for table in findings.tables)
        (staging / "tables.tex").write_text(latex, encoding="utf-8")
        for name, picture in findings.pictures.items():
            (staging / f"{name}.png").write_bytes(picture)
        results_page(findings, command=command).write(staging / "report.html")
        asked = {} if request is None else {"request": dict(request)}
        write_json(staging / SUMMARY_FILE, {**_summary(findings), **asked})
    return text


def _summary(findings: Findings) -> dict[str, Any]:
    """What ``summary.json`` holds."""
    _, *others = findings.summaries
    models = [{"kind": each.kind, "model": str(each.path), "scans": each.seen} for each in findings.seen]
    summary = {**findings.first, "trained_on_test": models}
    if others:
        summary["compared"] = {name: {**findings.summaries[name], "tests": findings.tests[name]} for name in others}
    return summary


def is_same_request(folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether all that a folder holds of an evaluation was written for this request."""
    try:
        return bool(read_json(folder / SUMMARY_FILE)["request"] == request)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def summary_markdown(findings: Findings) -> str:
    """Return the first method's scores and detection, all tables, and the cases that do not count, as Markdown."""
    summary = findings.first
    matching = f"Lesions: {summary['settings']['matching']}"
    parts = [f"# {findings.title}", _counts(summary), matching, *findings.remarks, *map(str, findings.seen)]
    parts += [table.section() for table in (scores_table(summary), detection_table(summary), *findings.tables)]
    troubles = [f"- {name}, {case}: {why}" for name, case, why in _troubles(findings)]
    if troubles:
        parts += ["## Cases that do not count, or only in part", "\n".join(troubles)]
    return "\n\n".join(parts) + "\n"


def results_page(findings: Findings, *, command: str = "") -> Report:
    """Return the page: what was compared, how, with which result, and what to look at."""
    name, summary = next(iter(findings.summaries.items()))
    level = f"{100 * summary['settings']['level']:g} %"
    report = Report(findings.title, subtitle=f"{name}; {date.today().isoformat()}")
    for paragraph in (_counts(summary), *findings.remarks, *map(str, findings.seen)):
        report.paragraph(paragraph)
    if troubles := _troubles(findings):
        title = "Cases that do not count, or only in part"
        report.table(Table(("method", "case", "why"), troubles, title=title))
    notes = [(name, *note) for name, each in findings.summaries.items() for note in each["notes"].items()]
    if notes:
        report.table(Table(("method", "case", "note"), notes))
    report.heading("Results")
    for table in findings.tables:
        report.table(table)
    report.heading("Figures")
    for figure in ("scores", "sensitivity", "froc"):
        if figure in findings.pictures:
            report.figure(findings.pictures[figure], caption=_CAPTIONS[figure].format(level=level))
    if "worst_cases" in findings.pictures:
        report.heading("Worst cases")
        report.figure(findings.pictures["worst_cases"], caption=_CAPTIONS["worst_cases"])
    report.heading("All numbers")
    report.table(scores_table(summary))
    report.table(detection_table(summary))
    _add_cases(report, findings.cases[name])
    report.heading("How it was evaluated")
    report.key_values(_methods(summary["settings"], level) | ({"command": command} if command else {}))
    return report


def _add_cases(report: Report, cases: Table) -> None:
    report.heading("Case by case", level=3)
    if len(cases.rows) > _MOST_ROWS:
        report.paragraph(f"The first {_MOST_ROWS} of {len(cases.rows)}; all are in cases.csv.")
    places = [cases.header.index(column) for column in _PAGE_COLUMNS]
    rows = [[row[place] for place in places] for row in cases.rows[:_MOST_ROWS]]
    report.table(Table(list(_PAGE_COLUMNS.values()), rows, title="DSC and NSD are fractions."))


def _methods(settings: Mapping[str, Any], level: str) -> dict[str, str]:
    return {
        "matching of lesions": str(settings["matching"]),
        "tolerance of the NSD": f"{settings['tolerance_mm']:g} mm",
        "organ": "includes its tumors",
        "empty masks": "Both empty: DSC and NSD 1, distances and volume errors 0. One empty: DSC and NSD 0, HD95 "
        "and ASSD the diagonal of the scan. The tables say for how many cases (by rule).",
        "volume error": "predicted minus true volume, divided by the mean of both",
        "intervals": f"{level}; Wilson intervals for shares of tumors and patients; for means, F1 and false positives, "
        f"percentiles of the bootstrap over patients, seed {settings['seed']}. Shares of tumors have both, because "
        "tumors of one patient are alike.",
        "tests": "on patients' means: Wilcoxon's signed-rank test (Pratt), and permutation of the methods within "
        "patients; Holm's correction over all rows of the table",
    }


def _counts(summary: Mapping[str, Any]) -> str:
    """Say how many cases there are, and of which kinds."""
    unlabeled = summary["unlabeled_cases"]
    more = f", {unlabeled} of these without labels" if unlabeled else ""
    return (
        f"{counted(summary['cases'], 'case')} of {counted(summary['patients'], 'patient')}: "
        f"{summary['cases_with_tumor']} with tumor, "
        f"{summary['healthy_cases']} healthy{more}."
    )


def _troubles(findings: Findings) -> list[tuple[str, str, str]]:
    """Return method, case and reason for each case that is missing or could not be evaluated."""
    found = []
    for name, summary in findings.summaries.items():
        found += [(name, case, sentence) for case, sentence in summary["problems"].items()]
        found += [(name, case, "there is no prediction.") for case in summary["missing"]]
    return found


def _earlier_alone(folder: Path, methods: Collection[str], figures: Collection[str]) -> list[Path]:
    """Return what an earlier evaluation has and this one does not: methods and pictures; other files stay."""
    earlier = ResultFolder(what="result", holds=("cases.csv", "lesions.csv"))
    compared = sorted((folder / COMPARED).iterdir()) if (folder / COMPARED).is_dir() else []
    gone = [place for place in compared if place.name not in methods and earlier.is_earlier(place)]
    pictures = [folder / name for name in RESULT_FILES if name.endswith(".png") and Path(name).stem not in figures]
    if gone and gone == compared and not methods:
        gone = [folder / COMPARED]
    return [*gone, *pictures]
