"""Tumors in a scan on its own grid: made in model space, and only the change is carried back.

Everything outside the tumors' halo stays as it was stored, whatever the scan's orientation and spacing. Tumors that are
far apart are made one after the other, so that time and memory depend on the tumors, not on the scan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from numpy.typing import NDArray

from difftumor.errors import ConfigError, SynthesisError
from difftumor.scans.grid import Array, Box, Vector, Voxel, triple
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.organs import ORGAN, TUMOR
from difftumor.synthesis.effects import reach_voxels
from difftumor.synthesis.generators.copy_paste import SourceTumors
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.inputs import Scan
from difftumor.synthesis.scan.model_scan import ModelScan
from difftumor.synthesis.synthesizer import TumorSynthesizer

# What is kept of model space around a group of tumors: enough for pictures and for what lies around a tumor.
KEPT_AROUND_MM = 60.0
_STAYS, _LEAVES_ORGAN, _JOINS_ORGAN = 0, 1, 2


@dataclass(frozen=True, eq=False)
class ScanPart:
    """Tumors that are near each other, and what is around them, in model space.

    Args:
        numbers: Of the tumors, from 1.
        region: Box of model space that the arrays cover.
        before_hu: float32, the CT.
        after_hu: float32, the CT with tumors.
        labels: uint8: 0 background, 1 organ, 2 tumor.
        lesions: 0, or the number of the tumor.
        halo: bool: voxels whose CT may have changed.
        spacing_mm: Voxel size of model space.
        earlier: Nonzero in tumors that were there before; None if the scan has none.
    """

    numbers: tuple[int, ...]
    region: Box
    before_hu: NDArray[np.float32]
    after_hu: NDArray[np.float32]
    labels: NDArray[np.uint8]
    lesions: NDArray[np.unsignedinteger]
    halo: NDArray[np.bool_]
    spacing_mm: Vector
    earlier: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class ScanSynthesis:
    """A scan with tumors, on its own grid.

    Args:
        scan: The scan without them; not modified.
        records: The tumors, in voxels of the scan's model space.
        box: Part of the scan's own grid that the following arrays cover; it holds all that changes.
        change_hu: float32 change of the CT.
        halo: bool: voxels whose CT may change; elsewhere no voxel of model space with a weight above 0 takes part.
        lesions: 0, or the number of the tumor.
        organ: bool: the organ, which tumors with a mass effect bulge.
        parts: The tumors in model space.
    """

    scan: Scan
    records: tuple[TumorRecord, ...]
    box: Box
    change_hu: NDArray[np.float32]
    halo: NDArray[np.bool_]
    lesions: NDArray[np.unsignedinteger]
    organ: NDArray[np.bool_]
    parts: tuple[ScanPart, ...]

    def whole_lesions(self) -> NDArray[np.unsignedinteger]:
        """Lesion map on the scan's own grid."""
        whole = np.zeros(self.scan.ct.grid.shape, self.lesions.dtype, order="F")
        whole[self.box.slices] = self.lesions
        return whole

    def whole_labels(self) -> NDArray[np.uint8]:
        """Label map on the scan's own grid: 0 background, 1 organ, 2 tumor, those that were there before included."""
        labels = np.zeros(self.scan.ct.grid.shape, np.uint8, order="F")
        labels[self.scan.organ_mask] = ORGAN
        part = labels[self.box.slices]
        part[:] = self.organ.astype(np.uint8) * np.uint8(ORGAN)
        part[self.lesions > 0] = TUMOR
        if self.scan.tumor_mask is not None:
            labels[self.scan.tumor_mask] = TUMOR
        return labels

    def hu(self) -> NDArray[np.float32]:
        """CT with tumors, in ``box``."""
        hu: NDArray[np.float32] = self.scan.ct.data[self.box.slices] + self.change_hu
        return hu


