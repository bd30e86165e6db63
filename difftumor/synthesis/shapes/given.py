"""Tumors whose shape and place a mask gives: what remains to be drawn is their texture and their rim."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from difftumor.scans.components import equivalent_radius_mm
from difftumor.scans.distances import Mask
from difftumor.scans.grid import Vector, Voxel
from difftumor.synthesis.draw import Wanted, draw_unplaced
from difftumor.synthesis.host import Host
from difftumor.synthesis.records import MaskRecord, TumorRecord
from difftumor.synthesis.shapes.masks import MaskShape
from difftumor.synthesis.spec import TumorSpec


@dataclass(frozen=True, eq=False, kw_only=True)
class GivenTumor(MaskShape):
    """One component of a mask.

    Args:
        number: Its number among the components on the scan's own grid, from 1.
        volume_mm3: Its volume there, which decides its size.
        center_voxel: Middle of its box, in voxels of the scan's whole model space.
        center_mm: The same in world coordinates (RAS).
    """

    number: int
    volume_mm3: float
    center_voxel: Voxel
    center_mm: Vector

    @cached_property
    def radius_mm(self) -> float:
        """Radius of the ball of its volume."""
        return equivalent_radius_mm(self.volume_mm3)


@dataclass(frozen=True, eq=False, kw_only=True)
class GivenTumors:
    """All components of a mask.

    Args:
        sha256: Of the mask on the scan's own grid: see `mask_identity`.
        tumors: In the order of their numbers.
    """

    sha256: str
    tumors: tuple[GivenTumor, ...]

    @property
    def shapes(self) -> Mapping[MaskRecord, Mask]:
        """The masks, as records name them."""
        return {MaskRecord(sha256=self.sha256, component=tumor.number): tumor.mask for tumor in self.tumors}

    def draw(self, host: Host, spec: TumorSpec, *, seed: int) -> tuple[TumorRecord, ...]:
        """Draw what the mask leaves open.

        Args:
            host: The organ.
            spec: What is wanted; size, number and place do not count.
            seed: Decides everything that is random.
        """
        return tuple(self._record(host, spec, tumor, seed) for tumor in self.tumors)

    def _record(self, host: Host, spec: TumorSpec, tumor: GivenTumor, seed: int) -> TumorRecord:
        drawn = draw_unplaced(host, Wanted(spec=spec, keys=("given tumor", tumor.number)), seed=seed)
        blur_voxels = drawn.blur_sigma_voxels
        if spec.blur_share is not None:  # of this radius, not of one that was drawn
            blur_voxels *= tumor.radius_mm / drawn.equivalent_radius_mm
        return replace(
            drawn,
            size=tumor.size,
            radius_mm=tumor.radius_mm,
            half_axes_mm=tumor.half_axes_mm,
            deformation_sigma_mm=0.0,
            blur_sigma_voxels=blur_voxels,
            center_voxel=tumor.center_voxel,
            center_mm=tumor.center_mm,
            # Neither organ nor neighbors cut it.
            may_leave_organ=True,
            may_overlap=True,
            apart=False,
            location="as the mask says",
            mask=MaskRecord(sha256=self.sha256, component=tumor.number),
        )


def mask_identity(mask: Mask) -> str:
    """Return the SHA-256 of a mask, whatever the file that it comes from."""
    return hashlib.sha256(repr(mask.shape).encode() + np.packbits(mask, axis=None).tobytes()).hexdigest()
