"""Lists of cases, and folds by patient.

Sources: an MSD or nnU-Net ``dataset.json``, a JSON, CSV or plain text list, a folder of NIfTI files, and AbdomenAtlas
or TotalSegmentator folders with one label file per structure.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from difftumor.datasets.sources import Listing, RawCase, case_id, load_listing
from difftumor.errors import CaseListError, ConfigError, counted, naming
from difftumor.files.texts import read_json
from difftumor.files.writing import written_whole
from difftumor.scans.label_maps import check_stated_names
from difftumor.scans.nifti import Volume, check_same_grid, read_labels
from difftumor.scans.stored.header import is_nifti
from difftumor.seeding import numpy_generator


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        id: Unique within its list.
        image: The CT.
        labels: Label map, or a folder with one NIfTI file per structure; None if there is none.
        patient: Who was scanned; the id if the source does not say.
        tumor_organs: Organs with tumors, empty for a healthy scan; None if the source does not say.
        fingerprint: That of the CT, as text; empty if the source does not say.
    """

    id: str
    image: Path
    labels: Path | None = None
    patient: str = ""
    tumor_organs: tuple[str, ...] | None = None
    fingerprint: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.id)


@dataclass(frozen=True)
class CaseList:
    """The cases of one source.

    Attributes:
        cases: In the order of the source.
        label_names: Name to number of the label maps; empty if the source does not say.
        source: File or folder it was read from.
        validation_ids: Cases that the source sets apart for validation; empty if it sets none apart.
    """

    cases: tuple[Case, ...]
    label_names: Mapping[str, int]
    source: Path
    validation_ids: tuple[str, ...] = field(default=())


@naming
def read_cases(source: Path, *, root: Path | None = None, check_files: bool = True) -> CaseList:
    """Read a list of cases and check that its files are there.

    Args:
        source: A ``dataset.json`` or a folder that holds one; a JSON, CSV or text list; a folder of NIfTI files; a
            folder of case folders (``CASE/ct.nii.gz`` and ``CASE/segmentations/*.nii.gz``).
        root: What relative paths in the list are relative to; the list's folder by default.
        check_files: Whether a file that is missing refuses the list; without, reading that file does.

    Raises:
        CaseListError: The source is missing, malformed or empty, an id occurs twice, or a file is missing.
    """
    source = Path(source)
    listing = load_listing(source, root=root)
    cases = tuple(_case(raw) for raw in listing.cases)
    if not cases:
        raise CaseListError(f"{source} lists no cases; give a list or folder with at least one CT.")
    repeated = [id_ for id_, count in Counter(case.id for case in cases).items() if count > 1]
    if repeated:
        raise CaseListError(f"{source} lists case id {repeated[0]!r} more than once; give each case an id of its own.")
    try:
        if check_files:
            _check_files(cases, source)
    except OSError as error:  # such as a name that is too long
        raise CaseListError(f"{source} lists a file that cannot be looked up ({error}); correct the path.") from error
    return CaseList(cases, _label_names(listing), source, tuple(raw.id for raw in listing.cases if raw.validation))


def read_case_list(source: Path, *, check_files: bool = True) -> CaseList:
    """Read a list of cases as ``read_cases`` does, or make one of a single CT.

    Args:
        source: The list or the CT.
        check_files: As for ``read_cases``.

    Raises:
        CaseListError: The CT does not exist, or the list cannot be used.
    """
    if is_nifti(source) and not source.is_dir():
        if not source.exists():
            raise CaseListError(f"{source} does not exist: give a CT, a folder of CTs or a list.")
        return CaseList((Case(case_id(source), source),), {}, source)
    return read_cases(source, check_files=check_files)


def case_label_files(
    case: Case, label_names: Mapping[str, int], *, only: Collection[int] | None = None
) -> tuple[Path, ...]:
    """Return the files that `read_case_labels` would read."""
    if case.labels is None or not case.labels.is_dir():
        return () if case.labels is None else (case.labels,)
    return structure_files(case, label_names, set(label_names.values()) - {0} if only is None else only)


def read_case_labels(
    case: Case, label_names: Mapping[str, int], *, only: Collection[int] | None = None, beside: Iterable[Path] = ()
) -> Volume:
    """Read a case's labels, joining one file per structure if its labels are a folder.

    Args:
        case: A case with labels.
        label_names: The list's label names; they number the files of a folder.
        only: Numbers wanted from a folder, all by default; files of others are not read.
        beside: Files that must lie on the labels' grid, of which headers are compared before voxels are read.

    Returns:
        Labels on the case's grid; if structures overlap, the higher number wins.

    Raises:
        CaseListError: The case has no labels, or its folder holds none of the files.
        VolumeError: A file cannot be used.
        GridMismatchError: Files of the folder differ in grid.
        OrganError: The label map gives its numbers other names.
    """
    if case.labels is None:
        raise CaseListError(f"Case {case.id!r} ({case.image}) has no labels; give a list that names them.")
    if not case.labels.is_dir():
        labels = read_labels(case.labels, beside=beside)
        check_stated_names(labels, label_names)
        return labels
    joined: Volume | None = None
    dtype = np.min_scalar_type(max(label_names.values(), default=0))
    for name, number in sorted(label_names.items(), key=lambda item: item[1]):
        file = _structure_file(case.labels, name)
        if number == 0 or file is None or (only is not None and number not in only):
            continue
        part = read_labels(file, beside=beside)
        if joined is None:
            beside = (file,)
            joined = Volume(np.zeros(part.grid.shape, dtype, order="F"), part.grid, case.labels, part.header)
        check_same_grid(joined, part)
        joined.data[part.data > 0] = number
    if joined is None:
        raise CaseListError(
            f"{case.labels} holds none of the label files of the list; name them as the list names labels."
        )
    return joined


