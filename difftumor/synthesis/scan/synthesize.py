"""Tumors in a scan by one call: read the scan, make tumors in it, write the files, or replay a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftumor.errors import ConfigError
from difftumor.synthesis.scan.options import GateOptions, ScanOptions, SynthesisOptions

if TYPE_CHECKING:
    from difftumor.scans.organs import Organ
    from difftumor.synthesis.generators.diffusion import Precision
    from difftumor.synthesis.scan.files import ScanReport, SynthesisResult
    from difftumor.synthesis.scan.inputs import Scan, ScanInputs
    from difftumor.synthesis.spec import TumorSpec


def read_scan(
    ct: Path | str,
    *,
    organ: str | Organ,
    organ_mask: Path | str | None = None,
    labels: Path | str | None = None,
    organ_labels: Sequence[int] = (),
    convention: str | None = None,
    segments: Path | str | None = None,
    given_mask: Path | str | None = None,
    accept_hu: bool = False,
) -> Scan:
    """Read a CT and an organ in it, of any orientation and spacing.

    Args:
        ct: CT in HU (.nii.gz or .nii).
        organ: Name of the organ, such as liver, or an organ with rules of your own.
        organ_mask: Mask of the organ on the CT's grid.
        labels: Instead of a mask: a label map, with ``organ_labels`` or a ``convention``.
        organ_labels: The organ's numbers in the mask or label map.
        convention: What all numbers of the label map mean, such as ``"totalsegmentator"``.
        segments: Label map of the organ's segments.
        given_mask: Mask of the tumors to make, on any grid; each component is one of exactly that shape and place.
        accept_hu: Whether a CT that cannot be in HU, or a mask that cannot be of the organ, is used all the same.

    Raises:
        ConfigError: The organ is not given, or given twice.
        VolumeError: A file is missing, damaged, of the wrong kind, or not in HU.
        GridMismatchError: The grids differ.
        OrganError: The organ is unknown or absent.

    Example:
        >>> import difftumor as dt
        >>> scan = dt.read_scan("ct.nii.gz", organ_mask="liver.nii.gz", organ="liver")
        >>> scan.ct.grid.shape, scan.ct.grid.spacing_mm
        ((40, 40, 40), (1.0, 1.0, 1.0))
    """
    files = ScanOptions(
        ct=ct,
        organ_mask=organ_mask,
        labels=labels,
        organ_labels=tuple(organ_labels),
        convention=convention,
        segments=segments,
        given_mask=given_mask,
        accept_hu=accept_hu,
    )
    return files.inputs(organ).read(organ=organ)


def synthesize(
    scan: Scan,
    tumors: TumorSpec | Sequence[TumorSpec],
    *,
    seed: int = 0,
    model: Path | str | None = None,
    source: Path | str | None = None,
    sampler: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
    gate: GateOptions | None = None,
    strict: bool = False,
    accept_hu: bool = False,
) -> SynthesisResult:
    """Make tumors in a scan, as ``difftumor synthesize`` does.

    Each call loads the networks; for many scans load them once, with ``SynthesisOptions(...).load()``, and call its
    ``make`` for each.

    Args:
        scan: From ``read_scan``, or from arrays; not modified.
        tumors: Which tumors.
        seed: The same seed and scan give the same tumors.
        model: Diffusion artifact; by default ``checkpoints/diffusion_<organ>_<early or late>``. Hand-crafted tumors
            need none.
        source: Cases whose tumors ``"copy_paste"`` copies: a folder or list, with labels.
        sampler: What to change of the model's own sampling: ``kind``, ``steps``, ``eta``, ``spacing``.
        precision: What networks compute in, ``"fp32"`` or ``"bf16"``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        gate: Redraws implausible tumors; None to keep all.
        strict: Whether falling short of the request is an error.
        accept_hu: Whether scans of the source that cannot be in HU are used.

    Raises:
        ArtifactError: A model is missing, damaged or of another kind.
        ConfigError: Options do not fit each other.
        SynthesisError: No tumor has room or passes the gate; or the request is strict and not met.

    Example:
        >>> import difftumor as dt
        >>> scan = dt.read_scan("ct.nii.gz", organ_mask="liver.nii.gz", organ="liver")
        >>> result = dt.synthesize(scan, dt.TumorSpec(generator="handcrafted", size="tiny", count=2), seed=0)
        >>> int(result.lesions.max())
        2
    """
    from difftumor.synthesis.scan.inputs import Scan
    from difftumor.synthesis.spec import TumorSpec

    if not isinstance(scan, Scan):
        raise ConfigError(f"scan is of type {type(scan).__name__}: give one from read_scan or Scan.")
    specs = (tumors,) if isinstance(tumors, TumorSpec) else tuple(tumors)
    if not all(isinstance(spec, TumorSpec) for spec in specs):
        raise ConfigError(f"tumors is of type {type(tumors).__name__}: give a TumorSpec or several.")
    options = SynthesisOptions(
        organ=scan.rules,
        tumors=specs,
        seed=seed,
        model=model,
        source=source,
        sampler=sampler or {},
        precision=precision,
        device=device,
        gate=gate,
        strict=strict,
        accept_hu=accept_hu,
    )
    return options.load().make(scan)


def synthesize_files(options: SynthesisOptions, inputs: ScanInputs, *, out: Path, overwrite: bool) -> ScanReport:
    """Make tumors in the scan of some files and write the result; all files or none.

    Args:
        options: Which tumors, and how they are made.
        inputs: The scan's files, any orientation and spacing; only read.
        out: Folder to write to.
        overwrite: Replace the files of an earlier run in ``out``.

    Raises:
        DiffTumorError: Before anything is written; the message names the file or option.
    """
    from difftumor.synthesis.scan.record import check_output

    # What can be said at once is said before networks, or even PyTorch, are loaded.
    inputs.check()
    check_output(out, inputs=inputs, overwrite=overwrite)
    options.find_sources()
    return options.load().make_files(inputs, out=out, overwrite=overwrite)


def replay_files(
    record: Path,
    files: ScanOptions,
    *,
    out: Path,
    model: Path | None = None,
    source: Path | None = None,
    device: str = "auto",
    overwrite: bool,
) -> ScanReport:
    """Make the tumors of a ``record.json`` again.

    Args:
        record: The file.
        files: Inputs that have moved since.
        out: Folder to write to.
        model: Where one of its diffusion models is now; by default all are where they were.
        source: Where the cases are now whose tumors were copied, likewise.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        overwrite: Replace the files of an earlier run in ``out``.

    Raises:
        DiffTumorError: The record cannot be read, or a file or model is not the one it was made with.
    """
    from difftumor.synthesis.scan.record import read_record

    made = read_record(record)
    inputs = files.moved(made.inputs)
    inputs.check()
    from difftumor.models.artifact import pick_device
    from difftumor.synthesis.scan.files import replay_scan
    from difftumor.synthesis.scan.loading import load_recorded

    synthesizer = load_recorded(made, model=model, source=source, device=pick_device(device))
    return replay_scan(synthesizer, made, inputs, out=out, overwrite=overwrite)
