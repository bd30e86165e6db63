"""Tumors in many scans: one after the other or in several processes, whatever happens to some of them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from difftumor.datasets.cases import Case, CaseList, structure_files
from difftumor.errors import CaseListError, SynthesisError, sentence_of
from difftumor.files import remove_abandoned
from difftumor.scans.organs import Organ, resolve_labels
from difftumor.seeding import derive_seed
from difftumor.synthesis.scan.files import FILES, ScanReport, ScanRequest, describe_request, synthesize_scan
from difftumor.synthesis.scan.inputs import ScanInputs
from difftumor.synthesis.scan.record import RECORD_FILE, ModelRecord, read_record
from difftumor.synthesis.synthesizer import TumorSynthesizer


@dataclass(frozen=True)
class Workshop:
    """All that is needed to make tumors in a scan.

    Args:
        synthesizer: What makes them.
        request: What is asked of every scan; each has a seed of its own, which its id and this seed decide.
        models: The diffusion models behind the synthesizer, by stage.
    """

    synthesizer: TumorSynthesizer
    request: ScanRequest
    models: Mapping[str, ModelRecord]


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        id: Of the case.
        status: ``"made"``, ``"done before"`` or ``"failed"``.
        report: What was written, where it was made now.
        error: What went wrong, in a sentence.
    """

    id: str
    status: Literal["made", "done before", "failed"]
    report: ScanReport | None = None
    error: str = ""


def inputs_of(
    case: Case, cases: CaseList, organ: Organ, *, organ_labels: Sequence[int] = (), mask: bool = False
) -> ScanInputs:
    """Return the files of a case of a list.

    Args:
        case: The case.
        cases: Its list, whose label names say which numbers are the organ and its tumors.
        organ: The organ.
        organ_labels: Instead of them: the organ's numbers.
        mask: Whether the labels are a mask of the organ alone.

    Raises:
        CaseListError: The case has no labels.
        OrganError: The organ is not among the label names.
    """
    if case.labels is None:
        raise CaseListError(f"Case {case.id!r} ({case.image}) has no labels: give a list that names them.")
    if mask:
        return ScanInputs(ct=case.image, organ_masks=(case.labels,), organ_labels=tuple(organ_labels))
    if organ_labels and case.labels.is_dir():
        raise CaseListError(f"{case.labels} has a file for each structure, which needs no --organ-label: do without.")
    if organ_labels and not cases.label_names:
        return ScanInputs(ct=case.image, organ_masks=(case.labels,), organ_labels=tuple(organ_labels))
    numbers = resolve_labels(cases.label_names, organ, source=cases.source)
    if case.labels.is_dir():
        masks, tumors = (structure_files(case, cases.label_names, n) for n in (numbers.organ, numbers.tumor))
        if not masks:
            raise CaseListError(f"{case.labels} has no file of the {organ.name}: leave the case out or add the file.")
        return ScanInputs(ct=case.image, organ_masks=masks, tumor_masks=tumors)
    return ScanInputs(
        ct=case.image,
        organ_masks=(case.labels,),
        organ_labels=tuple(organ_labels) or numbers.organ,
        tumor_labels=numbers.tumor,
        assumed=not numbers.named,
    )


def synthesize_cohort(
    set_up: Callable[[], Workshop],
    cases: Sequence[tuple[str, ScanInputs]],
    *,
    out: Path,
    jobs: int = 1,
    overwrite: bool = False,
) -> Iterator[Outcome]:
    """Make tumors in scans; which, depends neither on their order nor on the number of processes.

    Args:
        set_up: Makes the workshop, once in every process; must be picklable where there are several.
        cases: Ids and files.
        out: Every case gets a folder of its id in here.
        jobs: Processes.
        overwrite: Make cases anew that were made before.

    Yields:
        What became of each case, as it comes. A case that was made before as it is asked for now is not made again.
    """
    if jobs == 1:
        workshop = set_up()
        for case_id, inputs in cases:
            yield _outcome(workshop, case_id, inputs, out, overwrite)
        return
    # One after the other, each in a process of its own, is what ended their process: then only they fail.
    waiting = list(cases)
    for workers in (jobs, 1):
        ended: list[tuple[str, ScanInputs]] = []
        for batch in [waiting] if workers > 1 else [[case] for case in waiting]:
            yield from _in_processes(set_up, batch, ended, out=out, jobs=workers, overwrite=overwrite)
        waiting = ended
        for case_id, _ in waiting:
            remove_abandoned(out / case_id)
    for case_id, _ in waiting:
        yield Outcome(case_id, "failed", error="Its process was ended, perhaps for lack of memory: try fewer --jobs.")


def _in_processes(
    set_up: Callable[[], Workshop],
    cases: Sequence[tuple[str, ScanInputs]],
    ended: list[tuple[str, ScanInputs]],
    *,
    out: Path,
    jobs: int,
    overwrite: bool,
) -> Iterator[Outcome]:
    """Yield what processes make, and note in ``ended`` the cases that were left when one of them was killed."""
    # Forking a process that has used threads, as PyTorch has, may hang.
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(threads,))
    try:
        waiting = {pool.submit(_in_process, set_up, *case, out, overwrite): case for case in cases}
        for done in as_completed(waiting):
            try:
                yield done.result()
            except BrokenProcessPool:
                ended.append(waiting[done])
    finally:
        # Whatever comes, an interruption too, no further case is begun.
        pool.shutdown(cancel_futures=True)


# Of a worker process: made for its first case, so that networks are loaded once.
_WORKSHOPS: list[Workshop] = []


def _start(threads: int) -> None:
    torch.set_num_threads(threads)


def _in_process(
    set_up: Callable[[], Workshop], case_id: str, inputs: ScanInputs, out: Path, overwrite: bool
) -> Outcome:
    if not _WORKSHOPS:
        _WORKSHOPS.append(set_up())  # what is wrong with it is wrong for all cases, and goes to the caller
    return _outcome(_WORKSHOPS[0], case_id, inputs, out, overwrite)


def _outcome(workshop: Workshop, case_id: str, inputs: ScanInputs, out: Path, overwrite: bool) -> Outcome:
    request = replace(workshop.request, seed=derive_seed(workshop.request.seed, "case", case_id))
    folder = out / case_id
    try:
        if not overwrite and _was_made(folder, workshop, request, inputs):
            return Outcome(case_id, "done before")
        report = synthesize_scan(
            workshop.synthesizer, inputs, request, out=folder, models=workshop.models, overwrite=overwrite
        )
        return Outcome(case_id, "made", report)
    except Exception as error:
        # One case must not take hours of others with it, whatever is wrong with it.
        return Outcome(case_id, "failed", error=sentence_of(error))


def _was_made(folder: Path, workshop: Workshop, request: ScanRequest, inputs: ScanInputs) -> bool:
    if not all((folder / name).is_file() for name in FILES):
        return False
    try:
        content = read_record(folder / RECORD_FILE).content
    except SynthesisError:
        return False
    models = {stage: model.to_dict() for stage, model in workshop.models.items()}
    asked = describe_request(request, workshop.synthesizer.organ)
    return (content["request"], content["inputs"], content["models"]) == (asked, inputs.to_record(), models)