def structure_files(case: Case, label_names: Mapping[str, int], numbers: Collection[int]) -> tuple[Path, ...]:
    """Return the files of some structures of a case whose labels are a folder, in the order of their numbers."""
    named = sorted((number, name) for name, number in label_names.items() if number in numbers)
    found = [_structure_file(case.labels, name) for _, name in named] if case.labels is not None else []
    return tuple(file for file in found if file is not None)


def number_structures(names: Iterable[str]) -> dict[str, int]:
    """Number structures that have a file of their own, tumors last, so that they win if both are marked."""
    tumors = ("tumor", "tumour", "lesion", "cancer", "pdac")
    ordered = sorted(set(names), key=lambda name: (any(word in name for word in tumors), name))
    return {"background": 0, **{name: number for number, name in enumerate(ordered, start=1)}}


def folds(cases: Sequence[Case], *, count: int = 5, fold: int, seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Split cases by patient into training and validation.

    The split depends on the set of patients, the seed and ``count``, not on the order of the cases. Each patient is in
    the validation part of exactly one fold; folds differ by at most one patient.

    Args:
        cases: The cases; kept in order.
        count: Number of folds, at least 2.
        fold: Which fold validates, from 0.
        seed: Seed of the shuffle.

    Returns:
        Training and validation cases.

    Raises:
        ConfigError: ``count`` or ``fold`` is out of range.
        CaseListError: There are fewer patients than folds.
    """
    if count < 2:
        raise ConfigError(f"The number of folds is {count}; give 2 or more.")
    if not 0 <= fold < count:
        raise ConfigError(f"Fold {fold} does not exist; give one from 0 to {count - 1}.")
    if len(patients := {case.patient for case in cases}) < count:
        raise CaseListError(
            f"{counted(len(patients), 'patient')} cannot make {count} folds: add scans of others, or make fewer folds "
            "(folds.count in training)."
        )
    held_out = _dealt(cases, count, fold, seed)
    return (
        tuple(case for case in cases if case.patient not in held_out),
        tuple(case for case in cases if case.patient in held_out),
    )


def split_by_ids(cases: Sequence[Case], validation_ids: Collection[str]) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Split cases into training and validation by an explicit list of ids.

    Raises:
        CaseListError: An id is unknown, a part is empty, or a patient is in both parts.
    """
    unknown = sorted(set(validation_ids) - {case.id for case in cases})
    if unknown:
        raise CaseListError(f"Validation case {unknown[0]!r} is not in the list; correct the id or add the case.")
    held_out = set(validation_ids)
    training = tuple(case for case in cases if case.id not in held_out)
    validation = tuple(case for case in cases if case.id in held_out)
    if not training or not validation:
        empty = "training" if not training else "validation"
        raise CaseListError(f"The validation list leaves no case for {empty}; change the list.")
    shared = sorted({case.patient for case in training} & {case.patient for case in validation})
    if shared:
        raise CaseListError(
            f"Patient {shared[0]!r} is in training and validation; put all scans of a patient on one side."
        )
    return training, validation


def _case(raw: RawCase) -> Case:
    return Case(raw.id, raw.image, raw.labels, raw.patient, raw.tumor_organs, raw.fingerprint)


def _label_names(listing: Listing) -> Mapping[str, int]:
    """Number the structures of one-file-per-structure folders by name where the source gives no numbers."""
    if listing.label_names or not listing.structures:
        return dict(listing.label_names)
    return number_structures(listing.structures)


def _check_files(cases: Sequence[Case], source: Path) -> None:
    if folders := [case.image for case in cases if case.image.is_dir()]:
        inside = " that holds a file of its name: give that one" if (folders[0] / folders[0].name).is_file() else ""
        raise CaseListError(f"{source} lists {folders[0]}, which is a folder{inside}; name CTs as files, in a list.")
    missing = [case.image for case in cases if not case.image.is_file()]
    missing += [case.labels for case in cases if case.labels is not None and not case.labels.exists()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CaseListError(f"{source} lists {missing[0]}, which does not exist{more}; correct the path or the list.")
    for case in cases:
        if not is_nifti(case.image):
            raise CaseListError(f"{source} lists {case.image}, which is not a NIfTI file; convert it to .nii.gz.")


def _structure_file(folder: Path, name: str) -> Path | None:
    for suffix in (".nii.gz", ".nii"):
        if (file := folder / f"{name}{suffix}").is_file():
            return file
    return None


def write_case_list(file: Path, cases: CaseList, *, name: str, more: Mapping[str, Any] | None = None) -> None:
    """Write a list in the form of an MSD ``dataset.json``; whole or not at all.

    Paths inside the list's folder are relative to it, so that both can move together; others are absolute.

    Args:
        file: Where to.
        cases: The cases, what their labels mean, and which are set apart for validation.
        name: What the list is of.
        more: Further keys, which readers ignore.
    """
    parts: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for case in cases.cases:
        parts["validation" if case.id in cases.validation_ids else "training"].append(_entry(case, file.parent))
    content = {"name": name, "labels": dict(cases.label_names), **(more or {}), **parts}
    with written_whole(file) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _entry(case: Case, folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": case.id, "image": _stated(case.image, folder)}
    if case.labels is not None:
        entry["label"] = _stated(case.labels, folder)
    entry["patient"] = case.patient
    if case.tumor_organs is not None:
        entry["tumor_organs"] = list(case.tumor_organs)
    if case.fingerprint:
        entry["fingerprint"] = case.fingerprint
    return entry


def _stated(path: Path, folder: Path) -> str:
    path, folder = path.absolute(), folder.absolute()  # what a link points to may bear another name
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def split_lists(cases: CaseList, *, count: int = 5, seed: int = 0, folder: Path) -> tuple[Path, ...]:
    """Make folds by patient once, and keep them as one list per fold, which every stage takes as ``data.root``.

    A list states the cases of its fold for validation, so that each stage holds them out whatever ``fold`` says. A
    patient is held out in exactly one fold. Patients with tumors and those that are stated to be healthy are dealt out
    apart, each as ``folds`` does, so that folds differ by at most one of either. Lists that are there keep who is in
    which fold; only the paths of their files follow the given list.

    Args:
        cases: All cases; validation cases that they state are split like the others.
        count: Number of folds, at least 2.
        seed: Of the shuffle.
        folder: Where the lists are, ``fold0.json`` and so on; made if needed.

    Returns:
        The lists, by fold.

    Raises:
        ConfigError: ``count`` is out of range, or the folder cannot be written to.
        CaseListError: There are fewer patients than folds, or the lists there are of other cases, patients, ``count``
            or ``seed``.

    Example:
        >>> from pathlib import Path
        >>> lists = split_lists(read_cases(Path("/data/Task03_Liver")), folder=Path("folds/liver"))  # doctest: +SKIP
    """
    if count < 2:
        raise ConfigError(f"The number of folds is {count}; give 2 or more.")
    files = tuple(folder / f"fold{number}.json" for number in range(count))
    patients = {case.id: case.patient for case in cases.cases}
    facts = {"count": count, "seed": seed, "patients": dict(sorted(patients.items()))}
    kept = {file: _stored_split(file, facts) for file in sorted({*files, *folder.glob("fold*.json")}) if file.is_file()}
    healthy = [case for case in cases.cases if case.tumor_organs == ()]
    others = [case for case in cases.cases if case.tumor_organs != ()]
    known = {case.patient for case in others}  # with both kinds of scans, they go where those with tumors go
    alone = [case for case in healthy if case.patient not in known]
    parts = []
    for number, file in enumerate(files):
        apart = _dealt(others, count, number, seed) | _dealt(alone, count, number, seed)
        parts.append(kept.get(file, tuple(case.id for case in cases.cases if case.patient in apart)))
    if not all(parts):
        raise CaseListError(
            f"{counted(len(set(patients.values())), 'patient')} cannot make {count} folds: add scans of others, or "
            "give a smaller count."
        )
    for number, (file, held_out) in enumerate(zip(files, parts, strict=True)):
        listed = replace(cases, validation_ids=held_out)
        write_case_list(file, listed, name=f"fold {number} of {count}", more={"split": facts})
    return files


def _dealt(cases: Sequence[Case], count: int, fold: int, seed: int) -> set[str]:
    """Return the patients of a fold; with fewer patients than folds, some folds have none."""
    patients = sorted({case.patient for case in cases})
    order = numpy_generator(seed, "folds").permutation(len(patients))
    return {patients[index] for index in order[fold::count]}


def _stored_split(file: Path, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return who is held out by a list that was made of the same cases.

    Raises:
        CaseListError: It was made of others, or is not such a list.
    """
    again = f"give another folder, or remove {file.parent} to split anew, which changes what every model may learn"
    try:
        content = read_json(file)
        stored, held_out = content["split"], tuple(str(entry["id"]) for entry in content["validation"])
        before = dict(stored["patients"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaseListError(f"{file} is not a list that holds a stored fold ({error}): {again}.") from error
    for name in ("count", "seed"):
        if stored.get(name) != facts[name]:
            raise CaseListError(f"{file} was split with {name} {stored.get(name)}, not {facts[name]}: {again}.")
    now = facts["patients"]
    if changed := sorted(id_ for id_ in {*before, *now} if before.get(id_) != now.get(id_)):
        what = "is new" if changed[0] not in before else "is gone" if changed[0] not in now else "has another patient"
        raise CaseListError(f"{file} was split of other cases ({changed[0]} {what}): {again}.")
    return held_out
