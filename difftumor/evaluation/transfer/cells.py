"""Evaluations of a grid of trainings, pooled over folds: seeds are averaged within scans, and patients count once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from difftumor.errors import CaseListError
from difftumor.evaluation.cohort.statistics import LEVEL, Interval, bootstrap_mean, bootstrap_ratio
from difftumor.files.texts import read_json, read_table
from difftumor.scans.lesions import size_group

Measure = Literal["early", "all", "dsc", "nsd"]
MEASURES: Mapping[Measure, str] = {
    "early": "Early-stage tumor-wise sensitivity",
    "all": "Tumor-wise sensitivity, all stages",
    "dsc": "Tumor DSC",
    "nsd": "Tumor NSD",
}
# Settings of the evaluations that have to be alike.
_ALIKE = ("tolerance_mm", "matching")


@dataclass(frozen=True, kw_only=True)
class TransferCell:
    """One training and its evaluation.

    Args:
        source: Organ whose tumors were learned; several are joined by +.
        target: Organ in which tumors were looked for.
        backbone: Of the segmenter.
        tumors: Which tumors it was trained on, see `difftumor.evaluation.transfer.tables.KINDS`.
        fold: Whose patients it was tested on.
        seed: Of the training.
        annotations: How many annotated tumors the diffusion model learned; None for all.
    """

    source: str
    target: str
    backbone: str
    tumors: str
    fold: int
    seed: int
    annotations: int | None = None

    @property
    def group(self) -> TransferKey:
        """What folds and seeds are pooled for."""
        return TransferKey(self.source, self.target, self.backbone, self.tumors, self.annotations)


@dataclass(frozen=True)
class TransferKey:
    """What the folds and seeds of a training have in common; see `TransferCell`."""

    source: str
    target: str
    backbone: str
    tumors: str
    annotations: int | None = None


@dataclass(frozen=True, kw_only=True)
class TestedScan:
    """What was found in a scan, averaged over seeds.

    Attributes:
        case: Its id.
        patient: Whose it is.
        fold: That it was tested in.
        tumors: True tumors, of early stage and of all.
        found: Of each, how many were found.
        scores: DSC and NSD of the tumors; empty for a healthy scan.
    """

    case: str
    patient: str
    fold: int
    tumors: Mapping[str, float]
    found: Mapping[str, float]
    scores: Mapping[str, float]

    def parts(self, measure: Measure) -> tuple[float, float] | None:
        """Return what the measure is the quotient of sums of; None if the scan does not count."""
        if measure in self.tumors:
            return (self.found[measure], self.tumors[measure]) if self.tumors[measure] else None
        return (self.scores[measure], 1.0) if measure in self.scores else None


@dataclass(frozen=True, kw_only=True)
class PooledMeasure:
    """A measure of a group.

    Attributes:
        value: Share of the tumors, or mean over scans; None if there are none.
        interval: Over patients; None for fewer than two.
        tumors: On which it rests.
        patients: On which it rests.
        seeds: Smallest and largest number of seeds of a fold.
        sd: Over scans, of DSC and NSD.
    """

    value: float | None
    interval: Interval | None
    tumors: int
    patients: int
    seeds: tuple[int, int]
    sd: float | None = None


@dataclass(frozen=True)
class TransferGroup:
    """A training with all its folds and seeds.

    Args:
        key: Which one.
        scans: All that were tested.
        seeds: Number of seeds by fold that is there.
        wanted: Folds that there should be.
    """

    key: TransferKey
    scans: tuple[TestedScan, ...]
    seeds: Mapping[int, int]
    wanted: frozenset[int]

    @property
    def whole(self) -> bool:
        """Whether all folds are there."""
        return self.wanted <= self.seeds.keys()

    def measured(self, measure: Measure, *, level: float = LEVEL, seed: int = 0) -> PooledMeasure:
        """Return a measure over the patients of all folds."""
        key = (measure, level, seed)
        if key not in self._measured:  # tables and figures show the same numbers, and a bootstrap takes a while
            self._measured[key] = self._measure(measure, level=level, seed=seed)
        return self._measured[key]

    @cached_property
    def _measured(self) -> dict[tuple[Measure, float, int], PooledMeasure]:
        return {}

    def _measure(self, measure: Measure, *, level: float, seed: int) -> PooledMeasure:
        counted = [(scan, parts) for scan in self.scans if (parts := scan.parts(measure)) is not None]
        firsts, wholes = [parts[0] for _, parts in counted], [parts[1] for _, parts in counted]
        owners = [scan.patient for scan, _ in counted]
        mean = measure in ("dsc", "nsd")
        if mean:
            interval = bootstrap_mean(firsts, owners, seed=seed, level=level)
        else:
            interval = bootstrap_ratio(firsts, wholes, owners, seed=seed, level=level)
        kind = "early" if measure == "early" else "all"
        return PooledMeasure(
            value=sum(firsts) / sum(wholes) if counted else None,
            interval=interval,
            tumors=round(sum(scan.tumors[kind] for scan, _ in counted)),
            patients=len(set(owners)),
            seeds=(min(self.seeds.values()), max(self.seeds.values())),
            sd=stdev(firsts) if mean and len(firsts) > 1 else None,
        )

    def by_fold(self, measure: Measure) -> dict[int, float]:
        """Return the measure of each fold that has scans that count."""
        found: dict[int, float] = {}
        for fold in sorted(self.seeds):
            parts = [each for scan in self.scans if scan.fold == fold and (each := scan.parts(measure)) is not None]
            if parts:
                found[fold] = sum(first for first, _ in parts) / sum(whole for _, whole in parts)
        return found

    def per_scan(self, measure: Measure) -> dict[str, tuple[float, str]]:
        """Return the measure of each scan that counts, and its patient, by case."""
        pairs = ((scan, scan.parts(measure)) for scan in self.scans)
        return {scan.case: (parts[0] / parts[1], scan.patient) for scan, parts in pairs if parts is not None}


@dataclass(frozen=True)
class TransferGrid:
    """All groups of a study, those without any evaluation left out.

    Args:
        groups: By key.
        keys: Of all groups that there should be, in their order.
        missing: Trainings without an evaluation.
        settings: What the evaluations have in common.
    """

    groups: Mapping[TransferKey, TransferGroup]
    keys: tuple[TransferKey, ...]
    missing: tuple[TransferCell, ...]
    settings: Mapping[str, Any]

    @cached_property
    def sources(self) -> list[str]:
        """The organs whose tumors are learned."""
        return list(dict.fromkeys(key.source for key in self.keys))

    @cached_property
    def targets(self) -> list[str]:
        """The organs in which tumors are looked for."""
        return list(dict.fromkeys(key.target for key in self.keys))

    @cached_property
    def backbones(self) -> list[str]:
        """The backbones."""
        return list(dict.fromkeys(key.backbone for key in self.keys))


def read_grid(cells: Mapping[TransferCell, Path | None]) -> TransferGrid:
    """Read the evaluations of a grid.

    Args:
        cells: The folder that ``difftumor evaluate`` wrote for each training; None, or a folder without results, for
            one that is still to come.

    Raises:
        CaseListError: There is no evaluation, one is malformed or of another organ, settings differ, a scan was tested
            in several folds, or a model was trained on scans that test it.
    """
    scans: dict[TransferCell, Sequence[TestedScan] | None] = dict.fromkeys(cells)
    settings: dict[str, Any] = {}
    for cell, folder in cells.items():
        if folder is None or not (folder / "summary.json").is_file():
            continue
        own = _settings(folder, cell)
        for name, value in own.items():
            if settings.setdefault(name, value) != value:
                raise CaseListError(f"{folder} was evaluated with another {name} than the others: evaluate all alike.")
        scans[cell] = _scans(folder, cell.fold)
    return grid_of(scans, settings)


def grid_of(cells: Mapping[TransferCell, Sequence[TestedScan] | None], settings: Mapping[str, Any]) -> TransferGrid:
    """Pool what was found in the scans of a grid.

    Args:
        cells: The scans of each training; None for one that is still to come.
        settings: What their evaluations have in common.

    Raises:
        CaseListError: There is no training yet, or a scan was tested in several folds.
    """
    runs: dict[TransferKey, dict[TransferCell, Sequence[TestedScan]]] = {cell.group: {} for cell in cells}
    wanted: dict[TransferKey, set[int]] = {key: set() for key in runs}
    for cell, scans in cells.items():
        wanted[cell.group].add(cell.fold)
        if scans is not None:
            runs[cell.group][cell] = scans
    missing = [cell for cell, scans in cells.items() if scans is None]
    if len(missing) == len(cells):
        raise CaseListError("There is no evaluation yet: run the study first.")
    groups = {key: _group(key, of, frozenset(wanted[key])) for key, of in runs.items() if of}
    return TransferGrid(groups, tuple(runs), tuple(missing), settings)


def _group(
    key: TransferKey, runs: Mapping[TransferCell, Sequence[TestedScan]], wanted: frozenset[int]
) -> TransferGroup:
    """Average seeds within scans."""
    by_case: dict[str, list[TestedScan]] = {}
    for scans in runs.values():
        for scan in scans:
            by_case.setdefault(scan.case, []).append(scan)
    folds = [cell.fold for cell in runs]
    for case, scans in by_case.items():
        if len({scan.fold for scan in scans}) > 1:
            several = " and ".join(str(fold) for fold in sorted({scan.fold for scan in scans}))
            raise CaseListError(
                f"{case} of {key.target} was tested in the folds {several} of {key}: a patient is in one fold."
            )
    seeds = {fold: folds.count(fold) for fold in sorted(set(folds))}
    return TransferGroup(key, tuple(_mean(scans) for scans in by_case.values()), seeds, wanted)


def _mean(scans: Sequence[TestedScan]) -> TestedScan:
    first = scans[0]

    def mean(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
        listed = list(values)
        return {name: fmean(each[name] for each in listed) for name in listed[0]}

    return TestedScan(
        case=first.case,
        patient=first.patient,
        fold=first.fold,
        tumors=mean(scan.tumors for scan in scans),
        found=mean(scan.found for scan in scans),
        scores=mean(scan.scores for scan in scans),
    )


def _settings(folder: Path, cell: TransferCell) -> dict[str, Any]:
    file = folder / "summary.json"
    try:
        summary = read_json(file)
        settings, models = summary["settings"], summary.get("trained_on_test", ())
        organ, found = settings["organ"], {name: settings[name] for name in _ALIKE}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaseListError(f"{file} is not a summary of evaluate: give a folder that it has written.") from error
    if organ != cell.target:
        raise CaseListError(f"{folder} is an evaluation of {organ}, not of {cell.target}: give that of the target.")
    for model in models:
        # An autoencoder learns no tumors; what it has seen is remarked on in the evaluation.
        if model["kind"] != "autoencoder" and model["scans"]:
            raise CaseListError(
                f"{model['model']} was trained on {model['scans']} of the scans that {folder} tests: take them "
                "from one of the lists, or give both the same patient, and train again."
            )
    return found


def _scans(folder: Path, fold: int) -> list[TestedScan]:
    try:
        lesions = _rows(folder / "lesions.csv")
        true = [row for row in lesions if row["kind"] != "false"]
        return [
            _scan(row, [each for each in true if each["case"] == row["case"]], fold)
            for row in _rows(folder / "cases.csv")
        ]
    except (OSError, ValueError, KeyError) as error:
        raise CaseListError(
            f"{folder} holds no readable cases.csv and lesions.csv ({error}): evaluate again."
        ) from error


def _scan(row: Mapping[str, str], lesions: Sequence[Mapping[str, str]], fold: int) -> TestedScan:
    kinds = {
        "all": lesions,
        "early": [lesion for lesion in lesions if size_group(float(lesion["diameter_mm"])) == "early"],
    }
    scores = {name: row[f"tumor_{name}"] for name in ("dsc", "nsd")} if lesions else {}
    return TestedScan(
        case=row["case"],
        patient=row["patient"] or row["case"],
        fold=fold,
        tumors={kind: float(len(some)) for kind, some in kinds.items()},
        found={kind: float(sum(each["kind"] == "found" for each in some)) for kind, some in kinds.items()},
        scores={name: float(value) for name, value in scores.items() if value},
    )


def _rows(file: Path) -> list[dict[str, str]]:
    return [row for _, row in read_table(file)[1]]
