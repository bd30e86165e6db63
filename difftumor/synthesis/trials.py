"""Trials: tumors are made and looked at before they are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from difftumor.intensity import IntensityWindow
from difftumor.seeding import derive_seed
from difftumor.spaces import ModelSpace
from difftumor.synthesis.quality import QualityGate
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan import Scan, has_native_voxels
from difftumor.synthesis.scan_report import look_at
from difftumor.synthesis.scan_synthesis import apply_to_scan, near
from difftumor.synthesis.synthesizer import TumorSynthesizer

# A diffusion tumor of a wanted contrast is the best of so many, or the first that comes this near.
CONTRAST_SAMPLES = 8
CONTRAST_TOLERANCE_HU = 2.0
# A tumor that lies between the voxels of thick slices is drawn anew so often.
_ATTEMPTS = 10


@dataclass(frozen=True)
class Rejection:
    """A tumor that was made and not kept.

    Args:
        wanted: Which of the wanted tumors it was to be, from 1.
        failed: Tests that it failed.
    """

    wanted: int
    failed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"wanted": self.wanted, "failed": list(self.failed)}


@dataclass(kw_only=True)
class Trials:
    """Chooses tumors by what they become in a scan: a `difftumor.synthesis.drawing.Choose`.

    A tumor that would have no voxel on the scan's own grid is never kept. The others are made and looked at where there
    is a gate, or where a contrast is wanted of a network.

    Args:
        synthesizer: What makes them.
        scan: Where.
        gate: Which are good enough; None for all.
        window: HU that count for how a tumor looks.
        rejections: What the gate did not let through, as it comes.
    """

    synthesizer: TumorSynthesizer
    scan: Scan
    gate: QualityGate | None
    window: IntensityWindow
    rejections: list[Rejection] = field(default_factory=list)
    _wanted: int = 0
    _made: int = 0

    @property
    def attempts(self) -> int:
        """How often a tumor that is not kept is drawn anew."""
        return _ATTEMPTS if self.gate is None else self.gate.attempts

    def begin(self, wanted: int) -> None:
        """Forget how many were made for the tumor before."""
        self._wanted, self._made = wanted, 0

    def __call__(self, record: TumorRecord, accepted: Sequence[TumorRecord]) -> TumorRecord | None:
        """Make a tumor, with other textures too where a contrast is wanted of a network, and return the best."""
        space = ModelSpace(self.scan.ct.grid, self.synthesizer.spacing_mm)
        if not has_native_voxels(record, self.scan, space):
            self._made += 1
            return None
        samples = CONTRAST_SAMPLES if record.generator == "diffusion" and record.contrast_hu is not None else 1
        if samples == 1 and self.gate is None:
            self._made += 1
            return replace(record, attempts=self._made)
        neighbors = near(record, accepted, space)
        best: tuple[float, TumorRecord] | None = None
        for sample in range(samples):
            seed = record.texture_seed if sample == 0 else derive_seed(record.texture_seed, "sample", sample)
            candidate = replace(record, texture_seed=seed)
            distance_hu = self._try(candidate, neighbors)
            self._made += 1
            if distance_hu is not None and (best is None or distance_hu < best[0]):
                best = distance_hu, candidate
            if best is not None and best[0] <= CONTRAST_TOLERANCE_HU:
                break
        return None if best is None else replace(best[1], attempts=self._made)

    def _try(self, record: TumorRecord, neighbors: Sequence[TumorRecord]) -> float | None:
        """Return how far a tumor is from the wanted contrast, or None where it is not good enough."""
        # With those beside it, which may cut or push it.
        (part,) = apply_to_scan(self.synthesizer, self.scan, [*neighbors, record]).parts
        number = len(neighbors) + 1
        looks = look_at(part, number, window=self.window)
        failed = () if self.gate is None else self.gate.failures(record, part, number, looks)
        if failed:
            self.rejections.append(Rejection(self._wanted, failed))
            return None
        if record.contrast_hu is None or math.isnan(looks.contrast_hu):
            return 0.0
        return abs(looks.contrast_hu - record.contrast_hu)
