"""``record.json``: what was asked for, what was made, and all it takes to make the same again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difftumor import __version__
from difftumor.errors import ConfigError, SynthesisError
from difftumor.files.results import check_results
from difftumor.files.texts import read_json
from difftumor.scans.organs import Organ, get_organ, organ_of
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.inputs import ScanInputs

RECORD_FILE = "record.json"
CT_FILE, LABELS_FILE, LESIONS_FILE = "ct.nii.gz", "labels.nii.gz", "lesions.nii.gz"
PREVIEW_FILE = "preview.png"
FILES = (CT_FILE, LABELS_FILE, LESIONS_FILE, RECORD_FILE, PREVIEW_FILE)
FORMAT_VERSION = 2


@dataclass(frozen=True)
class ModelRecord:
    """A diffusion model that tumors were made with.

    Args:
        path: Folder of its artifact.
        identities: SHA-256 identities of it (``diffusion``) and of what it was trained with, by role.
        sampling: How it was sampled: the fields of ``SamplerConfig``, and ``precision``.
        organ: Of which its tumors were; None where an older record does not say.
    """

    path: Path
    identities: Mapping[str, str]
    sampling: Mapping[str, Any]
    organ: str | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "path": str(self.path.resolve()),
            "identities": dict(self.identities),
            "sampling": dict(self.sampling),
            "organ": self.organ,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelRecord:
        """Return what `to_dict` wrote."""
        identities, sampling = dict(content["identities"]), dict(content["sampling"])
        return cls(Path(content["path"]), identities, sampling, content.get("organ"))

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``load_texture`` that sample it in the same way."""
        from difftumor.models.diffusion_config import (
            SamplerConfig,  # needs PyTorch, which a wrong path should not wait for
        )

        stored = dict(self.sampling)
        return {"precision": stored.pop("precision"), "sampler": SamplerConfig(**stored)}


@dataclass(frozen=True)
class ScanRecord:
    """The content of a ``record.json``.

    Args:
        content: All of it.
        path: Where it was read from.
        inputs: Files that the scan was read from.
        models: Diffusion models by size group.
        tumors: How they were drawn.
        sources: Files of the cases whose tumors were copied, by id.
    """

    content: Mapping[str, Any]
    path: Path
    inputs: ScanInputs
    models: Mapping[str, ModelRecord]
    tumors: tuple[TumorRecord, ...]
    sources: Mapping[str, ScanInputs]

    @property
    def organ(self) -> str:
        """Organ that hosts the tumors."""
        return str(self.content["request"]["organ"])

    @property
    def rules(self) -> Organ:
        """The organ, with the rules that tumors were made by."""
        stated = self.content["request"].get("organ_rules")
        return get_organ(self.organ) if stated is None else organ_of(stated, source=self.path)

    @property
    def host(self) -> Path:
        """CT that hosts the tumors, with links resolved, to find it in lists of cases."""
        return self.inputs.ct.resolve()

    @property
    def scans(self) -> tuple[Path, ...]:
        """The same, and the CTs whose tumors were copied."""
        return self.host, *(inputs.ct.resolve() for inputs in self.sources.values())


def record_content(
    *,
    request: Mapping[str, Any],
    inputs: Mapping[str, Any] | None,
    models: Mapping[str, Any],
    device: str,
    tumors: Sequence[Mapping[str, Any]],
    shortfalls: Sequence[str] = (),
    rejected: Sequence[Mapping[str, Any]] = (),
    sources: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what a ``record.json`` holds.

    Args:
        request: What was asked: ``ScanSynthesizer.request``.
        inputs: The files: ``ScanInputs.to_record``; None for a scan from arrays.
        models: Diffusion models by size group: ``ModelRecord.to_dict``.
        device: Where the tumors were made.
        tumors: What was asked of each and what it became: ``TumorReport.to_dict``.
        shortfalls: Why there are fewer tumors than asked for, in sentences.
        rejected: Tumors that the quality gate rejected: ``Rejection.to_dict``.
        sources: Files of the cases whose tumors were copied, by id: ``ScanInputs.to_record``.
        warnings: What fell short of the request, in sentences.
    """
    return {
        "format_version": FORMAT_VERSION,
        "difftumor_version": __version__,
        "request": dict(request),
        "inputs": inputs,
        "models": dict(models),
        "sources": dict(sources or {}),
        "device": device,
        "shortfalls": list(shortfalls),
        "rejected": list(rejected),
        "warnings": list(warnings),
        "tumors": list(tumors),
    }


def with_later_fields(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a record with the fields that later releases added, as what they meant before."""
    tumors = [
        # Textures were those of eq. (3) alone; other generators have none to scale.
        {"blur_share": None, "host_noise_mm": None, "scale_texture": spec["generator"] != "handcrafted", **spec}
        for spec in request["tumors"]
    ]
    gate = request["quality_gate"]
    return {**request, "tumors": tumors, "quality_gate": None if gate is None else {"minimum_change_hu": 0.0, **gate}}


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a ``record.json``, under this or another name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_record(path: Path) -> ScanRecord:
    """Read a ``record.json``.

    Raises:
        SynthesisError: The file is missing, not a record, of a scan from arrays, or written by another release.
    """
    if not path.is_file():
        raise SynthesisError(f"There is no file at {path}: give the {RECORD_FILE} of an earlier difftumor synthesize.")
    try:
        content = read_json(path)
        version = content["format_version"]
        if content.get("inputs", ()) is None:
            raise ValueError("its scan came from arrays, not from files")
        if version == FORMAT_VERSION:
            models = {group: ModelRecord.from_dict(model) for group, model in content["models"].items()}
            for model in models.values():
                _ = model.options  # refuses options that no sampler takes
            inputs = ScanInputs.from_record(content["inputs"])
            # Older records have none: nothing was copied.
            sources = {case: ScanInputs.from_record(files) for case, files in content.get("sources", {}).items()}
            tumors = [dict(tumor["record"]) for tumor in content["tumors"]]
            content["request"]["organ"], content["device"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        raise SynthesisError(
            f"{path} is not a readable {RECORD_FILE} ({error}): give one that difftumor synthesize wrote."
        ) from error
    if version != FORMAT_VERSION:
        raise SynthesisError(
            f"{path} has format_version {version}, not {FORMAT_VERSION}: use the release that wrote it."
        )
    drawn = tuple(TumorRecord.from_dict(tumor) for tumor in tumors)
    return ScanRecord(content, path, inputs, models, drawn, sources)


def check_output(out: Path, *, inputs: ScanInputs | None, overwrite: bool) -> None:
    """Refuse a folder that must not be written to; errors as `difftumor.files.results.check_results`."""
    given = [] if inputs is None else [path for paths in inputs.files.values() for path in paths]
    check_results(out, FILES, inputs=given, overwrite=overwrite)
