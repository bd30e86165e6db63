"""What a tumor does around itself: it pushes tissue aside (mass effect) and may have a bright capsule.

Hu et al. 2023, section 3.1, eqs. (5) to (8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from difftumor.errors import SynthesisError
from difftumor.scans.grid import Box, triple
from difftumor.synthesis.blending import TRUNCATE, PlacedTumor, blurred_weight
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.shapes import reach_mm

# Table 1: γmax = 1.3 r. Tissue further from the center, in units of the tumor's half-axes, stays where it is.
REACH = 1.3
# Table 1: σd, in voxels of about 1 mm; the capsule ends this far from the tumor's edge, and half a voxel.
_CAPSULE_BLUR_MM = 0.8
CAPSULE_REACH_MM = TRUNCATE * _CAPSULE_BLUR_MM


def mass_effect_map(
    shape: Sequence[int],
    *,
    center_voxel: Sequence[int],
    half_axes_mm: Sequence[float],
    spacing_mm: Sequence[float],
    intensity: float,
    device: torch.device | str = "cpu",
) -> tuple[Box, Tensor]:
    """Map each voxel near a tumor to where it comes from when the tumor pushes its surroundings outward: eq. (5).

    Computed on the CPU and moved, so that labels are the same on every machine.

    Args:
        shape: Size of the array.
        center_voxel: The tumor's center, inside the array.
        half_axes_mm: Half-axes of the tumor's ellipsoid along x, y, z.
        spacing_mm: Size of a voxel along each axis.
        intensity: I in [0, 100]: 0 changes nothing, more pushes further.
        device: Where the map goes.

    Returns:
        The box that holds all that moves, clipped to the array, and for each of its voxels the position in the box, in
        voxels, that it takes its value from: (3, X, Y, Z) float32. This lies between the voxel and the center, and is
        exactly the voxel itself from ``REACH`` on, or if I is 0.

    Raises:
        SynthesisError: The intensity is out of range, or the center lies outside the array.
    """
    if not 0 <= intensity <= 100:
        raise SynthesisError(f"The mass effect's intensity must lie in [0, 100], not {intensity}: correct it.")
    if not all(0 <= c < n for c, n in zip(center_voxel, shape, strict=True)):
        raise SynthesisError(f"The center {tuple(center_voxel)} lies outside the CT of shape {tuple(shape)}: move it.")
    reach = [REACH * half / step for half, step in zip(half_axes_mm, spacing_mm, strict=True)]
    start = [c - int(r) for c, r in zip(center_voxel, reach, strict=True)]
    stop = [c + int(r) + 1 for c, r in zip(center_voxel, reach, strict=True)]
    box = Box(triple(start), triple(stop)).clipped(shape)
    center = [c - first for c, first in zip(center_voxel, box.start, strict=True)]
    offset = _positions(box.shape) - torch.tensor(center, dtype=torch.float32).view(3, 1, 1, 1)
    # Eq. (5) is for a circle. Distances are measured in half-axes of the ellipsoid: the same for a ball, and otherwise
    # each point moves on the ray from the center. ``share`` is γ / γmax.
    share = (offset / torch.tensor(reach).view(3, 1, 1, 1)).square().sum(dim=0).sqrt()
    # The map is an inverse one: the voxel at γ shows what was at γ' ≤ γ. From γmax on the factor is exactly 1.
    factor = 1 - (1 - share.clamp(max=1.0)) ** 2 * (intensity / 100)
    source = torch.tensor(center, dtype=torch.float32).view(3, 1, 1, 1) + factor * offset
    return box, source.to(device)


def warp_image(image_XYZ: Tensor, box: Box, source: Tensor) -> Tensor:
    """Return the box of an image after the mass effect, interpolated linearly.

    Args:
        image_XYZ: The whole image, float32.
        box: As ``mass_effect_map`` returned it.
        source: Likewise, on the image's device.

    Returns:
        Tensor of the size of the box; bit-identical to the image in voxels that come from themselves.
    """
    image = image_XYZ[box.slices]
    last = torch.tensor([max(n - 1, 1) for n in image.shape], device=image.device).view(3, 1, 1, 1)
    # grid_sample wants [-1, 1] from first to last voxel, and the last axis first.
    grid = (2 * source / last - 1).flip(0).permute(1, 2, 3, 0)
    warped = F.grid_sample(image[None, None], grid[None], padding_mode="border", align_corners=True)[0, 0]
    moved = (source != _positions(box.shape).to(source)).any(dim=0)
    return torch.where(moved, warped, image)


def warp_labels(labels_XYZ: Tensor, box: Box, source: Tensor) -> Tensor:
    """Return the box of labels after the mass effect: as ``warp_image``, but of the nearest voxel, dtype kept.

    Labels stay if the image moves by less than half a voxel, as around tiny tumors.
    """
    x, y, z = (source + 0.5).long()
    warped: Tensor = labels_XYZ[box.slices][x, y, z]
    return warped


def capsule(
    weight_XYZ: Tensor,
    *,
    hu: float,
    spacing_mm: Sequence[float],
    lower: float = 0.4,
    upper: float = 0.7,
    blur_sigma_mm: float = _CAPSULE_BLUR_MM,
) -> Tensor:
    """Return the HU that a capsule adds: eqs. (6) to (8).

    Args:
        weight_XYZ: The tumor's blurred mask t'', in [0, 1].
        hu: d of eq. (8), how much brighter the capsule is; Table 1: 120.
        spacing_mm: Size of a voxel along each axis.
        lower: lb of eq. (6), inclusive.
        upper: ub of eq. (6), inclusive.
        blur_sigma_mm: σd of eq. (7), in mm.

    Returns:
        float32, same shape and device; exactly 0 beyond the blur's reach of the edge, and everywhere if no weight is
        between the bounds.
    """
    edge = (weight_XYZ >= lower) & (weight_XYZ <= upper)
    # Eq. (8) adds d · e, but its text speaks of the blurred edge, e' of eq. (7), which is meant.
    return hu * blurred_weight(edge, [blur_sigma_mm / step for step in spacing_mm])


def _positions(shape: Sequence[int]) -> Tensor:
    """Return (3, X, Y, Z) float32: every voxel's own index."""
    return torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij"))


