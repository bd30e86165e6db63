"""The lists of cases that stages train on: reading and checking them, what each case is, what is held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from difftumor.datasets.cases import Case, CaseList, read_cases, split_by_ids
from difftumor.datasets.integrity import check_cases
from difftumor.datasets.tumor_cases import LeftOut, SortedCases, sort_cases
from difftumor.errors import ConfigError, counted
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import CONVENTIONS, Organ, get_convention
from stages.run.run import say

# Label maps from one line of progress to the next.
SAID_EVERY = 50


def read_root(root: Path | None, labels: str | None = None, *, option: str = "data.labels") -> CaseList:
    """Read the cases of ``data.root`` and check their headers, before anything is loaded.

    Args:
        root: A folder of NIfTI, a ``dataset.json``, or a list.
        labels: One of ``organs.CONVENTIONS``, which then says what the label maps' numbers mean; by default the source.
        option: Where ``labels`` comes from, for messages.

    Raises:
        ConfigError: ``data.root`` is not set, or there is no such convention.
        CaseListError: It is missing, malformed or empty, or files are missing or do not fit together.
    """
    if root is None:
        raise ConfigError("data.root is not set: give data.root=PATH, a folder of NIfTI, a dataset.json or a list.")
    if labels is not None and labels not in CONVENTIONS:
        raise ConfigError(f"{option} is {labels!r}: give null or one of {', '.join(CONVENTIONS)}.")
    cases = read_cases(root)
    say(f"Checking the {counted(len(cases.cases), 'case')} of {cases.source}.")
    check_cases(cases).raise_if_any()
    return cases if labels is None else replace(cases, label_names=dict(get_convention(labels)))


def sort_and_say(
    cases: CaseList,
    organ: Organ,
    *,
    workers: int,
    assume_healthy: bool = False,
    look: Callable[[Case, Volume], None] | None = None,
) -> SortedCases:
    """Sort cases by whether they have tumors; report progress, as many label maps take minutes, and what is left out.

    Args:
        cases: The cases.
        organ: The organ whose tumors matter.
        workers: Threads that read.
        assume_healthy: Whether cases whose labels cannot show tumors count as healthy.
        look: Called with every case that has tumors, and its labels.

    Raises:
        DiffTumorError: As ``sort_cases``.
    """
    total, read = len(cases.cases), count(1)

    def done() -> None:
        if (number := next(read)) % SAID_EVERY == 0 and number < total:
            say(f"{number} of {total} read.")

    say(f"Reading the label maps of {counted(total, 'case')} of {cases.source}.")
    found = sort_cases(cases, organ, assume_healthy=assume_healthy, workers=workers, look=look, done=done)
    say_left_out(found.left_out)
    return found


def say_left_out(left_out: Sequence[LeftOut]) -> None:
    """Report which cases cannot be used, and why."""
    for case in left_out[:5]:
        say(f"Left out: {case.case.id} {case.reason}.")
    if len(left_out) > 5:
        say(f"Left out as well: {len(left_out) - 5} more cases.")


def stated_validation(cases: CaseList, **ignored: Any) -> tuple[Case, ...]:
    """Return the validation cases that a list states, and report them.

    They are held out by every stage, so that none trains on what another is judged by.

    Args:
        cases: What ``read_root`` returned.
        ignored: Options, by name, that would have split the cases otherwise; ``__`` in a name stands for a dot.

    Raises:
        CaseListError: All cases are validation cases, or a patient has scans on both sides.
        ConfigError: ``fold`` is beyond the one split there is.
    """
    if not cases.validation_ids:
        return ()
    _, validation = split_by_ids(cases.cases, cases.validation_ids)
    # Folds 1, 2, … would be runs of different names that all train on the same cases.
    if ignored.get("fold"):
        raise ConfigError(
            f"fold is {ignored['fold']}, but {cases.source} states its validation cases, which makes one split: "
            "give fold=0, or remove them from the list."
        )
    options = " and ".join(f"{name.replace('__', '.')}={value}" for name, value in ignored.items() if value is not None)
    unused = f"; {options} is ignored" if options else ""
    say(f"Holding out the {len(validation)} validation cases that {cases.source} states{unused}.")
    return validation
