"""What was asked of every tumor in a scan, what it became, and a picture of it."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from difftumor.components import equivalent_radius_mm
from difftumor.grids import Box
from difftumor.organs import ORGAN
from difftumor.picture_rows import Panel
from difftumor.pictures import mask_center, three_planes
from difftumor.synthesis.records import Triple, TumorRecord
from difftumor.synthesis.scan import ScanSynthesis

# Organ this near to a tumor is what its contrast is measured against.
_SURROUNDINGS_MM = 10.0
# Below this share of its requested volume a tumor is worth a warning.
_MOSTLY_THERE = 0.5
_PREVIEW_MM = 120.0


@dataclass(frozen=True, kw_only=True)
class TumorReport:
    """One tumor in a scan.

    Args:
        record: How it was drawn.
        voxels: Its voxels on the scan's own grid.
        volume_mm3: Their volume.
        diameter_mm: Diameter of the ball of that volume.
        center_mm: Their center of mass in world coordinates (RAS); None without voxels.
        contrast_hu: Mean of the tumor less the mean of the organ within 10 mm; None without such organ.
    """

    record: TumorRecord
    voxels: int
    volume_mm3: float
    diameter_mm: float
    center_mm: Triple | None
    contrast_hu: float | None

    @property
    def requested_volume_mm3(self) -> float:
        """Volume of the drawn ellipsoid."""
        return float(4 / 3 * np.pi * np.prod(self.record.half_axes_mm))

    @property
    def requested_diameter_mm(self) -> float:
        """Diameter of the ball of the requested volume."""
        return float(2 * np.prod(self.record.half_axes_mm) ** (1 / 3))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: requested, achieved, and the record that replays the tumor."""
        achieved = asdict(self)
        del achieved["record"]
        requested = {
            "size": self.record.size,
            "diameter_mm": self.requested_diameter_mm,
            "volume_mm3": self.requested_volume_mm3,
            "center_mm": self.record.center_mm,
        }
        return {"requested": requested, "achieved": achieved, "record": self.record.to_dict()}


def report_tumors(result: ScanSynthesis) -> tuple[TumorReport, ...]:
    """Measure every tumor, in the order of the records."""
    grid = result.scan.ct.grid
    box = Box.around(result.lesions)
    lesions = result.lesions[box.slices]
    reports = []
    for instance, record in enumerate(result.records, start=1):
        voxels = np.argwhere(lesions == instance)
        center_mm: Triple | None = None
        if len(voxels):
            x, y, z = (float(v) for v in grid.affine[:3, :3] @ (voxels.mean(axis=0) + box.start) + grid.affine[:3, 3])
            center_mm = (x, y, z)
        reports.append(
            TumorReport(
                record=record,
                voxels=len(voxels),
                volume_mm3=len(voxels) * grid.voxel_mm3,
                diameter_mm=2 * equivalent_radius_mm(len(voxels) * grid.voxel_mm3),
                center_mm=center_mm,
                contrast_hu=_contrast_hu(result, instance),
            )
        )
    return tuple(reports)


def find_warnings(reports: tuple[TumorReport, ...], *, wanted: int, organ: str) -> tuple[str, ...]:
    """Say in sentences what fell short of the request."""
    warnings = []
    if len(reports) < wanted:
        warnings.append(f"The {organ} had room for {len(reports)} of {wanted} tumors.")
    for number, report in enumerate(reports, start=1):
        share = report.volume_mm3 / report.requested_volume_mm3
        if report.voxels == 0:
            warnings.append(f"Tumor {number} lies between the scan's voxels and has no label.")
        elif share < _MOSTLY_THERE:
            warnings.append(
                f"Tumor {number} was cut to {share:.0%} of its volume by organ, neighbors or the scan's end."
            )
    return tuple(warnings)


def draw_preview(result: ScanSynthesis, *, organ: str) -> Figure:
    """Draw three planes through the largest tumor: before, after, outlines, difference."""
    sizes = np.bincount(result.model_lesions.ravel(), minlength=2)
    largest = int(sizes[1:].argmax()) + 1
    before, after, labels = result.before_hu, result.after_hu, result.model_labels
    panels = [
        Panel(title="Before", image=before, zoom_mm=_PREVIEW_MM),
        Panel(title="After", image=after, zoom_mm=_PREVIEW_MM),
        Panel(title="Labels", image=after, labels=labels, zoom_mm=_PREVIEW_MM),
        Panel(title="Difference", image=after - before, kind="difference", zoom_mm=_PREVIEW_MM),
    ]
    return three_planes(
        panels,
        spacing_mm=result.spacing_mm,
        center=mask_center(result.model_lesions == largest),
        label_names={1: organ, 2: "tumor"},
    )


def _contrast_hu(result: ScanSynthesis, instance: int) -> float | None:
    """Measure in model space: the tumor after, and the organ around it before, so that no halo takes part."""
    margin = [int(np.ceil(_SURROUNDINGS_MM / step)) for step in result.spacing_mm]
    box = Box.around(result.model_lesions == instance).padded(margin).clipped(result.model_lesions.shape)
    tumor: NDArray[np.bool_] = result.model_lesions[box.slices] == instance
    distance_mm = distance_transform_edt(~tumor, sampling=result.spacing_mm)
    organ = (result.model_labels[box.slices] == ORGAN) & (distance_mm <= _SURROUNDINGS_MM)
    if not organ.any():
        return None
    return float(result.after_hu[box.slices][tumor].mean() - result.before_hu[box.slices][organ].mean())
