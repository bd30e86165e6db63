"""A scan on its own grid, its organ in model space, and drawing tumors there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import OrganError
from difftumor.scans.grid import Box, Vector, Voxel, triple
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.organs import Organ
from difftumor.synthesis.draw import Choose, Drawn, draw_tumors
from difftumor.synthesis.host import Site
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.inputs import Scan
from difftumor.synthesis.shapes import reach_mm, tumor_shape
from difftumor.synthesis.sizes import SIZES
from difftumor.synthesis.spec import TumorSpec

# Vessels are sought in the smoothed CT, whose Gaussian looks this far beyond the organ.
_SMOOTHING_MM = 6.0


@dataclass(frozen=True, eq=False)
class ScanSite:
    """The organ of a scan in model space.

    Args:
        site: The organ and what is around it.
        box: Box of the scan's model space that it covers.
    """

    site: Site
    box: Box


def site_of(scan: Scan, specs: Sequence[TumorSpec], *, organ: Organ, spacing_mm: Vector) -> ScanSite:
    """Carry what drawing needs of a scan to model space.

    Args:
        scan: Not modified.
        specs: What will be drawn.
        organ: Rules of placement.
        spacing_mm: Voxel size of model space.

    Raises:
        OrganError: The organ is too small to be seen at that voxel size.
    """
    space = ModelSpace(scan.ct.grid, spacing_mm)
    # Tumors that may leave the organ need all the room they can reach: one cut here but not when it is applied would
    # leave other room to those drawn after it. The others see the organ's surface, and no more.
    box = (
        space.model_box(Box.around(scan.organ_mask)).padded(_margin(specs, organ, spacing_mm)).clipped(space.grid.shape)
    )
    mask = space.to_model(scan.organ_mask.view(np.uint8), kind="labels", box=box)
    if not mask.any():
        raise OrganError(
            f"The {organ.name} of {scan.organ_source} is too small to be seen at {spacing_mm} mm: "
            "give a mask with more of the organ."
        )
    affine = space.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ box.start
    needs_hu = any(spec.needs_hu for spec in specs)
    site = Site(
        mask,
        organ=organ,
        spacing_mm=spacing_mm,
        ct_hu_XYZ=space.to_model(scan.ct.data, kind="image", box=box) if needs_hu else None,
        segments_XYZ=None if scan.segments is None else space.to_model(scan.segments, kind="labels", box=box),
        taken_XYZ=taken_in(scan, space, box),
        affine=affine,
        open_border=False,
    )
    return ScanSite(site, box)


def taken_in(scan: Scan, space: ModelSpace, box: Box) -> NDArray[np.uint8] | None:
    """Return the tumors that are there already in a box of model space; None where there are none."""
    if scan.tumor_mask is None:
        return None
    taken: NDArray[np.uint8] = space.to_model(scan.tumor_mask.view(np.uint8), kind="labels", box=box)
    return taken


def has_native_voxels(record: TumorRecord, scan: Scan, space: ModelSpace) -> bool:
    """Whether a tumor has voxels on the scan's own grid; in thick slices small ones may lie between them."""
    shape = tumor_shape(record)
    whole = Box(record.center_voxel, triple(np.add(record.center_voxel, 1))).padded([n // 2 for n in shape.shape])
    box = whole.clipped(space.grid.shape)
    part = np.ascontiguousarray(shape[box.relative_to(whole).slices]).view(np.uint8)
    native, native_box = space.labels_to_native(part, box=box)
    inside = native > 0
    if not record.may_leave_organ:
        inside &= scan.organ_mask[native_box.slices]
    return bool(inside.any())


def draw_in_scan(
    there: ScanSite,
    specs: Sequence[TumorSpec],
    *,
    seed: int,
    choose: Choose | None = None,
    attempts: int = 1,
) -> Drawn:
    """Draw tumors for a scan; arguments and errors as ``draw_tumors``.

    Centers are in voxels of the scan's whole model space, so that a record does not depend on how the work is cut. What
    ``choose`` is given and returns is so too.
    """
    offset = there.box.start
    moved = None if choose is None else _Moved(choose, offset)
    drawn = draw_tumors(there.site, specs, seed=seed, choose=moved, attempts=attempts)
    return Drawn(tuple(record.moved(offset) for record in drawn.records), drawn.shortfalls)


@dataclass(frozen=True)
class _Moved:
    """A choice among tumors in voxels of the whole model space, asked in voxels of a box that begins at ``offset``."""

    choose: Choose
    offset: Voxel

    def begin(self, wanted: int) -> None:
        self.choose.begin(wanted)

    def __call__(self, record: TumorRecord, accepted: Sequence[TumorRecord]) -> TumorRecord | None:
        kept = self.choose(record.moved(self.offset), [other.moved(self.offset) for other in accepted])
        return None if kept is None else kept.moved([-step for step in self.offset])


def _margin(specs: Sequence[TumorSpec], organ: Organ, spacing_mm: Vector) -> list[int]:
    """Return how many voxels around the organ its tumors can reach, and its vessels are smoothed with."""
    leaving = [SIZES[name] for name in organ.may_leave_organ]
    irregularity = max([1.0, *(spec.irregularity.limits[1] for spec in specs)])
    reach = [reach_mm(s.radius_mm * s.half_axes[1], irregularity * max(s.deformation_mm)) for s in leaving]
    if leaving:
        # The half-axes of a tumor of chosen diameter differ by the ratios of a class; none is longer than 2 r.
        reach += [reach_mm(2 * r, irregularity * r / 2) for spec in specs for r in spec.chosen_radii_mm]
    farthest = max([*reach, _SMOOTHING_MM])
    return [math.ceil(farthest / step) + 2 for step in spacing_mm]
