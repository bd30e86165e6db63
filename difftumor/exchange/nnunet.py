"""Cases as a raw data set of nnU-Net v2, with synthetic copies of healthy ones, and splits by patient."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor import __version__
from difftumor.datasets.cases import Case, CaseList, case_label_files, folds, read_case_labels, split_by_ids
from difftumor.datasets.tumor_cases import SortedCases, sort_cases
from difftumor.errors import CaseListError, ConfigError
from difftumor.files.results import MADE_BY, ResultFolder, is_json_with
from difftumor.files.writing import folder_written_whole
from difftumor.reporting.tables import write_json
from difftumor.scans.hounsfield import organ_doubts, settle
from difftumor.scans.nifti import Volume, check_same_grid, read_ct, read_labels, write_ct, write_labels
from difftumor.scans.organs import BACKGROUND, ORGAN, TUMOR, Organ, OrganLabels, resolve_labels
from difftumor.scans.stored.readers import choose_reader
from difftumor.seeding import numpy_generator
from difftumor.synthesis.scan.cohort import Outcome, inputs_of, synthesize_cohort
from difftumor.synthesis.scan.files import ScanSynthesizer
from difftumor.synthesis.scan.options import SynthesisOptions
from difftumor.synthesis.scan.record import CT_FILE, LABELS_FILE, LESIONS_FILE

DATASET_FILE, SPLITS_FILE = "dataset.json", "splits_final.json"
IMAGES, LABELS, SYNTHETIC = "imagesTr", "labelsTr", "synthetic"
DATASET_FOLDER = ResultFolder(
    what="export",
    holds=(DATASET_FILE, SPLITS_FILE, f"{IMAGES}/**", f"{LABELS}/**", f"{SYNTHETIC}/**"),
    mark=DATASET_FILE,
    is_own=is_json_with(MADE_BY),
)
IGNORE = TUMOR + 1  # nnU-Net wants it to be the highest
FOLDS = 5  # as nnU-Net's own


@dataclass(frozen=True)
class Entry:
    """A case of the data set.

    Attributes:
        case: Its id, patient and organs with tumors (for a copy, those that were made).
        source: Id of the healthy case that a synthetic copy is made of; None for a case of the list.
    """

    case: Case
    source: str | None = None


@dataclass(frozen=True)
class ExportedDataset:
    """What an export wrote.

    Attributes:
        cases: Number of cases of the list.
        copies: Number of synthetic copies.
        failed: Ids of copies that could not be made, and why.
        warnings: What speaks against CTs of the list, in sentences.
    """

    cases: int
    copies: int
    failed: Mapping[str, str]
    warnings: tuple[str, ...] = ()


@contextmanager
def _silent(description: str, total: int) -> Iterator[Callable[[], None]]:
    yield lambda: None


def check_dataset_name(folder: Path) -> int:
    """Return the number in the name of a data set's folder.

    Raises:
        ConfigError: The name is not one that nnU-Net finds.
    """
    found = re.fullmatch(r"Dataset(\d{3})_[\w.-]+", folder.name)
    if found is None or found[1] == "000":
        raise ConfigError(
            f"OUT {folder} is not a name that nnU-Net finds: use one such as nnUNet_raw/Dataset501_LiverTumor."
        )
    return int(found[1])


def export_dataset(
    out: Path,
    cases: CaseList,
    organ: Organ,
    *,
    synthesis: SynthesisOptions | None = None,
    copies: int = 0,
    assume_healthy: bool = False,
    accept_hu: bool = False,
    seed: int = 0,
    jobs: int = 1,
    overwrite: bool = False,
    progress: Callable[[str, int], AbstractContextManager[Callable[[], None]]] = _silent,
) -> ExportedDataset:
    """Write a data set; it appears whole or not at all.

    Args:
        out: Folder to make, named as nnU-Net requires.
        cases: The list.
        organ: The organ, and where tumors matter.
        synthesis: How synthetic tumors are made; needed for copies.
        copies: Number of synthetic copies of healthy cases.
        assume_healthy: Take a case for healthy if neither the list nor its label map could show tumors.
        accept_hu: Take CTs that cannot be in HU, and masks that cannot be of the organ.
        seed: Of the folds and the choice of cases to copy.
        jobs: Processes that make copies.
        overwrite: Replace an earlier export at ``out``.
        progress: Called with a description and a number of steps; yields a function that is called after each step.

    Raises:
        CaseListError: A case cannot be used, no reader of nnU-Net sees all CTs as they are, or as `plan_entries`.
        ConfigError: The name is not one that nnU-Net finds, ``out`` must not be replaced, or copies lack ``synthesis``.
    """
    check_dataset_name(out)
    if copies and synthesis is None:
        raise ConfigError("Copies need synthesis: say which tumors they get.")
    given = [file for case in cases.cases for file in (case.image, case.labels) if file is not None]
    DATASET_FOLDER.check(out, option="OUT", inputs=(cases.source, *given), overwrite=overwrite)
    reader = choose_reader(case.image for case in cases.cases)  # labels and copies get the headers of their CTs
    with progress("Reading labels", len(cases.cases)) as advance:
        found = sort_cases(cases, organ, assume_healthy=assume_healthy, done=advance)
    if found.left_out:
        first, more = found.left_out[0], len(found.left_out) - 1
        raise CaseListError(
            f"Case {first.case.id!r} of {cases.source} {first.reason}{f' (and {more} more such)' * (more > 0)}: "
            "remove it from the list, fix its labels, or see --convention and --assume-healthy."
        )
    real, planned = plan_entries(cases, found, copies=copies, organ=organ, seed=seed)
    failed: dict[str, str] = {}
    warnings: list[str] = []
    with folder_written_whole(out) as staging:
        with progress("Writing cases", len(cases.cases)) as advance:
            for case in cases.cases:
                warnings += _write_case(case, cases, organ, staging, accept_hu=accept_hu)
                advance()
        if synthesis is not None:
            with progress("Making tumors", len(planned)) as advance:
                for outcome in _write_copies(
                    synthesis.load, planned, cases, organ, staging, jobs=jobs, accept_hu=accept_hu
                ):
                    if outcome.status == "failed":
                        failed[outcome.id] = outcome.error
                    advance()
        made = [copy for copy in planned if copy.case.id not in failed]
        entries = [*real, *made]
        ignore = bool(resolve_labels(cases.label_names, organ, source=cases.source).ignore)
        write_json(staging / DATASET_FILE, _describe_dataset(out.name, entries, organ, reader, ignore=ignore))
        splits = split_entries(entries, validation_ids=cases.validation_ids, seed=seed)
        write_json(staging / SPLITS_FILE, splits)
    return ExportedDataset(len(real), len(made), failed, tuple(warnings))


def plan_entries(
    cases: CaseList, found: SortedCases, *, copies: int, organ: Organ, seed: int
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Decide what the data set holds.

    Args:
        cases: The list.
        found: Its cases, sorted; none may be left out.
        copies: Number of synthetic copies. Each healthy case gets as many as the others, up to one; those of the list's
            validation patients get none, as theirs could not be used.
        organ: Where tumors matter.
        seed: Of the order of the healthy cases, and of the folds.

    Returns:
        The cases of the list, and the copies.

    Raises:
        CaseListError: There is no healthy case to copy, an id cannot name a file, two would be the same, or patients do
            not allow splits.
    """
    with_tumors = {case.id for case in found.tumor}
    real = tuple(Entry(replace(case, tumor_organs=(organ.name,) * (case.id in with_tumors))) for case in cases.cases)
    held_out = {case.patient for case in cases.cases if case.id in cases.validation_ids}
    healthy = [case for case in found.healthy if case.patient not in held_out]
    if copies and not healthy:
        raise CaseListError(
            f"{cases.source} has no case without {organ.name} tumors for synthetic copies: add some, state them with "
            "tumor_organs, or omit --synthetic."
        )
    order = numpy_generator(seed, "synthetic copies").permutation(len(healthy))
    made = tuple(_copy(healthy[order[n % len(healthy)]], n // len(healthy) + 1, organ) for n in range(copies))
    _check_ids([*real, *made], cases.source)
    split_entries(real, validation_ids=cases.validation_ids, seed=seed)  # fails before anything is written
    return real, made


def _write_case(case: Case, cases: CaseList, organ: Organ, folder: Path, *, accept_hu: bool) -> tuple[str, ...]:
    """Write a case of the list: the bytes of its CT, and its labels on the CT's grid; return what speaks against it."""
    numbers = resolve_labels(cases.label_names, organ, source=cases.source)
    only = (*numbers.organ, *numbers.tumor, *numbers.ignore)
    ct = read_ct(case.image, beside=case_label_files(case, cases.label_names, only=only), accept_hu=accept_hu)
    labels = read_case_labels(case, cases.label_names, only=only)
    check_same_grid(ct, labels)
    standard = numbers.to_standard(labels.data, source=case.labels)
    found = organ_doubts(ct.data, standard, organ, ct=str(ct.path), mask=str(labels.path)) if standard.any() else ()
    doubts = ct.doubts + settle(found, accept=accept_hu)
    image, label = _places(folder, case.id)
    image.parent.mkdir(exist_ok=True)
    if case.image.name.lower().endswith(".gz"):
        shutil.copyfile(case.image, image)
    else:
        write_ct(image, ct, ct.data, np.zeros(ct.grid.shape, bool))  # the same values, compressed
    # With the CT's header, so that every reader finds both at the same place.
    write_labels(label, _with_ignore(standard, labels, numbers), ct)
    return doubts


def _with_ignore(standard: NDArray[np.uint8], labels: Volume, numbers: OrganLabels) -> NDArray[np.uint8]:
    """Return standard labels in which what a label map ignores, and is background, has nnU-Net's number for it."""
    if not numbers.ignore:
        return standard
    return np.where(np.isin(labels.data, numbers.ignore) & (standard == BACKGROUND), np.uint8(IGNORE), standard)


def _write_copies(
    load: Callable[[], ScanSynthesizer],
    entries: Sequence[Entry],
    cases: CaseList,
    organ: Organ,
    folder: Path,
    *,
    jobs: int,
    accept_hu: bool,
) -> Iterator[Outcome]:
    """Make the synthetic copies and put them among the cases; records and pictures get a folder of their own."""
    by_id = {case.id: case for case in cases.cases}
    asked = [
        (entry.case.id, inputs_of(by_id[entry.source or ""], cases, organ, accept_hu=accept_hu)) for entry in entries
    ]
    sources = {entry.case.id: entry.source or "" for entry in entries}
    for outcome in synthesize_cohort(load, asked, out=folder / SYNTHETIC, jobs=jobs):
        if outcome.status != "failed":
            made = folder / SYNTHETIC / outcome.id
            image, label = _places(folder, outcome.id)
            image.parent.mkdir(exist_ok=True)
            label.parent.mkdir(exist_ok=True)
            (made / CT_FILE).replace(image)
            (made / LABELS_FILE).replace(label)
            _ignore_in_copy(label, by_id[sources[outcome.id]], cases, organ)
            (made / LESIONS_FILE).unlink()
        yield outcome


def _ignore_in_copy(label: Path, source: Case, cases: CaseList, organ: Organ) -> None:
    """Mark in the label map of a copy what that of its source ignores."""
    numbers = resolve_labels(cases.label_names, organ, source=cases.source)
    if numbers.ignore:
        made = read_labels(label)
        before = read_case_labels(source, cases.label_names, only=numbers.ignore)
        write_labels(label, _with_ignore(made.data, before, numbers), replace(made, path=Path("copy")))


def split_entries(
    entries: Sequence[Entry], *, validation_ids: Collection[str], seed: int
) -> list[dict[str, list[str]]]:
    """Return nnU-Net's splits, by patient.

    A synthetic copy never validates, and trains only where no scan of its source's patient validates.

    Args:
        entries: The data set.
        validation_ids: Cases that the list states for validation, which makes one split; else there are five, or as
            many as patients where those are fewer.
        seed: Of the shuffle.

    Raises:
        CaseListError: There is only one patient, or the stated validation cases leave none for training.
    """
    real = [entry.case for entry in entries if entry.source is None]
    if validation_ids:
        parts = [split_by_ids(real, validation_ids)]
    elif len({case.patient for case in real}) < 2:
        raise CaseListError("All cases are of one patient, who cannot both train and validate: add another patient.")
    else:
        count = min(FOLDS, len({case.patient for case in real}))
        parts = [folds(real, count=count, fold=fold, seed=seed) for fold in range(count)]
    splits = []
    for training, validation in parts:
        held_out = {case.patient for case in validation}
        copies = [entry.case for entry in entries if entry.source is not None and entry.case.patient not in held_out]
        splits.append({"train": [case.id for case in (*training, *copies)], "val": [case.id for case in validation]})
    return splits


def _describe_dataset(
    name: str, entries: Sequence[Entry], organ: Organ, reader: str, *, ignore: bool
) -> dict[str, Any]:
    """Return the content of ``dataset.json``.

    Beside what nnU-Net reads, it lists patients and tumors, so that difftumor reads the data set as one of its own. The
    copies are listed apart: to the stages their tumors would be real ones.
    """
    training: list[dict[str, Any]] = []
    copies: list[dict[str, Any]] = []
    for entry in entries:
        case, (image, label) = entry.case, _places(Path(), entry.case.id)
        item: dict[str, Any] = {"id": case.id, "image": image.as_posix(), "label": label.as_posix()}
        item |= {"patient": case.patient, "tumor_organs": list(case.tumor_organs or ())}
        if entry.source is None:
            training.append(item)
        else:
            copies.append({**item, "synthetic_copy_of": entry.source})
    return {
        "name": name,
        "channel_names": {"0": "CT"},
        "labels": {
            "background": BACKGROUND,
            organ.name: ORGAN,
            f"{organ.name}_tumor": TUMOR,
            **({"ignore": IGNORE} if ignore else {}),
        },
        "numTraining": len(entries),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": reader,
        "training": training,
        "synthetic_copies": copies,
        MADE_BY: {"version": __version__, "organ": organ.name},
    }


def _copy(source: Case, number: int, organ: Organ) -> Entry:
    return Entry(replace(source, id=f"{source.id}_synthetic{number}", tumor_organs=(organ.name,)), source.id)


def _check_ids(entries: Sequence[Entry], source: Path) -> None:
    """Refuse ids that cannot name files, or that two cases share."""
    seen: set[str] = set()
    for entry in entries:
        name = entry.case.id
        if not re.fullmatch(r"\w[\w. -]*", name):
            raise CaseListError(
                f"Case id {name!r} of {source} cannot name a file: give it letters, digits, '_', '-' and '.' alone."
            )
        # On some systems names that differ in case alone are one.
        if name.lower() in seen:
            raise CaseListError(f"Two cases would be named {name!r} in the data set: rename that of {source}.")
        seen.add(name.lower())


def _places(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / IMAGES / f"{name}_0000.nii.gz", folder / LABELS / f"{name}.nii.gz"
