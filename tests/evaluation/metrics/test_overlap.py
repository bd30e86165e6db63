"""Overlap and surface scores: answers by hand, the rules for empty masks, properties."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from difftumor.errors import ConfigError
from difftumor.evaluation.metrics.overlap import dice, overlap_scores
from difftumor.evaluation.metrics.surfaces import (
    check_tolerance,
    hausdorff_mm,
    normalized_surface_distance,
    surface_distances,
)


def voxel(*where: int, shape: tuple[int, int, int] = (9, 9, 9)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[where] = 1
    return mask


def blobs(seed: int, level: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(24, 20, 16))
    return gaussian_filter(noise, 1.5) > level


def test_equal_masks_score_one():
    mask = blobs(0, 0.05)
    scores = overlap_scores(mask, mask, spacing_mm=(1, 1, 1), tolerance_mm=0)
    assert scores.dsc == scores.nsd == 1.0
    assert scores.hd95_mm == scores.assd_mm == scores.volume_error_ml == scores.volume_error == 0.0


def test_dice_by_hand():
    assert dice(np.array([1, 1, 0]), np.array([0, 1, 1])) == pytest.approx(0.5)
    assert dice(np.array([1, 0]), np.array([0, 1])) == 0.0
    assert dice(np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0])) == pytest.approx(2 / 4)


# The diagonal of 9 x 9 x 9 voxels of 1 x 2 x 5 mm.
DIAGONAL_MM = math.sqrt(9**2 + 18**2 + 45**2)


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        (False, False, ("both", 1.0, 0.0, 0.0, 0.0)),
        (True, False, ("truth", 0.0, DIAGONAL_MM, 0.01, 2.0)),
        (False, True, ("prediction", 0.0, DIAGONAL_MM, -0.01, -2.0)),
    ],
)
def test_empty_masks_follow_the_rules(predicted, true, expected):
    masks = [voxel(4, 4, 4) if filled else np.zeros((9, 9, 9), np.uint8) for filled in (predicted, true)]
    scores = overlap_scores(*masks, spacing_mm=(1, 2, 5))
    empty, overlap, distance_mm, error_ml, error = expected
    assert scores.empty == empty
    assert scores.dsc == scores.nsd == overlap
    assert scores.hd95_mm == scores.assd_mm == pytest.approx(distance_mm)
    assert scores.volume_error_ml == pytest.approx(error_ml)
    assert scores.volume_error == error


@pytest.mark.parametrize(
    ("axis", "tolerance_mm", "nsd"),
    [
        # A voxel's surface is eight equal patches. Of two voxels side by side four patches coincide, and four lie one
        # voxel from the nearest of the other.
        (0, 0.9, 0.5),
        (0, 1.0, 1.0),
        (1, 1.9, 0.5),
        (1, 2.0, 1.0),
        (2, 4.9, 0.5),
        (2, 5.0, 1.0),
    ],
)
def test_two_voxels_with_anisotropic_spacing(axis, tolerance_mm, nsd):
    neighbor = [4, 4, 4]
    neighbor[axis] += 1
    scores = overlap_scores(voxel(4, 4, 4), voxel(*neighbor), spacing_mm=(1, 2, 5), tolerance_mm=tolerance_mm)
    assert scores.dsc == 0.0
    assert scores.nsd == pytest.approx(nsd)
    assert scores.hd95_mm == pytest.approx((1, 2, 5)[axis])
    assert scores.assd_mm == pytest.approx((1, 2, 5)[axis] / 2)
    assert scores.volume_error_ml == scores.volume_error == 0.0
    assert scores.empty == "neither"


def test_a_voxel_in_a_cube_by_hand():
    """The truth is one voxel of 1 x 2 x 5 mm, the prediction 3 x 3 x 3 of them around it.

    Patches lie between voxels, in half voxels from the center: the truth's eight at (±1, ±1, ±1), the prediction's
    where at least one coordinate is ±3 and the others are ±1. From (3, 1, 1) the nearest of the truth is (1, 1, 1), one
    voxel away; in each coordinate that is ±3 it is one voxel. Surface cuts voxel edges in half, so that patches are
    rectangles, and triangles at the corners:

        which are ±3   distance, mm      area, mm²                  (eight of each)
        x              1                 2 · 5 = 10
        y              2                 1 · 5 = 5
        x y            √5  = 2.2361      5 · √(½² + 1²) = 5.5902
        z              5                 1 · 2 = 2
        x z            √26 = 5.0990      2 · √(½² + 2½²) = 5.0990
        y z            √29 = 5.3852      1 · √(1² + 2½²) = 2.6926
        x y z          √30 = 5.4772      ½ √((½·1)² + (1·2½)² + (½·2½)²) = 1.4197

    The areas sum to 31.8015, of which 95 % is 30.2114; up to √26 there are 27.6892, up to √29 there are 30.3818. From
    the truth to the prediction it is one voxel along x for all eight, each a triangle of 1.4197.
    """
    truth, prediction = voxel(4, 4, 4), np.zeros((9, 9, 9), np.uint8)
    prediction[3:6, 3:6, 3:6] = 1
    scores = overlap_scores(prediction, truth, spacing_mm=(1, 2, 5), tolerance_mm=2.0)
    assert scores.dsc == pytest.approx(2 / 28)
    assert scores.hd95_mm == pytest.approx(math.sqrt(29))
    weighted = 10 + 2 * 5 + 12.5 + 2 * 5 + 26 + 14.5 + 7.776  # distance times area, in the order of the table
    assert scores.assd_mm == pytest.approx((weighted + 1.4197) / (31.8015 + 1.4197), abs=1e-4)
    assert scores.nsd == pytest.approx((10 + 5 + 1.4197) / (31.8015 + 1.4197), abs=1e-5)
    assert scores.volume_error_ml == pytest.approx(26 * 10 / 1000)
    assert scores.volume_error == pytest.approx(26 / 14)
    distances = surface_distances(prediction, truth, spacing_mm=(1, 2, 5))
    assert hausdorff_mm(distances, percent=100) == pytest.approx(math.sqrt(30))
    # The largest percentile at which √29 is enough is 30.3818 / 31.8015 = 95.54 %.
    assert hausdorff_mm(distances, percent=95.5) == pytest.approx(math.sqrt(29))
    assert hausdorff_mm(distances, percent=95.6) == pytest.approx(math.sqrt(30))


@pytest.mark.parametrize(("axis", "steps"), [(0, 2), (1, 1), (2, 1), (2, 3)])
def test_a_shifted_cuboid_by_hand(axis, steps):
    """The face that moved away lies as far from the other cuboid as it moved, and has more than 5 % of the area."""
    truth = np.zeros((24, 24, 24), bool)
    truth[6:16, 6:16, 6:16] = True
    spacing_mm = (1.0, 2.0, 5.0)
    scores = overlap_scores(np.roll(truth, steps, axis), truth, spacing_mm=spacing_mm)
    assert scores.hd95_mm == pytest.approx(steps * spacing_mm[axis])
    assert 0 < scores.assd_mm < scores.hd95_mm
    assert scores.dsc == pytest.approx(1 - steps / 10)
    assert scores.volume_error_ml == scores.volume_error == 0.0


def test_a_distance_of_just_the_tolerance_agrees():
    """Three voxels of 0.8 mm are 2.4000000000000004 mm, and a size of 32 bits is a little off too."""
    for spacing_mm in (0.8, float(np.float32(0.8)), 1 / 3, 0.7):
        scores = overlap_scores(
            voxel(1, 4, 4), voxel(4, 4, 4), spacing_mm=[spacing_mm] * 3, tolerance_mm=round(3 * spacing_mm, 4)
        )
        assert scores.nsd == 1.0
    apart = overlap_scores(voxel(1, 4, 4), voxel(4, 4, 4), spacing_mm=[0.8] * 3, tolerance_mm=2.399)
    assert apart.nsd == pytest.approx(0.5)  # the sides that face each other are two voxels apart


def test_axes_that_are_not_square_have_smaller_voxels():
    mask = voxel(4, 4, 4)
    scores = overlap_scores(mask, 0 * mask, spacing_mm=(1, 2, 5), voxel_mm3=9.0)
    assert scores.volume_error_ml == pytest.approx(0.009)


def test_voxels_far_apart_agree_nowhere():
    scores = overlap_scores(voxel(1, 1, 1), voxel(7, 1, 1), spacing_mm=(1, 1, 1), tolerance_mm=2)
    assert scores.nsd == 0.0


def test_patches_are_weighed_by_their_area():
    """A flat plate of 20 x 20 voxels has about the surface of both its faces, whatever its spacing."""
    plate = np.zeros((24, 24, 5), bool)
    plate[2:22, 2:22, 2] = True
    area = surface_distances(plate, plate, spacing_mm=(1.0, 1.0, 0.01)).truth_mm2.sum()
    assert area == pytest.approx(2 * 20 * 20, rel=0.06)
    wide = surface_distances(plate, plate, spacing_mm=(2.0, 3.0, 0.01)).truth_mm2.sum()
    assert wide == pytest.approx(6 * area, rel=1e-2)


def test_ball_has_the_area_of_a_ball():
    x, y, z = (np.indices((32, 32, 22)) - np.array([16, 16, 11])[:, None, None, None]) * np.array([1, 1, 1.5])[
        :, None, None, None
    ]
    ball = x**2 + y**2 + z**2 <= 12**2
    area = surface_distances(ball, ball, spacing_mm=(1, 1, 1.5)).truth_mm2.sum()
    assert area == pytest.approx(4 * np.pi * 12**2, rel=0.1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(0, 4)] * 3), st.permutations((0, 1, 2)))
def test_scores_do_not_depend_on_place_or_axis_order_and_are_symmetric(seed, margin, order):
    generator = np.random.default_rng(seed)
    masks = [generator.random((5, 4, 3)) < 0.4 for _ in range(2)]
    spacing_mm = (1.0, 1.5, 3.0)
    scores = overlap_scores(*masks, spacing_mm=spacing_mm)
    moved = [np.pad(mask, [(m, 4 - m) for m in margin]) for mask in masks]
    turned = [mask.transpose(order)[::-1] for mask in moved]
    again = overlap_scores(turned[1], turned[0], spacing_mm=[spacing_mm[axis] for axis in order])
    assert again.dsc == pytest.approx(scores.dsc)
    assert again.nsd == pytest.approx(scores.nsd, abs=1e-6)
    assert again.assd_mm == pytest.approx(scores.assd_mm, rel=1e-6)
    # Where a sum of areas falls just on 95 %, its rounding decides; so these hold the percentile between them.
    distances = surface_distances(*masks, spacing_mm=spacing_mm)
    low, high = (hausdorff_mm(distances, percent=percent) for percent in (94.999, 95.001))
    assert low - 1e-5 <= again.hd95_mm <= high + 1e-5
    assert again.volume_error == -scores.volume_error
    assert again.volume_error_ml == pytest.approx(-scores.volume_error_ml)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.6), st.floats(0, 0.6))
def test_scores_are_finite_and_in_their_ranges(seed, first, second):
    generator = np.random.default_rng(seed)
    prediction, truth = (generator.random((6, 5, 4)) < density for density in (first, second))
    scores = overlap_scores(prediction, truth, spacing_mm=(1, 2, 5))
    diagonal_mm = math.sqrt(6**2 + 10**2 + 20**2)
    assert all(math.isfinite(value) for value in vars(scores).values() if not isinstance(value, str))
    assert 0 <= scores.dsc <= 1
    assert 0 <= scores.nsd <= 1
    assert 0 <= scores.assd_mm <= diagonal_mm + 1e-9
    assert 0 <= scores.hd95_mm <= diagonal_mm + 1e-9
    assert -2 <= scores.volume_error <= 2
    empty = {(True, True): "both", (True, False): "prediction", (False, True): "truth"}
    assert scores.empty == empty.get((not prediction.any(), not truth.any()), "neither")


@pytest.mark.parametrize("orders", ["CF", "FC", "FF"])
def test_the_order_in_memory_does_not_matter(orders):
    masks = [blobs(seed, 0.05) for seed in (5, 6)]
    laid_out = [np.asarray(mask, order=order) for mask, order in zip(masks, orders, strict=True)]
    assert laid_out[orders.index("F")].flags.f_contiguous
    spacing_mm = (0.7, 0.9, 5.0)
    expected, found = (overlap_scores(*pair, spacing_mm=spacing_mm) for pair in (masks, laid_out))
    # Distances are rounded in the order in which axes are gone through.
    for name, value in vars(expected).items():
        assert getattr(found, name) == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6))


def test_masks_are_left_as_they_are():
    masks = [blobs(seed, 0.05) for seed in (5, 6)]
    copies = [mask.copy() for mask in masks]
    overlap_scores(*masks, spacing_mm=(1, 1, 1))
    for mask, copy in zip(masks, copies, strict=True):
        np.testing.assert_array_equal(mask, copy)


def test_a_larger_tolerance_never_lowers_the_score():
    distances = surface_distances(blobs(3, 0.05), blobs(4, 0.05), spacing_mm=(1, 1, 3))
    scores = [normalized_surface_distance(distances, tolerance_mm=tolerance) for tolerance in np.arange(0, 20, 0.5)]
    assert all(later >= earlier for earlier, later in pairwise(scores))
    assert scores[-1] == 1.0


def test_bad_arguments_are_refused():
    mask = voxel(4, 4, 4)
    for tolerance_mm in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="tolerance"):
            check_tolerance(tolerance_mm)
    with pytest.raises(ValueError, match="one shape"):
        surface_distances(mask, mask[1:], spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match="spacing"):
        surface_distances(mask, mask, spacing_mm=(1, 0, 1))
    with pytest.raises(ValueError, match="differ"):
        dice(mask, mask[1:])
