"""One method on a cohort: the scores of every case that can be evaluated, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from difftumor.errors import CaseListError, first_few, sentence_of
from difftumor.evaluation.cohort.cases import CaseResult, Rules, ScoredCase, score_pair
from difftumor.evaluation.cohort.pairs import Cohort, Pair
from difftumor.files.workers import KILLED, in_processes


@dataclass(frozen=True, kw_only=True)
class Method:
    """What one method reaches on a cohort.

    Attributes:
        name: In tables and figures.
        cohort: Its files.
        cases: In order of their ids.
        problems: Why the other cases could not be evaluated, in a sentence each, by id.
    """

    name: str
    cohort: Cohort
    cases: tuple[ScoredCase, ...]
    problems: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def results(self) -> list[CaseResult]:
        """The scores of the cases."""
        return [case.result for case in self.cases]

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids of cases that have labels but no prediction."""
        return self.cohort.missing

    @property
    def troubles(self) -> dict[str, str]:
        """What is wrong with cases that do not count, or count only in part, in a sentence each, by id."""
        curves = {case.case: case.froc_problem for case in self.cases if case.froc_problem}
        return dict(sorted({**self.problems, **curves}.items()))

    def by_case(self) -> dict[str, ScoredCase]:
        """Return the cases by id."""
        return {case.case: case for case in self.cases}

    def check_whole(self, *, allow_missing: bool = False) -> None:
        """Check that every case counts.

        Args:
            allow_missing: Whether cases without a prediction are fine.

        Raises:
            CaseListError: The message names the first cases that do not count.
        """
        total = len(self.cases) + len(self.problems) + len(self.missing)
        if troubles := self.troubles:
            case, why = next(iter(troubles.items()))
            raise CaseListError(
                f"{len(troubles)} of {total} cases of {self.name} could not be evaluated "
                f"({first_few(list(troubles))}); {case}: {why}"
            )
        if self.missing and not allow_missing:
            raise CaseListError(
                f"{self.name} has no prediction of {first_few(self.missing)} ({len(self.missing)} of {total} cases): "
                "predict them too, or allow it with allow_missing (--allow-missing)."
            )


def evaluate_method(
    name: str, cohort: Cohort, rules: Rules, *, jobs: int = 1, watch: Callable[[], None] | None = None
) -> Method:
    """Evaluate all cases of a cohort that can be evaluated.

    Args:
        name: In tables and figures.
        cohort: What to evaluate.
        rules: How.
        jobs: Processes. The results do not depend on it.
        watch: Called after every case.

    Raises:
        CaseListError: None of the cases can be evaluated.
    """
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
        folder = cohort.folders["predictions"]
        why = next(iter(problems.values()), f"{folder} holds no prediction of {', '.join(cohort.missing[:3])}.")
        raise CaseListError(f"No case of {folder} can be evaluated: {why}")
    cases.sort(key=lambda case: case.case)
    return Method(name=name, cohort=cohort, cases=tuple(cases), problems=dict(sorted(problems.items())))


def _outcomes(cohort: Cohort, rules: Rules, jobs: int) -> Iterator[tuple[Pair, ScoredCase | str]]:
    """Yield every pair with its scores, or with the sentence that says why it has none."""
    if jobs == 1:
        for pair in cohort.pairs:
            yield pair, _outcome(pair, cohort, rules)
        return
    for (pair, *_), outcome in in_processes(_outcome, [(pair, cohort, rules) for pair in cohort.pairs], jobs=jobs):
        yield pair, KILLED if outcome is None else outcome


def _outcome(pair: Pair, cohort: Cohort, rules: Rules) -> ScoredCase | str:
    try:
        return score_pair(pair, cohort.truth, rules)
    except Exception as error:
        # One case must not take the others with it, whatever is wrong with it.
        return sentence_of(error)
