"""From files to files: tumors in a scan, with labels, record and picture in one folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor import __version__
from difftumor.diffusion.samplers import SamplerConfig
from difftumor.errors import ConfigError, SynthesisError
from difftumor.files import check_results, folder_written_whole
from difftumor.plots import save_png
from difftumor.synthesis.records import TumorRecord, sizes_of
from difftumor.synthesis.scan import ScanSynthesis, apply_to_scan, draw_in_scan, read_scan
from difftumor.synthesis.scan_report import TumorReport, draw_preview, find_warnings, report_tumors
from difftumor.synthesis.synthesizer import TumorSynthesizer
from difftumor.volume import Volume, read_ct, write_ct, write_labels

CT_FILE, LABELS_FILE, LESIONS_FILE = "ct.nii.gz", "labels.nii.gz", "lesions.nii.gz"
RECORD_FILE, PREVIEW_FILE = "record.json", "preview.png"
FILES = (CT_FILE, LABELS_FILE, LESIONS_FILE, RECORD_FILE, PREVIEW_FILE)
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ScanReport:
    """What was written.

    Args:
        folder: Where.
        tumors: What each tumor became.
        warnings: What fell short of the request, in sentences.
    """

    folder: Path
    tumors: tuple[TumorReport, ...]
    warnings: tuple[str, ...]


def synthesize_scan(
    synthesizer: TumorSynthesizer,
    *,
    ct: Path,
    organ_mask: Path,
    out: Path,
    size: str = "early",
    count: int = 1,
    seed: int = 0,
    organ_label: int | None = None,
    records: Sequence[TumorRecord] | None = None,
    models: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> ScanReport:
    """Make tumors in one scan and write CT, labels, lesions, record and preview; all files or none.

    Args:
        synthesizer: What makes the tumors.
        ct: CT in HU, NIfTI, any orientation and spacing.
        organ_mask: Mask or label map on the CT's grid.
        out: Folder to write to.
        size: Size class, ``"early"`` or ``"late"``.
        count: Tumors wanted.
        seed: The same seed and files give the same tumors.
        organ_label: The organ's number in the label map; None for a mask.
        records: Apply these instead of drawing; ``size``, ``count`` and ``seed`` are then only noted.
        models: Identities of the artifacts behind the synthesizer, for the record.
        overwrite: Replace the files of an earlier run in ``out``.

    Raises:
        DiffTumorError: Of the class that fits, before anything is written; the message names the file or option.
    """
    sizes_of(size)
    if count < 1:
        raise ConfigError(f"--count is {count}: give 1 or more.")
    check_output(out, inputs=(ct, organ_mask), overwrite=overwrite)
    organ = synthesizer.organ.name
    scan = read_scan(ct, organ_mask, organ=organ, organ_label=organ_label)
    if records is None:
        records = draw_in_scan(synthesizer, scan, size=size, count=count, seed=seed)
    result = apply_to_scan(synthesizer, scan, records)
    tumors = report_tumors(result)
    warnings = find_warnings(tumors, wanted=count, organ=organ)
    content = {
        "format_version": FORMAT_VERSION,
        "difftumor_version": __version__,
        "request": {"organ": organ, "organ_label": organ_label, "size": size, "count": count, "seed": seed},
        "inputs": {"ct": _provenance(ct), "organ_mask": _provenance(organ_mask)},
        "models": dict(models or {}),
        "device": str(synthesizer.device),
        "sampling": synthesizer.sampling,
        "warnings": list(warnings),
        "tumors": [tumor.to_dict() for tumor in tumors],
    }
    with folder_written_whole(out, keep_others=True) as staging:
        _write_volumes(result, staging)
        (staging / RECORD_FILE).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        save_png(draw_preview(result, organ=organ), staging / PREVIEW_FILE)
    return ScanReport(out, tumors, warnings)


def read_records(path: Path) -> tuple[TumorRecord, ...]:
    """Read the tumors of a ``record.json``, in order.

    Raises:
        SynthesisError: The file is missing or is none.
    """
    return tuple(TumorRecord.from_dict(tumor["record"]) for tumor in _read_content(path)["tumors"])


def read_sampling(path: Path) -> dict[str, Any]:
    """Read how the tumors of a ``record.json`` were sampled, for ``load_synthesizer(model, organ=…, **sampling)``.

    With the same model, device and records, the tumors are then the same to the last bit.

    Raises:
        SynthesisError: The file is missing or is none.
    """
    # Before this was recorded, it was as the model said, in float32.
    content = _read_content(path)
    try:
        stored = dict(content.get("sampling", {}))
        precision = stored.pop("precision", "fp32")
        return {"sampler": SamplerConfig(**stored) if stored else None, "precision": precision}
    except (TypeError, ValueError, ConfigError) as error:
        raise _unreadable(path, error) from error


def check_output(out: Path, *, inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse a folder that must not be written to; see `difftumor.files.check_results`."""
    check_results(out, FILES, inputs=inputs, overwrite=overwrite)


def _read_content(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, _ = content["format_version"], [tumor["record"] for tumor in content["tumors"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, error) from error
    if version != FORMAT_VERSION:
        raise SynthesisError(
            f"{path} has format_version {version}, not {FORMAT_VERSION}: use the release that wrote it."
        )
    return content


def _unreadable(path: Path, error: Exception) -> SynthesisError:
    return SynthesisError(
        f"{path} is not a readable {RECORD_FILE} ({error}): give one that difftumor synthesize wrote."
    )


def _write_volumes(result: ScanSynthesis, folder: Path) -> None:
    original, changed = result.scan.ct, result.changed()
    write_ct(folder / CT_FILE, original, result.hu(), changed)
    written = read_ct(folder / CT_FILE)
    # The promise is checked on the file itself: stored values, not HU, and the header with them.
    if not _same_outside(original, written, changed):
        raise SynthesisError(
            f"The copy of {original.path} differs from it outside the tumors, so nothing was written: report this."
        )
    write_labels(folder / LABELS_FILE, result.labels, original)
    write_labels(folder / LESIONS_FILE, result.lesions, original)


def _same_outside(original: Volume, written: Volume, changed: NDArray[np.bool_]) -> bool:
    before, after = original.stored, written.stored
    if before is None or after is None or before.preamble != after.preamble:
        return False
    old, new = before.values.reshape(changed.shape, order="F"), after.values.reshape(changed.shape, order="F")
    return bool(((old == new) | changed).all())


def _provenance(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"path": str(file), "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
