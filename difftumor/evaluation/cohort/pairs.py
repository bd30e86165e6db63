"""Predictions and what they are compared with, paired by the names of their cases.

What is wrong with one case is kept beside the others, which are evaluated all the same.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from difftumor.datasets.cases import Case, read_case_labels, read_cases
from difftumor.datasets.sources import case_id, read_dataset_labels
from difftumor.errors import CaseListError, DiffTumorError, VolumeError, sentence_of
from difftumor.scans.grid import compare_grids
from difftumor.scans.nifti import Volume, is_nifti, read_grid, read_labels
from difftumor.scans.organs import TUMOR, Organ, OrganLabels, get_convention, resolve_labels


def label_maps(folder: Path) -> dict[str, Path]:
    """Return the label maps of a folder by the id of their case.

    Raises:
        CaseListError: The folder is missing or empty, or two files belong to one case.
    """
    found = label_files(folder)
    for files in found.values():
        if len(files) > 1:
            raise CaseListError(too_many(files))
    return {case: files[0] for case, files in found.items()}


def label_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return all label maps of a folder by the id of their case, where one file each is expected.

    Raises:
        CaseListError: The folder is missing or empty.
    """
    if not folder.is_dir():
        raise CaseListError(f"There is no folder {folder}: give a folder of label maps (.nii.gz or .nii).")
    found: dict[str, tuple[Path, ...]] = {}
    for path in sorted(folder.iterdir()):
        if is_nifti(path) and not path.name.startswith("."):
            case = case_id(path)
            found[case] = (*found.get(case, ()), path)
    if not found:
        raise CaseListError(f"{folder} holds no label maps: give a folder of .nii.gz or .nii files.")
    return found


def too_many(files: Sequence[Path]) -> str:
    """Return the sentence for several files of one case."""
    return f"{files[0].parent} holds {' and '.join(file.name for file in files)}: keep one of them."


def check_predicted_organ(maps: Mapping[str, Path], organ: Organ) -> None:
    """Refuse label maps of another organ, where the records say so that ``difftumor predict`` writes beside them.

    Raises:
        CaseListError: One is; the message names it.
    """
    for case, path in maps.items():
        record = path.with_name(f"{case}.json")
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(content, dict) or "difftumor_version" not in content:
            continue
        predicted = content.get("organ")
        if predicted is not None and predicted != organ.name:
            raise CaseListError(
                f"{path} is a prediction of {predicted}, as {record.name} says, not of {organ.name}: give --organ "
                f"{predicted}, or label maps of {organ.name}."
            )


def label_names_of(folder: Path) -> Mapping[str, int]:
    """Return the label names in the ``dataset.json`` in or beside a folder of label maps; empty where there is none.

    Nothing else of it is wanted, so it need not list cases, as beside the predictions of nnU-Net, nor CTs be there.

    Raises:
        CaseListError: It is malformed.
    """
    folder = Path(os.path.abspath(folder))  # "." has no parent, and that of a link is where the link lies
    for place in (folder, folder.parent):
        if (place / "dataset.json").is_file():
            return read_dataset_labels(place / "dataset.json")
    return {}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prediction and what it is compared with.

    Attributes:
        case: Id of the case.
        prediction: Label map, 0 background, 1 organ, 2 tumor.
        truth: Case with labels; None for a healthy scan without any.
    """

    case: str
    prediction: Path
    truth: Case | None

    @property
    def patient(self) -> str:
        """Who was scanned; the case where nothing says it."""
        return self.case if self.truth is None else self.truth.patient


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What is to be evaluated.

    Attributes:
        pairs: In order of their ids.
        label_names: Label names of the truth, as its source says; empty where it does not.
        labels: How the truth numbers the organ and its tumors.
        problems: Sentences that say why cases cannot be evaluated, by id.
        missing: Ids of cases with labels and without prediction.
    """

    pairs: tuple[Pair, ...]
    label_names: Mapping[str, int]
    labels: OrganLabels
    problems: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    missing: tuple[str, ...] = ()


