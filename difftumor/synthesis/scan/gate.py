"""Rejection sampling of implausible tumors: each is made and measured, and if it fails a test, another one is drawn.

The tests are the failures that DiffTumor's appendix F.2 lists (flat, strip-like and sickle-shaped tumors, density like
fat, noise unlike the CT's, edges that are too sharp), a seam at the end of the halo, and looks unlike those of the real
tumors that the model has learned.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.scans.appearance import Appearance, AppearanceRanges
from difftumor.scans.grid import Box, Vector
from difftumor.scans.lesions import SizeGroup
from difftumor.scans.organs import TUMOR
from difftumor.seeding import derive_seed
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.insertion import ScanPart, apply_to_scan, near
from difftumor.synthesis.scan.model_scan import ModelScan
from difftumor.synthesis.scan.report import appearance_in
from difftumor.synthesis.synthesizer import TumorSynthesizer

Mask = NDArray[np.bool_]
# CT in model space (X, Y, Z) and its voxel size -> labels 0, 1, 2.
Segment = Callable[[NDArray[np.float32], Vector], NDArray[np.uint8]]

# The published shapes have half-axes of 0.75 r to 1.25 r, large ones up to 2 r: ratios down to 0.375.
FLATTEST = 0.3
# Of a ball 0.9 and more, of deformed ellipsoids 0.8 and more, of half a ring 0.5.
LEAST_SOLID = 0.65
# Fat has -120 to -30 HU, water 0.
FATTEST_HU = -20.0
# Steps across the end of the halo, after and before.
STRONGEST_SEAM = 2.0
# Noise in the tumor, after and before.
NOISE_RATIOS = (0.2, 4.0)
# A step or a noise below this says nothing.
_LEAST_HU = 3.0
_LEAST_VOXELS = 27


# Of a diffusion tumor with a requested contrast, this many textures are made, or fewer if one comes this near to it.
CONTRAST_SAMPLES = 8
CONTRAST_TOLERANCE_HU = 2.0
# Without a gate, tumors that lie between the voxels of thick slices are rejected this often.
_ATTEMPTS = 10


@dataclass(frozen=True)
class Rejection:
    """A tumor that was made and rejected.

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
class RejectionSampler:
    """Accepts tumors by what they become in a scan; an ``Accept`` of ``draw_tumors``, which draws others until it does.

    A tumor without a voxel on the scan's own grid is always rejected. The others are made and measured if there is a
    gate, or if a network is to make a given contrast.

    Args:
        synthesizer: What makes them.
        model_scan: The scan, at the voxel size of the synthesizer.
        gate: What rejects implausible tumors; None to accept all.
        rejections: What the gate has rejected so far.
    """

    synthesizer: TumorSynthesizer
    model_scan: ModelScan
    gate: QualityGate | None
    rejections: list[Rejection] = field(default_factory=list)
    _made: Counter[int] = field(default_factory=Counter)

    @property
    def attempts(self) -> int:
        """How many tumors are drawn before one is given up."""
        return _ATTEMPTS if self.gate is None else self.gate.attempts

    def __call__(self, record: TumorRecord, accepted: Sequence[TumorRecord], wanted: int) -> TumorRecord | None:
        """Return the tumor with the best of its textures and the number of those that were made, or None to reject it.

        Args:
            record: The tumor.
            accepted: Those that are accepted already.
            wanted: Which of the wanted tumors it is, from 1.
        """
        if not self.model_scan.shows(record, self.synthesizer.sources.shape(record)):
            self._made[wanted] += 1
            return None
        samples = CONTRAST_SAMPLES if record.generator == "diffusion" and record.contrast_hu is not None else 1
        if samples == 1 and self.gate is None:
            self._made[wanted] += 1
            return replace(record, attempts=self._made[wanted])
        neighbors = near(record, accepted, self.model_scan.space, self.synthesizer.sources)
        best: tuple[float, TumorRecord] | None = None
        for sample in range(samples):
            seed = record.texture_seed if sample == 0 else derive_seed(record.texture_seed, "sample", sample)
            candidate = replace(record, texture_seed=seed)
            distance_hu = self._distance_hu(candidate, neighbors, wanted)
            self._made[wanted] += 1
            if distance_hu is not None and (best is None or distance_hu < best[0]):
                best = distance_hu, candidate
            if best is not None and best[0] <= CONTRAST_TOLERANCE_HU:
                break
        return None if best is None else replace(best[1], attempts=self._made[wanted])

    def _distance_hu(self, record: TumorRecord, neighbors: Sequence[TumorRecord], wanted: int) -> float | None:
        """Make a tumor and return how far it is from the requested contrast, or None if the gate rejects it."""
        # Together with its neighbors, which may cut or push it.
        (part,) = apply_to_scan(self.synthesizer, self.model_scan, [*neighbors, record]).parts
        number = len(neighbors) + 1
        appearance = appearance_in(part, number, window=self.synthesizer.window)
        failed = () if self.gate is None else self.gate.failures(record, part, number, appearance)
        if failed:
            self.rejections.append(Rejection(wanted, failed))
            return None
        if record.contrast_hu is None or math.isnan(appearance.contrast_hu):
            return 0.0
        return abs(appearance.contrast_hu - record.contrast_hu)


