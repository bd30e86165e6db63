"""What an artifact says about itself: the content of its ``config.json``, read without touching weights or torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from difftumor import __version__
from difftumor.errors import ArtifactError
from difftumor.files.texts import parse_json, read_text

if TYPE_CHECKING:
    from difftumor.scans.appearance import AppearanceRanges
    from difftumor.scans.fingerprint import Fingerprint

Kind = Literal["autoencoder", "diffusion", "segmenter"]
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
# What every network is used with.
PREPROCESSING = ("spacing_mm", "window_hu", "crop")
_FINEST_MM, _COARSEST_MM = 0.01, 50.0
_MOST_VOXELS = 512**3
# Entries of an architecture and of its lists, one for each level of a network.
_MOST_LEVELS = 32
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "autoencoder": ("vqgan3d",),
    "diffusion": ("factorized_unet",),
    "segmenter": ("unet", "nnunet", "swinunetr", "resenc", "mednext"),
}


@dataclass(frozen=True)
class ParentReference:
    """An artifact that another one was trained with.

    Args:
        path: Where it was, relative to the child's folder.
        identity: Its ``ArtifactConfig.identity`` at that time.
    """

    path: str
    identity: str


@dataclass(frozen=True)
class ArtifactConfig:
    """Everything about an artifact but its weights.

    Args:
        kind: What the network is for.
        architecture: ``{"name": one of ARCHITECTURES[kind], **constructor arguments}``.
        preprocessing: ``spacing_mm``, ``window_hu`` and ``crop`` that the network expects.
        weights_sha256: SHA-256 of ``model.safetensors``.
        organ: Organ it was trained on, or None.
        parents: Artifacts it needs, by role.
        settings: What the network is used with, for instance the number of timesteps.
        training: Provenance: stage, steps, seed, cases, versions.
        metrics: What was measured on held-out data.
        real_tumors: How the real tumors look that the model has learned, see ``appearance_ranges``; empty where
            they were not measured.
        complete: False while training goes on.
        format_version: Version of this layout.
        difftumor_version: Version of the package that wrote it.
    """

    kind: Kind
    architecture: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    weights_sha256: str
    organ: str | None = None
    parents: Mapping[str, ParentReference] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    real_tumors: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True
    format_version: int = FORMAT_VERSION
    difftumor_version: str = __version__

    @property
    def identity(self) -> str:
        """SHA-256 over all that decides what the network computes; provenance and measurements are left out."""
        parts = (self.format_version, self.kind, self.architecture, self.preprocessing, self.settings)
        return hashlib.sha256(json.dumps((*parts, self.weights_sha256), sort_keys=True).encode()).hexdigest()

    def appearance_ranges(self, path: Path) -> AppearanceRanges | None:
        """Return ``real_tumors`` as ranges, or None where an artifact has none; ``path`` is named in errors.

        Raises:
            ArtifactError: They are malformed.
        """
        if not self.real_tumors:
            return None
        from difftumor.scans.appearance import AppearanceRanges  # here, as most descriptions are read without

        try:
            return AppearanceRanges.from_dict(self.real_tumors)
        except ValueError as error:
            raise ArtifactError(
                f"{path} does not say readably how real tumors look ({error}): make the artifact again."
            ) from error

    @property
    def trained_on(self) -> Mapping[str, Fingerprint] | None:
        """Fingerprints of the scans it was trained on, by name; None if it does not say, as imported weights."""
        from difftumor.scans.fingerprint import Fingerprint

        stored = self.training.get("fingerprints", {})
        if "training" not in stored:
            return None
        read = {name: Fingerprint.from_text(text) for name, text in stored["training"]}
        known = {name: each for name, each in read.items() if each is not None}
        return known if len(known) == len(read) else None  # some are of another version

    def to_json(self) -> str:
        """Return the text of ``config.json``."""
        return json.dumps({**asdict(self), "identity": self.identity}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> ArtifactConfig:
        """Parse ``config.json``; ``path`` is named in errors."""
        try:
            content = parse_json(text)
            if not isinstance(content, dict):
                raise TypeError("it is not a mapping")
            content.pop("identity", None)
            version = content.get("format_version")
            if version != FORMAT_VERSION:
                raise ArtifactError(
                    f"{path} has format version {version}, not {FORMAT_VERSION}: install the release that wrote it."
                )
            unknown = set(content) - {f.name for f in fields(cls)}
            if unknown:
                raise ArtifactError(f"{path} has unknown fields {sorted(unknown)}: it was not written by difftumor.")
            content["parents"] = {role: ParentReference(**ref) for role, ref in content.get("parents", {}).items()}
            config = cls(**content)
            for name in ("architecture", "preprocessing", "settings", "training", "metrics", "real_tumors"):
                if not isinstance(getattr(config, name), dict):
                    raise TypeError(f"{name} is not a mapping")
            _check_fingerprints(config.training.get("fingerprints", {}))
            _check_preprocessing(config.preprocessing)
            _check_architecture(config.architecture)
            if not isinstance(config.weights_sha256, str) or not isinstance(config.organ, str | None):
                raise TypeError("weights_sha256 or organ is no text")
        except (ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{path} is not a readable artifact description ({error}): make the artifact again."
            ) from error
        if config.kind not in get_args(Kind) or config.architecture.get("name") not in ARCHITECTURES[config.kind]:
            raise ArtifactError(
                f"{path} describes kind {config.kind!r} with architecture {config.architecture.get('name')!r}, "
                "which this difftumor does not know: install the release that wrote it."
            )
        return config


def _check_fingerprints(stored: Any) -> None:
    """Raise a TypeError unless all parts, training and validation, are lists of [name, text]."""
    if not isinstance(stored, dict) or not all(isinstance(pairs, list) for pairs in stored.values()):
        raise TypeError("training.fingerprints is not a mapping of lists")
    for pair in (pair for pairs in stored.values() for pair in pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise TypeError(f"training.fingerprints holds {pair!r}, not a name and a fingerprint")


def _check_preprocessing(stated: Mapping[str, Any]) -> None:
    """Raise a ValueError if what is stated of scans and windows cannot be."""
    steps, limits, crop = (stated.get(name) for name in PREPROCESSING)
    if steps is not None and not (_are_numbers(steps, 3) and all(_FINEST_MM <= step <= _COARSEST_MM for step in steps)):
        raise ValueError(f"spacing_mm is {steps!r}, not three of {_FINEST_MM:g} to {_COARSEST_MM:g} mm")
    if limits is not None and not (_are_numbers(limits, 2) and limits[0] < limits[1]):
        raise ValueError(f"window_hu is {limits!r}, not two numbers, the lower first")
    if crop is not None:
        whole = _are_numbers(crop, 3) and all(isinstance(size, int) and size > 0 for size in crop)
        if not whole or math.prod(crop) > _MOST_VOXELS:
            raise ValueError(f"crop is {crop!r}, not three positive whole numbers of at most 512³ voxels together")
    if stated.get("normalization", "unit") not in ("unit", "zscore"):
        raise ValueError(f"normalization is {stated['normalization']!r}, not unit or zscore")


def _are_numbers(values: Any, count: int) -> bool:
    numbers = isinstance(values, list | tuple) and len(values) == count
    return numbers and all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _check_architecture(value: Any) -> None:
    """Raise a ValueError if a number of it is not finite, or a list of it longer than any network is deep."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"its architecture holds {value}")
    if isinstance(value, dict | list):
        if len(value) > _MOST_LEVELS:
            raise ValueError(f"its architecture lists {len(value)} numbers")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_architecture(inner)


def read_config(path: Path | str) -> ArtifactConfig:
    """Read an artifact's description without touching its weights.

    Raises:
        ArtifactError: The folder is missing or is not an artifact.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError(
            f"There is no artifact folder at {folder}: check the path or train the stage that makes it."
        )
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ArtifactError(
            f"{folder} holds no {CONFIG_FILE}: it is not an artifact, give a folder that a stage has made."
        )
    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{file} is not a readable artifact description ({error}): make the artifact again."
        ) from error
    return ArtifactConfig.from_json(text, file)
