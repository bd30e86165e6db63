"""The list of scans with a healthy organ: the scans, the rule, and why the others are not in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from difftumor.datasets.cases import Case, CaseList, write_case_list
from difftumor.datasets.healthy import STATUSES, HealthyRule, Verdict
from difftumor.datasets.tumor_cases import read_organ
from difftumor.errors import CaseListError
from difftumor.files import folder_written_whole
from difftumor.scans.nifti import write_labels
from difftumor.scans.organs import BACKGROUND, CONVENTIONS, ORGAN, TUMOR, Organ, OrganLabels, resolve_labels

COLUMNS = ("case", "status", "volume_ml", "pieces", "main_share", "reaches", "tumor_mm3", "reason")


def labels_folder(file: Path) -> Path:
    """Return where the label maps are that a list needs anew: ``healthy.json`` gets ``healthy_labels``."""
    return file.with_name(f"{file.stem}_labels")


def is_table(file: Path) -> bool:
    """Whether a file is a table of ``COLUMNS``."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.readline().strip() == ",".join(COLUMNS).encode()


def counts(verdicts: Sequence[Verdict], organ: Organ) -> dict[str, int]:
    """Return how many scans have each status, by what a table calls it, in the order of ``STATUSES``."""
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
    """Write the healthy scans as a list that stage 3 takes for ``data.healthy_root``.

    The list names the labels of this organ alone, so that it cannot be taken for one of another organ. Where a scan was
    accepted with some tumor voxels, a label map in which they are organ is written to ``labels_folder``.

    Args:
        file: Where to; replaced as a whole.
        verdicts: What became of all scans.
        cases: The list the scans are of.
        organ: The healthy organ.
        rule: By which it was decided.
        assume_healthy: As it was given to ``select_healthy``.

    Raises:
        DiffTumorError: A label map cannot be read or written.
    """
    labels = resolve_labels(cases.label_names, organ, source=cases.source)
    healthy = [verdict for verdict in verdicts if verdict.status == "healthy"]
    specks = [verdict.case for verdict in healthy if verdict.measures is not None and verdict.measures.tumor_mm3 > 0]
    mended = _without_specks(specks, cases, labels, labels_folder(file))
    fit = [
        replace(verdict.case, labels=mended.get(verdict.case.id, verdict.case.labels), tumor_organs=())
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
    """Return the names of the organ's labels; those of the standard convention fit any organ and are made to say it."""
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
