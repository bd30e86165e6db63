"""A scan in model space, and the organ there that hosts its tumors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import OrganError, SynthesisError
from difftumor.scans.components import Component, Components, largest_component
from difftumor.scans.distances import box_about
from difftumor.scans.grid import Array, Box, Vector, triple
from difftumor.scans.model_space import DataKind, ModelSpace
from difftumor.scans.organs import Organ
from difftumor.synthesis.generators.copy_paste import NO_SOURCES, SourceTumors
from difftumor.synthesis.host import Host
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.inputs import Scan
from difftumor.synthesis.shapes import odd_sized, reach_mm
from difftumor.synthesis.shapes.given import GivenTumor, GivenTumors, mask_identity
from difftumor.synthesis.sizes import SIZES
from difftumor.synthesis.spec import TumorSpec

# Vessels are sought in the smoothed CT, whose Gaussian looks this far beyond the organ.
_SMOOTHING_MM = 6.0
# What a given mask may lie from the organ, whose tissue decides how the tumor looks.
_NEAR_MM = 50.0
# Side of the blocks that are carried to model space as a whole.
_BLOCK = 32


class ModelScan:
    """A scan in model space. Each part is carried there when it is first needed, and once.

    Args:
        scan: Not modified.
        spacing_mm: Voxel size of model space.

    Attributes:
        scan: As given.
        spacing_mm: As given.
        space: Model space, and its relation to the scan's own grid.
    """

    def __init__(self, scan: Scan, spacing_mm: Vector) -> None:
        self.scan = scan
        self.spacing_mm = spacing_mm
        self.space = ModelSpace(scan.ct.grid, spacing_mm)
        self._ct_hu = _Carried(self.space, scan.ct.data, "image")
        self._organ = _Carried(self.space, scan.organ_mask.view(np.uint8), "labels")
        whole = scan.host_mask is scan.organ_mask
        self._host = self._organ if whole else _Carried(self.space, scan.host_mask.view(np.uint8), "labels")
        tumors = None if scan.tumor_mask is None else scan.tumor_mask.view(np.uint8)
        self._tumors = None if tumors is None else _Carried(self.space, tumors, "labels")

    def ct_hu(self, box: Box) -> NDArray[np.float32]:
        """Return a copy of the CT in a box of model space."""
        return self._ct_hu.part(box)

    def organ(self, box: Box) -> NDArray[np.uint8]:
        """Return a copy of the organ mask in a box of model space: 0 or 1."""
        return self._organ.part(box)

    def tumors(self, box: Box) -> NDArray[np.uint8] | None:
        """Return the tumors that are there already, likewise; None if there are none in the scan."""
        return None if self._tumors is None else self._tumors.part(box)

    def host(self, specs: Sequence[TumorSpec], organ: Organ, sources: SourceTumors = NO_SOURCES) -> Host:
        """Return the organ as a host of tumors.

        Args:
            specs: What will be drawn.
            organ: Rules of placement.
            sources: Real tumors that may be copied.

        Raises:
            OrganError: The organ is too small to be seen at that voxel size.
        """
        # Tumors that may leave the organ need all the space they can reach: one cut here but not when it is applied
        # would leave other space to those drawn after it. The others see the organ's surface, and no more.
        margin = _margin(specs, organ, self.spacing_mm, sources)
        box = self.space.model_box(Box.around(self.scan.organ_mask)).padded(margin).clipped(self.space.grid.shape)
        mask = self._host.part(box)
        if not mask.any():
            raise OrganError(
                f"The {organ.name} of {self.scan.organ_source} is too small to be seen at {self.spacing_mm} mm: "
                "give a mask with more of the organ."
            )
        affine = self.space.grid.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ box.start
        segments = self.scan.segments
        return Host(
            mask,
            organ=organ,
            spacing_mm=self.spacing_mm,
            ct_hu_XYZ=self.ct_hu(box) if any(spec.needs_hu for spec in specs) else None,
            segments_XYZ=None if segments is None else self.space.to_model(segments, kind="labels", box=box),
            tumors_XYZ=self.tumors(box),
            affine=affine,
            open_border=False,
            start=box.start,
        )

    @cached_property
    def given(self) -> GivenTumors | None:
        """The tumors that a mask asks for, if there is one.

        Raises:
            SynthesisError: A component is too small to be seen in model space, or far from the organ.
        """
        if self.scan.given_mask is None:
            return None
        components, tumors = self.scan.given_components, []
        for component in components.found:
            box, mask = component_in(self.space, components, component)
            if not mask.any():
                raise SynthesisError(
                    f"Component {component.index} of the tumor mask ({component.voxels} voxels) is too small to be "
                    f"seen at {self.spacing_mm} mm: leave it out."
                )
            near = box.padded([math.ceil(_NEAR_MM / step) for step in self.spacing_mm]).clipped(self.space.grid.shape)
            if not self.organ(near).any():
                raise SynthesisError(
                    f"Component {component.index} of the tumor mask lies more than {_NEAR_MM:g} mm from the "
                    f"{self.scan.organ}: give a mask of tumors near it."
                )
            center = triple(np.add(box.start, np.array(box.shape) // 2))
            x, y, z = (float(value) for value in (self.space.grid.affine @ [*center, 1.0])[:3])
            tumors.append(
                GivenTumor(
                    mask=odd_sized(mask),
                    spacing_mm=self.spacing_mm,
                    number=component.index,
                    volume_mm3=component.voxels * self.scan.ct.grid.voxel_mm3,
                    center_voxel=center,
                    center_mm=(x, y, z),
                )
            )
        return GivenTumors(sha256=mask_identity(self.scan.given_mask), tumors=tuple(tumors))

    def shows(self, record: TumorRecord, shape: np.ndarray) -> bool:
        """Whether a tumor of some shape has voxels on the scan's own grid; small ones may lie between thick slices."""
        whole = box_about(record.center_voxel, shape)
        box = whole.clipped(self.space.grid.shape)
        part = np.ascontiguousarray(shape[box.relative_to(whole).slices]).view(np.uint8)
        native, native_box = self.space.labels_to_native(part, box=box)
        inside = native > 0
        if not record.may_leave_organ:
            inside &= self.scan.organ_mask[native_box.slices]
        return bool(inside.any())