@dataclass(frozen=True, eq=False)
class MutableBatch:
    """A batch, whose arrays are changed in place; (B, 1, X, Y, Z) each.

    Args:
        ct_hu: float32.
        organ: bool.
        lesions: int32.
        halo: bool: voxels whose CT may have changed.
    """

    ct_hu: Tensor
    organ: Tensor
    lesions: Tensor
    halo: Tensor


def apply_effects(batch: MutableBatch, tumors: Sequence[PlacedTumor]) -> Box:
    """Push the surroundings of tumors apart and give them capsules, as their records say, in place.

    Returns:
        Box that holds all that may have changed, in any element.
    """
    areas = []
    for tumor in tumors:
        if tumor.record.mass_effect > 0 or tumor.record.capsule_hu != 0:
            center = tumor.record.center_voxel
            reach = reach_voxels(tumor.record, tumor.size)
            area = Box(center, triple(np.add(center, 1))).padded(reach).clipped(batch.ct_hu.shape[2:])
            index = (tumor.element, 0, *area.slices)
            local = MutableBatch(*(array[index] for array in (batch.ct_hu, batch.organ, batch.lesions, batch.halo)))
            _apply(local, tumor, area)
            areas.append(area)
    return Box.joined(areas)


def reach_voxels(record: TumorRecord, size: Sequence[int] | None = None) -> list[int]:
    """Return how many voxels from its center a tumor can change a CT along each axis: itself, its effects and its rim.

    Args:
        record: The tumor.
        size: Size of its mask; without it, what its deformation allows at most is taken, which no copied tumor has.
    """
    if size is None:
        body_mm = [reach_mm(axis, record.deformation_sigma_mm) for axis in record.half_axes_mm]
    else:
        body_mm = [n // 2 * step for n, step in zip(size, record.spacing_mm, strict=True)]
    pushed = REACH if record.mass_effect > 0 else 1.0
    capsule_mm = CAPSULE_REACH_MM if record.capsule_hu != 0 else 0.0
    rim = 5 * record.blur_sigma_voxels + 2
    return [
        math.ceil((max(body, pushed * half_axis) + capsule_mm) / step + rim)
        for body, half_axis, step in zip(body_mm, record.half_axes_mm, record.spacing_mm, strict=True)
    ]


def _apply(local: MutableBatch, tumor: PlacedTumor, area: Box) -> None:
    """Apply the effects of one tumor in the part of the batch that they can change."""
    record = tumor.record
    # t'' of eq. (4). It moves with the tumor, so that the capsule sits on the tumor's edge.
    weight = blurred_weight(local.lesions == tumor.instance, record.blur_sigma_voxels)
    if record.mass_effect > 0:
        box, source = mass_effect_map(
            area.shape,
            center_voxel=triple(np.subtract(record.center_voxel, area.start)),
            half_axes_mm=record.half_axes_mm,
            spacing_mm=record.spacing_mm,
            intensity=record.mass_effect,
            device=weight.device,
        )
        warped = warp_image(local.ct_hu, box, source)
        local.halo[box.slices] |= warped != local.ct_hu[box.slices]
        local.ct_hu[box.slices] = warped
        weight[box.slices] = warp_image(weight, box, source)
        for labels in (local.organ, local.lesions):
            labels[box.slices] = warp_labels(labels, box, source)
    if record.capsule_hu != 0:
        added_hu = capsule(weight, hu=record.capsule_hu, spacing_mm=record.spacing_mm)
        local.halo.logical_or_(added_hu != 0)
        local.ct_hu.add_(added_hu)
