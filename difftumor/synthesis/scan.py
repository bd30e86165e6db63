"""Tumors in a scan on its own grid: only the change is carried back from model space.

Everything outside the tumors' halo stays as it was stored, whatever the scan's orientation and spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from difftumor.errors import ConfigError, OrganError, SynthesisError
from difftumor.grids import Array, Box, triple
from difftumor.organs import ORGAN, TUMOR
from difftumor.spaces import ModelSpace
from difftumor.synthesis.records import SIZES, TumorRecord
from difftumor.synthesis.shapes import reach_mm
from difftumor.synthesis.synthesizer import TumorSynthesizer
from difftumor.volume import Volume, check_same_grid, read_ct, read_labels


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT and an organ in it.

    Args:
        ct: The CT in HU, on its own grid.
        organ: Boolean mask on the same grid, not empty.
        organ_path: File that the mask was read from.
    """

    ct: Volume
    organ: NDArray[np.bool_]
    organ_path: Path


@dataclass(frozen=True, eq=False)
class ScanSynthesis:
    """What tumors do to a scan.

    Args:
        scan: What they were made in; not modified.
        records: How they were drawn, in voxels of the scan's model space.
        change_hu: float32 change of the CT on ``change_box`` of its own grid.
        change_box: Where the scan changes.
        lesions: uint16 on the scan's own grid: 0, or the number of the tumor.
        region: Box of model space that the following arrays cover.
        before_hu: CT in model space.
        after_hu: CT with tumors in model space.
        model_labels: uint8 in model space: 0 background, 1 organ, 2 tumor.
        model_lesions: int32 in model space.
        spacing_mm: Voxel size of model space.
    """

    scan: Scan
    records: tuple[TumorRecord, ...]
    change_hu: NDArray[np.float32]
    change_box: Box
    lesions: NDArray[np.uint16]
    region: Box
    before_hu: NDArray[np.float32]
    after_hu: NDArray[np.float32]
    model_labels: NDArray[np.uint8]
    model_lesions: NDArray[np.int32]
    spacing_mm: tuple[float, float, float]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Label map on the scan's own grid: 0 background, 1 organ, 2 tumor."""
        labels = self.scan.organ.astype(np.uint8) * np.uint8(ORGAN)
        labels[self.lesions > 0] = TUMOR
        return labels

    def changed(self) -> NDArray[np.bool_]:
        """Mask of the voxels of the scan's own grid whose HU change."""
        mask = np.zeros(self.scan.ct.grid.shape, dtype=bool)
        mask[self.change_box.slices] = self.change_hu != 0
        return mask

    def hu(self) -> NDArray[np.float32]:
        """CT with tumors on the scan's own grid."""
        hu: NDArray[np.float32] = self.scan.ct.data.copy(order="K")
        hu[self.change_box.slices] += self.change_hu
        return hu


def read_scan(ct: Path, organ_mask: Path, *, organ: str, organ_label: int | None = None) -> Scan:
    """Read a CT and the mask of an organ.

    Args:
        ct: CT in HU.
        organ_mask: Mask or label map on the CT's grid.
        organ: The organ's name, for messages.
        organ_label: Its number in the label map; None for a mask with a single nonzero value.

    Raises:
        VolumeError: A file is missing, damaged, not 3-D, or of the wrong kind.
        GridMismatchError: The grids differ.
        OrganError: The organ is absent.
        ConfigError: The file is a label map of several structures and no number is given.
    """
    volume, labels = read_ct(ct), read_labels(organ_mask)
    check_same_grid(volume, labels)
    mask = labels.data != 0 if organ_label is None else labels.data == organ_label
    found = [int(value) for value in np.unique(labels.data) if value]
    listed = ", ".join(map(str, found)) or "none"
    if organ_label is None and len(found) > 1:
        raise ConfigError(f"{organ_mask} holds several labels ({listed}): say which is the {organ} with --organ-label.")
    if not mask.any():
        wanted = "nonzero voxel" if organ_label is None else f"voxel with label {organ_label}"
        raise OrganError(
            f"{organ_mask} holds no {wanted} for the {organ} (labels found: {listed}): give another mask or label."
        )
    return Scan(volume, mask, Path(organ_mask))


