"""The lists of cases that stages train on: reading and checking them, what is held out, and that it stays unseen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from difftumor.datasets.cases import Case, CaseList, read_cases, split_by_ids
from difftumor.datasets.integrity import SharedScan, check_cases, fingerprints, shared_scans
from difftumor.datasets.tumor_cases import LeftOut, SortedCases, sort_cases
from difftumor.errors import ArtifactError, CaseListError, ConfigError, DiffTumorError, counted
from difftumor.models.artifact_config import read_config
from difftumor.scans.fingerprint import Fingerprint
from difftumor.scans.nifti import Volume
from difftumor.scans.organs import CONVENTIONS, Organ, get_convention, normalized
from stages.config.options import DataOptions, FoldOptions, OnOverlap
from stages.ranks import own_share_first, say

# Suspicions that are shown.
MOST_SUSPICIONS = 3
# Label maps or CTs from one line of progress to the next.
SAID_EVERY = 50


def read_root(
    root: Path | None, labels: str | None = None, *, option: str = "data.labels", accept_hu: bool = False
) -> CaseList:
    """Read the cases of ``data.root`` and check their headers, before anything is loaded.

    Args:
        root: A folder of NIfTI, a ``dataset.json``, or a list.
        labels: One of ``organs.CONVENTIONS``, which then says what the label maps' numbers mean; by default the source.
        option: Where ``labels`` comes from, for messages.
        accept_hu: Whether values that cannot be HU are accepted.

    Raises:
        ConfigError: ``data.root`` is not set, or there is no such convention.
        CaseListError: It is missing, malformed or empty, or files are missing or do not fit together.
    """
    if root is None:
        raise ConfigError("data.root is not set: give data.root=PATH, a folder of NIfTI, a dataset.json or a list.")
    if labels is not None and normalized(labels) not in CONVENTIONS:
        raise ConfigError(f"{option} is {labels!r}: give null or one of {', '.join(CONVENTIONS)}.")
    cases = read_cases(root)
    say(f"Checking the {counted(len(cases.cases), 'case')} of {cases.source}.")
    check_cases(cases, accept_hu=accept_hu).raise_if_any()
    return cases if labels is None else replace(cases, label_names=dict(get_convention(labels)))


def sort_and_say(
    cases: CaseList,
    organ: Organ,
    *,
    workers: int,
    assume_healthy: bool = False,
    leaves_out: bool = True,
    look: Callable[[Case, Volume], None] | None = None,
) -> SortedCases:
    """Sort cases by whether they have tumors; report progress, as many label maps take minutes, and what is left out.

    Args:
        cases: The cases.
        organ: The organ whose tumors matter.
        workers: Threads that read.
        assume_healthy: Whether cases whose labels cannot show tumors count as healthy.
        leaves_out: Whether the run does without the others, so that they are reported.
        look: Called with every case that has tumors, and its labels.

    Raises:
        DiffTumorError: As ``sort_cases``.
    """
    total = len(cases.cases)
    say(f"Reading the label maps of {counted(total, 'case')} of {cases.source}.")
    found = sort_cases(cases, organ, assume_healthy=assume_healthy, workers=workers, look=look, done=_progress(total))
    if leaves_out:
        say_left_out(found.left_out)
    return found


def _progress(total: int) -> Callable[[], None]:
    """Return what says how far reading is, to be called after each file."""
    read = count(1)

    def done() -> None:
        if (number := next(read)) % SAID_EVERY == 0 and number < total:
            say(f"{number} of {total} read.")

    return done


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


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """A model that a run makes use of, and what to do if it has seen the scans that judge the run.

    Args:
        path: Folder of its artifact.
        refuse: Whether the run is refused then; otherwise it says so.
        remedy: What to do, after a colon.
    """

    path: Path
    refuse: bool
    remedy: str


def same_split(data: DataOptions, organ: Organ, fold: int | None, folds: FoldOptions) -> str:
    """Return the options by which another stage holds out what a run holds out."""
    split = "" if fold is None else f" fold={fold} folds.count={folds.count} folds.seed={folds.seed}"
    return f"organ={organ.name} data.root={data.root or 'PATH'}{split}"


def autoencoder_of(path: Path, on_overlap: OnOverlap, split: str) -> Ancestor:
    """Return an autoencoder as a model that a run makes use of; ``split`` is what ``same_split`` returned."""
    refuse = on_overlap == "refuse"
    accept = ", or accept it with autoencoder.on_overlap=warn" if refuse else ""
    remedy = f"train one on the other scans, with python -m stages.autoencoder {split}{accept}"
    return Ancestor(path=path, refuse=refuse, remedy=remedy)


def check_leaks(
    data: DataOptions,
    *,
    train: Sequence[Case],
    judged: Sequence[Case],
    set_apart: Sequence[Case] = (),
    hosts: Mapping[Case, Path] | None = None,
    models: Collection[Ancestor] = (),
    autoencoders: Collection[Ancestor] = (),
    refuse: bool = True,
) -> dict[str, Any]:
    """Refuse scans that a run or its parents train on and that judge it, whatever their names; warn of suspicious ones.

    Fingerprints that a list states are believed. Each of several processes comes to the verdict itself, so that none
    waits for another; they share the reading through the fingerprints that are kept.

    Args:
        data: Where fingerprints are kept, and how many CTs are read at once.
        train: What the run trains on.
        judged: What is held out.
        set_apart: What judges other runs, so that training on it is only reported.
        hosts: The CTs of cases that were made from others.
        models: What it was made with, besides autoencoders.
        autoencoders: What those encode with.
        refuse: Whether shared scans of the run itself are refused; otherwise it says so.

    Returns:
        For the artifact: ``fingerprints``, and which scans the autoencoders have seen (``autoencoder_overlap``).

    Raises:
        CaseListError: The run trains on a scan that judges it.
        ConfigError: A model has seen one.
        VolumeError: A CT cannot be read.
    """
    files = {**{case: case.image for case in (*train, *judged, *set_apart)}, **(hosts or {})}
    total = len(set(files.values()))
    say(f"Comparing {counted(total, 'CT')} by content, to find scans under two names.")
    folder = None if data.cache_dir is None else data.cache_dir / "fingerprints"
    stated = {case.image: known for case in files if (known := Fingerprint.from_text(case.fingerprint)) is not None}
    unstated = own_share_first(list(dict.fromkeys(file for file in files.values() if file not in stated)))
    found = stated | fingerprints(
        unstated,
        workers=data.num_workers,
        cache=folder,
        accept_hu=data.accept_hu,
        done=_progress(len(unstated)),
    )
    held_out = {str(files[case]): found[files[case]] for case in judged}
    own = {str(files[case]): found[files[case]] for case in train}
    remedy = "remove one of them from its list, or give both the same patient"
    _report(shared_scans(held_out, own), "This run trains on", remedy, CaseListError if refuse else None)
    others = {str(files[case]): found[files[case]] for case in set_apart}
    _report(shared_scans(others, own), "This run trains on", remedy, None)
    seen = {model: _seen(model, held_out, judged) for model in (*models, *autoencoders)}
    ids = Counter(case.id for case in (*train, *judged))  # cases of two lists may have one id
    stored = {
        part: [[case.id if ids[case.id] == 1 else str(case.image), str(found[files[case]])] for case in cases]
        for part, cases in (("training", train), ("validation", judged))
    }
    record: dict[str, Any] = {"fingerprints": stored}
    if autoencoders and judged:
        record["autoencoder_overlap"] = _overlap(len(held_out), [seen[each] for each in autoencoders])
    return record


def _seen(model: Ancestor, held_out: Mapping[str, Fingerprint], judged: Iterable[Case]) -> Sequence[SharedScan] | None:
    """Return which held-out scans a model was trained on, after saying or refusing it; None if that is unknown."""
    if not held_out:
        return ()
    training: Mapping[str, Any] = {}
    try:
        config = read_config(model.path)
        training, trained_on = config.training, config.trained_on
    except ArtifactError:  # moved, or not there any more
        trained_on = None
    if trained_on is None:
        ids = training.get("cases", {}).get("training", ())
        shared, cases = sum(case.id in ids for case in judged), counted(len(held_out), "held-out case")
        if shared:
            say(f"Note: {model.path} was trained on {shared} of the {cases}: {model.remedy}.")
        else:
            say(
                f"Note: {model.path} has no fingerprints of what it was trained on, like imported weights and earlier "
                f"artifacts, so whether it has seen any of the {cases} is unknown."
            )
        return None
    pairs = shared_scans(held_out, trained_on)
    _report(pairs, f"{model.path} was trained on", model.remedy, ConfigError if model.refuse else None)
    return pairs


def _report(pairs: Sequence[SharedScan], subject: str, remedy: str, error: type[DiffTumorError] | None) -> None:
    """Refuse, or say without an error, that held-out scans (``one``) are others (``other``); say what looks alike."""
    certain = [pair for pair in pairs if pair.certain]
    if certain:
        pair, more = certain[0], f", and so {counted(len(certain) - 1, 'more pair')}" if len(certain) > 1 else ""
        sentence = f"{subject} {pair.other}, the same scan ({pair.likeness}) as {pair.one}, which is held out{more}"
        if error is not None:
            raise error(f"{sentence}: {remedy}.")
        say(f"Note: {sentence}: {remedy}.")
    suspected = [pair for pair in pairs if not pair.certain]
    for pair in suspected[:MOST_SUSPICIONS]:
        say(
            f"Note: {subject} {pair.other}, which looks like the held-out {pair.one}: compare them, since one may be a "
            "crop, or another resampling or window, of the other."
        )
    if len(suspected) > MOST_SUSPICIONS:
        say(f"Note: {counted(len(suspected) - MOST_SUSPICIONS, 'more pair')} of look-alikes: see difftumor check.")


def _overlap(judged: int, seen: Sequence[Sequence[SharedScan] | None]) -> dict[str, int | None]:
    """Return how many scans are held out, and how many of them autoencoders have seen; None if that is unknown."""
    unknown = any(pairs is None for pairs in seen)
    known = [pair for pairs in seen for pair in pairs or ()]

    def scans(*, certain: bool) -> int | None:
        return None if unknown else len({pair.one for pair in known if pair.certain == certain})

    return {"judged": judged, "seen": scans(certain=True), "suspected": scans(certain=False)}
