"""``record.json``: what was asked, what came of it, and all that is needed to make the same again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftumor.errors import ConfigError, SynthesisError
from difftumor.models.sampling import SamplerConfig
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.inputs import ScanInputs

RECORD_FILE = "record.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class ModelRecord:
    """A diffusion model that tumors were made with.

    Args:
        path: Folder of its artifact.
        identities: SHA-256 identities of it (``diffusion``) and of what it was trained with, by role.
        sampling: How it was sampled: the fields of ``SamplerConfig``, and ``precision``.
    """

    path: Path
    identities: Mapping[str, str]
    sampling: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"path": str(self.path.resolve()), "identities": dict(self.identities), "sampling": dict(self.sampling)}

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``load_texture`` that sample it in the same way."""
        stored = dict(self.sampling)
        return {"precision": stored.pop("precision"), "sampler": SamplerConfig(**stored)}


@dataclass(frozen=True)
class ScanRecord:
    """The content of a ``record.json``.

    Args:
        content: All of it.
        path: Where it was read from.
        inputs: Files that the scan was read from.
        models: Diffusion models by stage.
        tumors: How they were drawn.
    """

    content: Mapping[str, Any]
    path: Path
    inputs: ScanInputs
    models: Mapping[str, ModelRecord]
    tumors: tuple[TumorRecord, ...]

    @property
    def organ(self) -> str:
        """Organ that hosts the tumors."""
        return str(self.content["request"]["organ"])

    @property
    def host(self) -> Path:
        """CT that hosts the tumors, without links, by which it is found in lists of cases."""
        return self.inputs.ct.resolve()


def read_record(path: Path) -> ScanRecord:
    """Read a ``record.json``.

    Raises:
        SynthesisError: The file is missing, is none, or was written by another release.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version == FORMAT_VERSION:
            models = {
                stage: ModelRecord(Path(model["path"]), dict(model["identities"]), dict(model["sampling"]))
                for stage, model in content["models"].items()
            }
            for model in models.values():
                _ = model.options  # refuses what no sampler takes
            inputs = ScanInputs.from_record(content["inputs"])
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
    return ScanRecord(content, path, inputs, models, tuple(TumorRecord.from_dict(tumor) for tumor in tumors))
