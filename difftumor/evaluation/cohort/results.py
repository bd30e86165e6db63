"""What an evaluation leaves behind: tables, figures, and one page with all of it."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from difftumor.evaluation.cohort.comparison import compare_methods
from difftumor.evaluation.cohort.figures import froc_figure, scores_figure, sensitivity_figure
from difftumor.evaluation.cohort.methods import Method, Rules
from difftumor.evaluation.cohort.paper_tables import (
    detection_table,
    folds_table,
    froc_table,
    methods_table,
    scores_table,
    sensitivity_table,
    tests_table,
)
from difftumor.evaluation.cohort.rows import CASE_COLUMNS, LESION_COLUMNS, case_rows, lesion_rows
from difftumor.evaluation.cohort.statistics import LEVEL
from difftumor.evaluation.cohort.summary import summarize, summarize_folds
from difftumor.evaluation.cohort.worst_cases import cts_of, worst_cases, worst_cases_figure
from difftumor.evaluation.metrics.froc import RATES, CaseFroc, FrocCurve, froc_curve
from difftumor.files import ResultFolder, written_whole
from difftumor.reporting.plots import save_png
from difftumor.reporting.tables import Table, write_csv, write_json

RESULT_FILES = (
    "cases.csv", "lesions.csv", "summary.json", "summary.md", "tables.tex", "report.html", "sensitivity.png",
    "scores.png", "froc.png", "worst_cases.png",
)  # fmt: skip
# The scores of the other methods, a folder each.
COMPARED = "compared"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One method, others to hold against it, and how they were evaluated.

    Args:
        organ: Name of the organ.
        method: The method.
        others: Those that it is compared with.
        rules: How cases are evaluated.
        folds: The fold of each case; empty for none.
        seed: Of intervals and permutations.
        level: Of the intervals.
        settings: What else was asked for, kept in ``summary.json``.
    """

    organ: str
    method: Method
    others: tuple[Method, ...] = ()
    rules: Rules = field(default_factory=Rules)
    folds: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    seed: int = 0
    level: float = LEVEL
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def methods(self) -> tuple[Method, ...]:
        """All methods, the first one first."""
        return (self.method, *self.others)

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Return the summary of each method, by name."""
        return {method.name: self._summary(method) for method in self.methods}

    def curves(self) -> dict[str, FrocCurve]:
        """Return the free-response curves of the methods that have one, by name."""
        parts = {method.name: _parts(method) for method in self.methods}
        return {name: froc_curve(cases) for name, cases in parts.items() if cases}

    def tests(self) -> dict[str, dict[str, Any]]:
        """Return what `compare_methods` finds."""
        others = {other.name: other for other in self.others}
        return compare_methods(self.method, others, seed=self.seed, level=self.level)

    def _summary(self, method: Method) -> dict[str, Any]:
        results = [case.result for case in method.cases]
        patients = {case.case: case.pair.patient for case in method.cases}
        unlabeled = [case.case for case in method.cases if not case.labeled]
        summary = {
            "method": method.name,
            "settings": {
                "organ": self.organ,
                "tolerance_mm": self.rules.tolerance_mm,
                "matching": str(self.rules.matching),
                "level": self.level,
                "seed": self.seed,
                **self.settings,
                **method.folders,
            },
            **summarize(results, patients=patients, unlabeled=unlabeled, seed=self.seed, level=self.level),
            "notes": {case.case: case.note for case in method.cases if case.note},
            "problems": method.troubles,
            "missing": list(method.missing),
        }
        if self.folds:
            summary["folds"] = summarize_folds(results, self.folds)
        if parts := _parts(method):
            summary["froc"] = _froc(froc_curve(parts))
        return summary


@dataclass(frozen=True, eq=False, kw_only=True)
class Findings:
    """All that files and page are made of.

    Attributes:
        summaries: By method, the first one first.
        tests: By other method and measure.
        tables: In the shapes of the papers.
        remarks: What a reader of the tables has to know.
        figures: By file name without suffix.
    """

    summaries: Mapping[str, Mapping[str, Any]]
    tests: Mapping[str, Mapping[str, Any]]
    tables: Sequence[Table]
    remarks: Sequence[str]
    figures: Mapping[str, Figure]


def find(evaluation: Evaluation, *, worst: int = 4, cts: Path | None = None) -> Findings:
    """Work out summaries, tests, tables and figures.

    Args:
        evaluation: What was evaluated.
        worst: Cases to picture.
        cts: Folder of CTs for these pictures, where the list of labels names none.

    Raises:
        VolumeError: A label map cannot be read any more.
    """
    summaries, tests = evaluation.summaries(), evaluation.tests()
    first = evaluation.method
    tables = [methods_table(summaries), sensitivity_table(summaries)]
    if (by_fold := folds_table(summaries)) is not None:
        tables.append(by_fold)
    if tests:
        tables.append(tests_table(first.name, tests, level=evaluation.level))
    figures = {"sensitivity": sensitivity_figure(summaries), "scores": scores_figure(evaluation.methods)}
    if curves := evaluation.curves():
        figures["froc"] = froc_figure(curves)
        tables.append(froc_table({name: summary["froc"] for name, summary in summaries.items() if "froc" in summary}))
    if cases := worst_cases(first, worst):
        figures["worst_cases"] = worst_cases_figure(cases, first, evaluation.rules, cts_of(first, cts))
    return Findings(
        summaries=summaries, tests=tests, tables=tables, remarks=_remarks(evaluation.methods), figures=figures
    )


def write_results(folder: Path, evaluation: Evaluation, findings: Findings) -> str:
    """Write `RESULT_FILES` without the page, and cases and lesions of the other methods.

    Figures that are not there for this evaluation are removed, so that none of an earlier one stays.

    Returns:
        The text of ``summary.md``.
    """
    first = evaluation.method
    _write_rows(folder, first, evaluation.folds)
    _remove_others(folder / COMPARED, [other.name for other in evaluation.others])
    for other in evaluation.others:
        _write_rows(folder / COMPARED / other.name, other, evaluation.folds)
    summary = dict(findings.summaries[first.name])
    if evaluation.others:
        summary["compared"] = {
            other.name: {**findings.summaries[other.name], "tests": findings.tests[other.name]}
            for other in evaluation.others
        }
    write_json(folder / "summary.json", summary)
    text = summary_markdown(findings, title=f"Evaluation: {evaluation.organ}")
    for name, content in (("summary.md", text), ("tables.tex", "\n".join(table.latex() for table in findings.tables))):
        with written_whole(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    for name in RESULT_FILES:
        if name.endswith(".png") and name.removesuffix(".png") not in findings.figures:
            (folder / name).unlink(missing_ok=True)
    for name, figure in findings.figures.items():
        save_png(figure, folder / f"{name}.png")
    return text


def summary_markdown(findings: Findings, *, title: str) -> str:
    """Return the first method's scores and detection, the tables, and what went wrong, as Markdown."""
    summary = next(iter(findings.summaries.values()))
    parts = [f"# {title}", counts(summary), f"Lesions: {summary['settings']['matching']}", *findings.remarks]
    for table in (scores_table(summary), detection_table(summary), *findings.tables):
        parts += [f"## {table.title}", table.markdown(), *([table.note] if table.note else [])]
    troubles = [f"- {name}, {line}" for name, each in findings.summaries.items() for line in troubles_of(each)]
    if troubles:
        parts += ["## Not evaluated", "\n".join(troubles)]
    return "\n\n".join(parts) + "\n"


