"""Predictions and what they are compared with, paired by the names of their cases.

What is wrong with one case is kept beside the others, which are evaluated all the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from difftumor.datasets.cases import Case, read_case_labels, read_cases
from difftumor.errors import DiffTumorError, VolumeError, sentence_of
from difftumor.evaluation.label_folders import check_predicted_organ, label_files, label_names_of, too_many
from difftumor.grids import compare_grids
from difftumor.organs import TUMOR, Organ, OrganLabels, get_convention, resolve_labels
from difftumor.volume import Volume, is_nifti, read_grid, read_labels


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