def apply_to_scan(
    synthesizer: TumorSynthesizer, model_scan: ModelScan, records: Sequence[TumorRecord]
) -> ScanSynthesis:
    """Apply records to a scan; the same arguments give the same tumors.

    Args:
        synthesizer: What makes the tumors, on the device of its networks.
        model_scan: At the voxel size of the synthesizer; not modified.
        records: As ``draw_tumors`` returned them for the scan's host, at least one.

    Raises:
        SynthesisError: A record does not fit the scan or the synthesizer.
    """
    if not records:
        raise ConfigError("There are no tumor records to apply: draw at least one.")
    scan = model_scan.scan
    made = [
        _make_group(synthesizer, model_scan, [(number, records[number - 1]) for number in numbers])
        for numbers in _groups(records, model_scan.space, synthesizer.sources)
    ]
    asked = {number: record.mask.component for number, record in enumerate(records, start=1) if record.mask}
    box = Box.joined([native.box for native in made])
    if asked:
        box = Box.joined([box, scan.given_components.box])
    if box.empty:
        raise SynthesisError(f"The tumors change nothing in {scan.ct.path}: choose larger tumors or another model.")
    change_hu = np.zeros(box.shape, np.float32)
    halo = np.zeros(box.shape, bool)
    lesions = np.zeros(box.shape, np.min_scalar_type(len(records)))
    organ = scan.organ_mask[box.slices].copy()
    for native in made:
        if native.box.empty:  # between the scan's voxels
            continue
        inside = native.box.relative_to(box).slices
        # Halos of different groups lie apart, but their boxes may overlap.
        change_hu[inside] += native.change_hu
        halo[inside] |= native.halo
        organ[inside] = np.where(native.organ == _STAYS, organ[inside], native.organ == _JOINS_ORGAN)
        np.maximum(lesions[inside], native.lesions, out=lesions[inside], casting="unsafe")
    # A tumor that stays in the organ also does so on the scan's own grid.
    stays = np.array([False, *(not record.may_leave_organ for record in records)])
    lesions[stays[lesions] & ~organ] = 0
    _keep_apart(lesions, np.array([False, *(record.apart for record in records)]))
    for number, component in asked.items():
        # What was asked for on the scan's own grid is the label, whatever model space has made of it.
        lesions[lesions == number] = 0
        lesions[scan.given_components.indices[box.slices] == component] = number
    return ScanSynthesis(
        scan=scan,
        records=tuple(records),
        box=box,
        change_hu=change_hu,
        halo=halo,
        lesions=lesions,
        organ=organ,
        parts=tuple(native.part for native in made),
    )


def _keep_apart(lesions: Array, apart: NDArray[np.bool_]) -> None:
    """Take a voxel between tumors that touch, by a face, an edge or a corner, from the larger one.

    In model space there is a gap, which is lost where the scan's voxels are larger.

    Args:
        lesions: Numbers of the tumors; changed in place.
        apart: By number, whether a tumor is to be a component of its own.
    """
    voxels = np.bincount(lesions.ravel(), minlength=len(apart))
    boxes = scipy.ndimage.find_objects(lesions, max_label=len(apart) - 1)
    ordered = sorted(np.flatnonzero(apart & (voxels > 0)), key=lambda index: (voxels[index], index))
    larger = np.zeros(len(apart), bool)
    larger[ordered] = True
    for number in ordered:
        larger[number] = False
        near = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in boxes[number - 1])
        part = lesions[near]
        own = part == number
        around = scipy.ndimage.binary_dilation(own, np.ones((3, 3, 3), bool)) & ~own
        part[around & larger[part]] = 0


@dataclass(frozen=True, eq=False)
class _Native:
    """A group of tumors on the scan's own grid."""

    box: Box
    change_hu: NDArray[np.float32]
    halo: NDArray[np.bool_]
    lesions: Array
    organ: Array  # _STAYS, _LEAVES_ORGAN or _JOINS_ORGAN
    part: ScanPart


def _make_group(
    synthesizer: TumorSynthesizer, model_scan: ModelScan, tumors: Sequence[tuple[int, TumorRecord]]
) -> _Native:
    records = [record for _, record in tumors]
    region = _region(records, synthesizer, model_scan.space.grid.shape)
    if region.empty:
        raise SynthesisError(
            f"A tumor lies outside {model_scan.scan.ct.path}: apply records to the scan they were drawn for."
        )
    before, organ, earlier = model_scan.ct_hu(region), model_scan.organ(region), model_scan.tumors(region)
    moved = [record.moved([-start for start in region.start]) for record in records]
    ct_B1XYZ, organ_B1XYZ = (torch.from_numpy(array)[None, None].to(synthesizer.device) for array in (before, organ))
    made = synthesizer.apply(
        ct_B1XYZ,
        organ_B1XYZ,
        [moved],
        patch_per_tumor=True,
        tumors_B1XYZ=None if earlier is None else torch.from_numpy(earlier)[None, None],
    )

    numbers = np.array([0, *(number for number, _ in tumors)])
    numbers = numbers.astype(np.min_scalar_type(int(numbers.max())))
    local, labels, halo, change = (
        x[0, 0].cpu().numpy() for x in (made.lesions, made.labels, made.halo, made.change_hu)
    )
    lesions = numbers[local]
    # Tumors count as organ here, except those that leave it: what matters is how far the organ reaches.
    leaves = np.array([False, *(record.may_leave_organ for record in records)])[local]
    organ_now = labels > 0
    relabeled = np.where(organ_now, np.uint8(_JOINS_ORGAN), np.uint8(_LEAVES_ORGAN))
    relabeled[(organ_now == (organ > 0)) | leaves] = _STAYS

    kept = _kept_box(halo, lesions, synthesizer.spacing_mm)
    part = ScanPart(
        numbers=tuple(number for number, _ in tumors),
        region=kept.shifted(region.start),
        before_hu=before[kept.slices].copy(),
        after_hu=made.ct_hu[0, 0].cpu().numpy()[kept.slices].copy(),
        labels=labels[kept.slices].copy(),
        lesions=lesions[kept.slices].copy(),
        halo=halo[kept.slices].copy(),
        spacing_mm=synthesizer.spacing_mm,
        earlier=None if earlier is None else earlier[kept.slices].copy(),
    )
    touched = Box.joined([Box.around(x) for x in (halo, change, lesions, relabeled)])
    cut = [np.ascontiguousarray(x[touched.slices]) for x in (change, halo.astype(np.float32), lesions, relabeled)]
    return _on_native_grid(model_scan.space, touched.shifted(region.start), cut, part)