def find_pairs(
    predictions: Path, labels: Path, organ: Organ, *, healthy: Path | None = None, resample: bool = False
) -> Cohort:
    """Pair the files of two folders by name, and check by their headers that partners share a grid.

    Args:
        predictions: Folder of label maps named ``<case>.nii.gz`` or ``.nii``.
        labels: A list of cases with labels, such as a ``dataset.json`` or its folder; or a folder of label maps with
            the names of the predictions, numbered as a ``dataset.json`` beside the folder says, else 0/1/2.
        organ: Organ whose labels are wanted.
        healthy: Folder of predictions on healthy scans, which need no labels; None for none.
        resample: Whether other grids are no problem.

    Raises:
        CaseListError: A folder is missing or empty.
        OrganError: The organ is not among the label names.
    """
    truth, names = _truth(labels)
    resolved = resolve_labels(names or get_convention("standard"), organ, source=labels)
    problems: dict[str, str] = {}
    pairs: list[Pair] = []
    predicted = _of_organ(_single(label_files(predictions), problems), organ, problems)
    known = {case for case, _ in truth}
    for case, files in truth:
        if case in problems:
            continue
        if len(files) > 1:
            problems[case] = too_many([file.image for file in files])
        elif case in predicted:
            pairs.append(Pair(case=case, prediction=predicted[case], truth=files[0]))
    for case in sorted(predicted.keys() - known):
        problems[case] = f"{labels} holds no labels of {predicted[case].name}: add them, or take the prediction away."
    missing = tuple(sorted(known - predicted.keys() - problems.keys()))
    if not resample:
        pairs = list(_on_one_grid(pairs, problems))
    if healthy is not None:
        taken = known | predicted.keys()
        scans = _of_organ(_single(label_files(healthy), problems), organ, problems)
        for case, file in scans.items():
            if case in taken:
                problems[case] = f"{predictions} and {healthy} both hold the case {case}: a scan counts once."
                pairs = [pair for pair in pairs if pair.case != case]
            else:
                pairs.append(Pair(case=case, prediction=file, truth=None))
    pairs.sort(key=lambda pair: pair.case)
    return Cohort(pairs=tuple(pairs), label_names=names, labels=resolved, problems=problems, missing=missing)


def read_pair(pair: Pair, cohort: Cohort) -> tuple[Volume, Volume]:
    """Read the label maps of a pair, 0 background, 1 organ, 2 tumor, each on its own grid.

    Returns:
        Prediction and truth; for a healthy scan without labels a truth without anything, on the prediction's grid.

    Raises:
        VolumeError: A file cannot be used, or holds a label that nothing names.
    """
    prediction = read_labels(pair.prediction)
    _check_standard(prediction)
    if pair.truth is None:
        return prediction, replace(prediction, data=np.zeros(prediction.grid.shape, np.uint8))
    truth = read_case_labels(pair.truth, cohort.label_names)
    if not cohort.label_names:
        _check_standard(truth)
    elif unknown := set(np.unique(truth.data).tolist()) - {0, *cohort.label_names.values()}:
        raise VolumeError(
            f"{truth.path} holds label {min(unknown)}, which the label names of its data set do not have: add its name "
            "to them, or correct the file."
        )
    standard = cohort.labels.to_standard(truth.data, source=truth.path, require_organ=False)
    return prediction, replace(truth, data=standard)


def _truth(labels: Path) -> tuple[list[tuple[str, tuple[Case, ...]]], Mapping[str, int]]:
    """Return ids with their labels, one where all is well, and label names, empty where the source gives none."""
    if labels.is_file() or (labels / "dataset.json").is_file() or _holds_folders_of_cases(labels):
        listing = read_cases(labels)
        return [(case.id, (case,)) for case in listing.cases if case.labels is not None], listing.label_names
    files = label_files(labels)
    found = [(case, tuple(Case(case, path, path) for path in paths)) for case, paths in files.items()]
    return found, label_names_of(labels)


