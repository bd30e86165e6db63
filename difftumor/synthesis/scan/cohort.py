"""Tumors in many scans, one after the other or in several processes; a scan that fails does not stop the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from difftumor.datasets.cases import Case, CaseList, structure_files
from difftumor.errors import CaseListError, DiffTumorError, SynthesisError, counted, lacks_room, sentence_of
from difftumor.files.recovery import recover
from difftumor.files.workers import KILLED, in_processes
from difftumor.scans.organs import Organ, resolve_labels
from difftumor.synthesis.scan.files import ScanReport, ScanSynthesizer
from difftumor.synthesis.scan.inputs import ScanInputs
from difftumor.synthesis.scan.record import FILES, RECORD_FILE, read_record, with_later_fields

SUMMARY_COLUMNS = ("case", "status", "tumors", "rejected", "warnings", "error")


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        id: The case's id.
        status: ``"made"``, ``"done before"`` or ``"failed"``.
        report: What was written; None unless it was made now.
        error: What went wrong, in a sentence.
    """

    id: str
    status: Literal["made", "done before", "failed"]
    report: ScanReport | None = None
    error: str = ""

    @property
    def sentence(self) -> str:
        """What became of it, in a line."""
        if self.report is None:
            return f"{self.id}: {self.status}{f', {self.error}' if self.error else ''}"
        warnings = len(self.report.warnings)
        more = f", {counted(warnings, 'warning')}" if warnings else ""
        return f"{self.id}: {counted(len(self.report.tumors), 'tumor')}{more}"

    @property
    def summary(self) -> dict[str, Any]:
        """Its row of ``summary.csv``, by ``SUMMARY_COLUMNS``."""
        report = self.report
        return {
            "case": self.id,
            "status": self.status,
            "tumors": None if report is None else len(report.tumors),
            "rejected": None if report is None else report.rejected,
            "warnings": "" if report is None else " ".join(report.warnings),
            "error": self.error,
        }


def inputs_of(
    case: Case,
    cases: CaseList,
    organ: Organ,
    *,
    organ_labels: Sequence[int] = (),
    mask: bool = False,
    accept_hu: bool = False,
) -> ScanInputs:
    """Return the files of a case of a list.

    Args:
        case: The case.
        cases: Its list, whose label names say which numbers are the organ and its tumors.
        organ: The organ.
        organ_labels: The organ's numbers, if the list does not say.
        mask: Whether the labels are a mask of nothing but the organ.
        accept_hu: As for ``Scan``.

    Raises:
        CaseListError: The case has no labels.
        OrganError: The organ is not among the label names.
    """
    if case.labels is None:
        raise CaseListError(f"Case {case.id!r} ({case.image}) has no labels: give a list that names them.")
    single = ScanInputs(
        ct=case.image, organ_masks=(case.labels,), organ_labels=tuple(organ_labels), accept_hu=accept_hu
    )
    if mask:
        return single
    if organ_labels and case.labels.is_dir():
        raise CaseListError(
            f"{case.labels} has one file per structure and needs no organ_labels (--organ-label): leave it out."
        )
    if organ_labels and not cases.label_names:
        return replace(single, tumors_unstated=True)
    numbers = resolve_labels(cases.label_names, organ, source=cases.source)
    if case.labels.is_dir():
        masks, tumors = (structure_files(case, cases.label_names, n) for n in (numbers.organ, numbers.tumor))
        if not masks:
            raise CaseListError(f"{case.labels} has no file of the {organ.name}: leave the case out or add the file.")
        return ScanInputs(ct=case.image, organ_masks=masks, tumor_masks=tumors, accept_hu=accept_hu)
    return replace(
        single,
        organ_labels=tuple(organ_labels) or numbers.organ,
        tumor_labels=numbers.tumor,
        assumed=not numbers.named,
    )


def usable_inputs(
    cases: CaseList, organ: Organ, *, organ_labels: Sequence[int] = (), mask: bool = False, accept_hu: bool = False
) -> tuple[list[tuple[str, ScanInputs]], list[Outcome]]:
    """Return ids and files of the cases of a list, and the outcome of those without usable labels.

    Args:
        cases: The list.
        organ: The organ.
        organ_labels: The organ's numbers, if the list does not say.
        mask: Whether the labels are masks of nothing but the organ.
        accept_hu: As for ``Scan``.
    """
    options: dict[str, Any] = {"organ_labels": organ_labels, "mask": mask, "accept_hu": accept_hu}
    usable, unusable = [], []
    for case in cases.cases:
        try:
            usable.append((case.id, inputs_of(case, cases, organ, **options)))
        except DiffTumorError as error:
            unusable.append(Outcome(case.id, "failed", error=str(error)))
    return usable, unusable


def synthesize_cohort(
    load: Callable[[], ScanSynthesizer],
    cases: Sequence[tuple[str, ScanInputs]],
    *,
    out: Path,
    jobs: int = 1,
    overwrite: bool = False,
) -> Iterator[Outcome]:
    """Make tumors in scans; the result depends neither on their order nor on the number of processes.

    Args:
        load: Loads the networks, once in every process; must be picklable if there are several.
        cases: Ids and files.
        out: Every case gets a folder of its id in here.
        jobs: Processes.
        overwrite: Make cases again that were made before.

    Yields:
        What became of each case, as it comes. A case whose result is there, made as it is asked for now, is skipped.
    """
    if jobs == 1:
        loaded = load()
        for case_id, inputs in cases:
            yield _outcome(loaded, case_id, inputs, out, overwrite)
        return
    pieces = [(load, case_id, inputs, out, overwrite) for case_id, inputs in cases]
    for (_, case_id, *_), outcome in in_processes(_in_process, pieces, jobs=jobs, set_up=_share_threads):
        if outcome is None:
            recover(out / case_id)
        yield outcome or Outcome(case_id, "failed", error=KILLED)


def _share_threads(jobs: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


# In a worker process: loaded for its first case and kept for the others.
_LOADED: list[ScanSynthesizer] = []


def _in_process(
    load: Callable[[], ScanSynthesizer], case_id: str, inputs: ScanInputs, out: Path, overwrite: bool
) -> Outcome:
    if not _LOADED:
        _LOADED.append(load())  # an error here concerns all cases and goes to the caller
    return _outcome(_LOADED[0], case_id, inputs, out, overwrite)


def _outcome(loaded: ScanSynthesizer, case_id: str, inputs: ScanInputs, out: Path, overwrite: bool) -> Outcome:
    own, folder = loaded.for_case(case_id), out / case_id
    try:
        if not overwrite and _was_made(folder, own, inputs):
            return Outcome(case_id, "done before")
        report = own.make_files(inputs, out=folder, overwrite=overwrite)
        return Outcome(case_id, "made", report)
    except Exception as error:
        if lacks_room(error):
            raise
        # Whatever is wrong with one case, it must not take hours of others with it.
        return Outcome(case_id, "failed", error=sentence_of(error))


def _was_made(folder: Path, own: ScanSynthesizer, inputs: ScanInputs) -> bool:
    if not all((folder / name).is_file() for name in FILES):
        return False
    try:
        record = read_record(folder / RECORD_FILE)
        content, request = record.content, with_later_fields(record.content["request"])
    except (SynthesisError, KeyError, TypeError):
        return False
    models = {group: replace(model, path=model.path.resolve()) for group, model in own.models.items()}
    return (request, content["inputs"], record.models) == (own.request, inputs.to_record(), models)
