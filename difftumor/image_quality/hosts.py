"""Whose scans synthetic tumors were made in, so that real ones of the same patients are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from difftumor.datasets.cases import Case, CaseList
from difftumor.image_quality.tumor_samples import SYNTHESIS_LABELS
from difftumor.synthesis.scan_record import RECORD_FILE, read_record


def with_real_patients(made: CaseList, real: CaseList) -> CaseList:
    """Name the patients of synthetic cases as the real list does, where it is known that they are the same.

    They are where the CT, or by its ``record.json`` the CT that the tumors were made in, is one of the real list; and
    where the list of synthetic cases names patients and has the same name. A case id, which stands for a patient that
    nobody names, says nothing in another data set: such cases never share a patient with the real list, and share one
    with each other where they have one CT.

    Args:
        made: Synthetic cases.
        real: Cases with real tumors.

    Raises:
        SynthesisError: A record beside a CT cannot be read.
    """
    known = {case.image.resolve(): case.patient for case in real.cases}
    hosts = {case: _host(case) for case in made.cases}
    if any(case.patient != case.id for case in made.cases):
        strangers = {case: case.patient for case in made.cases}
    else:
        strangers = _strangers(hosts, taken=set(known.values()))
    return replace(made, cases=tuple(replace(case, patient=known.get(hosts[case], strangers[case])) for case in hosts))


def _host(case: Case) -> Path:
    """Return the CT that tumors were made in; the case's own where nothing says so."""
    if case.labels is not None and case.labels.name == SYNTHESIS_LABELS:
        record = case.labels.with_name(RECORD_FILE)
        if record.is_file():
            return read_record(record).host
    return case.image.resolve()


def _strangers(hosts: Mapping[Case, Path], *, taken: set[str]) -> dict[Case, str]:
    """Name patients by one case of each CT, whatever the order, and otherwise than those of the real list."""
    first: dict[Path, str] = {}
    for case, host in sorted(hosts.items(), key=lambda item: item[0].id):
        first.setdefault(host, f"{case.id} (synthetic)" if case.id in taken else case.id)
    return {case: first[host] for case, host in hosts.items()}
