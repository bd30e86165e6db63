"""From files to files: tumors in a scan, with labels, record and picture in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difftumor import __version__
from difftumor.errors import SynthesisError
from difftumor.files import check_results, folder_written_whole
from difftumor.reporting.plots import save_png
from difftumor.scans.nifti import same_outside, write_ct, write_labels
from difftumor.scans.organs import Organ
from difftumor.synthesis.draw import draw_tumors
from difftumor.synthesis.host import Host
from difftumor.synthesis.scan.gate import QualityGate, RejectionSampler
from difftumor.synthesis.scan.inputs import ScanInputs
from difftumor.synthesis.scan.insertion import ScanSynthesis, apply_to_scan
from difftumor.synthesis.scan.record import FORMAT_VERSION, RECORD_FILE, ModelRecord, ScanRecord
from difftumor.synthesis.scan.report import TumorReport, find_warnings, plot_preview, report_tumors
from difftumor.synthesis.scan.scan import ModelScan
from difftumor.synthesis.spec import TumorSpec
from difftumor.synthesis.synthesizer import TumorSynthesizer, no_room

CT_FILE, LABELS_FILE, LESIONS_FILE = "ct.nii.gz", "labels.nii.gz", "lesions.nii.gz"
PREVIEW_FILE = "preview.png"
FILES = (CT_FILE, LABELS_FILE, LESIONS_FILE, RECORD_FILE, PREVIEW_FILE)


@dataclass(frozen=True, kw_only=True)
class ScanRequest:
    """What is asked of a scan.

    Args:
        tumors: What is wanted.
        seed: The same seed and files give the same tumors.
        gate: Which tumors are good enough; None for all.
        strict: Refuse to write a scan that falls short of what is asked.
    """

    tumors: tuple[TumorSpec, ...] = field(default_factory=lambda: (TumorSpec(),))
    seed: int = 0
    gate: QualityGate | None = None
    strict: bool = False


@dataclass(frozen=True)
class ScanReport:
    """What was written.

    Args:
        folder: Where.
        tumors: What each tumor became.
        warnings: What fell short of the request, in sentences.
        rejected: Tumors that the quality gate did not let through.
    """

    folder: Path
    tumors: tuple[TumorReport, ...]
    warnings: tuple[str, ...]
    rejected: int


def synthesize_scan(
    synthesizer: TumorSynthesizer,
    inputs: ScanInputs,
    request: ScanRequest,
    *,
    out: Path,
    models: Mapping[str, ModelRecord] | None = None,
    overwrite: bool = False,
) -> ScanReport:
    """Make tumors in one scan and write CT, labels, lesions, record and preview; all files or none.

    Args:
        synthesizer: What makes the tumors.
        inputs: The scan's files, any orientation and spacing; only read.
        request: What is asked.
        out: Folder to write to.
        models: The diffusion models behind the synthesizer, for the record.
        overwrite: Replace the files of an earlier run in ``out``.

    Raises:
        DiffTumorError: Of the class that fits, before anything is written; the message names the file or option.
    """
    check_output(out, inputs=inputs, overwrite=overwrite)
    scan = inputs.read(organ=synthesizer.organ.name)
    model_scan = ModelScan(scan, synthesizer.spacing_mm)
    host = model_scan.host(request.tumors, synthesizer.organ)
    sampler = RejectionSampler(synthesizer=synthesizer, model_scan=model_scan, gate=request.gate)
    drawn = draw_tumors(host, request.tumors, seed=request.seed, accept=sampler, attempts=sampler.attempts)
    _check_enough(drawn.records, drawn.shortfalls, request, synthesizer, sampler)
    result = apply_to_scan(synthesizer, model_scan, drawn.records)
    content = {
        "format_version": FORMAT_VERSION,
        "difftumor_version": __version__,
        "request": describe_request(request, synthesizer.organ),
        "inputs": inputs.to_record(),
        "models": {stage: model.to_dict() for stage, model in (models or {}).items()},
        "device": str(synthesizer.device),
        "shortfalls": list(drawn.shortfalls),
        "rejected": [rejection.to_dict() for rejection in sampler.rejections],
    }
    return _write(result, host, content, synthesizer=synthesizer, out=out, strict=request.strict)


def describe_request(request: ScanRequest, organ: Organ) -> dict[str, Any]:
    """Return plain values that say what is asked, as ``record.json`` keeps them."""
    return {
        "organ": organ.name,
        "seed": request.seed,
        "tumors": [spec.to_plain() for spec in request.tumors],
        "quality_gate": None if request.gate is None else request.gate.to_dict(),
        "strict": request.strict,
    }


def replay_scan(
    synthesizer: TumorSynthesizer, record: ScanRecord, inputs: ScanInputs, *, out: Path, overwrite: bool = False
) -> ScanReport:
    """Make the tumors of a record again; on the same kind of device, every file is the same to the last bit.

    Args:
        synthesizer: With the models of the record.
        record: What was made.
        inputs: The files that it was made from, wherever they are now.
        out: Folder to write to.
        overwrite: Replace the files of an earlier run in ``out``.

    Raises:
        DiffTumorError: As ``synthesize_scan``; or a file is not the one that the record was made from.
    """
    check_output(out, inputs=inputs, overwrite=overwrite)
    inputs.check_same(record.content["inputs"])
    scan = inputs.read(organ=synthesizer.organ.name)
    specs = [TumorSpec.from_dict(spec, where=f"{record.path}: tumors") for spec in record.content["request"]["tumors"]]
    model_scan = ModelScan(scan, synthesizer.spacing_mm)
    host = model_scan.host(specs, synthesizer.organ)
    result = apply_to_scan(synthesizer, model_scan, record.tumors)
    made_anew = {"tumors", "warnings"}
    content = {name: value for name, value in record.content.items() if name not in made_anew}
    content |= {"difftumor_version": __version__, "device": str(synthesizer.device)}
    return _write(result, host, content, synthesizer=synthesizer, out=out, strict=False)


def check_output(out: Path, *, inputs: ScanInputs, overwrite: bool) -> None:
    """Refuse a folder that must not be written to; see `difftumor.files.check_results`."""
    given = [path for paths in inputs.files.values() for path in paths]
    check_results(out, FILES, inputs=given, overwrite=overwrite)


def _check_enough(
    records: Sequence[Any],
    shortfalls: Sequence[str],
    request: ScanRequest,
    synthesizer: TumorSynthesizer,
    sampler: RejectionSampler,
) -> None:
    if not records and sampler.rejections:
        failed = sorted({name for rejection in sampler.rejections for name in rejection.failed})
        raise SynthesisError(
            f"None of {len(sampler.rejections)} tumors passed the quality gate (failed: {', '.join(failed)}): "
            "choose another model or seed, or do without --quality-gate."
        )
    if not records:
        raise no_room(synthesizer.organ, request.tumors)
    if shortfalls and request.strict:
        raise SynthesisError(f"{shortfalls[0]} Ask for less, or do without --strict.")


def _write(
    result: ScanSynthesis,
    host: Host,
    content: Mapping[str, Any],
    *,
    synthesizer: TumorSynthesizer,
    out: Path,
    strict: bool,
) -> ScanReport:
    organ = synthesizer.organ.name
    tumors = report_tumors(result, host, window=synthesizer.window)
    warnings = (*content["shortfalls"], *find_warnings(tumors))
    if warnings and strict:
        raise SynthesisError(f"{warnings[0]} Ask for something else, or do without --strict.")
    whole = {**content, "warnings": list(warnings), "tumors": [tumor.to_dict() for tumor in tumors]}
    with folder_written_whole(out, keep_others=True, last=RECORD_FILE) as staging:
        _write_volumes(result, staging)
        (staging / RECORD_FILE).write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        save_png(plot_preview(result, organ=organ), staging / PREVIEW_FILE)
    return ScanReport(out, tumors, warnings, len(content["rejected"]))


def _write_volumes(result: ScanSynthesis, folder: Path) -> None:
    original = result.scan.ct
    write_ct(folder / CT_FILE, original, result.hu(), result.change_hu != 0, box=result.box)
    # The promise is checked on the file itself: stored values, not HU, and the header with them.
    if not same_outside(original, folder / CT_FILE, result.halo, box=result.box):
        raise SynthesisError(
            f"The copy of {original.path} differs from it outside the tumors, so nothing was written: report this."
        )
    write_labels(folder / LABELS_FILE, result.whole_labels(), original)
    write_labels(folder / LESIONS_FILE, result.whole_lesions(), original)
