"""Evaluation of a folder of predicted label maps against true ones, case by case."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difftumor.datasets.cases import Case, read_case_labels, read_cases
from difftumor.datasets.sources import case_id, read_dataset_labels
from difftumor.errors import CaseListError, VolumeError
from difftumor.evaluation.case_scores import CaseResult, evaluate_case
from difftumor.evaluation.detection import Matching
from difftumor.evaluation.overlap import TOLERANCE_MM
from difftumor.grids import compare_grids
from difftumor.organs import TUMOR, Organ, OrganLabels, get_convention, resolve_labels
from difftumor.volume import Volume, check_same_grid, is_nifti, read_grid, read_labels


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prediction and what it is compared with.

    Attributes:
        case: Id of the case.
        prediction: Label map, 0 background, 1 organ, 2 tumor.
        truth: Case with labels.
    """

    case: str
    prediction: Path
    truth: Case


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What is to be evaluated.

    Attributes:
        pairs: In order of their ids.
        label_names: Label names of the truth, as its source says; empty where it does not.
        labels: How the truth numbers the organ and its tumors.
    """

    pairs: tuple[Pair, ...]
    label_names: Mapping[str, int]
    labels: OrganLabels


def find_pairs(predictions: Path, labels: Path, organ: Organ, *, subset: bool = False) -> Cohort:
    """Pair the files of two folders by name, and check by their headers that partners share a grid.

    Args:
        predictions: Folder of label maps named ``<case>.nii.gz`` or ``.nii``.
        labels: A list of cases with labels, such as a ``dataset.json`` or its folder; or a folder of label maps with
            the names of the predictions, numbered as a ``dataset.json`` beside the folder says, else 0/1/2.
        organ: Organ whose labels are wanted.
        subset: Let cases without a prediction be.

    Raises:
        CaseListError: A folder is missing or empty, a prediction is of another organ, or a case has no partner; the
            message names the first ones.
        OrganError: The organ is not among the label names.
        VolumeError: A file cannot be used.
        GridMismatchError: Prediction and truth of a case differ in grid.
    """
    predicted = label_maps(predictions)
    check_predicted_organ(predicted, organ)
    truth, names = _truth(labels)
    resolved = resolve_labels(names or get_convention("standard"), organ, source=labels)
    _check_partners(predicted.keys() - truth.keys(), f"{labels} holds no labels of", "leave out their predictions")
    if not subset:
        remedy = "predict them too, or evaluate a subset (--subset)"
        _check_partners(truth.keys() - predicted.keys(), f"{predictions} holds no prediction of", remedy)
    pairs = tuple(Pair(case=case, prediction=predicted[case], truth=truth[case]) for case in sorted(predicted))
    for pair in pairs:
        _check_headers(pair)
    return Cohort(pairs=pairs, label_names=names, labels=resolved)


def evaluate_pair(
    pair: Pair,
    cohort: Cohort,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    matching: Matching = Matching(),  # noqa: B008 (frozen)
) -> CaseResult:
    """Read and evaluate one case.

    Raises:
        VolumeError: A file cannot be used, or holds labels other than 0, 1 and 2.
        GridMismatchError: Prediction and truth differ in grid.
    """
    prediction = read_labels(pair.prediction)
    truth = read_case_labels(pair.truth, cohort.label_names)
    check_same_grid(prediction, truth)
    _check_standard(prediction)
    if not cohort.label_names:
        _check_standard(truth)
    standard = cohort.labels.to_standard(truth.data, source=truth.path, require_organ=False)
    return evaluate_case(pair.case, prediction.data, standard, truth.grid, tolerance_mm=tolerance_mm, matching=matching)


def _truth(labels: Path) -> tuple[dict[str, Case], Mapping[str, int]]:
    """Return cases with labels by id, and label names, empty where the source gives none."""
    if labels.is_file() or (labels / "dataset.json").is_file():
        listing = read_cases(labels)
        return {case.id: case for case in listing.cases if case.labels is not None}, listing.label_names
    maps = {case: Case(case, path, path) for case, path in label_maps(labels).items()}
    return maps, label_names_of(labels)


def label_maps(folder: Path) -> dict[str, Path]:
    """Return the label maps of a folder by the id of their case.

    Raises:
        CaseListError: The folder is missing or empty, or two files belong to one case.
    """
    if not folder.is_dir():
        raise CaseListError(f"There is no folder {folder}: give a folder of label maps (.nii.gz or .nii).")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not is_nifti(path) or path.name.startswith("."):
            continue
        case = case_id(path)
        if case in found:
            raise CaseListError(f"{folder} holds {found[case].name} and {path.name}: keep one of them.")
        found[case] = path
    if not found:
        raise CaseListError(f"{folder} holds no label maps: give a folder of .nii.gz or .nii files.")
    return found


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


def _check_partners(missing: set[str], what: str, remedy: str) -> None:
    if missing:
        names = ", ".join(sorted(missing)[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise CaseListError(f"{what} {names}: {remedy}.")


def _check_headers(pair: Pair) -> None:
    truth = pair.truth.labels
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