@dataclass(frozen=True, kw_only=True)
class QualityGate:
    """Tests whether synthetic tumors are plausible.

    Args:
        real: How real tumors look, by stage, as the diffusion models' artifacts say; a stage without is not compared.
        attempts: How many tumors are drawn before one is given up.
        minimum_change_hu: How much a tumor must change the mean HU inside its label, up or down.
        segment: Segmenter that must find the tumor; None for none.
        least_agreement: Least share of the tumor that it must find.
        segmenter: Identity of the segmenter's artifact, for the record.
    """

    real: Mapping[SizeGroup, AppearanceRanges] = field(default_factory=dict)
    attempts: int = 10
    minimum_change_hu: float = 0.0
    segment: Segment | None = None
    least_agreement: float = 0.1
    segmenter: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that say how tumors were judged."""
        return {
            "attempts": self.attempts,
            "compared_with_real": sorted(self.real),
            "minimum_change_hu": self.minimum_change_hu,
            "segmenter": self.segmenter,
            "least_agreement": None if self.segment is None else self.least_agreement,
        }

    def failures(self, record: TumorRecord, part: ScanPart, number: int, appearance: Appearance) -> tuple[str, ...]:
        """Return the names of the tests that a tumor fails.

        Args:
            record: How it was drawn.
            part: Where it is.
            number: Its number there.
            appearance: How it looks.
        """
        tumor = part.lesions == number
        failed = [] if record.generator != "diffusion" else list(self._unlike_real(record, appearance))
        box = Box.around(tumor).padded(2).clipped(tumor.shape).slices
        inside, before, after = tumor[box], part.before_hu[box], part.after_hu[box]
        if axis_ratio(inside, part.spacing_mm) < FLATTEST:
            failed.append("flat or strip-like")
        if solidity(inside, part.spacing_mm) < LEAST_SOLID:
            failed.append("sickle-shaped")
        if inside.any() and float(after[inside].mean()) < FATTEST_HU:
            failed.append("dark as fat")
        if inside.any() and abs(float((after - before)[inside].mean(dtype=np.float64))) < self.minimum_change_hu:
            failed.append("faint")
        ratio = noise_ratio(before, after, inside)
        if not NOISE_RATIOS[0] <= ratio <= NOISE_RATIOS[1]:
            failed.append("noise")
        if seam_score(part.before_hu, part.after_hu, part.halo) > STRONGEST_SEAM:
            failed.append("seam")
        if self.segment is not None and self._agreement(part, tumor) < self.least_agreement:
            failed.append("not found by the segmenter")
        return tuple(failed)

    def _unlike_real(self, record: TumorRecord, appearance: Appearance) -> tuple[str, ...]:
        ranges = self.real.get(record.size_group)
        return () if ranges is None else ranges.outside(appearance)

    def _agreement(self, part: ScanPart, tumor: Mask) -> float:
        assert self.segment is not None
        found = self.segment(part.after_hu, part.spacing_mm) == TUMOR
        return float((found & tumor).sum() / max(1, tumor.sum()))


def axis_ratio(tumor_XYZ: Mask, spacing_mm: Vector) -> float:
    """Return the shortest over the longest axis of the ellipsoid with a mask's moments; 1 for a single voxel."""
    voxels_mm = np.argwhere(tumor_XYZ) * np.asarray(spacing_mm)
    if len(voxels_mm) == 0:
        return math.nan
    # A voxel is a box: its own extent counts, or a layer of voxels would have no thickness.
    moments = np.cov(voxels_mm.T, bias=True) + np.diag(np.square(spacing_mm)) / 12
    shortest, *_, longest = np.linalg.eigvalsh(moments)
    # An anisotropic voxel is not flat because its neighbor is far.
    return float(min(1.0, math.sqrt(shortest / longest))) if len(voxels_mm) > 1 else 1.0


