"""Tumors in a whole scan: made in memory, and written with labels, record and picture into one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import SynthesisError
from difftumor.files.writing import folder_written_whole
from difftumor.reporting.plots import save_png
from difftumor.scans.nifti import as_stored, same_outside, write_ct, write_labels
from difftumor.scans.organs import ORGANS, is_unknown, rules_of
from difftumor.seeding import derive_seed
from difftumor.synthesis.draw import Drawn, draw_tumors
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.gate import QualityGate, RejectionSampler
from difftumor.synthesis.scan.inputs import Scan, ScanInputs
from difftumor.synthesis.scan.insertion import ScanSynthesis, apply_to_scan
from difftumor.synthesis.scan.model_scan import ModelScan
from difftumor.synthesis.scan.record import (
    CT_FILE,
    LABELS_FILE,
    LESIONS_FILE,
    PREVIEW_FILE,
    RECORD_FILE,
    ModelRecord,
    ScanRecord,
    check_output,
    record_content,
    write_record,
)
from difftumor.synthesis.scan.report import (
    TumorReport,
    find_warnings,
    plot_preview,
    report_tumors,
    tissue_warnings,
)
from difftumor.synthesis.spec import TumorSpec
from difftumor.synthesis.synthesizer import TumorSynthesizer, no_room


@dataclass(frozen=True)
class ScanReport:
    """What was written, without the arrays.

    Args:
        folder: Where.
        tumors: What each tumor became.
        warnings: What speaks against the scan and what fell short of the request, in sentences.
        rejected: How many tumors the quality gate rejected.
        notes: What a user should know of how they were made, in sentences.
    """

    folder: Path
    tumors: tuple[TumorReport, ...]
    warnings: tuple[str, ...]
    rejected: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class SynthesisResult:
    """A scan with tumors.

    Args:
        made: What the tumors change, and where.
        tumors: What was asked of each tumor and what it became.
        warnings: What speaks against the scan and what fell short of the request, in sentences.
        facts: What ``record.json`` says besides tumors and warnings.
        notes: What a user should know of how they were made, in sentences.

    Example:
        >>> import difftumor as dt
        >>> scan = dt.read_scan("ct.nii.gz", organ_mask="liver.nii.gz", organ="liver")
        >>> result = dt.synthesize(scan, dt.TumorSpec(generator="handcrafted", size="tiny"), seed=0)
        >>> result.ct.shape == result.labels.shape == result.lesions.shape == scan.ct.grid.shape
        True
        >>> sorted(file.name for file in result.save("tumors").folder.iterdir())
        ['ct.nii.gz', 'labels.nii.gz', 'lesions.nii.gz', 'preview.png', 'record.json']
    """

    # What a notebook shows of a result leaves out whole arrays.
    made: ScanSynthesis = field(repr=False)
    tumors: tuple[TumorReport, ...]
    warnings: tuple[str, ...]
    facts: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def records(self) -> tuple[TumorRecord, ...]:
        """How each tumor was drawn: all it takes to make it again."""
        return self.made.records

    @cached_property
    def ct(self) -> NDArray[np.float32]:
        """(X, Y, Z) CT with tumors in HU; rounded to the stored type, so that it equals what ``save`` writes."""
        scan, change_hu = self.made.scan, self.made.change_hu
        hu: NDArray[np.float32] = scan.ct.data.copy(order="K")
        part, changed = hu[self.made.box.slices], change_hu != 0
        part[changed] = as_stored(scan.ct, (part + change_hu)[changed])
        return hu

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """(X, Y, Z): 0 background, 1 organ, 2 tumor, including tumors that were there before."""
        return self.made.whole_labels()

    @cached_property
    def lesions(self) -> NDArray[np.unsignedinteger]:
        """(X, Y, Z): 0, or the number of the tumor, from 1."""
        return self.made.whole_lesions()

    def save(self, out: Path | str, *, overwrite: bool = False) -> ScanReport:
        """Write CT, labels, lesions, record and preview, as ``difftumor synthesize`` does; all files or none.

        Args:
            out: Folder to write to.
            overwrite: Replace the files of an earlier run in ``out``.

        Raises:
            ConfigError: The folder cannot be written to, holds an earlier result or an input.
        """
        check_output(Path(out), inputs=self.made.scan.inputs, overwrite=overwrite)
        return self.write(Path(out))

    def write(self, out: Path) -> ScanReport:
        """Write to a folder that ``check_output`` has passed; see ``save``."""
        scan = self.made.scan
        content = record_content(
            **self.facts, warnings=self.warnings, tumors=[tumor.to_dict() for tumor in self.tumors]
        )
        with folder_written_whole(out, keep_others=True, last=RECORD_FILE) as staging:
            write_volumes(self.made, staging)
            write_record(staging / RECORD_FILE, content)
            save_png(plot_preview(self.made, organ=scan.organ), staging / PREVIEW_FILE)
        return ScanReport(out, self.tumors, self.warnings, len(self.facts["rejected"]), self.notes)


@dataclass(frozen=True, kw_only=True)
class ScanSynthesizer:
    """Makes tumors of one kind in any number of scans.

    Args:
        synthesizer: Makes the tumors, in the organ it was loaded for.
        tumors: Which tumors.
        seed: The same seed and scan give the same tumors.
        gate: Which tumors are good enough; None for all.
        strict: Whether falling short of the request is an error.
        models: The diffusion models behind the synthesizer by size group, for the record.
        sources: Likewise the files of the cases whose tumors are copied, by id.
    """

    synthesizer: TumorSynthesizer
    tumors: tuple[TumorSpec, ...]
    seed: int = 0
    gate: QualityGate | None = None
    strict: bool = False
    models: Mapping[str, ModelRecord] = field(default_factory=dict)
    sources: Mapping[str, ScanInputs] = field(default_factory=dict)

    @property
    def request(self) -> dict[str, Any]:
        """What is asked, as plain values for ``record.json``."""
        copied = any(spec.generator == "copy_paste" for spec in self.tumors)
        organ = self.synthesizer.organ
        return {
            "organ": organ.name,
            **({} if ORGANS.get(organ.name) == organ else {"organ_rules": rules_of(organ)}),
            "seed": self.seed,
            "tumors": [spec.to_plain() for spec in self.tumors],
            "quality_gate": None if self.gate is None else self.gate.to_dict(),
            "strict": self.strict,
            **({"source": self.synthesizer.sources.identity} if copied else {}),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the organ, the models and the real tumors that are copied, in sentences."""
        return (*self._notes_on_organ, *self.synthesizer.sources.notes, *self._notes_on_gate)

    @property
    def _notes_on_organ(self) -> list[str]:
        organ = self.synthesizer.organ
        trained = {str(model.path): model.organ for model in self.models.values()}
        others = {path: name for path, name in trained.items() if name not in (None, organ.name)}
        notes = [f"{path} has learned tumors of the {name}, not of the {organ.name}." for path, name in others.items()]
        change = "Organ rules (--organ-rules FILE) change that."
        if is_unknown(organ):
            notes.append(
                f"There are no rules for the {organ.name}: tumors may be anywhere in it, and hand-crafted ones are "
                f"darker than it. {change}"
            )
        if organ.wall_mm > 0:
            notes.append(f"Tumors grow in the wall, the outer {organ.wall_mm:g} mm of the {organ.name}. {change}")
        return notes

    @property
    def _notes_on_gate(self) -> list[str]:
        """What the gate cannot test: models may not say what real tumors look like."""
        gate = self.gate
        silent = [str(model.path) for group, model in self.models.items() if gate and group not in gate.real]
        return [
            f"{path} does not say what real tumors look like: contrast, texture and edge are not tested."
            for path in dict.fromkeys(silent)
        ]

    def for_case(self, case_id: str) -> ScanSynthesizer:
        """Return the same with the seed of one case of many, which its id decides."""
        return replace(self, seed=derive_seed(self.seed, "case", case_id))

    def make(self, scan: Scan) -> SynthesisResult:
        """Make tumors in a scan.

        Args:
            scan: Not modified.

        Raises:
            OrganError: The organ is too small.
            SynthesisError: No tumor has room or passes the gate; or the request is strict and not met; or a mask gives
                the tumors and does not go with the request.
        """
        model_scan = ModelScan(scan, self.synthesizer.spacing_mm)
        synthesizer = _knowing_masks(self.synthesizer, model_scan)
        host = model_scan.host(self.tumors, synthesizer.organ, synthesizer.sources)
        sampler = RejectionSampler(synthesizer=synthesizer, model_scan=model_scan, gate=self.gate)
        if model_scan.given is None:
            drawn = draw_tumors(
                host,
                self.tumors,
                seed=self.seed,
                accept=sampler,
                attempts=sampler.attempts,
                sources=synthesizer.sources,
            )
            self._check_enough(drawn.records, drawn.shortfalls, sampler)
        else:
            drawn = Drawn(model_scan.given.draw(host, self._spec_of_mask(), seed=self.seed))
        made = apply_to_scan(synthesizer, model_scan, drawn.records)
        tumors = report_tumors(made, host, window=synthesizer.window)
        warnings = (*drawn.shortfalls, *find_warnings(tumors))
        if warnings and self.strict:
            raise SynthesisError(f"{warnings[0]} Ask for something else, or omit strict (--strict).")
        warnings = (*scan.doubts, *tissue_warnings(made), *warnings)
        facts = {
            "request": self.request,
            "inputs": None if scan.inputs is None else scan.inputs.to_record(),
            "models": {group: model.to_dict() for group, model in self.models.items()},
            "sources": {case: self.sources[case].to_record() for case in _copied_cases(drawn.records)},
            "device": str(synthesizer.device),
            "shortfalls": list(drawn.shortfalls),
            "rejected": [rejection.to_dict() for rejection in sampler.rejections],
        }
        return SynthesisResult(made=made, tumors=tumors, warnings=warnings, facts=facts, notes=self.notes)

    def make_files(self, inputs: ScanInputs, *, out: Path, overwrite: bool = False) -> ScanReport:
        """Make tumors in the scan of some files and write the result; all files or none.

        Args:
            inputs: The scan's files, any orientation and spacing; only read.
            out: Folder to write to.
            overwrite: Replace the files of an earlier run in ``out``.

        Raises:
            DiffTumorError: Before anything is written; the message names the file or option.
        """
        check_output(out, inputs=inputs, overwrite=overwrite)
        return self.make(inputs.read(organ=self.synthesizer.organ)).write(out)

    def _spec_of_mask(self) -> TumorSpec:
        """Return what is wanted of the tumors of a mask."""
        if len(self.tumors) != 1 or self.tumors[0].generator == "copy_paste" or self.gate is not None:
            raise SynthesisError(
                "A mask gives the tumors (--tumor-mask): ask for one kind, diffusion or handcrafted, without a gate."
            )
        return self.tumors[0]

    def _check_enough(self, records: Sequence[Any], shortfalls: Sequence[str], sampler: RejectionSampler) -> None:
        if not records and sampler.rejections:
            failed = sorted({name for rejection in sampler.rejections for name in rejection.failed})
            raise SynthesisError(
                f"None of {len(sampler.rejections)} tumors passed the quality gate (failed: {', '.join(failed)}): "
                "choose another model or seed, or omit the gate (--quality-gate)."
            )
        if not records:
            raise no_room(self.synthesizer.organ, self.tumors)
        if shortfalls and self.strict:
            raise SynthesisError(f"{shortfalls[0]} Ask for less, or omit strict (--strict).")


