"""What is asked for: the options of ``difftumor synthesize`` as plain values, and how they become tumors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftumor.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from difftumor.scans.lesions import SizeGroup
    from difftumor.scans.organs import Organ
    from difftumor.synthesis.generators.diffusion import Precision
    from difftumor.synthesis.scan.files import ScanReport, ScanSynthesizer, SynthesisResult
    from difftumor.synthesis.scan.gate import Segment
    from difftumor.synthesis.scan.inputs import Scan, ScanInputs
    from difftumor.synthesis.spec import TumorPlan, TumorSpec


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """The files of a scan as a user names them.

    Args:
        ct: CT in HU.
        organ_mask: Mask of the organ on the CT's grid.
        labels: Instead of a mask: a label map, with ``organ_labels`` or a ``convention``.
        organ_labels: The organ's numbers in it, from 1.
        convention: What all its numbers mean, such as ``"totalsegmentator"``.
        segments: Label map of the organ's segments.
    """

    ct: Path | str | None = None
    organ_mask: Path | str | None = None
    labels: Path | str | None = None
    organ_labels: tuple[int, ...] = ()
    convention: str | None = None
    segments: Path | str | None = None

    def __post_init__(self) -> None:
        if self.organ_mask is not None and self.labels is not None:
            raise ConfigError("Give the organ either as --organ-mask or as --labels, not both.")
        if self.organ_labels and self.convention is not None:
            raise ConfigError("--organ-label and --convention contradict each other: give one of them.")
        if any(number < 1 for number in self.organ_labels):
            raise ConfigError(f"--organ-label is {min(self.organ_labels)}: give numbers from 1 up.")

    @property
    def mask(self) -> Path | None:
        """The file that holds the organ."""
        given = self.labels if self.organ_mask is None else self.organ_mask
        return None if given is None else Path(given)

    def inputs(self, organ: str) -> ScanInputs:
        """Return the files of the scan.

        Raises:
            ConfigError: One is missing.
            OrganError: The convention is unknown or does not have the organ.
        """
        from difftumor.scans.organs import get_convention, get_organ, resolve_labels
        from difftumor.synthesis.scan.inputs import ScanInputs

        if self.ct is None:
            raise ConfigError("Give a CT with --ct, or many scans with --cases.")
        if self.mask is None:
            raise ConfigError("The organ is missing: give --organ-mask, or --labels with --organ-label.")
        numbers, tumors = self.organ_labels, tuple[int, ...]()
        if self.convention is not None:
            named = resolve_labels(get_convention(self.convention), get_organ(organ))
            numbers, tumors = named.organ, named.tumor
        if self.labels is not None and not numbers:
            raise ConfigError(
                f"--labels {self.labels} needs --organ-label or --convention: say which number is the {organ}."
            )
        segments = None if self.segments is None else Path(self.segments)
        return ScanInputs(
            ct=Path(self.ct), organ_masks=(self.mask,), organ_labels=numbers, tumor_labels=tumors, segments=segments
        )

    def moved(self, recorded: ScanInputs) -> ScanInputs:
        """Return the files of a record, replaced by those that are named here because they have moved.

        Raises:
            ConfigError: A mask is named for a record of several, or a convention is given.
        """
        if self.convention is not None:
            raise ConfigError("--convention does not go with --replay: the record says which labels were used.")
        if self.mask is not None and len(recorded.organ_masks) > 1:
            raise ConfigError(
                f"The record was made from {len(recorded.organ_masks)} masks: put them where it says, and name none."
            )
        return replace(
            recorded,
            ct=recorded.ct if self.ct is None else Path(self.ct),
            organ_masks=recorded.organ_masks if self.mask is None else (self.mask,),
            organ_labels=self.organ_labels or recorded.organ_labels,
            segments=recorded.segments if self.segments is None else Path(self.segments),
        )


def read_scan(
    ct: Path | str,
    *,
    organ: str,
    organ_mask: Path | str | None = None,
    labels: Path | str | None = None,
    organ_labels: Sequence[int] = (),
    convention: str | None = None,
    segments: Path | str | None = None,
) -> Scan:
    """Read a CT and an organ in it, of any orientation and spacing.

    Args:
        ct: CT in HU (.nii.gz or .nii).
        organ: Name of the organ: liver, pancreas or kidney.
        organ_mask: Mask of the organ on the CT's grid.
        labels: Instead of a mask: a label map, with ``organ_labels`` or a ``convention``.
        organ_labels: The organ's numbers in the mask or label map.
        convention: What all numbers of the label map mean, such as ``"totalsegmentator"``.
        segments: Label map of the organ's segments.

    Raises:
        ConfigError: The organ is not given, or given twice.
        VolumeError: A file is missing, damaged, or of the wrong kind.
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
    )
    return files.inputs(organ).read(organ=organ)


