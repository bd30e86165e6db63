"""How tumors look: values worked out by hand on balls of known HU, and distances that a set has to itself."""

import math

import numpy as np
import pytest
from scipy import ndimage

from difftumor.appearance import (
    EDGE_BINS_MM,
    Appearance,
    appearance_distance,
    mean_edge_hu,
    measure_appearance,
    surface_distance_mm,
)
from difftumor.intensity import IntensityWindow

WINDOW = IntensityWindow()


def ball(radius_mm, spacing_mm=(1.0, 1.0, 1.0), side_mm=60.0):
    """A ball in the middle of a cube, and the distance of every voxel from its center, in mm."""
    axes = [(np.arange(round(side_mm / step)) - (round(side_mm / step) - 1) / 2) * step for step in spacing_mm]
    distance_mm = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    return distance_mm <= radius_mm, distance_mm


def measured(ct, tumor, organ=None, spacing_mm=(1.0, 1.0, 1.0), window=WINDOW):
    organ = np.ones_like(tumor) if organ is None else organ
    return measure_appearance(ct, tumor, organ, spacing_mm=spacing_mm, window=window)


def shell(start_mm):
    return EDGE_BINS_MM.index(start_mm)


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.8, 0.8, 2.5), (3, 3, 3)])
def test_a_ball_in_noise_has_the_contrast_and_variation_it_was_made_with(spacing_mm):
    tumor, _ = ball(9, spacing_mm)
    noise = np.random.default_rng(0).normal(0, 10, tumor.shape)
    found = measured(np.where(tumor, 40.0, 110.0) + noise, tumor, spacing_mm=spacing_mm)
    assert found.voxels == tumor.sum()
    # Three standard errors of the mean of so many voxels.
    assert found.contrast_hu == pytest.approx(-70, abs=30 / math.sqrt(found.voxels) + 0.5)
    assert found.sd_hu == pytest.approx(10, rel=3 / math.sqrt(2 * found.voxels))
    inside, outside = found.edge_hu[: shell(0.0)], found.edge_hu[shell(0.0) :]
    assert np.nanmax(np.abs(np.subtract(inside, -70))) < 12
    assert np.nanmax(np.abs(outside)) < 12
    assert np.isfinite(inside).sum() >= 2
    assert np.isfinite(outside).sum() >= 2


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.7, 0.7, 1.4)])
def test_the_distance_is_that_from_the_surface_in_millimeters(spacing_mm):
    radius_mm = 10
    tumor, from_center_mm = ball(radius_mm, spacing_mm)
    signed = surface_distance_mm(tumor, spacing_mm)
    assert ((signed < 0) == tumor).all()
    near = np.abs(from_center_mm - radius_mm) < 8
    # Corners of voxels stick out of the ball by half a diagonal at most.
    assert np.abs(signed - (from_center_mm - radius_mm))[near].max() < 0.5 * np.linalg.norm(spacing_mm)


def test_a_plane_lies_halfway_between_voxels_along_each_axis():
    for axis, step in enumerate((0.5, 2.0, 5.0)):
        half = np.zeros((6, 6, 6), bool)
        np.moveaxis(half, axis, 0)[:3] = True
        signed = np.moveaxis(surface_distance_mm(half, (0.5, 2.0, 5.0)), axis, 0)[:, 2, 2]
        assert signed.tolist() == pytest.approx([step * k for k in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)])


def test_a_blurred_edge_shows_in_the_profile_as_the_blur_that_it_is():
    tumor = np.zeros((12, 12, 50), bool)
    tumor[:, :, :25] = True
    sharp = np.where(tumor, 50.0, 100.0)
    crisp, soft = measured(sharp, tumor), measured(ndimage.gaussian_filter(sharp, 2.0, mode="nearest"), tumor)
    assert crisp.edge_hu == (-50,) * 8 + (0,) * 8
    # Blurred by 2 mm, the step is Φ(-d / 2 mm) of itself at d, here at 7.5, 1.5 and 0.5 mm on either side.
    for start_mm, share in ((-8, 1.0), (-2, 0.7734), (-1, 0.5987), (0, 0.4013), (1, 0.2266), (7, 0.0)):
        assert soft.edge_hu[shell(start_mm)] == pytest.approx(-50 * share, abs=0.3)
    assert abs(soft.contrast_hu) < abs(crisp.contrast_hu) == 50


def test_surroundings_are_organ_between_five_and_fifteen_millimeters():
    tumor, from_center_mm = ball(6, side_mm=60)
    organ = from_center_mm <= 27
    ct = np.full(tumor.shape, -100.0)  # other tissue
    ct[organ] = 0.0
    ct[(from_center_mm > 12.5) & (from_center_mm < 19.5)] = 100.0  # 6.5 to 13.5 mm from the surface
    ct[tumor] = 60.0
    ring = (from_center_mm > 11.5) & (from_center_mm < 20.5)
    assert measured(ct, tumor, ring & (ct == 100)).contrast_hu == -40
    assert -40 < measured(ct, tumor, organ).contrast_hu < 10  # the ring is most of the surroundings
    nearer = organ & (from_center_mm < 10)
    assert math.isnan(measured(ct, tumor, nearer).contrast_hu)
    assert all(math.isnan(value) for value in measured(ct, tumor, nearer).edge_hu)
    assert measured(ct, tumor, nearer).sd_hu == 0


def test_other_tissue_and_other_tumors_have_no_part():
    tumor, _ = ball(6)
    organ = np.ones_like(tumor)
    organ[:25] = False
    ct = np.where(organ, 100.0, -150.0)
    ct[tumor] = 40.0
    found = measured(ct, tumor, organ)
    assert found.contrast_hu == -60
    assert {value for value in found.edge_hu[shell(0.0) :] if not math.isnan(value)} == {0.0}


