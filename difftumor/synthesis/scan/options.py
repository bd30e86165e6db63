"""Options of ``difftumor synthesize`` as plain values, and the synthesizer that they describe."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftumor.errors import ArtifactError, ConfigError, OrganError, VolumeError
from difftumor.files.texts import read_yaml

if TYPE_CHECKING:
    from difftumor.datasets.cases import CaseList
    from difftumor.scans.lesions import SizeGroup
    from difftumor.scans.organs import Organ
    from difftumor.synthesis.generators.diffusion import Precision
    from difftumor.synthesis.scan.files import ScanSynthesizer
    from difftumor.synthesis.scan.inputs import ScanInputs
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
        given_mask: Mask of the tumors to make, on any grid.
        accept_hu: Whether a CT that cannot be in HU, or a mask that cannot be of the organ, is used all the same.
    """

    ct: Path | str | None = None
    organ_mask: Path | str | None = None
    labels: Path | str | None = None
    organ_labels: tuple[int, ...] = ()
    convention: str | None = None
    segments: Path | str | None = None
    given_mask: Path | str | None = None
    accept_hu: bool = False

    def __post_init__(self) -> None:
        if self.organ_mask is not None and self.labels is not None:
            raise ConfigError("Give the organ either as organ_mask (--organ-mask) or as labels (--labels), not both.")
        if self.organ_labels and self.convention is not None:
            raise ConfigError(
                "organ_labels (--organ-label) and convention (--convention) contradict each other: give one."
            )
        if any(number < 1 for number in self.organ_labels):
            raise ConfigError(f"organ_labels (--organ-label) holds {min(self.organ_labels)}: give numbers from 1 up.")

    @property
    def mask(self) -> Path | None:
        """The file that holds the organ."""
        given = self.labels if self.organ_mask is None else self.organ_mask
        return None if given is None else Path(given)

    def inputs(self, organ: str | Organ) -> ScanInputs:
        """Return the files of the scan.

        Raises:
            ConfigError: One is missing.
            OrganError: The convention is unknown or does not have the organ.
        """
        from difftumor.scans.organs import get_convention, get_organ, resolve_labels
        from difftumor.synthesis.scan.inputs import ScanInputs

        if self.ct is None:
            raise ConfigError("ct (--ct) is missing: give a CT, or many scans with --cases.")
        if self.mask is None:
            raise ConfigError(
                "The organ is missing: give organ_mask (--organ-mask), or labels (--labels) and its number in them."
            )
        rules, numbers, tumors = get_organ(organ), self.organ_labels, tuple[int, ...]()
        if self.convention is not None:
            named = resolve_labels(get_convention(self.convention), rules)
            numbers, tumors = named.organ, named.tumor
        if self.labels is not None and not numbers:
            raise ConfigError(
                f"Nothing says which number of {self.labels} is the {rules.name}: give organ_labels (--organ-label) or "
                "a convention (--convention)."
            )
        segments = None if self.segments is None else Path(self.segments)
        return ScanInputs(
            ct=Path(self.ct),
            organ_masks=(self.mask,),
            organ_labels=numbers,
            tumor_labels=tumors,
            segments=segments,
            given_mask=None if self.given_mask is None else Path(self.given_mask),
            accept_hu=self.accept_hu,
            tumors_unstated=self.labels is not None and self.convention is None,
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
            given_mask=recorded.given_mask if self.given_mask is None else Path(self.given_mask),
        )


def plan_tumors(
    plan: Path | None = None,
    *,
    generator: str | None = None,
    preset: str | None = None,
    size: str | None = None,
    radius_mm: float | None = None,
    count: int | None = None,
    blur_share: float | None = None,
    host_noise_mm: float | None = None,
) -> TumorPlan:
    """Return which tumors are wanted: those of a ``--tumors`` file, or of the short options, which are fields of one.

    Raises:
        ConfigError: The file or an option is wrong, or both are given.
    """
    from difftumor.synthesis.spec import TumorPlan, TumorSpec, read_plan

    short = {
        "generator": generator, "preset": preset, "size": size, "radius_mm": radius_mm, "count": count,
        "blur_share": blur_share, "host_noise_mm": host_noise_mm,
    }  # fmt: skip
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
    return TumorPlan((TumorSpec.from_dict(given, where=""),))


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
        name = {"kind": "sampler"}.get(given, given)
        raise ConfigError(f"{name} (--{name.replace('_', '-')}) does not go with {beside}: omit it.")


