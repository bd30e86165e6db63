"""What was requested of every tumor in a scan, what was achieved, and a picture of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from difftumor.scans.appearance import Appearance, measure_appearance
from difftumor.scans.components import equivalent_radius_mm
from difftumor.scans.grid import Box, Vector
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.organs import ORGAN, TUMOR
from difftumor.synthesis.host import Host
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.scan.insertion import ScanPart, ScanSynthesis

if TYPE_CHECKING:  # measuring needs no pictures
    from matplotlib.figure import Figure

# Below this share of its requested volume a tumor is worth a warning.
_MOSTLY_THERE = 0.5
# So is a contrast that is off by more than the noise of a CT.
_CONTRAST_OFF_HU = 15.0
_PREVIEW_MM = 120.0
# What changes so near to a given mask is taken for its tumor.
_RIM_MM = 10.0
# In pictures, of tumors that were there before.
_EARLIER = 3
# Compact bone and gas, beyond contrast, calcium and the noise of soft tissue; and the share of a tumor that may be so.
_BONE_HU, _AIR_HU, _MOST_REPLACED = 700.0, -500.0, 0.01


@dataclass(frozen=True, kw_only=True)
class TumorReport:
    """One tumor in a scan.

    Args:
        record: The tumor as it was drawn.
        voxels: Its voxels on the scan's own grid.
        volume_mm3: Their volume.
        diameter_mm: Diameter of the ball of that volume.
        center_mm: Their center of mass in world coordinates (RAS); None without voxels.
        contrast_hu: Mean of the tumor less the mean of the organ around it; None for too few voxels of either.
        sd_hu: Standard deviation inside the tumor; None for too few voxels.
        vessel_clearance_mm: Distance from the tumor to the nearest vessel in the organ; None if vessels did not matter
            or there are none.
        label_dice: Dice of its label and the mask that was asked for; None if none was.
        change_dice: Dice of that mask and the voxels whose HU changed by more than half of the tumor's contrast.
    """

    record: TumorRecord
    voxels: int
    volume_mm3: float
    diameter_mm: float
    center_mm: Vector | None
    contrast_hu: float | None
    sd_hu: float | None
    vessel_clearance_mm: float | None
    label_dice: float | None = None
    change_dice: float | None = None

    @property
    def requested_volume_mm3(self) -> float:
        """Volume of the drawn ellipsoid."""
        return float(4 / 3 * np.pi * np.prod(self.record.half_axes_mm))

    @property
    def requested_diameter_mm(self) -> float:
        """Diameter of the ball of the requested volume."""
        return 2 * self.record.equivalent_radius_mm

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: requested, achieved, and the record that replays the tumor."""
        record = self.record
        requested = {
            "generator": record.generator,
            "size": record.size,
            "location": record.location,
            "diameter_mm": self.requested_diameter_mm,
            "volume_mm3": self.requested_volume_mm3,
            "center_mm": record.center_mm,
            "contrast_hu": record.contrast_hu,
            "vessel_clearance_mm": record.vessel_clearance_mm,
            "mass_effect": record.mass_effect,
            "capsule_hu": record.capsule_hu,
            "seed": record.texture_seed,
        }
        achieved = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "record"}
        if record.mask is None:
            del achieved["label_dice"], achieved["change_dice"]
        achieved["attempts"] = record.attempts
        return {"requested": requested, "achieved": achieved, "record": record.to_dict()}


def report_tumors(result: ScanSynthesis, host: Host, *, window: IntensityWindow) -> tuple[TumorReport, ...]:
    """Measure every tumor, in the order of the records.

    Args:
        result: What was made.
        host: The organ, whose vessels are found if a record keeps away from them.
        window: HU that count for contrast.
    """
    vessels, boxes = _Vessels(host), scipy.ndimage.find_objects(result.lesions, max_label=len(result.records))
    reports = {
        number: _report(result, part, number, boxes[number - 1], vessels, window)
        for part in result.parts
        for number in part.numbers
    }
    return tuple(reports[number] for number in sorted(reports))


def find_warnings(reports: Sequence[TumorReport]) -> tuple[str, ...]:
    """Return sentences that name the tumors that fall short of their request."""
    warnings = []
    for number, report in enumerate(reports, start=1):
        share = report.volume_mm3 / report.requested_volume_mm3
        if report.voxels == 0:
            warnings.append(f"Tumor {number} has no voxel of the scan: others cover it, or it lies between its slices.")
        elif share < _MOSTLY_THERE:
            warnings.append(
                f"Tumor {number} was cut to {share:.0%} of its volume by organ, neighbors or the scan's end."
            )
        contrast, requested = report.contrast_hu, report.record.contrast_hu
        if contrast is not None and requested is not None and abs(contrast - requested) > _CONTRAST_OFF_HU:
            warnings.append(f"Tumor {number} has a contrast of {contrast:+.0f} HU, not of {requested:+.0f}.")
        clearance, least = report.vessel_clearance_mm, report.record.vessel_clearance_mm
        if clearance is not None and least is not None and clearance < least:
            warnings.append(f"Tumor {number} is {clearance:.1f} mm from a vessel, not {least:.1f} or more.")
    return tuple(warnings)