def solidity(tumor_XYZ: Mask, spacing_mm: Vector) -> float:
    """Return a mask's share of its convex hull's volume, in (0, 1]; 1 if there are too few voxels for a hull."""
    surface = tumor_XYZ & ~scipy.ndimage.binary_erosion(tumor_XYZ)
    voxels = np.argwhere(surface)
    if len(voxels) < 4 or min(np.ptp(voxels, axis=0)) < 2:
        return 1.0
    # Halfway between the hull of the voxels' centers, which is too small, and that of their corners, too large.
    faces = np.concatenate([voxels + step * half for step in np.eye(3) for half in (-0.5, 0.5)])
    return float(min(1.0, tumor_XYZ.sum() / scipy.spatial.ConvexHull(faces).volume))


def noise_ratio(before_hu: NDArray[np.float32], after_hu: NDArray[np.float32], tumor_XYZ: Mask) -> float:
    """Return the noise in a tumor over that of the tissue it replaces; 1 if it cannot be measured.

    Noise is the standard deviation of what a mean over 3 × 3 × 3 voxels removes, if all of them are tumor.
    """
    deep = scipy.ndimage.binary_erosion(tumor_XYZ, np.ones((3, 3, 3), bool))
    if deep.sum() < _LEAST_VOXELS:
        return 1.0
    before, after = ((hu - scipy.ndimage.uniform_filter(hu, 3))[deep].std() for hu in (before_hu, after_hu))
    return float(after / before) if before >= _LEAST_HU / 3 else 1.0


def seam_score(before_hu: NDArray[np.float32], after_hu: NDArray[np.float32], halo_XYZ: Mask) -> float:
    """Return how much larger the steps across the end of a halo are than they were before; 1 for no seam.

    Steps are the root mean square difference of neighbors of which one is inside the halo; at least 3 HU are taken.
    """
    square_before = square_after = 0.0
    count = 0
    for axis in range(3):
        low, high = (
            np.take(halo_XYZ, range(*ends), axis)
            for ends in ((0, -1 % halo_XYZ.shape[axis]), (1, halo_XYZ.shape[axis]))
        )
        across = low != high
        count += int(across.sum())
        square_before += float((np.diff(before_hu, axis=axis)[across].astype(np.float64) ** 2).sum())
        square_after += float((np.diff(after_hu, axis=axis)[across].astype(np.float64) ** 2).sum())
    if count == 0:
        return 1.0
    floor = _LEAST_HU**2
    return math.sqrt(max(square_after / count, floor) / max(square_before / count, floor))
