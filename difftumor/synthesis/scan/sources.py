"""Real tumors read from annotated scans, to be copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from difftumor.datasets.cases import Case, CaseList, read_cases
from difftumor.datasets.integrity import in_threads
from difftumor.errors import CaseListError, OrganError, SynthesisError, counted, first_few
from difftumor.files.checksums import sha256_of
from difftumor.scans.components import find_components
from difftumor.scans.grid import Vector
from difftumor.scans.hounsfield import warn
from difftumor.scans.lesions import MINIMUM_VOXELS
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.organs import Organ, normalized
from difftumor.synthesis.generators.copy_paste import SourceTumor, SourceTumors
from difftumor.synthesis.host import find_vessels, measure_parenchyma
from difftumor.synthesis.scan.cohort import inputs_of
from difftumor.synthesis.scan.inputs import Scan, ScanInputs
from difftumor.synthesis.scan.model_scan import component_in
from difftumor.synthesis.scan.record import ScanRecord
from difftumor.synthesis.shapes import odd_sized


def read_sources(
    cases: CaseList,
    organ: Organ,
    *,
    spacing_mm: Vector,
    only: Sequence[Case] | None = None,
    accept_hu: bool = False,
    workers: int = 1,
) -> tuple[SourceTumors, dict[str, ScanInputs]]:
    """Read the tumors of a list's cases; each scan is read once, and nothing of it is kept but its tumors.

    Cases without labels or organ, or with nothing but tumor in it, are left out, and a note says so.

    Args:
        cases: The list.
        organ: The organ whose tumors are wanted.
        spacing_mm: Voxel size of model space.
        only: Its cases to read; by default all that are stated neither to be free of such tumors nor for validation.
        accept_hu: As for ``Scan``.
        workers: Threads that read.

    Returns:
        The tumors, and the files of the cases that have any, by id.

    Raises:
        CaseListError: No case has a tumor.
        OrganError: The organ is not among the label names.
        VolumeError: A file cannot be used.
    """
    chosen, notes = _choose(cases, organ) if only is None else (only, [])
    files: dict[str, ScanInputs] = {}
    odd: dict[str, str] = {}
    for case in chosen:
        try:
            files[case.id] = inputs_of(case, cases, organ, accept_hu=accept_hu)
        except CaseListError as error:
            odd[case.id] = str(error)

    def read(case: str) -> tuple[SourceTumor, ...]:
        try:
            return read_tumors(case, files[case], organ, spacing_mm=spacing_mm)
        except OrganError as error:
            odd[case] = str(error)
            return ()

    tumors = [tumor for own in in_threads(read, list(files), workers=workers) for tumor in own]
    if odd:
        names = sorted(odd)
        notes.append(f"{cases.source}: {counted(len(odd), 'case')} left out ({first_few(names)}). {odd[names[0]]}")
    if not tumors:
        missing = f"{cases.source} has no labeled {organ.name} tumor of {MINIMUM_VOXELS} voxels or more to copy"
        raise CaseListError(" ".join([f"{missing}: give cases that have some.", *notes]))
    kept = {tumor.case for tumor in tumors}
    sources = SourceTumors(tumors, origin=str(cases.source), notes=notes)
    return sources, {case: inputs for case, inputs in files.items() if case in kept}


def _choose(cases: CaseList, organ: Organ) -> tuple[list[Case], list[str]]:
    """Return the cases whose tumors may be copied, and a note on those that are set apart."""
    there = [case for case in cases.cases if _may_have_tumors(case, organ)]
    chosen = [case for case in there if case.id not in cases.validation_ids]
    apart = len(there) - len(chosen)
    return chosen, [f"{cases.source}: {counted(apart, 'validation case')} left out."] if apart else []


def read_recorded_sources(
    record: ScanRecord, organ: Organ, *, cases: Path | None = None, spacing_mm: Vector
) -> SourceTumors:
    """Read the tumors that a record copies.

    Args:
        record: What was made.
        organ: The organ.
        cases: Folder or list with the cases now; by default their files are where they were.
        spacing_mm: Voxel size of model space.

    Raises:
        SynthesisError: A case is missing, or a file of it is not the recorded one.
        CaseListError: The list cannot be used.
    """
    files = dict(record.sources)
    if cases is not None:
        listed = read_cases(cases)
        there = {case.id: case for case in listed.cases}
        if missing := sorted(set(files) - set(there)):
            raise SynthesisError(f"{cases} lacks case {missing[0]!r}, of which {record.path} has copies: add it.")
        files = {name: inputs_of(there[name], listed, organ, accept_hu=True) for name in files}  # as it was
    tumors: list[SourceTumor] = []
    for name, inputs in files.items():
        inputs.check()
        inputs.check_same(record.content["sources"][name])
        tumors += read_tumors(name, inputs, organ, spacing_mm=spacing_mm)
    return SourceTumors(tumors, origin=str(record.path))


def read_tumors(case: str, inputs: ScanInputs, organ: Organ, *, spacing_mm: Vector) -> tuple[SourceTumor, ...]:
    """Read the tumors of one case; those of less than 8 voxels, before or after resampling, are left out.

    Args:
        case: Its id.
        inputs: Its files.
        organ: The organ.
        spacing_mm: Voxel size of model space.

    Raises:
        VolumeError: A file cannot be used.
        OrganError: The organ is absent, or all of it is tumor.
    """
    scan = inputs.read(organ=organ)
    warn(scan.doubts)
    if scan.tumor_mask is None:
        return ()
    native_mm = scan.ct.grid.spacing_mm
    vessels = find_vessels(scan.ct.data, scan.organ_mask, spacing_mm=native_mm)
    parenchyma_hu = measure_parenchyma(scan.ct.data, scan.organ_mask, vessels).mean_hu
    sha256 = sha256_of(inputs.ct)
    return tuple(
        SourceTumor(
            case=case, number=number, sha256=sha256, mask=mask, hu=hu, parenchyma_hu=parenchyma_hu,
            spacing_mm=spacing_mm,
        )
        for number, mask, hu in _cut_tumors(scan, spacing_mm)
    )  # fmt: skip


def _may_have_tumors(case: Case, organ: Organ) -> bool:
    return case.tumor_organs is None or organ.name in map(normalized, case.tumor_organs)


def _cut_tumors(scan: Scan, spacing_mm: Vector) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield number, mask and CT of each tumor of a scan in its own box of model space."""
    assert scan.tumor_mask is not None
    space, components = ModelSpace(scan.ct.grid, spacing_mm), find_components(scan.tumor_mask)
    for component in components.found:
        if component.voxels < MINIMUM_VOXELS:
            continue
        box, mask = component_in(space, components, component)
        if np.count_nonzero(mask) >= MINIMUM_VOXELS:
            hu = space.to_model(scan.ct.data, kind="image", box=box)
            yield component.index, odd_sized(mask), odd_sized(hu)