def component_in(space: ModelSpace, components: Components, component: Component) -> tuple[Box, np.ndarray]:
    """Return the box and mask of a component in model space, the largest part if resampling breaks it."""
    # The nearest voxel may be half a native voxel away.
    margin = [math.ceil(step) for step in space.native_step]
    around = space.model_box(component.box).padded(margin).clipped(space.grid.shape)
    near = space.to_model(components.indices, kind="labels", box=around) == component.index
    mask = largest_component(near)
    own = Box.around(mask)
    return own.shifted(around.start), mask[own.slices]


class _Carried:
    """An array of a scan in model space, filled in as it is asked for."""

    def __init__(self, space: ModelSpace, native: Array, kind: DataKind) -> None:
        self._space, self._native, self._kind = space, native, kind
        # Memory is taken by what is written, not by the whole.
        self._model = np.zeros(space.grid.shape, np.float32 if kind == "image" else native.dtype)
        self._done = np.zeros([math.ceil(n / _BLOCK) for n in space.grid.shape], bool)

    def part(self, box: Box) -> Array:
        """Return a copy of a box."""
        blocks = tuple(slice(a // _BLOCK, math.ceil(b / _BLOCK)) for a, b in zip(box.start, box.stop, strict=True))
        missing = Box.around(~self._done[blocks]).shifted([side.start for side in blocks])
        if not missing.empty:
            start, stop = (triple(np.multiply(end, _BLOCK)) for end in (missing.start, missing.stop))
            filled = Box(start, stop).clipped(self._space.grid.shape)
            self._model[filled.slices] = self._space.to_model(self._native, kind=self._kind, box=filled)
            self._done[missing.slices] = True
        return self._model[box.slices].copy()


def _margin(specs: Sequence[TumorSpec], organ: Organ, spacing_mm: Vector, sources: SourceTumors) -> list[int]:
    """Return how many voxels around the organ its tumors can reach, and its vessels are smoothed with."""
    leaving = [SIZES[name] for name in organ.may_leave_organ]
    irregularity = max([1.0, *(spec.irregularity.limits[1] for spec in specs)])
    reach = [reach_mm(s.radius_mm * s.half_axes[1], irregularity * max(s.deformation_mm)) for s in leaving]
    if leaving:
        # The half-axes of a tumor of chosen diameter differ by the ratios of a class; none is longer than 2 r.
        reach.append(sources.reach_mm)
        reach += [reach_mm(2 * r, irregularity * r / 2) for spec in specs for r in spec.chosen_radii_mm]
    farthest = max([*reach, _SMOOTHING_MM])
    return [math.ceil(farthest / step) + 2 for step in spacing_mm]
