"""The quality gate: hand-worked masks, and every way to fail."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from difftumor.scans.appearance import AppearanceRanges
from difftumor.scans.grid import Box
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.organs import get_organ
from difftumor.synthesis.draw import draw_unplaced, wanted_tumors
from difftumor.synthesis.host import Host
from difftumor.synthesis.records import TextureRecord
from difftumor.synthesis.scan.gate import (
    FLATTEST,
    LEAST_SOLID,
    STRONGEST_SEAM,
    QualityGate,
    axis_ratio,
    noise_ratio,
    seam_score,
    solidity,
)
from difftumor.synthesis.scan.insertion import ScanPart
from difftumor.synthesis.scan.report import appearance_in
from difftumor.synthesis.shapes import tumor_shape
from difftumor.synthesis.sizes import SIZES
from tests.synthesis.makers import ball, record, wanted

EVEN = (1.0, 1.0, 1.0)
WINDOW = IntensityWindow()


def box(*sides):
    return np.ones(sides, bool)


def half_ring(inner=8, outer=12, *, height=5):
    """Return a half ring, like a sickle."""
    y, x = np.mgrid[-outer : outer + 1, 0 : outer + 1]
    flat = (np.hypot(x, y) <= outer) & (np.hypot(x, y) >= inner)
    return np.repeat(flat[:, :, None], height, axis=2)


# Shape


@pytest.mark.parametrize(
    ("mask", "spacing_mm", "expected"),
    [
        (box(4, 4, 4), EVEN, 1.0),
        (box(8, 8, 2), EVEN, 0.25),
        (box(2, 8, 8), EVEN, 0.25),
        (box(2, 2, 20), EVEN, 0.1),
        (box(4, 4, 2), (1.0, 1.0, 2.0), 1.0),
        (box(8, 8, 1), (1.0, 1.0, 2.0), 0.25),
        (box(1, 1, 1), EVEN, 1.0),
        (box(1, 1, 1), (1.0, 1.0, 8.0), 1.0),
    ],
)
def test_the_axis_ratio_of_a_box_is_that_of_its_sides(mask, spacing_mm, expected):
    """A side of n voxels has the variance (n² - 1) / 12, and its voxels 1 / 12 more."""
    assert axis_ratio(mask, spacing_mm) == pytest.approx(expected, rel=1e-6)


def test_the_axis_ratio_does_not_depend_on_the_direction():
    tilted = np.zeros((24, 24, 5), bool)
    for offset in range(20):
        tilted[offset + 1 : offset + 4, offset + 1 : offset + 4] = True  # along the diagonal of a plane
    assert axis_ratio(tilted, EVEN) < 0.3
    assert math.isnan(axis_ratio(np.zeros((3, 3, 3), bool), EVEN))


@pytest.mark.parametrize("spacing_mm", [EVEN, (0.5, 0.5, 2.0)])
def test_a_ball_is_round_and_solid_at_any_spacing(spacing_mm):
    shape = tumor_shape(record(half_axes_mm=(8.0, 8.0, 8.0), spacing_mm=spacing_mm))
    assert axis_ratio(shape, spacing_mm) > 0.95
    assert solidity(shape, spacing_mm) > 0.88


def test_a_box_fills_its_hull_and_a_frame_does_not():
    assert solidity(box(6, 6, 6), EVEN) > 0.95
    frame = box(12, 12, 4)
    frame[3:9, 3:9] = False
    # 144 - 36 of 144.
    assert solidity(frame, EVEN) == pytest.approx(0.75, abs=0.03)
    corner = box(12, 12, 12)
    corner[4:, 4:] = False
    # An L of 144 - 64 = 80 over a hull of 144 - 32 = 112.
    assert solidity(corner, EVEN) == pytest.approx(80 / 112, abs=0.05)


def test_half_a_ring_is_a_sickle():
    assert solidity(half_ring(), EVEN) < LEAST_SOLID - 0.05
    assert solidity(half_ring(), (1.0, 1.0, 3.0)) < LEAST_SOLID - 0.05


@pytest.mark.parametrize("mask", [box(1, 1, 1), box(9, 9, 1), box(2, 2, 2), box(1, 5, 5)])
def test_what_is_too_thin_for_a_hull_counts_as_solid(mask):
    assert solidity(mask, EVEN) == 1


@pytest.mark.parametrize("generator", ["diffusion", "handcrafted"])
@pytest.mark.parametrize("size", SIZES)
def test_published_shapes_pass(generator, size):
    """At most four of 200 tumors of a class are taken for strips or sickles."""
    # A tumor of any class has as many voxels, else the largest take minutes.
    spacing_mm = (SIZES[size].radius_mm / 8,) * 3 if size != "tiny" else EVEN
    host = Host(
        box(9, 9, 9), organ=get_organ("liver"), spacing_mm=spacing_mm, ct_hu_XYZ=np.full((9, 9, 9), 100, np.float32)
    )
    tumors = wanted_tumors([wanted(size, 200, generator=generator)], seed=0)
    shapes = [tumor_shape(draw_unplaced(host, each, seed=0)) for each in tumors]
    strips = sum(axis_ratio(shape, spacing_mm) < FLATTEST for shape in shapes)
    sickles = sum(solidity(shape, spacing_mm) < LEAST_SOLID for shape in shapes)
    assert strips + sickles <= 4


# Noise


def noise(sd_hu, shape=(20, 20, 20), seed=0):
    return np.random.default_rng(seed).normal(0, sd_hu, shape).astype(np.float32)


def test_the_noise_ratio_is_that_of_the_deviations():
    mask = np.zeros((20, 20, 20), bool)
    mask[3:17, 3:17, 3:17] = True
    before = 100 + noise(10)
    # A step at the tumor's edge is no noise.
    for factor in (0.1, 0.5, 1, 3):
        after = np.where(mask, 40 + noise(10 * factor, seed=1), before).astype(np.float32)
        assert noise_ratio(before, after, mask) == pytest.approx(factor, rel=0.06)
    assert noise_ratio(before, np.where(mask, 40, before).astype(np.float32), mask) == pytest.approx(0, abs=1e-3)


def test_a_gradient_through_the_tumor_is_no_noise():
    mask = np.zeros((20, 20, 20), bool)
    mask[3:17, 3:17, 3:17] = True
    before = 100 + noise(10)
    ramp = 20 * np.arange(20, dtype=np.float32)[:, None, None]
    assert noise_ratio(before, before + ramp, mask) == pytest.approx(1, rel=1e-3)


def test_noise_that_cannot_be_measured_says_nothing():
    before = 100 + noise(10)
    tiny = np.zeros((20, 20, 20), bool)
    tiny[8:12, 8:12, 8:12] = True  # eight voxels whose neighbors are all tumor
    assert noise_ratio(before, before * 5, tiny) == 1
    deep = np.zeros((20, 20, 20), bool)
    deep[5:10, 5:10, 5:10] = True  # 27 of them
    assert noise_ratio(before, before * 5, deep) == pytest.approx(5, rel=1e-3)
    still = np.full((20, 20, 20), 100, np.float32)
    assert noise_ratio(still, 100 + noise(10), deep) == 1
    assert noise_ratio(before, before, np.zeros((20, 20, 20), bool)) == 1


# Seam


def test_a_seam_is_the_step_across_the_end_of_the_halo():
    halo = np.zeros((12, 12, 12), bool)
    halo[4:8, 4:8, 4:8] = True
    before = np.zeros((12, 12, 12), np.float32)
    before[::2] += 6.0  # steps of 6 across two of six faces: root mean square √12
    step = np.sqrt(12)
    # Along the first axis: from 0 or 6 to 30 more or less, on a face each; along the others 30.
    after = before + 30 * halo
    assert seam_score(before, before, halo) == 1
    square = (30.0**2 * 4 + (30 + 6) ** 2 + (30 - 6) ** 2) / 6
    swapped = (30.0**2 * 4 + (30 + 6) ** 2 * 2) / 6
    assert seam_score(before, after, halo) in (
        pytest.approx(math.sqrt(square) / step),
        pytest.approx(math.sqrt(swapped) / step),
    )


def test_a_ct_without_noise_counts_as_one_of_three_hu():
    halo = np.zeros((12, 12, 12), bool)
    halo[4:8, 4:8, 4:8] = True
    still = np.zeros((12, 12, 12), np.float32)
    assert seam_score(still, still + 30 * halo, halo) == pytest.approx(10)
    assert seam_score(still, still + 2 * halo, halo) == 1


def test_without_an_end_there_is_no_seam():
    hu = noise(10)
    for halo in (np.zeros(hu.shape, bool), np.ones(hu.shape, bool)):
        assert seam_score(hu, hu * 9, halo) == 1
    thin = np.ones((1, 5, 5), bool)
    thin[0, 2, 2] = False
    assert seam_score(np.zeros((1, 5, 5), np.float32), np.full((1, 5, 5), 4, np.float32), thin) == 1


# The gate


def part(tumor, *, spacing_mm=EVEN, tumor_hu=60.0, tumor_sd_hu=10.0, halo=None, smooth=True):
    """Return a tumor in an organ of 100 HU with noise of 10, whose change ends softly."""
    before = 100 + noise(10, tumor.shape)
    texture = (tumor_hu + noise(tumor_sd_hu, tumor.shape, seed=1)).astype(np.float32)
    weight = np.zeros(tumor.shape, np.float32)
    if smooth:
        weight = ndimage.gaussian_filter(tumor.astype(np.float32), 1.0, truncate=4.0)
    weight[tumor] = 1.0
    after = (before + weight * (texture - before)).astype(np.float32)
    labels = np.where(tumor, 2, 1).astype(np.uint8)
    return ScanPart(
        numbers=(1,),
        region=Box.whole(tumor.shape),
        before_hu=before,
        after_hu=after,
        labels=labels,
        lesions=tumor.astype(np.uint8),
        halo=(weight > 0) if halo is None else halo,
        spacing_mm=spacing_mm,
    )


BALL = ball((44, 44, 44), 7)


def fails(made, *, gate=None, generator="diffusion", radius_mm=8.0):
    texture = {}
    if generator == "handcrafted":
        texture = {"texture": TextureRecord(kind="gaussian", mean_hu=0, sd_hu=1, grain=1, blur_sigma_mm=0)}
    drawn = record(generator=generator, radius_mm=radius_mm, **texture)
    return (gate or QualityGate()).failures(drawn, made, 1, appearance_in(made, 1, window=WINDOW))


def inside(mask, shape=(44, 44, 44)):
    """Put a mask in the middle of an array."""
    whole = np.zeros(shape, bool)
    start = [(n - m) // 2 for n, m in zip(shape, mask.shape, strict=True)]
    whole[tuple(slice(a, a + m) for a, m in zip(start, mask.shape, strict=True))] = mask
    return whole


def test_a_good_tumor_passes():
    assert fails(part(BALL)) == ()
    assert fails(part(BALL), generator="handcrafted") == ()


@pytest.mark.parametrize("mask", [box(14, 14, 3), box(3, 3, 18)])
def test_flat_and_strip_like(mask):
    assert fails(part(inside(mask))) == ("flat or strip-like",)


def test_what_is_flat_in_voxels_need_not_be_in_millimeters():
    assert "flat or strip-like" not in fails(part(inside(box(14, 14, 3)), spacing_mm=(1.0, 1.0, 5.0)))


def test_sickle_shaped():
    assert fails(part(inside(half_ring(height=20)))) == ("sickle-shaped",)


def test_dark_as_fat():
    assert fails(part(BALL, tumor_hu=-60)) == ("dark as fat",)
    assert fails(part(BALL, tumor_hu=0)) == ()


def test_faint():
    made = part(BALL, tumor_hu=95)
    change_hu = float((made.after_hu - made.before_hu)[BALL].mean())
    assert -20 < change_hu < 0
    assert fails(made, gate=QualityGate(minimum_change_hu=-change_hu - 0.1)) == ()
    assert fails(made, gate=QualityGate(minimum_change_hu=-change_hu + 0.1)) == ("faint",)
    # Bright ones are no fainter.
    bright = replace(made, after_hu=2 * made.before_hu - made.after_hu)
    assert "faint" not in fails(bright, gate=QualityGate(minimum_change_hu=-change_hu - 0.1))


@pytest.mark.parametrize("sd_hu", [0.5, 60])
def test_noise_unlike_the_cts(sd_hu):
    assert "noise" in fails(part(BALL, tumor_sd_hu=sd_hu))


def test_a_sharp_edge_is_a_seam_and_a_soft_one_is_none():
    sharp, soft = part(BALL, smooth=False), part(BALL)
    assert fails(sharp) == ("seam",)
    assert fails(soft) == ()
    scores = [seam_score(each.before_hu, each.after_hu, each.halo) for each in (sharp, soft)]
    assert scores[0] > STRONGEST_SEAM + 0.5
    assert scores[1] == pytest.approx(1, abs=0.1)


def ranges(contrast=-40.0, sd=10.0, edge=30.0, *, spread=20.0):
    def around(value):
        return tuple(value + spread * share for share in (-1, -0.8, -0.3, 0, 0.3, 0.8, 1))

    return AppearanceRanges(tumors=10_000, contrast_hu=around(contrast), sd_hu=around(sd), edge_step_hu=around(edge))


@pytest.mark.parametrize(
    ("usual", "failed"),
    [
        (ranges(), ()),
        (ranges(contrast=40), ("contrast",)),
        (ranges(sd=60), ("texture",)),
        (ranges(edge=-40), ("edge",)),
        (ranges(contrast=40, sd=60, edge=-40), ("contrast", "texture", "edge")),
    ],
)
def test_unlike_the_real_tumors_of_its_stage(usual, failed):
    made = part(BALL)
    assert fails(made, gate=QualityGate(real={"early": usual})) == failed
    # Tumors of another stage, and of no network, are not compared.
    assert fails(made, gate=QualityGate(real={"late": usual})) == ()
    assert fails(made, gate=QualityGate(real={"late": usual}), radius_mm=12) == failed
    assert fails(made, gate=QualityGate(real={"early": usual}), generator="handcrafted") == ()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15, 1.0])
def test_the_segmenter_must_find_a_tenth(share):
    made = part(BALL)
    voxels = np.argwhere(BALL)
    seen = []

    def segment(hu, spacing_mm):
        seen.append((hu, spacing_mm))
        found = np.ones(hu.shape, np.uint8)
        found[tuple(voxels[: round(share * len(voxels))].T)] = 2
        return found

    gate = QualityGate(segment=segment, segmenter="abc")
    assert fails(made, gate=gate) == (() if share > 0.1 else ("not found by the segmenter",))
    assert seen[0][0] is made.after_hu
    assert seen[0][1] == made.spacing_mm
    assert fails(made, gate=replace(gate, least_agreement=0.01)) == (() if share else ("not found by the segmenter",))


def test_a_tumor_is_found_where_it_is_and_nowhere_else():
    made = part(BALL)
    gate = QualityGate(segment=lambda hu, _: np.where(BALL, 1, 2).astype(np.uint8))
    assert fails(made, gate=gate) == ("not found by the segmenter",)


def test_several_failures_are_all_named():
    made = part(inside(box(16, 16, 3)), tumor_hu=-90, smooth=False)
    assert fails(made) == ("flat or strip-like", "dark as fat", "seam")


def test_how_tumors_were_judged_is_plain():
    assert QualityGate().to_dict() == {
        "attempts": 10, "compared_with_real": [], "minimum_change_hu": 0.0, "segmenter": None, "least_agreement": None,
    }  # fmt: skip
    gate = QualityGate(real={"late": ranges(), "early": ranges()}, attempts=3, segment=lambda *_: None, segmenter="x")
    assert gate.to_dict() == {
        "attempts": 3, "compared_with_real": ["early", "late"], "minimum_change_hu": 0.0, "segmenter": "x",
        "least_agreement": 0.1,
    }  # fmt: skip
