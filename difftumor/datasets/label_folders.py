"""Folders of label maps: one file per case, named as the case, with or without a list of cases.

Nothing heavy is imported here, so that a command can refuse a wrong folder at once.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from difftumor.datasets.cases import CaseList, read_case_list
from difftumor.datasets.sources import case_id, lists_cases, read_dataset_labels, read_label_table
from difftumor.errors import CaseListError, ConfigError
from difftumor.files.texts import read_json
from difftumor.scans.organs import CONVENTIONS, Organ, get_convention, normalized
from difftumor.scans.stored.header import is_nifti


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


def holds_label_maps(folder: Path) -> bool:
    """Whether a folder holds label maps itself, and no list of cases; a ``dataset.json`` in it only names labels.

    Raises:
        CaseListError: Its ``dataset.json`` cannot be read.
    """
    if not folder.is_dir() or not any(is_nifti(path) and not path.name.startswith(".") for path in folder.iterdir()):
        return False
    dataset = folder / "dataset.json"
    return not dataset.is_file() or not lists_cases(dataset)


def label_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return all files of a folder by the id of their case, which should have one each.

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
    """Return the sentence that refuses several files of one case."""
    return f"{files[0].parent} holds {' and '.join(file.name for file in files)}: keep one of them."


def prediction_record(label_map: Path) -> Mapping[str, Any]:
    """Return what ``difftumor predict`` wrote about a label map beside it; empty if another program made the map."""
    try:
        content = read_json(label_map.parent / f"{case_id(label_map)}.json")
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "difftumor_version" in content else {}


def holds_tumors_only(label_map: Path) -> bool:
    """Return whether a label map holds tumors without their organ, as its record says."""
    return bool(prediction_record(label_map).get("tumor_only", False))


def check_predicted_organ(maps: Iterable[Path], organ: Organ) -> None:
    """Refuse label maps of another organ, if the records beside them, written by ``difftumor predict``, say so.

    Raises:
        CaseListError: The message names the first such file.
    """
    for path in maps:
        predicted = prediction_record(path).get("organ")
        if predicted is not None and predicted != organ.name:
            raise CaseListError(
                f"{path} is a prediction of {predicted}, as {case_id(path)}.json says, not of {organ.name}: give "
                f"--organ {predicted}, or label maps of {organ.name}."
            )


def label_names_of(folder: Path) -> Mapping[str, int]:
    """Return the label names in the ``dataset.json`` in or beside a folder of label maps; empty if there is none.

    Only the names are read: the file need not list cases, as beside nnU-Net's predictions, and CTs may be missing.

    Raises:
        CaseListError: The file is malformed.
    """
    folder = Path(os.path.abspath(folder))  # "." has no parent, and that of a link is where the link lies
    for place in (folder, folder.parent):
        if (place / "dataset.json").is_file():
            return read_dataset_labels(place / "dataset.json")
    return {}


def read_label_names(word: str) -> Mapping[str, int]:
    """Return what label numbers mean: by the name of a convention, or from a JSON or YAML file.

    Raises:
        ConfigError: There is no such convention or file.
        CaseListError: The file is malformed.
    """
    if normalized(word) in CONVENTIONS:
        return get_convention(word)
    if not Path(word).is_file():
        conventions = ", ".join(CONVENTIONS)
        raise ConfigError(f"--labels {word} is neither a file nor a convention: give a file or one of {conventions}.")
    return read_label_table(Path(word))


def listed_cases(source: Path, maps: Path | None, convention: str | None) -> CaseList:
    """Read a list; labels that the options name replace those of the list.

    Args:
        source: The list, or a folder of CTs.
        maps: Folder of masks or label maps named like the CTs; None if the list names them.
        convention: What the numbers mean; None if the list says it.

    Raises:
        CaseListError: The list cannot be used, or a CT has no file in ``maps``.
    """
    listed = read_case_list(source)
    if maps is not None:
        found = label_maps(maps)
        missing = [case.id for case in listed.cases if case.id not in found]
        if missing:
            raise CaseListError(f"{maps} has no {missing[0]}.nii.gz: name the files like their CTs.")
        listed = replace(listed, cases=tuple(replace(case, labels=found[case.id]) for case in listed.cases))
    return listed if convention is None else replace(listed, label_names=get_convention(convention))
