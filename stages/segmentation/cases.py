"""Which cases stage 3 trains on: real tumors, healthy scans to make tumors in, or scans with tumors made before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from difftumor.datasets.cases import Case, CaseList
from difftumor.datasets.tumor_cases import LeftOut, SortedCases
from difftumor.errors import CaseListError, counted
from difftumor.scans.organs import ORGAN, TUMOR, Organ
from difftumor.synthesis.scan.record import CT_FILE, LABELS_FILE, RECORD_FILE, ScanRecord, read_record
from stages.ranks import say
from stages.run.case_lists import read_root, say_left_out, sort_and_say, stated_validation
from stages.segmentation.options import SegmentationOptions, Tumors


@dataclass(frozen=True)
class Origin:
    """The origin of a case.

    Args:
        source: Its list, which says what its labels mean.
        healthy: Whether tumors are to be made in it.
        made: Whether its tumors are synthetic.
    """

    source: CaseList
    healthy: bool
    made: bool


@dataclass(frozen=True)
class ChosenCases:
    """The cases of a run.

    Args:
        origins: The origin of each.
        real: To train on, with annotated tumors.
        made: To train on, healthy for tumors to be made in, or with tumors made before.
        validation: Held out, with annotated tumors.
        patients: With annotated tumors and not held out, whether trained on or not; their tumors may be copied.
        held_out: What judges the run: these, and what the list of ``data.root`` sets apart without tumors.
        set_apart: Validation cases of ``data.healthy_root``, which judge other runs.
        hosts: The CTs that those with tumors made before were made from, as far as they are still there.
        makers: Diffusion models that made them: size group and folder.
        donors: Whose tumors were copied into them, as far as the CTs are still there.
    """

    origins: Mapping[Case, Origin]
    real: tuple[Case, ...]
    made: tuple[Case, ...]
    validation: tuple[Case, ...]
    patients: tuple[Case, ...]
    held_out: tuple[Case, ...] = ()
    set_apart: tuple[Case, ...] = ()
    hosts: Mapping[Case, Path] = field(default_factory=dict)
    makers: frozenset[tuple[str, Path]] = frozenset()
    donors: tuple[Case, ...] = ()

    @property
    def train(self) -> tuple[Case, ...]:
        """All to train on."""
        return *self.real, *self.made


def choose_cases(options: SegmentationOptions) -> ChosenCases:
    """Read the lists of a run, and choose what it trains and validates on.

    Raises:
        ConfigError: An option about the data does not work.
        CaseListError: A list is malformed, or there is nothing to train on.
    """
    tumors, data, organ = options.tumors, options.data, options.organ
    annotated = tumors not in ("diffusion", "handcrafted")
    if data.root is None and data.labels is None and data.healthy_root is not None and not annotated:
        # No annotated tumor is trained on, and none need be there.
        listed, found = CaseList((), {}, data.healthy_root), SortedCases((), (), ())
    else:
        listed = read_root(data.root, data.labels, accept_hu=data.accept_hu)
        found = sort_and_say(listed, organ, workers=data.num_workers)
    stated = stated_validation(listed, fold=options.fold)
    origins = {case: Origin(listed, healthy=False, made=False) for case in found.tumor}
    origins |= {case: Origin(listed, healthy=True, made=True) for case in found.healthy}
    found, elsewhere, set_apart = _with_more_healthy(options, found)
    origins |= elsewhere
    fold, unseen = options.fold, stated
    if not annotated and not stated and fold is not None:
        # No annotated tumor is trained on: too few for folds are all there to validate on, and none are no error.
        patients = {case.patient for case in found.tumor}
        if len(patients) < options.folds.count:
            fold, unseen = None, found.tumor
    train, validation = found.split(fold=fold, count=options.folds.count, seed=options.folds.seed, stated=unseen)
    real = train.tumor if tumors in ("real", "mixed") else ()
    offline = options.synthesis.offline
    records: Mapping[Case, ScanRecord] = {}
    if tumors == "real":
        made: tuple[Case, ...] = ()
    elif offline is None:
        made = train.healthy
    else:
        held_out = {case.patient for case in (*validation, *stated, *set_apart)}
        known = {case.image.resolve(): case for case in (*listed.cases, *elsewhere, *set_apart)}
        source, records = _made_before(offline, organ, known, held_out)
        origins |= {case: Origin(source, healthy=False, made=True) for case in source.cases}
        made = source.cases
    _check_any(tumors, train.tumor, made, listed, organ)
    kind = "healthy ones" if offline is None or tumors == "real" else "with tumors made before"
    with_tumors = f"{counted(len(real), 'case')} with real tumors"
    say(f"Training on {with_tumors} and {len(made)} {kind}, validating on {len(validation)}.")
    return ChosenCases(
        origins,
        real,
        made,
        validation,
        train.tumor,
        held_out=tuple(dict.fromkeys((*validation, *stated))),
        set_apart=set_apart,
        hosts={case: record.host for case, record in records.items() if record.host.is_file()},
        donors=tuple(
            Case(scan.name, scan)
            for scan in sorted({scan for record in records.values() for scan in record.scans[1:]})
            if scan.is_file()
        ),
        makers=frozenset((group, it.path) for record in records.values() for group, it in record.models.items()),
    )


def _check_any(
    tumors: Tumors, patients: tuple[Case, ...], made: tuple[Case, ...], listed: CaseList, organ: Organ
) -> None:
    if tumors in ("real", "mixed", "copy_paste") and not patients:
        raise CaseListError(f"{listed.source} has no case with a {organ.name} tumor: give other data or organ.")
    if tumors != "real" and not made:
        raise CaseListError(
            f"There is no scan with a healthy {organ.name} to make tumors in: give data.healthy_root=PATH, "
            "or tumors=real."
        )


def _with_more_healthy(
    options: SegmentationOptions, found: SortedCases
) -> tuple[SortedCases, dict[Case, Origin], tuple[Case, ...]]:
    """Add the scans of ``data.healthy_root``; its stated validation cases, which come last, are left out."""
    data, organ = options.data, options.organ
    if data.healthy_root is None:
        return found, {}, ()
    healthy = read_root(data.healthy_root, data.healthy_labels, option="data.healthy_labels", accept_hu=data.accept_hu)
    held_out = stated_validation(healthy)
    more = sort_and_say(healthy, organ, assume_healthy=True, workers=data.num_workers)
    say_left_out([LeftOut(case, f"has {organ.name} tumors, yet is listed as healthy") for case in more.tumor])
    fit = tuple(case for case in more.healthy if case not in held_out)
    # A scan in both lists counts once, with the labels of the list that is about healthy scans.
    twice = {case.image.resolve() for case in fit}
    once = tuple(case for case in found.healthy if case.image.resolve() not in twice)
    origins = {case: Origin(healthy, healthy=True, made=True) for case in fit}
    return replace(found, healthy=once + fit), origins, held_out


def _made_before(
    folder: Path, organ: Organ, known: Mapping[Path, Case], held_out: set[str]
) -> tuple[CaseList, dict[Case, ScanRecord]]:
    """Return the scans that ``difftumor synthesize --cases`` has written, without those of held-out patients.

    With them come their records.

    Args:
        folder: ``synthesis.offline``; holds one folder per scan.
        organ: The organ that must have the tumors.
        known: Cases of the run's lists by the files of their CT, which say whose scans these are.
        held_out: Patients.

    Raises:
        CaseListError: There is none, or a scan has its tumors elsewhere.
    """
    names = {"background": 0, organ.name: ORGAN, f"{organ.name}_tumor": TUMOR}
    cases: list[Case] = []
    seen: list[Case] = []
    records: dict[Case, ScanRecord] = {}
    strangers = 0
    for file in sorted(folder.glob(f"*/{RECORD_FILE}")):
        record = read_record(file)
        if record.organ != organ.name:
            raise CaseListError(
                f"{file} has tumors in the {record.organ}, not in the {organ.name}: give synthesis.offline a folder "
                f"made with --organ {organ.name}, or organ={record.organ}."
            )
        # A scan shows its own patient, and those whose tumors were copied into it.
        originals = [known.get(scan) for scan in record.scans]
        strangers += None in originals
        patients = ["" if original is None else original.patient for original in originals]
        case = Case(
            file.parent.name, file.parent / CT_FILE, file.parent / LABELS_FILE, patients[0], tumor_organs=(organ.name,)
        )
        records[case] = record
        (seen if held_out & {case.patient, *patients} else cases).append(case)
    if not cases:
        raise CaseListError(
            f"synthesis.offline={folder} holds no scan with tumors made before of patients to train on: fill it with "
            f"difftumor synthesize --cases … --organ {organ.name} --out {folder}, or leave the option out."
        )
    say_left_out([LeftOut(case, "was made from a scan that is held out") for case in seen])
    if strangers:
        say(
            f"Note: {strangers} scans of {folder} were made from CTs that are in neither list, so it is unknown "
            "whether their patients are held out."
        )
    return CaseList(tuple(cases), names, folder), {case: records[case] for case in cases}