def test_values_beyond_the_window_count_as_its_limits():
    tumor, _ = ball(6)
    ct = np.where(tumor, 3000.0, -1000.0)
    assert measured(ct, tumor).contrast_hu == WINDOW.width_hu
    assert measured(ct, tumor, window=IntensityWindow(0.0, 100.0)).contrast_hu == 100


def test_a_tumor_too_small_or_absent_is_not_measured():
    nothing = np.zeros((20, 20, 20), bool)
    few = nothing.copy()
    few[10, 10, 8:12] = True
    ct = np.zeros(nothing.shape)
    for tumor, voxels in ((nothing, 0), (few, 4)):
        found = measured(ct, tumor)
        assert found.voxels == voxels
        assert math.isnan(found.contrast_hu)
        assert math.isnan(found.sd_hu)
        assert all(math.isnan(value) for value in found.edge_hu[: shell(0.0)])
    with pytest.raises(ValueError, match="one 3-D shape"):
        measured(ct[1:], few)


def test_what_lies_far_from_the_tumor_changes_nothing_nor_does_the_array_it_is_cut_from():
    tumor, from_center_mm = ball(5)
    ct = np.random.default_rng(1).normal(50, 20, tumor.shape)
    whole = measured(ct, tumor)
    far = measured(np.where(from_center_mm > 25, -1000.0, ct), tumor)
    assert np.array_equal(far.to_row(), whole.to_row(), equal_nan=True)
    cut = (slice(8, 52),) * 3
    assert np.array_equal(measured(ct[cut], tumor[cut]).to_row(), whole.to_row(), equal_nan=True)


def tumor_of(contrast_hu, sd_hu, edge_hu=None):
    profile = [contrast_hu] * 8 + [0.0] * 8 if edge_hu is None else edge_hu
    return Appearance(contrast_hu=contrast_hu, sd_hu=sd_hu, edge_hu=tuple(profile), voxels=100)


def test_distances_worked_by_hand():
    one = [tumor_of(-10, 5), tumor_of(-30, 5)]
    other = [tumor_of(-20, 9), tumor_of(-60, 7)]
    # Sorted pairs: |-30 + 60| and |-10 + 20|, mean 20; |5 - 7| and |5 - 9|, mean 3.
    found = appearance_distance(one, other)
    assert (found.contrast_hu, found.sd_hu) == pytest.approx((20, 3))
    # Mean profiles of -20 and -40 in the eight shells inside, 0 in the eight outside.
    assert found.edge_hu == pytest.approx(10)
    assert appearance_distance(other, one) == found
    same = appearance_distance(one, one[::-1])
    assert (same.contrast_hu, same.sd_hu, same.edge_hu) == (0, 0, 0)


def test_what_a_tumor_lacks_has_no_part_in_a_distance_and_nothing_is_no_zero():
    lacking = tumor_of(math.nan, 5, [math.nan] * 16)
    one, other = [tumor_of(-10, 5), lacking], [tumor_of(-30, 5)]
    found = appearance_distance(one, other)
    assert (found.contrast_hu, found.sd_hu, found.edge_hu) == (20, 0, 10)
    for empty in ([], [lacking]):
        nothing = appearance_distance(empty, other)
        assert math.isnan(nothing.contrast_hu)
        assert math.isnan(nothing.edge_hu)
    assert math.isnan(appearance_distance([], other).sd_hu)
    shells = [math.nan] * 6 + [-10.0] * 2 + [math.nan] * 8
    assert appearance_distance([tumor_of(-10, 5, shells)], other).edge_hu == 20
    assert np.isfinite(mean_edge_hu([lacking, tumor_of(-10, 5, shells)])).sum() == 2


def test_a_row_of_numbers_holds_everything():
    for tumor in (tumor_of(-12.5, 3.25), tumor_of(math.nan, 1.0, [math.nan] * 16)):
        again = Appearance.from_row(tumor.to_row())
        assert np.array_equal(again.to_row(), tumor.to_row(), equal_nan=True)
        assert again.voxels == 100


def test_surroundings_reach_fifteen_millimeters_along_every_axis():
    tumor = np.zeros((50, 50, 50), bool)
    tumor[20:30, 20:30, 20:30] = True
    for axis in range(3):
        for start, counts in ((42, True), (46, False)):  # 12.5 and 13.5, or 16.5 and 17.5 mm away
            organ = np.zeros_like(tumor)
            np.moveaxis(organ, axis, 0)[start : start + 2, 23:27, 23:27] = True
            found = measured(np.where(organ, 100.0, 60.0), tumor, organ)
            assert found.contrast_hu == -40 if counts else math.isnan(found.contrast_hu)


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.8, 0.8, 5), (3, 1.5, 1.5)])
def test_the_nearest_box_counts_not_the_nearest_center(spacing_mm):
    mask = np.random.default_rng(3).random((9, 10, 8)) < 0.03
    signed, boxes = surface_distance_mm(mask, spacing_mm, reach_mm=6), {True: ~mask, False: mask}
    found = {True: 0, False: 0}
    for place in np.ndindex(mask.shape):
        inside = bool(mask[place])
        gaps = np.maximum(np.abs(np.argwhere(boxes[inside]) - place) - 0.5, 0) * spacing_mm
        expected = np.sqrt((gaps**2).sum(axis=1)).min()
        assert abs(signed[place]) == (pytest.approx(expected) if expected <= 6 else math.inf)
        assert (signed[place] < 0) == inside
        found[inside] += expected <= 6
    assert min(found.values()) > 0