def _holds_folders_of_cases(folder: Path) -> bool:
    """Whether a folder holds no label maps but folders of cases, as AbdomenAtlas and TotalSegmentator do."""
    if not folder.is_dir() or any(is_nifti(path) for path in folder.iterdir()):
        return False
    return any(path.is_dir() and (path / "segmentations").is_dir() for path in folder.iterdir())


def _single(files: Mapping[str, tuple[Path, ...]], problems: dict[str, str]) -> dict[str, Path]:
    """Return the file of each case that has one; the others become problems."""
    problems.update({case: too_many(paths) for case, paths in files.items() if len(paths) > 1})
    return {case: paths[0] for case, paths in files.items() if len(paths) == 1}


def _of_organ(predicted: Mapping[str, Path], organ: Organ, problems: dict[str, str]) -> dict[str, Path]:
    """Return the predictions that are not said to be of another organ; the others become problems."""
    kept = {}
    for case, path in predicted.items():
        try:
            check_predicted_organ({case: path}, organ)
        except DiffTumorError as error:
            problems[case] = sentence_of(error)
        else:
            kept[case] = path
    return kept


def _on_one_grid(pairs: list[Pair], problems: dict[str, str]) -> Iterator[Pair]:
    """Yield the pairs whose headers agree; the others become problems."""
    for pair in pairs:
        try:
            _check_headers(pair)
        except DiffTumorError as error:
            problems[pair.case] = sentence_of(error)
        else:
            yield pair


def _check_headers(pair: Pair) -> None:
    truth = None if pair.truth is None else pair.truth.labels
    if truth is None or truth.is_dir():  # A folder of structures is looked at when it is read.
        return
    compare_grids(read_grid(pair.prediction), read_grid(truth), pair.prediction, truth)


def _check_standard(labels: Volume) -> None:
    highest = int(np.max(labels.data))
    if highest > TUMOR:
        raise VolumeError(
            f"{labels.path} holds label {highest}: give label maps of 0 background, 1 organ, 2 tumor, "
            "or for the truth a dataset.json that names its labels."
        )


_FORMATS = "a splits_final.json of nnU-Net, or a CSV file with the columns case and fold"


def read_folds(path: Path) -> dict[str, str]:
    """Return the fold of each case, by its id.

    Args:
        path: A ``splits_final.json`` of nnU-Net, whose validation cases are those that a fold has predicted, or a CSV
            file with the columns ``case`` and ``fold``.

    Raises:
        CaseListError: The file is missing or malformed, or a case is in several folds.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # as spreadsheets write it
        pairs = _json(json.loads(text)) if path.suffix.lower() == ".json" else _csv(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaseListError(f"--folds {path} cannot be read ({error}): give {_FORMATS}.") from error
    found: dict[str, str] = {}
    for case, fold in pairs:
        if found.setdefault(case, fold) != fold:
            raise CaseListError(
                f"--folds {path} puts {case} into the folds {found[case]} and {fold}: keep one of them."
            )
    if not found:
        raise CaseListError(f"--folds {path} names no case: give {_FORMATS}.")
    return found


def _json(splits: Any) -> list[tuple[str, str]]:
    return [(str(case), str(number)) for number, split in enumerate(splits) for case in split["val"]]


def _csv(text: str) -> list[tuple[str, str]]:
    reader = csv.DictReader(text.splitlines())
    if not {"case", "fold"} <= set(reader.fieldnames or ()):
        raise ValueError("it has no columns case and fold")
    pairs = []
    for row in reader:
        if not row["case"] or not row["fold"]:
            raise ValueError(f"line {reader.line_num} has no case or no fold")
        pairs.append((row["case"].strip(), row["fold"].strip()))
    return pairs


def check_folds(folds: Mapping[str, str], cases: Iterable[str], path: Path) -> None:
    """Refuse folds that lack a case.

    Raises:
        CaseListError: They do; the message names it.
    """
    if unknown := sorted(set(cases) - folds.keys()):
        raise CaseListError(f"--folds {path} does not name the case {unknown[0]}: add it, or leave --folds out.")