@dataclass(frozen=True)
class GateOptions:
    """The options of the quality gate.

    Args:
        attempts: How many tumors are tried before one is given up.
        segmenter: Artifact that must find a tumor; None for none.
        minimum_change_hu: How much a tumor must change the mean HU inside its label, up or down; 0 for any.

    Raises:
        ConfigError: The change is negative.

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
    minimum_change_hu: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_change_hu < math.inf:
            raise ConfigError(f"--gate-change-hu is {self.minimum_change_hu}: give a number from 0.")


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """Which tumors, and how they are made; plain values, so that they can be sent to another process.

    Args:
        organ: The organ or its name.
        tumors: Which tumors.
        seed: The same seed and scan give the same tumors.
        model: Diffusion artifact for all tumors; None for the default places.
        source: Cases whose tumors ``"copy_paste"`` copies: a folder or list, with labels.
        sampler: What to change of the model's own sampling: ``kind``, ``steps``, ``eta``, ``spacing``.
        precision: What networks compute in, ``"fp32"`` or ``"bf16"``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        gate: Options of the quality gate; None for none.
        strict: Whether falling short of the request is an error.
        accept_hu: Whether scans of the source that cannot be in HU are used.

    Raises:
        ConfigError: A model or its sampling is given and no diffusion tumor is wanted; or there is a source and no
            tumor to be copied, or the reverse.

    Example:
        >>> import difftumor as dt
        >>> tumor = dt.TumorSpec(generator="handcrafted", size="tiny")
        >>> synthesizer = dt.SynthesisOptions(organ="liver", tumors=(tumor,), seed=1).load()  # once for many scans
        >>> result = synthesizer.make(dt.read_scan("ct.nii.gz", organ_mask="liver.nii.gz", organ="liver"))
        >>> len(result.records)
        1
    """

    organ: str | Organ
    tumors: tuple[TumorSpec, ...]
    seed: int = 0
    model: Path | str | None = None
    source: Path | str | None = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"
    device: str = "auto"
    gate: GateOptions | None = None
    strict: bool = False
    accept_hu: bool = False

    def __post_init__(self) -> None:
        wanted = {spec.generator for spec in self.tumors}
        if "diffusion" not in wanted:
            names = {"handcrafted": "hand-crafted", "copy_paste": "copied"}
            kinds = " and ".join(names[kind] for kind in names if kind in wanted)
            refuse({"model": self.model, **self.sampler}, beside=f"{kinds} tumors only")
        if "copy_paste" not in wanted:
            refuse({"source": self.source}, beside="tumors of other generators than copy_paste")
        elif self.source is None:
            raise ConfigError("generator copy_paste needs real tumors to copy: give --source CASES, with their labels.")

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

    def find_sources(self) -> CaseList | None:
        """Return the list of cases whose tumors are copied, or None; only the list is read.

        Raises:
            CaseListError: The list cannot be used.
        """
        from difftumor.datasets.cases import read_cases

        return None if self.source is None else read_cases(Path(self.source))

    def load(self) -> ScanSynthesizer:
        """Load the networks, and the tumors to copy.

        Raises:
            ArtifactError: A model is missing, damaged or of another kind.
            CaseListError: The source cannot be used, or has no tumor.
            ConfigError: The sampling does not fit a model, the precision is unknown, or no tumor of the source has a
                size that is asked for.
            DeviceError: The device is unknown or not there.
            OrganError: The organ is unknown.
        """
        from difftumor.models.artifact import pick_device
        from difftumor.scans.organs import get_organ

        organ, paths, device = get_organ(self.organ), self.find_models(), pick_device(self.device)
        listed = self.find_sources()
        # Here, because these need PyTorch: what is wrong above is said at once.
        from difftumor.synthesis.scan.files import ScanSynthesizer
        from difftumor.synthesis.scan.gate import QualityGate
        from difftumor.synthesis.scan.inputs import ScanInputs
        from difftumor.synthesis.scan.loading import load_gate_segmenter, load_textures, real_tumors, synthesizer_of
        from difftumor.synthesis.scan.sources import read_sources

        models = load_textures(paths, device=device, sampler=self.sampler, precision=self.precision)
        gate = None
        if self.gate is not None:
            artifact = self.gate.segmenter
            segment, identity = (None, None) if artifact is None else load_gate_segmenter(Path(artifact), self.device)
            gate = QualityGate(
                real=real_tumors(models),
                attempts=self.gate.attempts,
                minimum_change_hu=self.gate.minimum_change_hu,
                segment=segment,
                segmenter=identity,
            )
        synthesizer, sources = synthesizer_of(models, organ=organ, device=device), dict[str, ScanInputs]()
        if listed is not None:
            synthesizer.sources, sources = read_sources(
                listed, organ, spacing_mm=synthesizer.spacing_mm, accept_hu=self.accept_hu
            )
            synthesizer.sources.check(self.tumors)
        return ScanSynthesizer(
            synthesizer=synthesizer,
            tumors=self.tumors,
            seed=self.seed,
            gate=gate,
            strict=self.strict,
            models={group: model.record for group, model in models.items()},
            sources=sources,
        )


def size_of_given(mask: Path, ct: Path) -> str:
    """Return which diffusion models the tumors of a mask need in a CT: "early", "late", or "mix" for both.

    Raises:
        VolumeError: The mask or the header of the CT cannot be used, or the mask has no voxel there.
    """
    import numpy as np

    from difftumor.scans.components import equivalent_radius_mm, find_components
    from difftumor.scans.lesions import size_group
    from difftumor.scans.nifti import Volume
    from difftumor.scans.stored.header import read_header
    from difftumor.synthesis.scan.inputs import carried_to

    image, grid = read_header(ct)
    # Without its voxels: they are read once the models are known to be there.
    inside, _ = carried_to(mask, Volume(np.broadcast_to(np.uint8(0), grid.shape), grid, ct, image.header))
    volumes_mm3 = find_components(inside).voxels * grid.voxel_mm3
    groups = {size_group(2 * equivalent_radius_mm(float(volume))) for volume in volumes_mm3}
    if not groups:
        raise VolumeError(f"--tumor-mask {mask} has no voxel in {ct}: give a mask of the tumors to make.")
    return groups.pop() if len(groups) == 1 else "mix"


def host_organ(name: str, rules: Path | None) -> Organ:
    """Return an organ by its name, with the rules of a file in place of those that are known of it.

    Raises:
        OrganError: The name or the rules cannot be used.
    """
    from difftumor.scans.organs import get_organ, organ_of

    if rules is None:
        return get_organ(name)
    try:
        content = read_yaml(rules)
    except (OSError, ValueError) as error:
        raise OrganError(f"--organ-rules {rules} cannot be read ({error}): give a YAML or JSON file.") from error
    if not isinstance(content, Mapping):
        raise OrganError(f"--organ-rules {rules} is no mapping: write lines such as 'minimum_radius_mm: 10'.")
    return organ_of(content, name=name, source=f"--organ-rules {rules}")


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

    name = get_organ(organ).name
    found = {}
    for group in sorted(groups):
        found[group] = Path(folder) / f"diffusion_{name}_{group}" if model is None else Path(model)
        if model is None and not found[group].is_dir():
            raise ArtifactError(
                f"There is no diffusion model at {found[group]}: train one with python -m stages.diffusion "
                f"organ={name} tumor_stage={group}, give the folder of one as model (--model), or "
                "choose the generator handcrafted, which needs none."
            )
    return found
