"""The formats that lists of cases come in, read into one plain form."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difftumor.errors import CaseListError
from difftumor.files.texts import parse_json, parse_yaml, read_table, read_text
from difftumor.scans.stored.header import is_nifti

_CHANNEL = re.compile(r"_0000$")
_HEALTHY = frozenset({"none", "healthy"})
# Entries of one list, far more than any data set of CT has; a million would take minutes.
_MOST_CASES = 200_000
# Label maps hold numbers of 32 bits.
_HIGHEST_LABEL = 2**32 - 1


@dataclass(frozen=True)
class RawCase:
    """One entry of a list; see ``difftumor.datasets.cases.Case``. An empty patient was not stated."""

    id: str
    image: Path
    labels: Path | None = None
    patient: str = ""
    tumor_organs: tuple[str, ...] | None = None
    validation: bool = False
    fingerprint: str = ""


@dataclass(frozen=True)
class Listing:
    """What a source says: cases, label names, and the structures that have a file of their own."""

    cases: tuple[RawCase, ...]
    label_names: Mapping[str, int] = field(default_factory=dict)
    structures: tuple[str, ...] = ()


def load_listing(source: Path, *, root: Path | None = None) -> Listing:
    """Read a source in the format that its name and contents suggest.

    Raises:
        CaseListError: The source is missing, of an unknown kind, or malformed.
    """
    if source.is_dir():
        if (source / "dataset.json").is_file():
            return load_listing(source / "dataset.json", root=root)
        return _folder(source)
    if not source.is_file():
        raise CaseListError(f"{source} does not exist; give a dataset.json, a list (.json, .csv, .txt) or a folder.")
    base = source.parent if root is None else root
    suffix = source.suffix.lower()
    if suffix == ".json":
        return _json(source, base)
    if suffix == ".csv":
        return _csv(source, base)
    if suffix == ".txt":
        return _text(source, base)
    raise CaseListError(
        f"{source} is not a list of cases; give a dataset.json, a .json, .csv or .txt list or a folder."
    )


def case_id(image: Path) -> str:
    """Return a file's name without suffix and without nnU-Net's channel number ``_0000``."""
    name = image.name
    for suffix in (".nii.gz", ".nii"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return _CHANNEL.sub("", name)


def structure_folders(folder: Path) -> dict[str, Path]:
    """Return the folders with one label file per structure in a folder, by case: ``CASE`` or ``CASE/segmentations``."""
    found = {}
    for case in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        parts = case / "segmentations" if (case / "segmentations").is_dir() else case
        if _nifti_files(parts):
            found[case.name] = parts
    return found


def structures_of(folder: Path) -> tuple[str, ...]:
    """Return the names of the structures that have a file in a folder."""
    return tuple(case_id(file) for file in _nifti_files(folder))


def read_label_table(file: Path) -> Mapping[str, int]:
    """Read what label numbers mean from a JSON or YAML file: name to number, number to name, or these under "labels".

    Raises:
        CaseListError: It cannot be read, or holds no such table.
    """
    try:
        content = _json_or_yaml(_read_text(file))
    except ValueError as error:
        raise CaseListError(f"{file} is neither JSON nor YAML ({error}); correct it.") from error
    if isinstance(content, dict):
        content = content if isinstance(content.get("labels"), dict) else {"labels": content}
        content = {**content, "labels": {str(key): value for key, value in content["labels"].items()}}
    else:
        content = {"labels": content}
    names = _label_names(content, file)
    if not names:
        raise CaseListError(f'{file} names no labels; write them as {{"background": 0, "liver": 1}}.')
    return names


def _json_or_yaml(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return parse_yaml(text)


def _read_text(source: Path) -> str:
    try:
        return read_text(source)
    except (OSError, ValueError) as error:
        raise CaseListError(f"{source} cannot be read ({error}); save it as UTF-8 text.") from error


def read_dataset_labels(file: Path) -> Mapping[str, int]:
    """Return the label names of a ``dataset.json``, whatever else it states; empty if it has none.

    Raises:
        CaseListError: It cannot be read or is malformed.
    """
    content = _parsed_json(file)
    return _label_names(content, file) if isinstance(content, dict) else {}


def _parsed_json(source: Path) -> Any:
    try:
        return parse_json(_read_text(source))
    except json.JSONDecodeError as error:
        raise CaseListError(
            f"{source} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); correct it."
        ) from error
    except ValueError as error:
        raise CaseListError(f"{source} is not usable JSON ({error}); correct it.") from error


def _json(source: Path, base: Path) -> Listing:
    content = _parsed_json(source)
    if isinstance(content, list):
        return Listing(_entries(content, source, base, "entry"))
    if not isinstance(content, dict):
        raise CaseListError(f"{source} holds neither a list of cases nor a mapping with 'training'; write one.")
    label_names = _label_names(content, source, predicted=False)
    if "training" not in content and "dataset" in content:
        return Listing(_nnunet_listed(content["dataset"], source, base), label_names)
    if "training" not in content:
        if (base / "imagesTr").is_dir():
            return Listing(_nnunet(base), label_names)
        raise CaseListError(f"{source} has no 'training' list and no folder imagesTr beside it; add one of them.")
    parts: list[RawCase] = []
    for key in ("training", "validation"):
        entries = content.get(key, [])
        if not isinstance(entries, list):
            raise CaseListError(f"{source} has no list under {key!r}; list its cases there.")
        parts += _entries(entries, source, base, f"{key} entry", validation=key == "validation")
    return Listing(tuple(parts), label_names)


def _label_names(content: Mapping[str, Any], source: Path, *, predicted: bool = True) -> dict[str, int]:
    """Read label names as MSD writes them, ``{"1": "liver"}``, or as nnU-Net does, ``{"liver": 1}``."""
    labels = content.get("labels", {})
    if not isinstance(labels, dict):
        raise CaseListError(f'{source} has no mapping under \'labels\'; write it as {{"background": 0, "liver": 1}}.')
    if any(isinstance(value, list) for value in labels.values()):
        labels = _number_regions(labels, content.get("regions_class_order"), source, predicted=predicted)
    names: dict[str, int] = {}
    for key, value in labels.items():
        if isinstance(value, str) and re.fullmatch(r"\d+", key):
            name, number = value, int(key)
        elif isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"\d+", value)):
            name, number = key, int(value)
        else:
            raise CaseListError(f"{source} gives label {key!r} the value {value!r}; give one whole number per label.")
        if not 0 <= number <= _HIGHEST_LABEL:
            raise CaseListError(f"{source} gives label {name!r} the number {number}; give one from 0 to 2**32 - 1.")
        if name in names:
            raise CaseListError(f"{source} names the label {name!r} twice; give each number a name of its own.")
        names[name] = number
    return names


def _number_regions(labels: Mapping[str, Any], order: Any, source: Path, *, predicted: bool) -> dict[str, Any]:
    """Return labels with one number for each region of nnU-Net, ``{"kidney": [1, 2], "kidney_tumor": 2}``.

    nnU-Net writes the regions one over another, the i-th as the i-th number of ``regions_class_order``; background and
    ignored voxels are no regions. Labels that it merges to one number are kept apart in the maps that it learns from.
    """
    others = {name: value for name, value in labels.items() if name == "ignore" or value in (0, [0])}
    regions = {name: value for name, value in labels.items() if name not in others}
    learned = [number for value in regions.values() for number in (value if isinstance(value, list) else [value])]
    written = order if isinstance(order, list) else []
    if len(written) != len(regions) or not all(isinstance(number, int) for number in (*learned, *written)):
        raise CaseListError(
            f"{source} lists several numbers for a label: give each label one whole number, or add "
            f"'regions_class_order' with one for each of {', '.join(map(repr, regions))}, as nnU-Net needs."
        )
    if not predicted and (lost := set(learned) - set(written)):
        raise CaseListError(f"{source} names no label of number {min(lost)} alone; give each label one number.")
    # KiTS: what of "masses" is no tumor is a cyst.
    names = ["cyst" if name == "masses" and "tumor" in regions else name for name in regions]
    return {name: 0 if value == [0] else value for name, value in others.items()} | dict(
        zip(names, written, strict=True)
    )


def _entries(
    entries: Sequence[Any], source: Path, base: Path, what: str, *, validation: bool = False
) -> tuple[RawCase, ...]:
    _check_count(entries, source)
    return tuple(
        _entry({"image": entry} if isinstance(entry, str) else entry, source, base, f"{what} {number}", validation)
        for number, entry in enumerate(entries, start=1)
    )


def _check_count(entries: Sequence[Any], source: Path) -> None:
    if len(entries) > _MOST_CASES:
        raise CaseListError(f"{source} lists {len(entries)} cases, more than {_MOST_CASES}; give several lists.")


def _entry(entry: Any, source: Path, base: Path, where: str, validation: bool = False) -> RawCase:
    """Read one entry; ``where`` names it in messages."""
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise CaseListError(f"{source}, {where}, names no image; give the path of its CT under 'image'.")
    labels = entry.get("label", entry.get("labels"))
    if labels is not None and not isinstance(labels, str):
        raise CaseListError(f"{source}, {where}, gives {labels!r} as labels; give the path of one label map.")
    organs = entry.get("tumor_organs")
    if organs is not None:
        if not isinstance(organs, list) or not all(isinstance(organ, str) for organ in organs):
            raise CaseListError(f"{source}, {where}, gives {organs!r} as tumor_organs; give a list of organ names.")
        organs = tuple(organs)
    fingerprint = entry.get("fingerprint", "")
    if not isinstance(fingerprint, str):
        raise CaseListError(f"{source}, {where}, gives a fingerprint that is no text; leave it out.")
    image = base / entry["image"]
    patient = entry.get("patient")
    return RawCase(
        id=str(entry.get("id") or case_id(image)),
        image=image,
        labels=base / labels if labels else None,
        patient="" if patient is None else str(patient),
        tumor_organs=organs,
        validation=validation,
        fingerprint=fingerprint,
    )


def _csv(source: Path, base: Path) -> Listing:
    """Read a table with a column image and optionally id, labels, patient, tumor_organs.

    Several organs are separated by semicolons or spaces; "none" is a healthy scan, an empty cell says nothing.
    """
    try:
        names, rows = read_table(source)
    except (OSError, ValueError) as error:
        raise CaseListError(
            f"{source} cannot be read ({error}); save it as UTF-8, and quote commas in paths."
        ) from error
    if "image" not in [name.strip().lower() for name in names]:
        raise CaseListError(f"{source} has no column 'image'; its first line must name the columns, as image,labels.")
    _check_count(rows, source)
    cases = []
    for line, row in rows:
        entry: dict[str, Any] = {name.strip().lower(): value.strip() for name, value in row.items() if value.strip()}
        if not entry:
            continue
        if "tumor_organs" in entry:
            words = re.split(r"[;\s]+", entry["tumor_organs"])
            entry["tumor_organs"] = [word for word in words if word and word.lower() not in _HEALTHY]
        cases.append(_entry(entry, source, base, f"line {line}"))
    return Listing(tuple(cases))


def _text(source: Path, base: Path) -> Listing:
    """Read lines of an image and optionally a label map, separated by a tab or spaces; "#" starts a comment."""
    cases, lines = [], _read_text(source).splitlines()
    _check_count(lines, source)
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        words = text.split("\t") if "\t" in text else text.split()
        if len(words) > 2:
            raise CaseListError(f"{source}, line {number}, has {len(words)} values; give an image and a label map.")
        if words:
            entry = dict(zip(("image", "label"), (word.strip() for word in words), strict=False))
            cases.append(_entry(entry, source, base, f"line {number}"))
    return Listing(tuple(cases))


def _nnunet(base: Path) -> tuple[RawCase, ...]:
    """List an nnU-Net data set, which names its cases only by their files."""
    cases = []
    for image in _nifti_files(base / "imagesTr"):
        names = [base / "labelsTr" / f"{case_id(image)}{suffix}" for suffix in (".nii.gz", ".nii")]
        labels = next((name for name in names if name.is_file()), None)
        cases.append(RawCase(case_id(image), image, labels))
    return tuple(cases)


def _nnunet_listed(cases: Any, source: Path, base: Path) -> tuple[RawCase, ...]:
    """List what ``dataset`` names: {case: {"images": [path], "label": path}}; files beside it are not of the data set.

    Raises:
        CaseListError: It is malformed, or a case has several images.
    """
    if not isinstance(cases, dict):
        raise CaseListError(f"{source} has no mapping under 'dataset'; list its cases there, or leave it out.")
    found = []
    for name, entry in cases.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(images, list) or len(images) != 1:
            raise CaseListError(f"{source}, case {name!r}, does not name one image; give one CT under 'images'.")
        named = {"id": name, "image": images[0], "label": entry.get("label")}
        found.append(_entry(named, source, base, f"case {name!r}"))
    return tuple(found)


def lists_cases(file: Path) -> bool:
    """Whether a ``dataset.json`` lists cases, or lies beside those of nnU-Net; else it only names labels.

    Raises:
        CaseListError: It cannot be read.
    """
    content = _parsed_json(file)
    if isinstance(content, dict) and {"training", "dataset"}.isdisjoint(content):
        return (file.parent / "imagesTr").is_dir()
    return True


def _folder(source: Path) -> Listing:
    """List a folder of case folders, or else a folder of NIfTI files without labels."""
    cases: list[RawCase] = []
    structures: set[str] = set()
    for image in sorted((*source.glob("*/ct.nii.gz"), *source.glob("*/ct.nii"))):
        parts = image.parent / "segmentations"
        files = _nifti_files(parts) if parts.is_dir() else []
        structures.update(case_id(file) for file in files)
        cases.append(RawCase(image.parent.name, image, parts if files else None))
    scans = _nifti_files(source)
    if cases and scans:
        # Results named ct.nii.gz in a folder below the scans, for one, which must not be taken for the scans.
        raise CaseListError(
            f"{source} holds {scans[0].name} beside folders of cases ({cases[0].id}/{cases[0].image.name}): give a "
            "folder that holds one of the two, or a list."
        )
    cases = cases or [RawCase(case_id(image), image) for image in scans]
    if not cases:
        kits = " (this is the layout of KiTS: list imaging.nii.gz and segmentation.nii.gz of its cases in a CSV)"
        raise CaseListError(
            f"{source} holds no CT; give a folder of .nii or .nii.gz files, one folder per case with ct.nii.gz in it, "
            f"or a list of files{kits * any(source.glob('*/imaging.nii*'))}."
        )
    return Listing(tuple(cases), structures=tuple(sorted(structures)))


def _nifti_files(folder: Path) -> Sequence[Path]:
    return sorted(file for file in folder.iterdir() if is_nifti(file) and not file.name.startswith("."))
