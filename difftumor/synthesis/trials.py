"""Trials: tumors are made and looked at before they are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from difftumor.intensity import IntensityWindow
from difftumor.seeding import derive_seed
from difftumor.synthesis.quality import QualityGate
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan import Scan
from difftumor.synthesis.scan_report import look_at
from difftumor.synthesis.scan_synthesis import apply_to_scan
from difftumor.synthesis.synthesizer import TumorSynthesizer

# A diffusion tumor of a wanted contrast is the best of so many, or the first that comes this near.
CONTRAST_SAMPLES = 8
CONTRAST_TOLERANCE_HU = 2.0


@dataclass(frozen=True)
class Rejection:
    """A tumor that was not kept.

    Args:
        tumor: Number that it would have had, from 1.
        failed: Tests that it failed.
    """

    tumor: int
    failed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"tumor": self.tumor, "failed": list(self.failed)}


@dataclass(kw_only=True)
class Trials:
    """Chooses tumors by what they become in a scan: a `difftumor.synthesis.drawing.Choose`.

    Args:
        synthesizer: What makes them.
        scan: Where.
        gate: Which are good enough; None for all.
        window: HU that count for how a tumor looks.
        rejections: What was not kept, as it comes.
    """

    synthesizer: TumorSynthesizer
    scan: Scan
    gate: QualityGate | None
    window: IntensityWindow
    rejections: list[Rejection] = field(default_factory=list)
    _made: int = 0

    def begin(self) -> None:
        """Forget how many were made for the tumor before."""
        self._made = 0

    def __call__(self, record: TumorRecord, number: int) -> TumorRecord | None:
        """Make a tumor, with other textures too where a contrast is wanted of a network, and return the best."""
        best: tuple[float, TumorRecord] | None = None
        for sample in range(self._samples(record)):
            seed = record.texture_seed if sample == 0 else derive_seed(record.texture_seed, "sample", sample)
            candidate = replace(record, texture_seed=seed)
            distance_hu = self._try(candidate, number)
            self._made += 1
            if distance_hu is not None and (best is None or distance_hu < best[0]):
                best = distance_hu, candidate
            if best is not None and best[0] <= CONTRAST_TOLERANCE_HU:
                break
        return None if best is None else replace(best[1], attempts=self._made)

    def _try(self, record: TumorRecord, number: int) -> float | None:
        """Return how far a tumor is from the wanted contrast, or None where it is not good enough."""
        (part,) = apply_to_scan(self.synthesizer, self.scan, [record]).parts
        looks = look_at(part, 1, window=self.window)
        failed = () if self.gate is None else self.gate.failures(record, part, 1, looks)
        if failed:
            self.rejections.append(Rejection(number, failed))
            return None
        if record.contrast_hu is None or math.isnan(looks.contrast_hu):
            return 0.0
        return abs(looks.contrast_hu - record.contrast_hu)

    @staticmethod
    def _samples(record: TumorRecord) -> int:
        return CONTRAST_SAMPLES if record.generator == "diffusion" and record.contrast_hu is not None else 1