def tissue_warnings(made: ScanSynthesis) -> tuple[str, ...]:
    """Return sentences that name the tumors in the place of bone or air, which most organs' masks should not hold."""
    before, organ = made.scan.ct.data[made.box.slices], made.scan.rules
    low_hu, high_hu = organ.mean_hu or (0.0, 0.0)
    hard = np.zeros(before.shape, np.bool_)
    if high_hu <= _BONE_HU:
        hard |= before > _BONE_HU
    if low_hu >= _AIR_HU and organ.wall_mm == 0:  # tumors of a wall grow into what is inside of it
        hard |= before < _AIR_HU
    sizes = np.bincount(made.lesions.ravel(), minlength=len(made.records) + 1)
    replaced = np.bincount(made.lesions[hard], minlength=len(sizes))
    return tuple(
        f"Tumor {number} takes the place of bone or air in {replaced[number] / sizes[number]:.0%} of its voxels: give "
        "a mask of soft tissue alone."
        for number in range(1, len(sizes))
        if replaced[number] > _MOST_REPLACED * sizes[number]
    )


def plot_preview(result: ScanSynthesis, *, organ: str) -> Figure:
    """Plot three planes through the largest tumor: before, after, outlines, difference."""
    from difftumor.reporting.picture_rows import Panel
    from difftumor.reporting.pictures import mask_center, three_planes

    part = max(result.parts, key=_largest_size)
    largest = int(np.bincount(part.lesions.ravel())[1:].argmax()) + 1
    before, after, labels = part.before_hu, part.after_hu, part.labels
    names = {1: organ.replace("_", " "), 2: "tumor"}
    if part.earlier is not None:
        names[_EARLIER] = "tumor before"
        labels = np.where((part.earlier != 0) & (labels != TUMOR), np.uint8(_EARLIER), labels)
    panels = [
        Panel(title="Before", image=before, zoom_mm=_PREVIEW_MM),
        Panel(title="After", image=after, zoom_mm=_PREVIEW_MM),
        Panel(title="Labels", image=after, labels=labels, zoom_mm=_PREVIEW_MM),
        Panel(title="Difference", image=after - before, kind="difference", zoom_mm=_PREVIEW_MM),
    ]
    return three_planes(
        panels,
        spacing_mm=part.spacing_mm,
        center=mask_center(part.lesions == largest),
        label_names=names,
    )


def appearance_in(part: ScanPart, number: int, *, window: IntensityWindow) -> Appearance:
    """Measure how a tumor looks in model space, against the organ around it."""
    return measure_appearance(
        part.after_hu,
        part.lesions == number,
        part.labels == ORGAN,
        spacing_mm=part.spacing_mm,
        window=window,
    )


class _Vessels:
    """The vessels of an organ, found when first needed."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def clearance_mm(self, part: ScanPart, number: int) -> float | None:
        """Return the distance from a tumor to the nearest vessel; None if there are none, or no tumor."""
        box = Box.around(part.lesions == number)
        if self._tree is None or box.empty:
            return None
        voxels = np.argwhere(part.lesions[box.slices] == number) + box.start + part.region.start
        distances_mm, _ = self._tree.query(voxels * part.spacing_mm)
        return float(np.min(distances_mm))

    @cached_property
    def _tree(self) -> scipy.spatial.cKDTree | None:
        vessels = np.argwhere(self._host.vessels) + self._host.start
        return scipy.spatial.cKDTree(vessels * self._host.spacing_mm) if len(vessels) else None


def _report(
    result: ScanSynthesis,
    part: ScanPart,
    number: int,
    box: tuple[slice, ...] | None,
    vessels: _Vessels,
    window: IntensityWindow,
) -> TumorReport:
    grid, record = result.scan.ct.grid, result.records[number - 1]
    voxels = np.empty((0, 3), int)
    center_mm: Vector | None = None
    if box is not None:
        voxels = np.argwhere(result.lesions[box] == number) + [side.start for side in box]
        middle = voxels.mean(axis=0) + result.box.start
        x, y, z = (float(v) for v in grid.affine[:3, :3] @ middle + grid.affine[:3, 3])
        center_mm = (x, y, z)
    appearance = appearance_in(part, number, window=window)
    label_dice, change_dice = _dice(result, number, appearance.contrast_hu)
    return TumorReport(
        record=record,
        voxels=len(voxels),
        volume_mm3=len(voxels) * grid.voxel_mm3,
        diameter_mm=2 * equivalent_radius_mm(len(voxels) * grid.voxel_mm3),
        center_mm=center_mm,
        contrast_hu=_or_none(appearance.contrast_hu),
        sd_hu=_or_none(appearance.sd_hu),
        vessel_clearance_mm=None if record.vessel_clearance_mm is None else vessels.clearance_mm(part, number),
        label_dice=label_dice,
        change_dice=change_dice,
    )


def _dice(result: ScanSynthesis, number: int, contrast_hu: float) -> tuple[float | None, float | None]:
    """Return the Dice of a tumor's label, and of what changed by more than half of its contrast, with its mask."""
    record = result.records[number - 1]
    if record.mask is None:
        return None, None
    asked = result.scan.given_components.indices[result.box.slices] == record.mask.component
    near = Box.around(asked).padded(math.ceil(_RIM_MM / min(result.scan.ct.grid.spacing_mm))).clipped(asked.shape)
    lesions, asked = result.lesions[near.slices], asked[near.slices]
    changed = (np.abs(result.change_hu[near.slices]) > abs(contrast_hu) / 2) & ((lesions == 0) | (lesions == number))
    shares = [2 * np.count_nonzero(asked & made) / (np.count_nonzero(asked) + np.count_nonzero(made) or 1)
              for made in (lesions == number, changed)]  # fmt: skip
    return round(float(shares[0]), 3), round(float(shares[1]), 3) if math.isfinite(contrast_hu) else None


def _largest_size(part: ScanPart) -> int:
    return int(np.bincount(part.lesions.ravel(), minlength=2)[1:].max())


def _or_none(value: float) -> float | None:
    # Last bits depend on the number of threads.
    return round(value, 3) if math.isfinite(value) else None