def _on_native_grid(space: ModelSpace, model_box: Box, arrays: Sequence[Array], part: ScanPart) -> _Native:
    """Carry change, halo, lesions and organ of a box of model space to the scan's own grid."""
    change_hu, halo, lesions, organ = arrays
    carried: list[tuple[Array, Box]] = [
        space.change_to_native(change_hu, box=model_box),
        space.change_to_native(halo, box=model_box),
        space.labels_to_native(lesions, box=model_box),
        space.labels_to_native(organ, box=model_box),
    ]
    box = Box.joined([own for _, own in carried])
    change_hu, halo, lesions, organ = (_placed(data, own, box) for data, own in carried)
    return _Native(box=box, change_hu=change_hu, halo=halo > 0, lesions=lesions, organ=organ, part=part)


def _region(records: Sequence[TumorRecord], synthesizer: TumorSynthesizer, shape: Voxel) -> Box:
    """Return the part of model space that some tumors, the networks and what is measured around them can see."""
    boxes = []
    for record in records:
        kept = [math.ceil(KEPT_AROUND_MM / step) for step in record.spacing_mm]
        texture = synthesizer.diffusion.get(record.size_group) if record.generator == "diffusion" else None
        margin = np.add(reach_voxels(record, synthesizer.sources.shape(record).shape), kept)
        if texture is not None:
            # A patch may lie off its tumor at the scan's end, so that it sees up to a whole patch to one side.
            margin = np.maximum(margin, np.maximum(np.multiply(reach_voxels(record), 2), texture.patch))
        boxes.append(_around_center(record, margin))
    return Box.joined(boxes).clipped(shape)


def _groups(records: Sequence[TumorRecord], space: ModelSpace, sources: SourceTumors) -> list[list[int]]:
    """Return the numbers, from 1, of tumors that can touch each other, group by group."""
    # A change in model space takes part in native voxels up to one native step away.
    gap = [math.ceil(step) + 1 for step in space.native_step]
    sizes = [None if record.source is None else sources.shape(record).shape for record in records]
    reaches = [reach_voxels(record, size) for record, size in zip(records, sizes, strict=True)]
    boxes = [_around_center(record, np.add(reach, gap)) for record, reach in zip(records, reaches, strict=True)]
    groups: list[list[int]] = []
    for number, box in enumerate(boxes, start=1):
        near = [group for group in groups if any(box.overlaps(boxes[other - 1]) for other in group)]
        groups = [group for group in groups if group not in near]
        groups.append(sorted([number, *(other for group in near for other in group)]))
    return sorted(groups)


def near(
    record: TumorRecord, others: Sequence[TumorRecord], space: ModelSpace, sources: SourceTumors
) -> list[TumorRecord]:
    """Return those of other tumors that a tumor can touch, or that can touch one that it can, in order."""
    (group,) = (numbers for numbers in _groups([*others, record], space, sources) if len(others) + 1 in numbers)
    return [others[number - 1] for number in group[:-1]]


def _around_center(record: TumorRecord, margin: Sequence[int] | Array) -> Box:
    return Box(record.center_voxel, triple(np.add(record.center_voxel, 1))).padded(triple(margin))


def _kept_box(halo: NDArray[np.bool_], lesions: Array, spacing_mm: Vector) -> Box:
    margin = [math.ceil(KEPT_AROUND_MM / step) for step in spacing_mm]
    return Box.joined([Box.around(halo), Box.around(lesions)]).padded(margin).clipped(halo.shape)


def _placed(data: Array, own: Box, box: Box) -> Array:
    """Return data of a box in a larger one, with zeros around it."""
    whole = np.zeros(box.shape, data.dtype)
    if not own.empty:
        whole[own.relative_to(box).slices] = data
    return whole
