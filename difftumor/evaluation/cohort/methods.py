"""One method on a cohort: the scores of every case that can be evaluated, and why the others cannot."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from difftumor.errors import CaseListError, DiffTumorError, first_few, sentence_of
from difftumor.evaluation.cohort.pairs import Cohort, Pair, find_pairs, read_pair
from difftumor.evaluation.metrics.detection import CaseDetection, Matching, match_lesions
from difftumor.evaluation.metrics.froc import CaseFroc, case_froc
from difftumor.evaluation.metrics.overlap import TOLERANCE_MM, OverlapScores, overlap_scores
from difftumor.evaluation.metrics.surfaces import check_tolerance
from difftumor.scans.grid import Grid, compare_grids
from difftumor.scans.lesions import find_lesions
from difftumor.scans.model_space import carried, resampled
from difftumor.scans.nifti import Volume, check_same_grid
from difftumor.scans.organs import ORGAN, TUMOR, Organ
from difftumor.segmentation.probability_file import read_tumor_probability


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Scores of one case.

    Attributes:
        case: Its id.
        organ: Overlap of the organ with its tumors, so that a missed tumor is not counted twice; None where the labels
            have no organ.
        tumor: Overlap of the tumors.
        detection: Lesions found, missed and false.
    """

    case: str
    organ: OverlapScores | None
    tumor: OverlapScores
    detection: CaseDetection


def evaluate_case(
    case: str,
    prediction: NDArray[Any],
    truth: NDArray[Any],
    grid: Grid,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    matching: Matching = Matching(),  # noqa: B008 (frozen)
    with_organ: bool = True,
) -> CaseResult:
    """Evaluate one pair of label maps (X, Y, Z): 0 background, 1 organ, 2 tumor.

    Args:
        case: Its id.
        prediction: Predicted labels.
        truth: True labels.
        grid: Where the voxels of both lie.
        tolerance_mm: Tolerance of the normalized surface distance.
        matching: When a predicted lesion finds a true one.
        with_organ: Whether the labels have the organ; else it is not scored.

    Raises:
        ConfigError: The tolerance is negative or not finite.
        ValueError: The label maps are not on the grid.
    """

    def scores(least: int) -> OverlapScores:
        return overlap_scores(
            prediction >= least,
            truth >= least,
            spacing_mm=grid.spacing_mm,
            voxel_mm3=grid.voxel_mm3,
            tolerance_mm=tolerance_mm,
        )

    true_lesions, predicted_lesions = find_lesions(truth == TUMOR, grid), find_lesions(prediction == TUMOR, grid)
    return CaseResult(
        case=case,
        organ=scores(ORGAN) if with_organ else None,
        tumor=scores(TUMOR),
        detection=match_lesions(case, true_lesions, predicted_lesions, matching=matching),
    )