def replay_scan(
    synthesizer: TumorSynthesizer, record: ScanRecord, inputs: ScanInputs, *, out: Path, overwrite: bool = False
) -> ScanReport:
    """Make the tumors of a record again; on the same kind of device, every file is the same to the last bit.

    Args:
        synthesizer: With the models of the record.
        record: What was made.
        inputs: The files it was made from, wherever they are now.
        out: Folder to write to.
        overwrite: Replace the files of an earlier run in ``out``.

    Raises:
        DiffTumorError: As ``ScanSynthesizer.make_files``; or a file is not the one that the record was made from.
    """
    check_output(out, inputs=inputs, overwrite=overwrite)
    inputs.check_same(record.content["inputs"])
    scan = inputs.read(organ=synthesizer.organ)
    model_scan = ModelScan(scan, synthesizer.spacing_mm)
    synthesizer = _knowing_masks(synthesizer, model_scan)
    where, asked = f"{record.path}: tumors", record.content["request"]["tumors"]
    # Records of the first versions may hold a size beside a diameter, which decided.
    asked = [{**each, "size": "early"} if each.get("diameter_mm") is not None else each for each in asked]
    specs = [TumorSpec.from_dict(each, where=where) for each in asked]
    host = model_scan.host(specs, synthesizer.organ, synthesizer.sources)
    made = apply_to_scan(synthesizer, model_scan, record.tumors)
    tumors = report_tumors(made, host, window=synthesizer.window)
    kept = {name: record.content[name] for name in ("request", "inputs", "models", "shortfalls", "rejected")}
    kept["sources"] = record.content.get("sources", {})
    warnings = (*scan.doubts, *tissue_warnings(made), *kept["shortfalls"], *find_warnings(tumors))
    then, now = record.content["device"], str(synthesizer.device)
    notes = () if now == then else (f"The record was made on {then}, this is {now}: the last bits may differ.",)
    facts = {**kept, "device": now}
    return SynthesisResult(made=made, tumors=tumors, warnings=warnings, facts=facts, notes=notes).write(out)


