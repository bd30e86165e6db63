"""What ``difftumor synthesize`` is asked for, and how it becomes a synthesizer; once in every process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difftumor.scans.lesions import SizeGroup
    from difftumor.synthesis.scan.cohort import Workshop
    from difftumor.synthesis.scan.gate import QualityGate, Segment
    from difftumor.synthesis.spec import TumorSpec


@dataclass(frozen=True)
class Gate:
    """The options of the quality gate.

    Args:
        attempts: Tumors that are tried before one is given up.
        segmenter: Artifact that must find a tumor; None for none.
    """

    attempts: int
    segmenter: Path | None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Makes a workshop; plain values, so that it can be sent to another process.

    Args:
        organ: Name of the organ.
        tumors: What is wanted.
        seed: Of all that is random.
        model: Diffusion artifact for all tumors; None for the usual places.
        sampling: What is to differ from how the model says to sample, or None.
        precision: What networks compute in.
        device: Where; ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        gate: Options of the quality gate; None for none.
        strict: Whether to fail where not all can be had.
    """

    organ: str
    tumors: tuple[TumorSpec, ...]
    seed: int
    model: Path | None
    sampling: Mapping[str, Any]
    precision: str
    device: str
    gate: Gate | None
    strict: bool

    def __call__(self) -> Workshop:
        """Load what is needed."""
        from difftumor.models.artifact import pick_device
        from difftumor.synthesis.scan.cohort import Workshop
        from difftumor.synthesis.scan.files import ScanRequest
        from difftumor.synthesis.scan.loading import load_synthesizer, model_records

        paths = self._models()
        synthesizer = load_synthesizer(
            paths or None,
            organ=self.organ,
            device=pick_device(self.device),
            sampler=self.sampling,
            precision=self.precision,  # type: ignore[arg-type]
        )
        gate = None if self.gate is None else self._quality_gate(paths)
        request = ScanRequest(tumors=self.tumors, seed=self.seed, gate=gate, strict=self.strict)
        return Workshop(synthesizer, request, model_records(paths, synthesizer))

    def untested(self) -> list[Path]:
        """Return the models that do not say how real tumors look, which the gate would compare with.

        Raises:
            ArtifactError: A model is missing.
        """
        from difftumor.models.artifact_config import read_config

        if self.gate is None:
            return []
        return [path for path in dict.fromkeys(self._models().values()) if not read_config(path).real_tumors]

    def _models(self) -> dict[SizeGroup, Path]:
        from difftumor.synthesis.scan.loading import find_models

        stages = frozenset().union(*(spec.size_groups for spec in self.tumors if spec.generator == "diffusion"))
        return find_models(self.model, stages, organ=self.organ)

    def _quality_gate(self, paths: Mapping[SizeGroup, Path]) -> QualityGate:
        from difftumor.synthesis.scan.gate import QualityGate
        from difftumor.synthesis.scan.loading import real_tumors

        assert self.gate is not None
        segment, identity = (None, None) if self.gate.segmenter is None else self._segment(self.gate.segmenter)
        return QualityGate(real=real_tumors(paths), attempts=self.gate.attempts, segment=segment, segmenter=identity)

    def _segment(self, artifact: Path) -> tuple[Segment, str]:
        import nibabel as nib
        import numpy as np

        from difftumor.models.artifact import load_artifact, pick_device
        from difftumor.scans.grid import Grid
        from difftumor.scans.nifti import Volume
        from difftumor.segmentation.inference import PredictionOptions, predict_volume

        loaded = load_artifact(artifact, kind="segmenter", device=pick_device(self.device))

        def segment(ct_hu: Any, spacing_mm: Any) -> Any:
            grid = Grid(ct_hu.shape, np.diag([*spacing_mm, 1.0]))
            # A tumor is to be found, not outlined: half the usual overlap is enough.
            volume = Volume(ct_hu, grid, artifact, nib.Nifti1Header())
            return predict_volume(volume, [loaded], PredictionOptions(overlap=0.5)).labels

        return segment, loaded.config.identity