def counts(summary: Mapping[str, Any]) -> str:
    """Say how many cases there are, and of which kinds."""
    unlabeled = summary["unlabeled_cases"]
    more = f", {unlabeled} of these scans without labels" if unlabeled else ""
    return (
        f"{summary['cases']} cases of {summary['patients']} patients: {summary['cases_with_tumor']} with tumor, "
        f"{summary['healthy_cases']} healthy{more}."
    )


def troubles_of(summary: Mapping[str, Any]) -> list[str]:
    """Return a line for each case that is missing or could not be evaluated."""
    lines = [f"{case}: {sentence}" for case, sentence in summary["problems"].items()]
    return [*lines, *(f"{case}: there is no prediction." for case in summary["missing"])]


def _remarks(methods: Sequence[Method]) -> list[str]:
    """Say where methods were not evaluated on the same cases."""
    first = set(methods[0].by_case())
    return [
        f"{other.name} and {methods[0].name} do not have the same cases: {len(first & cases)} are shared, of "
        f"{len(cases)} and {len(first)}. Means and shares are over each method's own cases; only the paired tests are "
        "over the shared."
        for other in methods[1:]
        if (cases := set(other.by_case())) != first
    ]


def _remove_others(folder: Path, names: Collection[str]) -> None:
    """Remove what an earlier evaluation left of methods that this one has not; nothing else is touched."""
    earlier = ResultFolder(what="result", holds=("cases.csv", "lesions.csv"))
    for place in folder.iterdir() if folder.is_dir() else ():
        if place.name not in names and earlier.is_earlier(place):
            shutil.rmtree(place)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _write_rows(folder: Path, method: Method, folds: Mapping[str, str]) -> None:
    write_csv(folder / "cases.csv", Table.of_records(CASE_COLUMNS, case_rows(method.cases, folds)))
    lesions = lesion_rows(case.result for case in method.cases)
    write_csv(folder / "lesions.csv", Table.of_records(LESION_COLUMNS, lesions))


def _parts(method: Method) -> list[CaseFroc]:
    return [case.froc for case in method.cases if case.froc is not None]


def _froc(curve: FrocCurve) -> dict[str, Any]:
    sensitivity, at = curve.sensitivity, curve.sensitivity_at()
    return {
        "thresholds": curve.thresholds.tolist(),
        "sensitivity": None if sensitivity is None else sensitivity.tolist(),
        "false_positives_per_scan": curve.false_positives_per_scan.tolist(),
        "scans": curve.scans,
        "sensitivity_at": None
        if at is None
        else {f"{rate:g}": float(value) for rate, value in zip(RATES, at, strict=True)},
        "mean_sensitivity": curve.mean_sensitivity(),
    }