def plan_tumors(
    plan: Path | None = None,
    *,
    generator: str | None = None,
    preset: str | None = None,
    size: str | None = None,
    radius_mm: float | None = None,
    count: int | None = None,
) -> TumorPlan:
    """Return which tumors are wanted: those of a ``--tumors`` file, or of the short options, which are fields of one.

    Raises:
        ConfigError: The file or an option is wrong, or both are given.
    """
    from difftumor.synthesis.spec import TumorPlan, TumorSpec, read_plan

    short = {"generator": generator, "preset": preset, "size": size, "radius_mm": radius_mm, "count": count}
    if plan is not None:
        refuse(short, beside="--tumors")
        return read_plan(plan)
    given: dict[str, Any] = {name: value for name, value in short.items() if value is not None}
    if radius_mm is not None:
        if size is not None:
            raise ConfigError("--size and --radius-mm contradict each other: give one of them.")
        if not radius_mm > 0:
            raise ConfigError(f"--radius-mm is {radius_mm}: give a number above 0.")
        given["diameter_mm"] = 2 * given.pop("radius_mm")
    return TumorPlan((TumorSpec.from_dict(given, where="The tumor options"),))


def refuse(options: Mapping[str, Any], *, beside: str) -> None:
    """Refuse options that mean nothing beside another one.

    Args:
        options: By name; None if not given.
        beside: The other option, as the error names it.

    Raises:
        ConfigError: One is given.
    """
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        option = {"kind": "sampler"}.get(given, given).replace("_", "-")
        raise ConfigError(f"--{option} does not go with {beside}: leave it out.")


@dataclass(frozen=True)
class GateOptions:
    """The options of the quality gate.

    Args:
        attempts: How many tumors are tried before one is given up.
        segmenter: Artifact that must find a tumor; None for none.

    Example:
        >>> import difftumor as dt
        >>> scan = dt.read_scan("ct.nii.gz", organ_mask="liver.nii.gz", organ="liver")
        >>> tumor = dt.TumorSpec(generator="handcrafted", size="tiny")
        >>> result = dt.synthesize(scan, tumor, gate=dt.GateOptions(attempts=20))
        >>> len(result.records)
        1
    """

    attempts: int = 10
    segmenter: Path | str | None = None


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """Which tumors, and how they are made; plain values, so that they can be sent to another process.

    Args:
        organ: Name of the organ.
        tumors: Which tumors.
        seed: The same seed and scan give the same tumors.
        model: Diffusion artifact for all tumors; None for the default places.
        sampler: What to change of the model's own sampling: ``kind``, ``steps``, ``eta``, ``spacing``.
        precision: What networks compute in, ``"fp32"`` or ``"bf16"``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        gate: Options of the quality gate; None for none.
        strict: Whether falling short of the request is an error.

    Raises:
        ConfigError: A model or its sampling is given for hand-crafted tumors only.

    Example:
        >>> import difftumor as dt
        >>> tumor = dt.TumorSpec(generator="handcrafted", size="tiny")
        >>> synthesizer = dt.SynthesisOptions(organ="liver", tumors=(tumor,), seed=1).load()  # once for many scans
        >>> result = synthesizer.make(dt.read_scan("ct.nii.gz", organ_mask="liver.nii.gz", organ="liver"))
        >>> len(result.records)
        1
    """

    organ: str
    tumors: tuple[TumorSpec, ...]
    seed: int = 0
    model: Path | str | None = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"
    device: str = "auto"
    gate: GateOptions | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if all(spec.generator == "handcrafted" for spec in self.tumors):
            refuse({"model": self.model, **self.sampler}, beside="hand-crafted tumors only")

    def find_models(self) -> dict[SizeGroup, Path]:
        """Return the folders of the diffusion models by size group, and read what they say, without loading networks.

        Raises:
            ArtifactError: A model is missing or damaged.
            OrganError: The organ is unknown.
        """
        from difftumor.models.artifact_config import read_config

        groups = frozenset().union(*(spec.size_groups for spec in self.tumors if spec.generator == "diffusion"))
        paths = find_models(self.model, groups, organ=self.organ)
        for path in [*paths.values(), *([Path(self.gate.segmenter)] if self.gate and self.gate.segmenter else [])]:
            read_config(path)
        return paths

    def load(self) -> ScanSynthesizer:
        """Load the networks.

        Raises:
            ArtifactError: A model is missing, damaged or of another kind.
            ConfigError: The sampling does not fit a model, or the precision is unknown.
            DeviceError: The device is unknown or not there.
            OrganError: The organ is unknown.
        """
        from difftumor.models.artifact import pick_device
        from difftumor.scans.organs import get_organ

        organ, paths, device = get_organ(self.organ), self.find_models(), pick_device(self.device)
        # Here, because these need PyTorch: what is wrong above is said at once.
        from difftumor.synthesis.scan.files import ScanSynthesizer
        from difftumor.synthesis.scan.gate import QualityGate
        from difftumor.synthesis.scan.loading import load_textures, real_tumors, synthesizer_of

        models = load_textures(paths, device=device, sampler=self.sampler, precision=self.precision)
        gate = None
        if self.gate is not None:
            artifact = self.gate.segmenter
            segment, identity = (None, None) if artifact is None else _load_segmenter(Path(artifact), self.device)
            gate = QualityGate(
                real=real_tumors(models), attempts=self.gate.attempts, segment=segment, segmenter=identity
            )
        return ScanSynthesizer(
            synthesizer=synthesizer_of(models, organ=organ, device=device),
            tumors=self.tumors,
            seed=self.seed,
            gate=gate,
            strict=self.strict,
            models={group: model.record for group, model in models.items()},
        )


