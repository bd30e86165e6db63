"""The list of scans with a healthy organ: which scans are judged, and what is written about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from difftumor.datasets.cases import Case, CaseList, number_structures, read_case_list, read_cases, write_case_list
from difftumor.datasets.healthy import STATUSES, HealthyRule, Verdict
from difftumor.datasets.label_folders import (
    check_predicted_organ,
    holds_tumors_only,
    label_maps,
    label_names_of,
)
from difftumor.datasets.sources import structure_folders, structures_of
from difftumor.datasets.tumor_cases import read_organ
from difftumor.errors import CaseListError, ConfigError
from difftumor.files.results import check_results
from difftumor.files.writing import folder_written_whole
from difftumor.reporting.tables import Table, write_csv
from difftumor.scans.nifti import write_labels
from difftumor.scans.organs import BACKGROUND, CONVENTIONS, ORGAN, TUMOR, Organ, OrganLabels, resolve_labels
from difftumor.scans.stored.header import is_nifti

COLUMNS = ("case", "status", "volume_ml", "pieces", "main_share", "reaches", "tumor_mm3", "reason")


def read_scans(
    predictions: Path, cts: Path | None, names: Mapping[str, int] | None, organ: Organ
) -> tuple[CaseList, list[Verdict]]:
    """Read the scans to judge.

    Args:
        predictions: A folder of label maps, or of a folder per case with a file per structure; or a list of cases.
        cts: The CTs of a folder of label maps, named like them: a folder or a list.
        names: What the numbers of the label maps mean; by default what comes with them says so.
        organ: Whose health matters.

    Returns:
        Scans with their label map, if they have one, and verdicts on label maps without a CT.

    Raises:
        DiffTumorError: The scans cannot be read or do not fit together.
    """
    if cts is None:
        with_cts = (predictions / "dataset.json").is_file() or any(predictions.glob("*/ct.nii*"))
        if predictions.is_dir() and not with_cts:
            raise ConfigError(f"{predictions} holds label maps only: give their CTs with --cts, a folder or a list.")
        listed = read_cases(predictions)
        return (listed if names is None else replace(listed, label_names=names)), []
    maps, own_names = _read_maps(predictions)
    check_predicted_organ(maps.values(), organ)
    if alone := [path for path in maps.values() if holds_tumors_only(path)]:
        raise CaseListError(
            f"{alone[0]} holds tumors without their organ: give label maps that a {organ.name} model made."
        )
    scans = read_case_list(cts)
    known = {case.id for case in scans.cases}
    if known.isdisjoint(maps):
        raise CaseListError(
            f"No CT of {cts} is named like a label map of {predictions} ({min(known)} and {min(maps)} are the first): "
            "name the label maps like their CTs."
        )
    cases = tuple(replace(case, labels=maps.get(case.id)) for case in scans.cases)
    listed = CaseList(cases, own_names if names is None else names, predictions, scans.validation_ids)
    lacking = [Case(name, path, path) for name, path in maps.items() if name not in known]
    return listed, [Verdict(case=case, status="no_ct", reasons=(f"has no CT in {cts}",)) for case in lacking]


def _read_maps(folder: Path) -> tuple[Mapping[str, Path], Mapping[str, int]]:
    """Return the label maps of a folder by case, or folders of structures, and what their numbers mean."""
    if folder.is_file():
        raise ConfigError(f"{folder} is a file: with --cts, give a folder of label maps.")
    maps = folder.is_dir() and any(is_nifti(path) for path in folder.iterdir())
    if folder.is_dir() and not maps and (parts := structure_folders(folder)):
        return parts, number_structures(name for part in parts.values() for name in structures_of(part))
    return label_maps(folder), label_names_of(folder)


def check_list_file(file: Path, cases: CaseList, *, inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse a place for a list that is badly named, holds an earlier result, or would replace an input.

    Raises:
        ConfigError: The list may not be written there.
    """
    if file.suffix != ".json":
        raise ConfigError(f"--out {file} does not end in .json: give a name such as {file.name or 'healthy'}.json.")
    files = [path for case in cases.cases for path in (case.image, case.labels) if path]
    names = [file.name, _labels_folder(file).name]
    if not _is_table(report := file.with_suffix(".csv")):  # without its list, it is of a run that found none healthy
        names.append(report.name)
    check_results(file.parent, names, inputs=[*inputs, *files], overwrite=overwrite)


def write_healthy(
    file: Path,
    verdicts: Sequence[Verdict],
    cases: CaseList,
    organ: Organ,
    rule: HealthyRule,
    *,
    assume_healthy: bool = False,
) -> Path:
    """Write the list of the healthy scans and, beside it, a table of all scans.

    Returns:
        The table.

    Raises:
        CaseListError: No scan is healthy; the table is written all the same.
        DiffTumorError: A label map cannot be read or written.
    """
    report, found = file.with_suffix(".csv"), counts(verdicts, organ)
    write_csv(report, Table.of_records(COLUMNS, rows(verdicts, rule)))
    if "healthy" not in found:
        why = ", ".join(f"{name}: {count}" for name, count in found.items())
        file.unlink(missing_ok=True)  # an earlier list, which the table contradicts
        raise CaseListError(
            f"None of the {len(verdicts)} scans of {cases.source} has a healthy {organ.name} ({why}): see {report}, "
            "and give other label maps or another rule."
        )
    write_healthy_list(file, verdicts, cases, organ, rule, assume_healthy=assume_healthy)
    return report


