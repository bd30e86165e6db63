"""The canvas: a batch while tumors are made in it, and what tumors do to their surroundings.

Mass effect and capsule come when all tumors are in place, one tumor after the other, so that a tumor that is pushed by
another takes its label along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from difftumor.grids import Box, triple
from difftumor.synthesis.blending import blurred_weight
from difftumor.synthesis.effects import CAPSULE_REACH_MM, REACH, capsule, mass_effect_map, warp_image, warp_labels
from difftumor.synthesis.patches import PlacedTumor
from difftumor.synthesis.records import TumorRecord, Voxel


@dataclass(frozen=True, eq=False)
class Canvas:
    """A batch, whose arrays are changed in place; (B, 1, X, Y, Z) each.

    Args:
        ct_hu: float32.
        organ: bool.
        lesions: int32.
        halo: bool: where the CT may have changed.
    """

    ct_hu: Tensor
    organ: Tensor
    lesions: Tensor
    halo: Tensor


def apply_effects(canvas: Canvas, tumors: Sequence[PlacedTumor]) -> Box:
    """Push the surroundings of tumors apart and give them capsules, as their records say, in place.

    Returns:
        Box that holds all that may have changed, in any element.
    """
    areas = []
    for tumor in tumors:
        if tumor.record.mass_effect > 0 or tumor.record.capsule_hu != 0:
            area = _area(tumor, triple(canvas.ct_hu.shape[2:]))
            index = (tumor.element, 0, *area.slices)
            local = Canvas(*(array[index] for array in (canvas.ct_hu, canvas.organ, canvas.lesions, canvas.halo)))
            _apply(local, tumor, area)
            areas.append(area)
    return Box.joined(areas)


def effect_reach_mm(record: TumorRecord, half_axis_mm: float) -> float:
    """Return how far from its center, along an axis, a tumor's effects can change the CT."""
    pushed = REACH if record.mass_effect > 0 else 1.0
    return pushed * half_axis_mm + (CAPSULE_REACH_MM if record.capsule_hu != 0 else 0.0)


def _apply(local: Canvas, tumor: PlacedTumor, area: Box) -> None:
    """Apply the effects of one tumor in the part of the canvas that they can change."""
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


def _area(tumor: PlacedTumor, shape: Voxel) -> Box:
    """Return the part of the array that the effects of a tumor can change, its halo included."""
    record = tumor.record
    reach = [
        math.ceil((REACH * axis + CAPSULE_REACH_MM) / step) + 1
        for axis, step in zip(record.half_axes_mm, record.spacing_mm, strict=True)
    ]
    capsules = [math.ceil(CAPSULE_REACH_MM / step) + 1 for step in record.spacing_mm]
    center = Box(record.center_voxel, triple(np.add(record.center_voxel, 1)))
    return Box.joined([center.padded(reach), tumor.whole_halo_box.padded(capsules)]).clipped(shape)