def find_models(
    model: Path | str | None, groups: Collection[SizeGroup], *, organ: Organ | str, folder: Path | str = "checkpoints"
) -> dict[SizeGroup, Path]:
    """Return the folders of the diffusion models to use, by size group.

    Args:
        model: The one that the user names, for all sizes; None for the default places,
            ``<folder>/diffusion_<organ>_<early or late>``.
        groups: Size groups of the requested tumors, ``"early"`` and ``"late"``.
        organ: Where tumors are to grow.
        folder: Where the stages put their artifacts.

    Raises:
        ArtifactError: A default place is empty.
        OrganError: The organ is unknown.
    """
    from difftumor.scans.organs import get_organ

    name = (get_organ(organ) if isinstance(organ, str) else organ).name
    found = {}
    for group in sorted(groups):
        found[group] = Path(folder) / f"diffusion_{name}_{group}" if model is None else Path(model)
        if model is None and not found[group].is_dir():
            raise ArtifactError(
                f"There is no diffusion model at {found[group]}: train one with python -m stages.diffusion "
                f"organ={name} tumor_stage={group}, give the folder of one with --model, or use "
                "--generator handcrafted, which needs none."
            )
    return found


def synthesize(
    scan: Scan,
    tumors: TumorSpec | Sequence[TumorSpec],
    *,
    seed: int = 0,
    model: Path | str | None = None,
    sampler: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
    gate: GateOptions | None = None,
    strict: bool = False,
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
        sampler: What to change of the model's own sampling: ``kind``, ``steps``, ``eta``, ``spacing``.
        precision: What networks compute in, ``"fp32"`` or ``"bf16"``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        gate: Redraws implausible tumors; None to keep all.
        strict: Whether falling short of the request is an error.

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
        organ=scan.organ,
        tumors=specs,
        seed=seed,
        model=model,
        sampler=sampler or {},
        precision=precision,
        device=device,
        gate=gate,
        strict=strict,
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
    check_output(out, inputs=inputs, overwrite=overwrite)
    inputs.check()
    return options.load().make_files(inputs, out=out, overwrite=overwrite)


def replay_files(
    record: Path, files: ScanOptions, *, out: Path, model: Path | None = None, device: str = "auto", overwrite: bool
) -> ScanReport:
    """Make the tumors of a ``record.json`` again.

    Args:
        record: The file.
        files: Inputs that have moved since.
        out: Folder to write to.
        model: Where one of its diffusion models is now; by default all are where they were.
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

    synthesizer = load_recorded(made, model=model, device=pick_device(device))
    return replay_scan(synthesizer, made, inputs, out=out, overwrite=overwrite)


def _load_segmenter(artifact: Path, device: str) -> tuple[Segment, str]:
    """Return a segmenter for the gate as a function of CT and voxel size, and its identity."""
    import nibabel as nib
    import numpy as np

    from difftumor.models.artifact import load_artifact, pick_device
    from difftumor.scans.grid import Grid
    from difftumor.scans.nifti import Volume
    from difftumor.segmentation.inference import predict_volume
    from difftumor.segmentation.options import PredictionOptions

    loaded = load_artifact(artifact, kind="segmenter", device=pick_device(device))

    def segment(ct_hu: Any, spacing_mm: Any) -> Any:
        grid = Grid(ct_hu.shape, np.diag([*spacing_mm, 1.0]))
        # A tumor must be found, not outlined: half the usual overlap is enough.
        volume = Volume(ct_hu, grid, artifact, nib.Nifti1Header())
        return predict_volume(volume, [loaded], PredictionOptions(overlap=0.5)).labels

    return segment, loaded.config.identity