def _labels_folder(file: Path) -> Path:
    """Return where corrected label maps of a list are: ``healthy.json`` has ``healthy_labels``."""
    return file.with_name(f"{file.stem}_labels")


def _is_table(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.readline().strip() == ",".join(COLUMNS).encode()


def counts(verdicts: Sequence[Verdict], organ: Organ) -> dict[str, int]:
    """Return the number of scans of each status, by its title in a table, in the order of ``STATUSES``."""
    found = Counter(verdict.status for verdict in verdicts)
    return {name.format(organ=organ.name): found[status] for status, name in STATUSES.items() if found[status]}


def rows(verdicts: Sequence[Verdict], rule: HealthyRule) -> list[dict[str, str | float | int | None]]:
    """Return one row of ``COLUMNS`` for each scan; what was not measured is None."""
    table = []
    for verdict in verdicts:
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"case": verdict.case.id, "status": verdict.status, "reason": "; ".join(verdict.reasons)}
        if (measures := verdict.measures) is not None:
            row |= {
                "volume_ml": measures.volume_ml,
                "pieces": len(measures.shares),
                "main_share": sum(measures.shares[: rule.pieces]),
                "reaches": " ".join(measures.faces),
                "tumor_mm3": measures.tumor_mm3,
            }
        table.append(row)
    return table


def write_healthy_list(
    file: Path,
    verdicts: Sequence[Verdict],
    cases: CaseList,
    organ: Organ,
    rule: HealthyRule,
    *,
    assume_healthy: bool = False,
) -> None:
    """Write the healthy scans as a list that stage 3 takes as ``data.healthy_root``.

    The list names the labels of this organ only, so that it is never mistaken for one of another organ. For a scan that
    was accepted with some tumor voxels, a label map in which they are organ is written beside the list.

    Args:
        file: Where to; replaced as a whole.
        verdicts: What became of all scans.
        cases: The list the scans are of.
        organ: The healthy organ.
        rule: What healthy means.
        assume_healthy: The argument of ``select_healthy``.

    Raises:
        DiffTumorError: A label map cannot be read or written.
    """
    labels = resolve_labels(cases.label_names, organ, source=cases.source)
    healthy = [verdict for verdict in verdicts if verdict.status == "healthy"]
    specks = [verdict.case for verdict in healthy if verdict.measures is not None and verdict.measures.tumor_mm3 > 0]
    corrected = _without_specks(specks, cases, labels, _labels_folder(file))
    fit = [
        replace(verdict.case, labels=corrected.get(verdict.case.id, verdict.case.labels), tumor_organs=())
        for verdict in healthy
    ]
    others = [verdict for verdict in verdicts if verdict.status != "healthy"]
    known = {"organ_labels": labels.organ, "tumor_labels": labels.tumor, "assume_healthy": assume_healthy}
    listed = CaseList(tuple(fit), _own_names(cases.label_names, organ, labels), file, cases.validation_ids)
    more = {
        "organ": organ.name,
        "rule": asdict(rule) | known,
        "counts": counts(verdicts, organ),
        "left_out": [
            {"id": other.case.id, "status": other.status, "reason": "; ".join(other.reasons)} for other in others
        ],
    }
    write_case_list(file, listed, name=f"scans with a healthy {organ.name}", more=more)


def _own_names(names: Mapping[str, int], organ: Organ, labels: OrganLabels) -> dict[str, int]:
    """Return the names of the organ's labels; the standard convention, which fits any organ, gets its name."""
    if not names or names == CONVENTIONS["standard"]:
        return {"background": BACKGROUND, organ.name: ORGAN, f"{organ.name}_tumor": TUMOR}
    own = (*labels.organ, *labels.tumor)
    return {"background": BACKGROUND, **{name: number for name, number in names.items() if number in own}}


def _without_specks(specks: Sequence[Case], cases: CaseList, labels: OrganLabels, folder: Path) -> dict[str, Path]:
    """Write label maps in which tumors are organ, in the numbers of the list; return them by the id of their case."""
    if not specks:
        return {}
    with folder_written_whole(folder, keep_others=True) as staging:
        for case in specks:
            if Path(case.id).name != case.id:
                raise CaseListError(f"Case id {case.id!r} cannot name a file: give it one without slashes.")
            standard = read_organ(case, cases, labels)
            assert standard is not None
            organ = (standard.data > 0) * np.min_scalar_type(labels.organ[0]).type(labels.organ[0])
            write_labels(staging / f"{case.id}.nii.gz", organ, standard)
    return {case.id: folder / f"{case.id}.nii.gz" for case in specks}
