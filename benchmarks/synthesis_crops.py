"""Drawing in a crop, and the steps of a hand-crafted tumor there, which `benchmarks/synthesis.py` measures."""

import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from measuring import summary, times

from difftumor.scans.organs import get_organ
from difftumor.synthesis.blending import add_change, blend_change, blurred_weight
from difftumor.synthesis.draw import draw_tumors
from difftumor.synthesis.effects import capsule, mass_effect_map, warp_image, warp_labels
from difftumor.synthesis.generators.handcrafted import handcrafted_texture
from difftumor.synthesis.host import Host, find_vessels, measure_parenchyma
from difftumor.synthesis.shapes import tumor_shape
from difftumor.synthesis.spec import TumorSpec
from difftumor.synthesis.synthesizer import TumorSynthesizer

STEPS = ("shape", "vessels", "parenchyma", "texture", "blending", "mass effect", "capsule", "whole tumor")
SPACING_MM = (1.0, 1.0, 1.0)
WARMUPS = 2
# The organ: a ball of this share of the crop's side, 44 voxels of 96.
_RADIUS = 44 / 96
_ORGAN_HU, _NOISE_HU = 110.0, 12.0


def draw_in_crop(size: str, crop: int, *, repeats: int) -> dict[str, Any]:
    """Return how long shape and place of a tumor take, the organ seen for the first time."""
    specs = (TumorSpec(size=size),)
    organ = _ball(crop)
    seeds = count()

    def draw() -> None:
        host = Host(organ, organ=get_organ("liver"), spacing_mm=SPACING_MM)
        draw_tumors(host, specs, seed=next(seeds))

    return timed(draw, repeats=repeats)


def measure_steps(crop: int, *, repeats: int) -> dict[str, Any]:
    """Return how long each of the steps of a medium tumor takes."""
    steps = _steps(crop)
    with torch.no_grad():
        return {name: timed(steps[name], repeats=repeats) for name in STEPS}


def timed(run: Callable[[], Any], *, repeats: int, warmups: int = WARMUPS) -> dict[str, Any]:
    """Return a summary of wall times, and the median of processor times, which other work disturbs less."""
    processor: list[float] = []

    def counted() -> None:
        start = time.process_time()
        run()
        processor.append(time.process_time() - start)

    wall = times(counted, device=torch.device("cpu"), repeats=repeats, warmups=warmups)
    return {**summary(wall), "processor_s": float(np.median(processor[warmups:]))}


def _ball(crop: int) -> np.ndarray:
    offset = (np.arange(crop) - crop // 2) ** 2
    inside: np.ndarray = offset[:, None, None] + offset[:, None] + offset <= (_RADIUS * crop) ** 2
    return inside


def _steps(crop: int) -> dict[str, Callable[[], Any]]:
    organ = _ball(crop)
    ct_hu = np.random.default_rng(0).normal(0, _NOISE_HU, organ.shape).astype(np.float32)
    ct_hu[organ] += np.float32(_ORGAN_HU)
    vessels = find_vessels(ct_hu, organ, spacing_mm=SPACING_MM)
    spec = TumorSpec.from_dict(
        {"generator": "handcrafted", "size": "medium", "preset": "reader", "vessel_clearance_mm": None},
        where="benchmark",
    )
    synthesizer = TumorSynthesizer(organ=get_organ("liver"))
    (record,) = synthesizer.draw(organ, spec, seed=0, ct_hu_XYZ=ct_hu)
    texture = record.texture
    assert texture is not None
    ct, mask = torch.from_numpy(ct_hu), torch.from_numpy(organ)
    made = synthesizer.apply(ct[None, None], mask[None, None], [[record]])
    lesions = made.lesions[0, 0]
    # The steps work on the box of what the tumor changes.
    changed = made.halo[0, 0].nonzero()
    first, last = (end.values.tolist() for end in (changed.min(dim=0), changed.max(dim=0)))
    box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    tumor, healthy = lesions[box] > 0, ct[box]
    shape = (healthy.shape[0], healthy.shape[1], healthy.shape[2])
    texture_hu = handcrafted_texture(texture, shape, spacing_mm=SPACING_MM, seed=0)
    weight = blurred_weight(tumor, record.blur_sigma_voxels)

    def blend() -> None:
        own = blurred_weight(tumor, record.blur_sigma_voxels)
        add_change(healthy, blend_change(healthy, texture_hu, own), own > 0)

    def push() -> None:
        moved, source = mass_effect_map(
            ct.shape,
            center_voxel=record.center_voxel,
            half_axes_mm=record.half_axes_mm,
            spacing_mm=SPACING_MM,
            intensity=record.mass_effect,
        )
        warp_image(ct, moved, source)
        for labels in (mask, lesions):
            warp_labels(labels, moved, source)

    return {
        "shape": lambda: tumor_shape(record),
        "vessels": lambda: find_vessels(ct_hu, organ, spacing_mm=SPACING_MM),
        "parenchyma": lambda: measure_parenchyma(ct_hu, organ, vessels),
        "texture": lambda: handcrafted_texture(texture, shape, spacing_mm=SPACING_MM, seed=0),
        "blending": blend,
        "mass effect": push,
        "capsule": lambda: capsule(weight, hu=record.capsule_hu, spacing_mm=SPACING_MM),
        "whole tumor": lambda: synthesizer.apply(ct[None, None], mask[None, None], [[record]]),
    }