RESAMPLED = "prediction resampled to the grid of the labels"
NO_ORGAN = "no organ in the labels, and so no scores of it"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How cases are evaluated.

    Args:
        tolerance_mm: Tolerance of the normalized surface distance.
        matching: Which lesions count as found.
        resample: Carry predictions to the grid of their labels, by nearest neighbor, where they differ.
        thresholds: Probabilities at which the free-response curve is measured; none for no curve.

    Raises:
        ConfigError: The tolerance is negative or not finite.
    """

    tolerance_mm: float = TOLERANCE_MM
    matching: Matching = field(default_factory=Matching)
    resample: bool = False
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance_mm)


@dataclass(frozen=True, kw_only=True)
class ScoredCase:
    """One case that was evaluated.

    Attributes:
        pair: Its files.
        result: Its scores.
        note: What was done to it, in words; empty for nothing.
        froc: Its part of the free-response curve; None where there is none.
        froc_problem: Why there is none although it was asked for, in a sentence; empty otherwise.
    """

    pair: Pair
    result: CaseResult
    note: str = ""
    froc: CaseFroc | None = None
    froc_problem: str = ""

    @property
    def case(self) -> str:
        """Its id."""
        return self.result.case

    @property
    def healthy(self) -> bool:
        """Whether its truth holds no tumor."""
        return self.result.detection.healthy

    @property
    def labeled(self) -> bool:
        """Whether it has labels; healthy scans need none."""
        return self.pair.truth is not None


@dataclass(frozen=True, kw_only=True)
class Method:
    """What one method reaches on a cohort.

    Attributes:
        name: In tables and figures.
        cohort: Its files.
        cases: In order of their ids.
        problems: Sentences that say why the others could not be evaluated, by id.
        missing: Ids of cases with labels and without prediction.
        folders: Where its predictions are, by what they are: ``predictions``, and ``healthy`` where there are any.
    """

    name: str
    cohort: Cohort
    cases: tuple[ScoredCase, ...]
    problems: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    missing: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def troubles(self) -> dict[str, str]:
        """Sentences by case: what is wrong with those that do not count, or only in part."""
        curves = {case.case: case.froc_problem for case in self.cases if case.froc_problem}
        return dict(sorted({**self.problems, **curves}.items()))

    def by_case(self) -> dict[str, ScoredCase]:
        """Return the cases by id."""
        return {case.case: case for case in self.cases}


def evaluate_method(
    name: str,
    predictions: Path,
    labels: Path,
    organ: Organ,
    *,
    rules: Rules,
    healthy: Path | None = None,
    jobs: int = 1,
    watch: Callable[[], None] | None = None,
) -> Method:
    """Evaluate all cases of a folder that can be evaluated.

    Args:
        name: In tables and figures.
        predictions: See `find_pairs`, as for the next two.
        labels: See there.
        organ: See there.
        rules: How.
        healthy: Folder of predictions on healthy scans without labels.
        jobs: Processes. The results do not depend on it.
        watch: Called after every case.

    Raises:
        CaseListError: A folder is missing or empty, or none of the cases can be evaluated.
        OrganError: The organ is not among the label names.
    """
    cohort = find_pairs(predictions, labels, organ, healthy=healthy, resample=rules.resample)
    problems = dict(cohort.problems)
    cases: list[ScoredCase] = []
    for pair, outcome in _outcomes(cohort, rules, jobs):
        if isinstance(outcome, ScoredCase):
            cases.append(outcome)
        else:
            problems[pair.case] = outcome
        if watch is not None:
            watch()
    if not cases:
        why = next(iter(problems.values()), f"{predictions} holds no prediction of {', '.join(cohort.missing[:3])}.")
        raise CaseListError(f"No case of {predictions} can be evaluated: {why}")
    cases.sort(key=lambda case: case.case)
    return Method(
        name=name,
        cohort=cohort,
        cases=tuple(cases),
        problems=dict(sorted(problems.items())),
        missing=cohort.missing,
        folders={"predictions": str(predictions), **({} if healthy is None else {"healthy": str(healthy)})},
    )


def check_whole(method: Method, *, allow_missing: bool = False) -> None:
    """Refuse an evaluation in which a case does not count that should have.

    Args:
        method: What was evaluated.
        allow_missing: Whether cases without a prediction are fine.

    Raises:
        CaseListError: The message names the first cases.
    """
    total = len(method.cases) + len(method.problems) + len(method.missing)
    if troubles := method.troubles:
        case, why = next(iter(troubles.items()))
        raise CaseListError(
            f"{len(troubles)} of {total} cases of {method.name} could not be evaluated ({first_few(list(troubles))}); "
            f"{case}: {why}"
        )
    if method.missing and not allow_missing:
        raise CaseListError(
            f"{method.name} has no prediction of {first_few(method.missing)} ({len(method.missing)} of {total} "
            "cases): predict them too, or give --allow-missing."
        )


def score_pair(pair: Pair, cohort: Cohort, rules: Rules) -> ScoredCase:
    """Read and evaluate one pair.

    Raises:
        VolumeError: A file cannot be used, or holds labels other than 0, 1 and 2.
        GridMismatchError: Prediction and truth differ in grid, and are not to be resampled.
    """
    read, truth = read_pair(pair, cohort)
    prediction, truth = on_one_grid(read, truth, rules)
    result = evaluate_case(
        pair.case,
        prediction.data,
        truth.data,
        truth.grid,
        tolerance_mm=rules.tolerance_mm,
        matching=rules.matching,
        with_organ=bool((truth.data == ORGAN).any()),
    )
    notes = [RESAMPLED] if prediction is not read else []
    if pair.truth is not None and result.organ is None:
        notes.append(NO_ORGAN)
    froc, problem = _froc(pair, truth, rules) if rules.thresholds else (None, "")
    return ScoredCase(pair=pair, result=result, note="; ".join(notes), froc=froc, froc_problem=problem)


def on_one_grid(prediction: Volume, truth: Volume, rules: Rules) -> tuple[Volume, Volume]:
    """Return both as they are where they share a grid; else, where the rules allow it, the prediction resampled.

    Raises:
        GridMismatchError: They differ in grid, and are not to be resampled.
        VolumeError: They do not overlap.
    """
    if not rules.resample:
        check_same_grid(prediction, truth)
    if prediction.grid.matches(truth.grid):
        return prediction, truth
    return resampled(prediction, truth), truth


def _froc(pair: Pair, truth: Volume, rules: Rules) -> tuple[CaseFroc | None, str]:
    """Return the case's part of the curve, or why there is none."""
    try:
        probability, grid, path = read_tumor_probability(pair.prediction)
        if not grid.matches(truth.grid):
            if not rules.resample:
                compare_grids(grid, truth.grid, path, truth.path)
            probability = carried(probability, grid, path, truth, order=1)
        return (
            case_froc(
                pair.case,
                truth.data == TUMOR,
                probability,
                truth.grid,
                thresholds=rules.thresholds,
                matching=rules.matching,
            ),
            "",
        )
    except DiffTumorError as error:
        return None, sentence_of(error)


def _outcomes(cohort: Cohort, rules: Rules, jobs: int) -> Iterator[tuple[Pair, ScoredCase | str]]:
    """Yield every pair with its scores, or with the sentence that says why it has none."""
    if jobs == 1:
        for pair in cohort.pairs:
            yield pair, _outcome(pair, cohort, rules)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(_outcome, pair, cohort, rules): pair for pair in cohort.pairs}
        for done in as_completed(running):
            try:
                yield running[done], done.result()
            except BrokenProcessPool:
                yield running[done], "Its process was ended, perhaps for lack of memory: try fewer --jobs."


def _outcome(pair: Pair, cohort: Cohort, rules: Rules) -> ScoredCase | str:
    try:
        return score_pair(pair, cohort, rules)
    except Exception as error:
        # One case must not take the others with it, whatever is wrong with it.
        return sentence_of(error)