def draw_in_scan(
    synthesizer: TumorSynthesizer, scan: Scan, *, size: str, count: int, seed: int
) -> tuple[TumorRecord, ...]:
    """Draw tumors for a scan; arguments, result and errors as ``TumorSynthesizer.draw``.

    Centers are in voxels of the scan's whole model space, so that a record does not depend on how the work is cut.
    """
    space = ModelSpace(scan.ct.grid, synthesizer.spacing_mm)
    # Tumors that may leave the organ need all the room they can reach: one cut here but not when it is applied would
    # leave other room to those drawn after it. The others see the organ's surface, and no more.
    leaving = [SIZES[name] for name in synthesizer.organ.may_leave_organ]
    reach = max([reach_mm(s.radius_mm * s.half_axes[1], max(s.deformation_mm)) for s in leaving], default=0.0)
    margin = [math.ceil(reach / step) + 2 for step in synthesizer.spacing_mm]
    box = space.model_box(Box.around(scan.organ)).padded(margin).clipped(space.grid.shape)
    organ = space.to_model(scan.organ.view(np.uint8), kind="labels", box=box)
    if not organ.any():
        raise OrganError(
            f"The {synthesizer.organ.name} of {scan.organ_path} is too small to be seen at "
            f"{synthesizer.spacing_mm} mm: give a mask with more of the organ."
        )
    affine = space.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ box.start
    drawn = synthesizer.draw(organ, size=size, count=count, seed=seed, affine=affine, open_border=False)
    return tuple(record.moved(box.start) for record in drawn)


def apply_to_scan(synthesizer: TumorSynthesizer, scan: Scan, records: Sequence[TumorRecord]) -> ScanSynthesis:
    """Apply records to a scan; the same arguments give the same tumors.

    Args:
        synthesizer: What makes the tumors, on the device of its networks.
        scan: Not modified.
        records: As ``draw_in_scan`` returned them, at least one.

    Raises:
        SynthesisError: A record does not fit the scan or the synthesizer.
    """
    if not records:
        raise ConfigError("There are no tumor records to apply: draw at least one.")
    space = ModelSpace(scan.ct.grid, synthesizer.spacing_mm)
    region = _region(records, synthesizer.patch, space)
    if region.empty:
        raise SynthesisError(f"The tumors lie outside {scan.ct.path}: apply records to the scan they were drawn for.")
    before = space.to_model(scan.ct.data, kind="image", box=region)
    organ = space.to_model(scan.organ.view(np.uint8), kind="labels", box=region)
    moved = [record.moved([-start for start in region.start]) for record in records]
    ct_B1XYZ, organ_B1XYZ = (torch.from_numpy(array)[None, None].to(synthesizer.device) for array in (before, organ))
    made = synthesizer.apply(ct_B1XYZ, organ_B1XYZ, [moved], patch_per_tumor=True)
    change, lesions = made.change_hu[0, 0].cpu().numpy(), made.lesions[0, 0].cpu().numpy()

    touched = Box.around(change)
    if touched.empty:
        raise SynthesisError(f"The tumors change nothing in {scan.ct.path}: choose another model.")
    model_touched = Box(triple(np.add(touched.start, region.start)), triple(np.add(touched.stop, region.start)))
    native_change, change_box = space.change_to_native(np.ascontiguousarray(change[touched.slices]), box=model_touched)
    return ScanSynthesis(
        scan=scan,
        records=tuple(records),
        change_hu=native_change,
        change_box=change_box,
        lesions=_native_lesions(lesions, region, space, scan, records),
        region=region,
        before_hu=before,
        after_hu=made.ct_hu[0, 0].cpu().numpy(),
        model_labels=made.labels[0, 0].cpu().numpy(),
        model_lesions=lesions,
        spacing_mm=synthesizer.spacing_mm,
    )


def _region(records: Sequence[TumorRecord], patch: Sequence[int], space: ModelSpace) -> Box:
    """Return the part of model space that the tumors' patches can see."""
    margins = []
    for record in records:
        # Half a patch, or the tumor itself with its deformation and halo where that is more.
        reach = [
            int(2 * axis / step + 4 * record.deformation_sigma_mm / step + 5 * record.blur_sigma_voxels) + 2
            for axis, step in zip(record.half_axes_mm, record.spacing_mm, strict=True)
        ]
        margins.append([max(2 * r, size) for r, size in zip(reach, patch, strict=True)])
    centers = np.array([record.center_voxel for record in records])
    start = triple((centers - margins).min(axis=0))
    stop = triple((centers + margins).max(axis=0) + 1)
    return Box(start, stop).clipped(space.grid.shape)


def _native_lesions(
    lesions: Array, region: Box, space: ModelSpace, scan: Scan, records: Sequence[TumorRecord]
) -> NDArray[np.uint16]:
    """Carry the lesion map to the scan's own grid; a tumor that stays in the organ also does so there."""
    part, box = space.labels_to_native(lesions.astype(np.uint16), box=region)
    stays = np.array([False, *(not record.may_leave_organ for record in records)])
    part[stays[part] & ~scan.organ[box.slices]] = 0
    native = np.zeros(scan.ct.grid.shape, dtype=np.uint16)
    native[box.slices] = part
    return native
