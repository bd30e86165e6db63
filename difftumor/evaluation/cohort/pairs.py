"""Predictions paired with the truth, by the names of their cases.

What is wrong with one case is noted; the others are evaluated all the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from difftumor.datasets.cases import Case, case_label_files, read_case_labels, read_cases
from difftumor.datasets.label_folders import (
    check_predicted_organ,
    holds_label_maps,
    label_files,
    label_names_of,
    too_many,
)
from difftumor.datasets.sources import read_dataset_labels
from difftumor.errors import DiffTumorError, VolumeError, sentence_of
from difftumor.scans.nifti import Volume, read_grid, read_labels
from difftumor.scans.organs import TUMOR, Organ, OrganLabels, get_convention, resolve_labels
from difftumor.scans.stored.header import compare_headers, is_nifti


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What predictions are compared with.

    Attributes:
        source: Where the labels come from.
        organ: The organ to evaluate.
        cases: Cases with labels by id; several for an id whose files are ambiguous.
        label_names: Label names that the source gives; empty if it gives none.
        labels: How the source numbers the organ and its tumors.
    """

    source: Path
    organ: Organ
    cases: Mapping[str, tuple[Case, ...]]
    label_names: Mapping[str, int]
    labels: OrganLabels


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prediction and what it is compared with.

    Attributes:
        case: Id of the case.
        prediction: Label map, 0 background, 1 organ, 2 tumor.
        truth: Case with labels; None for a healthy scan without any.
        numbers: How the prediction is numbered, if a ``dataset.json`` beside it says so, as nnU-Net writes it.
    """

    case: str
    prediction: Path
    truth: Case | None
    numbers: OrganLabels | None = None

    @property
    def patient(self) -> str:
        """Who was scanned; the case itself if the truth does not say."""
        return self.case if self.truth is None else self.truth.patient


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The predictions of one method, paired with the truth.

    Attributes:
        truth: What they are compared with.
        folders: Where the predictions are, by kind: ``predictions``, and ``healthy`` if there are any.
        pairs: In order of their ids.
        problems: Why other cases cannot be evaluated, in a sentence each, by id.
        missing: Ids of cases that have labels but no prediction.
    """

    truth: Truth
    folders: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    pairs: tuple[Pair, ...]
    problems: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    missing: tuple[str, ...] = ()


def read_truth(source: Path, organ: Organ) -> Truth:
    """List the cases that have labels, and find out how the labels are numbered.

    Args:
        source: A list of cases with labels, such as a ``dataset.json`` or its folder; or a folder of label maps,
            numbered as a ``dataset.json`` in or beside the folder says, else 0/1/2.
        organ: The organ to evaluate.

    Raises:
        CaseListError: The source is missing, empty or malformed.
        OrganError: The organ is not among the label names.
    """
    listed = (source / "dataset.json").is_file() and not holds_label_maps(source)
    if source.is_file() or listed or _holds_folders_of_cases(source):
        listing = read_cases(source)
        cases: dict[str, tuple[Case, ...]] = {case.id: (case,) for case in listing.cases if case.labels is not None}
        names = listing.label_names
    else:
        files = label_files(source)
        cases = {case: tuple(Case(case, path, path) for path in paths) for case, paths in files.items()}
        names = label_names_of(source)
    labels = resolve_labels(names or get_convention("standard"), organ, source=source)
    return Truth(source=source, organ=organ, cases=cases, label_names=names, labels=labels)


def find_pairs(
    predictions: Path, truth: Truth, *, healthy: Path | None = None, resample: bool = False, tumor_only: bool = False
) -> Cohort:
    """Pair predictions with the truth by name, and check by their headers that partners share a grid.

    Args:
        predictions: Folder of label maps named ``<case>.nii.gz`` or ``.nii``, numbered 0 background, 1 organ, 2 tumor
            or as a ``dataset.json`` in it says.
        truth: What they are compared with.
        healthy: Folder of predictions on healthy scans, which need no labels; None for none.
        resample: Whether partners may differ in grid.
        tumor_only: Whether only tumors count, so that predictions of another organ are fine.

    Raises:
        CaseListError: A folder is missing or empty, or its ``dataset.json`` is malformed.
        OrganError: The organ is not among the label names of the predictions.
    """
    problems: dict[str, str] = {}
    pairs: list[Pair] = []
    predicted = _predicted(predictions, None if tumor_only else truth.organ, problems)
    numbers = _numbers_of(predictions, truth.organ)
    for case, files in truth.cases.items():
        if case in problems:
            continue
        if len(files) > 1:
            problems[case] = too_many([file.image for file in files])
        elif case in predicted:
            pairs.append(Pair(case=case, prediction=predicted[case], truth=files[0], numbers=numbers))
    for case in sorted(predicted.keys() - truth.cases.keys()):
        name = predicted[case].name
        problems[case] = f"{truth.source} holds no labels of {name}: add them, or remove the prediction."
    missing = tuple(sorted(truth.cases.keys() - predicted.keys() - problems.keys()))
    if not resample:
        pairs = list(_on_one_grid(pairs, truth, problems))
    if healthy is not None:
        taken, numbers = truth.cases.keys() | predicted.keys(), _numbers_of(healthy, truth.organ)
        for case, file in _predicted(healthy, None if tumor_only else truth.organ, problems).items():
            if case in taken:
                problems[case] = f"{predictions} and {healthy} both hold the case {case}: a scan counts once."
                pairs = [pair for pair in pairs if pair.case != case]
            else:
                pairs.append(Pair(case=case, prediction=file, truth=None, numbers=numbers))
    pairs.sort(key=lambda pair: pair.case)
    folders = {"predictions": str(predictions), **({} if healthy is None else {"healthy": str(healthy)})}
    return Cohort(truth=truth, folders=folders, pairs=tuple(pairs), problems=problems, missing=missing)