def _knowing_masks(synthesizer: TumorSynthesizer, model_scan: ModelScan) -> TumorSynthesizer:
    given = model_scan.given
    return synthesizer if given is None else synthesizer.with_masks(given.shapes)


def _copied_cases(records: Sequence[TumorRecord]) -> list[str]:
    return sorted({record.source.case for record in records if record.source is not None})


def write_volumes(made: ScanSynthesis, folder: Path) -> None:
    """Write CT, labels and lesions.

    Raises:
        SynthesisError: The CT file differs from the original outside the tumors.
    """
    original, mark = made.scan.ct, _mark(made)
    write_ct(folder / CT_FILE, original, made.hu(), made.change_hu != 0, box=made.box, mark=mark)
    # The promise is checked on the file itself: stored values, not HU, and the header with them.
    if not same_outside(original, folder / CT_FILE, made.halo, box=made.box, mark=mark):
        raise SynthesisError(
            f"The copy of {original.path} differs from it outside the tumors, so nothing was written: report this."
        )
    write_labels(folder / LABELS_FILE, made.whole_labels(), original, mark=mark)
    write_labels(folder / LESIONS_FILE, made.whole_lesions(), original, mark=mark)


def _mark(made: ScanSynthesis) -> dict[str, Any]:
    """Return which tumors were made, for the headers of the files; the record says all of them."""
    return {
        "organ": made.scan.organ,
        "tumors": [
            {
                "generator": record.generator,
                "center_mm": [round(value, 1) for value in record.center_mm],
                "diameter_mm": round(2 * record.equivalent_radius_mm, 1),
            }
            for record in made.records
        ],
        "record": RECORD_FILE,
    }
