"""Evaluate predictions: arrays of one case, or folders of many with statistics, tables and a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import ConfigError
from difftumor.evaluation.cohort.cases import CaseResult, Rules, evaluate_case
from difftumor.evaluation.cohort.figures import froc_figure, scores_figure, sensitivity_figure
from difftumor.evaluation.cohort.folds import check_folds, read_folds, summarize_folds
from difftumor.evaluation.cohort.methods import Method, evaluate_method
from difftumor.evaluation.cohort.pairs import find_pairs, read_truth
from difftumor.evaluation.cohort.results import Findings, write_results
from difftumor.evaluation.cohort.statistics import LEVEL, check_level
from difftumor.evaluation.cohort.summary import compare_methods, summarize
from difftumor.evaluation.cohort.tables import (
    case_table,
    folds_table,
    froc_table,
    lesion_table,
    methods_table,
    sensitivity_table,
    tests_table,
)
from difftumor.evaluation.cohort.worst_cases import cts_of, worst_cases, worst_cases_figure
from difftumor.evaluation.metrics.detection import Matching
from difftumor.evaluation.metrics.froc import RATES, THRESHOLDS, CaseFroc, FrocCurve, froc_curve
from difftumor.evaluation.metrics.overlap import TOLERANCE_MM
from difftumor.scans.grid import Grid, triple
from difftumor.scans.organs import TUMOR, Organ, get_organ
from difftumor.segmentation.probability_file import PROBABILITIES
from difftumor.segmentation.unseen import seen_by_predictors

Source = str | Path


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One method on a cohort, others to compare it with, and how they were evaluated.

    Args:
        method: The method.
        others: Those that it is compared with.
        rules: How cases are evaluated.
        folds: The fold of each case; empty for none.
        level: Of the confidence intervals.
        seed: Of intervals and permutations.
    """

    # What a notebook shows of an evaluation leaves out the scores of every case.
    method: Method = field(repr=False)
    others: tuple[Method, ...] = field(default=(), repr=False)
    rules: Rules = field(default_factory=Rules)
    folds: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    level: float = LEVEL
    seed: int = 0

    @property
    def methods(self) -> tuple[Method, ...]:
        """All methods, the first one first."""
        return (self.method, *self.others)

    @property
    def results(self) -> list[CaseResult]:
        """Scores of the first method's cases."""
        return self.method.results

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds of the first method: means, shares and their intervals."""
        return self.summaries[self.method.name]

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """The summary of each method, by name."""
        return {method.name: self._summary(method) for method in self.methods}

    @cached_property
    def tests(self) -> dict[str, dict[str, Any]]:
        """What `compare_methods` finds."""
        others = {other.name: other for other in self.others}
        return compare_methods(self.method, others, seed=self.seed, level=self.level)

    @cached_property
    def curves(self) -> dict[str, FrocCurve]:
        """The free-response curves of the methods that have one, by name."""
        parts = {method.name: _parts(method) for method in self.methods}
        return {name: froc_curve(cases) for name, cases in parts.items() if cases}

    def check_whole(self, *, allow_missing: bool = False) -> None:
        """Check that every case of every method counts.

        Args:
            allow_missing: Whether cases without a prediction are fine.

        Raises:
            CaseListError: The message names the first cases that do not count.
        """
        for method in self.methods:
            method.check_whole(allow_missing=allow_missing)

    def findings(self, *, worst: int = 4, cts: Source | None = None) -> Findings:
        """Return summaries, tests, tables and figures.

        Args:
            worst: Cases to picture.
            cts: Folder of CTs for these pictures, if the list of labels names none.

        Raises:
            VolumeError: A label map can no longer be read.
        """
        summaries = self.summaries
        tables = [methods_table(summaries), sensitivity_table(summaries)]
        if (by_fold := folds_table(summaries)) is not None:
            tables.append(by_fold)
        if self.tests:
            tables.append(tests_table(self.method.name, self.tests, level=self.level))
        figures = {"sensitivity": sensitivity_figure(summaries), "scores": scores_figure(self.methods)}
        if self.curves:
            figures["froc"] = froc_figure(self.curves)
            tables.append(froc_table({name: each["froc"] for name, each in summaries.items() if "froc" in each}))
        if cases := worst_cases(self.method, worst):
            images = cts_of(self.method, None if cts is None else Path(cts))
            figures["worst_cases"] = worst_cases_figure(cases, self.method, self.rules, images)
        return Findings(
            summaries=summaries,
            tests=self.tests,
            tables=tables,
            cases={method.name: case_table(method.cases, self.folds) for method in self.methods},
            lesions={method.name: lesion_table(method.results) for method in self.methods},
            remarks=_remarks(self.methods),
            seen=seen_by_predictors(self._predictions),
            figures=figures,
        )

    @property
    def _predictions(self) -> list[Path]:
        return [case.pair.prediction for method in self.methods for case in method.cases]

    def save(
        self,
        out: Source,
        *,
        worst: int = 4,
        cts: Source | None = None,
        command: str = "",
        request: Mapping[str, Any] | None = None,
    ) -> str:
        """Write tables, figures and ``report.html`` to a folder; those of an earlier evaluation are replaced.

        Args:
            out: Where to; made if needed.
            worst: Cases to picture.
            cts: Folder of CTs for these pictures, if the list of labels names none.
            command: The command line, for the page; empty for none.
            request: What was asked for, by which `is_same_request` knows the results.

        Returns:
            The text of ``summary.md``.

        Raises:
            VolumeError: A label map can no longer be read.
        """
        return write_results(Path(out), self.findings(worst=worst, cts=cts), command=command, request=request)

    def _summary(self, method: Method) -> dict[str, Any]:
        patients = {case.case: case.pair.patient for case in method.cases}
        unlabeled = [case.case for case in method.cases if not case.labeled]
        truth = method.cohort.truth
        summary = {
            "method": method.name,
            "settings": {
                "organ": truth.organ.name,
                "tolerance_mm": self.rules.tolerance_mm,
                "matching": str(self.rules.matching),
                "level": self.level,
                "seed": self.seed,
                "labels": str(truth.source),
                "resample": self.rules.resample,
                "tumor_only": self.rules.tumor_only,
                **method.cohort.folders,
            },
            **summarize(method.results, patients=patients, unlabeled=unlabeled, seed=self.seed, level=self.level),
            "notes": {case.case: case.note for case in method.cases if case.note},
            "problems": method.troubles,
            "missing": list(method.missing),
        }
        if self.folds:
            summary["folds"] = summarize_folds(method.results, self.folds)
        if method.name in self.curves:
            summary["froc"] = _froc(self.curves[method.name])
        return summary


@overload
def evaluate(
    predictions: NDArray[Any],
    labels: NDArray[Any],
    *,
    spacing_mm: Sequence[float],
    tolerance_mm: float = ...,
    matching: Matching = ...,
    tumor_only: bool = ...,
) -> CaseResult: ...


@overload
def evaluate(
    predictions: Source,
    labels: Source,
    *,
    organ: str | Organ,
    tolerance_mm: float = ...,
    matching: Matching = ...,
    name: str | None = ...,
    healthy: Source | Mapping[str, Source] | None = ...,
    compare: Mapping[str, Source] | None = ...,
    folds: Source | None = ...,
    froc: bool = ...,
    resample: bool = ...,
    tumor_only: bool = ...,
    level: float = ...,
    seed: int = ...,
    jobs: int = ...,
    watch: Callable[[], None] | None = ...,
) -> Evaluation: ...


def evaluate(
    predictions: Source | NDArray[Any],
    labels: Source | NDArray[Any],
    *,
    spacing_mm: Sequence[float] | None = None,
    organ: str | Organ | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    matching: Matching = Matching(),  # noqa: B008 (frozen)
    name: str | None = None,
    healthy: Source | Mapping[str, Source] | None = None,
    compare: Mapping[str, Source] | None = None,
    folds: Source | None = None,
    froc: bool = False,
    resample: bool = False,
    tumor_only: bool = False,
    level: float = LEVEL,
    seed: int = 0,
    jobs: int = 1,
    watch: Callable[[], None] | None = None,
) -> CaseResult | Evaluation:
    """Compare predicted label maps with true ones: 0 background, 1 organ, 2 tumor.

    Two arrays give the scores of one case:

    >>> import difftumor as dt
    >>> import numpy as np
    >>> truth = np.zeros((20, 20, 10), np.uint8)
    >>> truth[2:18, 2:18, 2:8] = 1
    >>> truth[5:9, 5:9, 4:6] = 2
    >>> prediction = np.roll(truth, 1, axis=0)
    >>> scores = dt.evaluate(prediction, truth, spacing_mm=(1, 1, 3))
    >>> scores.tumor.dsc, scores.organ.nsd, scores.detection.found
    (0.75, 1.0, 1)

    Two folders, or a folder and a list of cases with labels, give an `Evaluation` of all cases, with ``summary``,
    ``results`` and ``save(out)``.

    Args:
        predictions: (X, Y, Z) labels; or a folder of label maps named as their cases.
        labels: The truth: (X, Y, Z) labels; or a folder of label maps of the same names, or a list of cases with labels
            such as a ``dataset.json``.
        spacing_mm: Voxel size along each axis; with arrays only.
        organ: Organ, such as "liver"; with files only.
        tolerance_mm: Tolerance of the normalized surface distance.
        matching: When a predicted lesion finds a true one.
        name: Name of the method in tables; by default that of the folder. This and the rest go with files only.
        healthy: Predictions on healthy scans, which need no labels; a mapping gives such folders by method.
        compare: Folders of other methods' predictions on the same labels, by name.
        folds: nnU-Net's ``splits_final.json``, or a CSV file with the columns ``case`` and ``fold``.
        froc: Whether to measure free-response curves, from ``probabilities`` in the folder of predictions; other
            methods without such a folder get none.
        resample: Whether predictions on other grids are resampled to that of their labels.
        tumor_only: Whether tumors alone are scored, as of segmenters of another organ; those that ``predict`` wrote
            without an organ are anyway. Also with arrays.
        level: Of the confidence intervals.
        seed: Of bootstrap and permutations.
        jobs: Processes; the results do not depend on it.
        watch: Called after every case.

    Raises:
        ConfigError: A setting is out of range or does not go with the others, or arrays are not label maps.
        CaseListError: A folder or list cannot be used, or none of its cases can be evaluated.
        OrganError: The organ is unknown, or not among the label names.
    """
    thresholds = THRESHOLDS if froc else ()
    rules = Rules(
        tolerance_mm=tolerance_mm, matching=matching, resample=resample, tumor_only=tumor_only, thresholds=thresholds
    )
    named = [isinstance(each, str | Path) for each in (predictions, labels)]
    if any(named) and not all(named):
        array, path = ("labels", "predictions") if named[0] else ("predictions", "labels")
        raise ConfigError(f"{array} is an array and {path} a path: give two arrays, or two folders.")
    if not isinstance(predictions, str | Path) or not isinstance(labels, str | Path):
        return _evaluate_arrays(predictions, labels, spacing_mm, rules)
    if organ is None:
        raise ConfigError("Folders are evaluated for one organ: give its name, such as organ='liver'.")
    check_level(level)
    first = name or Path(predictions).resolve().name
    if first in (compare or {}):
        raise ConfigError(f"Two methods are called {first}: give one of them another name.")
    folders = {first: Path(predictions), **{other: Path(folder) for other, folder in (compare or {}).items()}}
    scans = {first: healthy} if isinstance(healthy, str | Path) else dict(healthy or {})
    if unknown := scans.keys() - folders.keys():
        raise ConfigError(f"healthy names {unknown.pop()}, which is not one of {', '.join(folders)}: correct the name.")
    truth = read_truth(Path(labels), get_organ(organ))
    cohorts = {
        method: find_pairs(
            folder,
            truth,
            healthy=Path(scans[method]) if method in scans else None,
            resample=resample,
            tumor_only=tumor_only,
        )
        for method, folder in folders.items()
    }
    by_case = {} if folds is None else read_folds(Path(folds))
    if folds is not None:
        check_folds(by_case, [pair.case for pair in cohorts[first].pairs if pair.truth is not None], Path(folds))
    methods = []
    for method, cohort in cohorts.items():
        curve = method == first or (folders[method] / PROBABILITIES).is_dir()
        own = rules if curve else replace(rules, thresholds=())
        methods.append(evaluate_method(method, cohort, own, jobs=jobs, watch=watch))
    return Evaluation(method=methods[0], others=tuple(methods[1:]), rules=rules, folds=by_case, level=level, seed=seed)


def _evaluate_arrays(prediction: object, truth: object, spacing_mm: Sequence[float] | None, rules: Rules) -> CaseResult:
    if spacing_mm is None or np.shape(spacing_mm) != (3,) or not all(0 < step < np.inf for step in spacing_mm):
        raise ConfigError(
            f"spacing_mm is {spacing_mm}: give the voxel size of arrays along each axis, such as (1, 1, 1)."
        )
    maps = [np.asarray(labels) for labels in (prediction, truth)]
    for role, labels in zip(("predictions", "labels"), maps, strict=True):
        if labels.ndim != 3 or labels.dtype == np.bool_ or not np.isin(labels, range(TUMOR + 1)).all():
            raise ConfigError(f"The array {role} is not a 3-D label map: give 0 background, 1 organ, 2 tumor.")
    if maps[0].shape != maps[1].shape:
        raise ConfigError(f"predictions {maps[0].shape} and labels {maps[1].shape} differ in shape: give one grid.")
    grid = Grid(triple(maps[1].shape), np.diag([*spacing_mm, 1.0]))
    return evaluate_case("", maps[0], maps[1], grid, rules=rules)


def _remarks(methods: Sequence[Method]) -> list[str]:
    """Say if methods were not evaluated on the same cases."""
    first = set(methods[0].by_case())
    return [
        f"{other.name} and {methods[0].name} do not have the same cases: they share {len(first & cases)} of "
        f"{len(cases)} and {len(first)}. Means and shares are over each method's own cases; only the paired tests are "
        "over the shared ones."
        for other in methods[1:]
        if (cases := set(other.by_case())) != first
    ]


def _parts(method: Method) -> list[CaseFroc]:
    return [case.froc for case in method.cases if case.froc is not None]


def _froc(curve: FrocCurve) -> dict[str, Any]:
    sensitivity, at = curve.sensitivity, curve.sensitivity_at()
    rates = None if at is None else {f"{rate:g}": float(value) for rate, value in zip(RATES, at, strict=True)}
    return {
        "thresholds": curve.thresholds.tolist(),
        "sensitivity": None if sensitivity is None else sensitivity.tolist(),
        "false_positives_per_scan": curve.false_positives_per_scan.tolist(),
        "scans": curve.scans,
        "sensitivity_at": rates,
        "mean_sensitivity": curve.mean_sensitivity(),
    }