def read_pair(pair: Pair, truth: Truth) -> tuple[Volume, Volume, NDArray[np.bool_] | None]:
    """Read the label maps of a pair, 0 background, 1 organ, 2 tumor, each on its own grid.

    Returns:
        Prediction, truth, and where the truth is labeled to be ignored (None for nowhere); for a healthy scan without
        labels an empty truth on the prediction's grid.

    Raises:
        VolumeError: A file cannot be used, or holds a label without a name.
    """
    prediction = read_labels(pair.prediction)
    if pair.numbers is None:
        _check_standard(prediction)
    else:
        numbered = pair.numbers.to_standard(prediction.data, source=prediction.path, require_organ=False)
        prediction = replace(prediction, data=numbered)
    if pair.truth is None:
        return prediction, replace(prediction, data=np.zeros(prediction.grid.shape, np.uint8)), None
    labels = read_case_labels(pair.truth, truth.label_names)
    if not truth.label_names:
        _check_standard(labels)
    elif unknown := set(np.unique(labels.data).tolist()) - {0, *truth.label_names.values()}:
        raise VolumeError(
            f"{labels.path} holds label {min(unknown)}, which has no name in its data set: name it there, or correct "
            "the file."
        )
    standard = truth.labels.to_standard(labels.data, source=labels.path, require_organ=False)
    ignored = np.isin(labels.data, truth.labels.ignore) if truth.labels.ignore else None
    return prediction, replace(labels, data=standard), ignored if ignored is not None and ignored.any() else None


def _numbers_of(predictions: Path, organ: Organ) -> OrganLabels | None:
    """Return how predictions are numbered, if a ``dataset.json`` in their folder names labels."""
    file = predictions / "dataset.json"
    names = read_dataset_labels(file) if file.is_file() else {}
    return resolve_labels(names, organ, source=file) if names else None


def _holds_folders_of_cases(folder: Path) -> bool:
    """Whether a folder holds no label maps but folders of cases, as AbdomenAtlas and TotalSegmentator do."""
    if not folder.is_dir() or any(is_nifti(path) for path in folder.iterdir()):
        return False
    return any(path.is_dir() and (path / "segmentations").is_dir() for path in folder.iterdir())


def _predicted(folder: Path, organ: Organ | None, problems: dict[str, str]) -> dict[str, Path]:
    """Return the only prediction of each case; cases with several, or with one of another organ, become problems."""
    kept: dict[str, Path] = {}
    for case, files in label_files(folder).items():
        if len(files) > 1:
            problems[case] = too_many(files)
            continue
        try:
            if organ is not None:
                check_predicted_organ(files, organ)
            kept[case] = files[0]
        except DiffTumorError as error:
            problems[case] = sentence_of(error)
    return kept


def _on_one_grid(pairs: list[Pair], truth: Truth, problems: dict[str, str]) -> Iterator[Pair]:
    """Yield the pairs whose headers agree; the others become problems."""
    for pair in pairs:
        try:
            if pair.truth is not None:
                files = case_label_files(pair.truth, truth.label_names)
                compare_headers(pair.prediction, read_grid(pair.prediction), files)
        except DiffTumorError as error:
            problems[pair.case] = sentence_of(error)
        else:
            yield pair


def _check_standard(labels: Volume) -> None:
    highest = int(np.max(labels.data))
    if highest > TUMOR:
        raise VolumeError(
            f"{labels.path} holds label {highest}: give label maps of 0 background, 1 organ, 2 tumor, "
            "or for the truth a dataset.json that names its labels."
        )
