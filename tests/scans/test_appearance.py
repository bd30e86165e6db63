"""How tumors look: values worked out by hand on balls of known HU, and distances that a set has to itself."""

import json
import math

import numpy as np
import pytest
from scipy import ndimage

from difftumor.scans.appearance import (
    EDGE_BINS_MM,
    LEAST_REACH_HU,
    PERCENTILES,
    QUANTITIES,
    Appearance,
    AppearanceRanges,
    appearance_distance,
    mean_edge_hu,
    measure_appearance,
    surface_distance_mm,
)
from difftumor.scans.intensity import IntensityWindow

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


def with_step(step_hu, contrast_hu=-50.0, sd_hu=15.0):
    """A tumor whose mean changes by so many HU over its surface."""
    return tumor_of(contrast_hu, sd_hu, [-step_hu] * 8 + [0.0] * 8)


@pytest.mark.filterwarnings("error")
def test_the_step_at_the_edge_is_that_between_two_millimeters_on_either_side():
    # From -2 to 0 mm -40 and -20, from 0 to 2 mm -8 and -2: from -30 to -5. What lies farther has no part.
    profile = [-99.0] * 6 + [-40.0, -20.0] + [-8.0, -2.0] + [99.0] * 6
    assert tumor_of(-50, 5, profile).edge_step_hu == 25
    unmeasured = math.nan
    assert tumor_of(-50, 5, [*profile[:6], unmeasured, -20.0, *profile[8:]]).edge_step_hu == 15
    assert tumor_of(-50, 5, [*profile[:9], unmeasured, *profile[10:]]).edge_step_hu == 22
    assert math.isnan(tumor_of(-50, 5, [*profile[:6], unmeasured, unmeasured, *profile[8:]]).edge_step_hu)
    assert math.isnan(tumor_of(-50, 5, [*profile[:8], unmeasured, unmeasured, *profile[10:]]).edge_step_hu)


def test_the_step_of_a_ball_is_what_it_was_made_with():
    tumor, _ = ball(9)
    assert measured(np.where(tumor, 40.0, 110.0), tumor).edge_step_hu == 70
    assert measured(np.where(tumor, 130.0, 110.0), tumor).edge_step_hu == -20


def test_percentiles_worked_by_hand():
    tumors = [
        with_step(step, contrast_hu=-10 * n, sd_hu=7) for n, step in ((1, 0), (3, 50), (2, 100), (5, 25), (4, 75))
    ]
    found = AppearanceRanges.of(tumors)
    assert found.tumors == 5
    # Between five sorted values there are four gaps: the first percentile lies 0.04 gaps above the least.
    assert found.contrast_hu == pytest.approx((-49.6, -48, -40, -30, -20, -12, -10.4))
    assert found.edge_step_hu == pytest.approx((1, 5, 25, 50, 75, 95, 99))
    assert found.sd_hu == (7,) * 7
    assert AppearanceRanges.of(tumors[::-1]) == found


def test_limits_move_out_by_what_few_tumors_leave_open():
    lacking = tumor_of(math.nan, 12, [math.nan] * 16)
    found = AppearanceRanges.of([with_step(step, -step, sd_hu=12) for step in (60, 40, 20)] + [lacking])
    assert found.tumors == 4
    # Of 20, 40 and 60: 20.4 and 59.6, quartiles of 30 and 50, whose half distance over √4 is 5.
    assert found.limits_hu("contrast") == pytest.approx((-64.6, -15.4))
    assert found.limits_hu("edge") == pytest.approx((15.4, 64.6))
    assert found.limits_hu("texture") == (2, 22)
    assert found.outside(with_step(40, -64.5, 2)) == found.outside(with_step(15.5, -15.5, 22)) == ()
    assert found.outside(with_step(40, -64.7, 12)) == found.outside(with_step(40, -15.3, 12)) == ("contrast",)
    assert found.outside(with_step(40, -40, 1.9)) == found.outside(with_step(40, -40, 22.1)) == ("texture",)
    assert found.outside(with_step(64.7, -40, 12)) == found.outside(with_step(15.3, -40, 12)) == ("edge",)
    assert found.outside(with_step(0, 0, 0)) == ("contrast", "texture", "edge") == tuple(QUANTITIES)


def test_many_tumors_leave_little_open():
    many = AppearanceRanges.of([with_step(40, contrast_hu) for contrast_hu in np.linspace(-100, 0, 10_001)])
    # From -99 to -1; the quartiles are 50 apart, and half of it over √10 001 is 0.25.
    assert many.limits_hu("contrast") == pytest.approx((-99.25, -0.75), abs=0.002)


def test_one_tumor_and_tumors_all_alike_leave_room_around_them():
    for tumors in (1, 50):
        alike = AppearanceRanges.of([with_step(30, -40, 15)] * tumors)
        assert alike.contrast_hu == (-40,) * len(PERCENTILES)
        for quantity, value_hu in (("contrast", -40), ("texture", 15), ("edge", 30)):
            assert alike.limits_hu(quantity) == (value_hu - LEAST_REACH_HU, value_hu + LEAST_REACH_HU)
        assert alike.outside(with_step(39.9, -49.9, 24.9)) == ()
        assert alike.outside(with_step(40.1, -29.9, 25.1)) == ("contrast", "texture", "edge")


def test_what_nobody_has_measured_is_not_judged():
    lacking = tumor_of(math.nan, math.nan, [math.nan] * 16)
    strange = with_step(900, 900, 900)
    for none in ([], [lacking]):
        nothing = AppearanceRanges.of(none)
        assert (nothing.tumors, nothing.contrast_hu, nothing.sd_hu, nothing.edge_step_hu) == (len(none), *[None] * 3)
        assert nothing.limits_hu("edge") is None
        assert nothing.outside(strange) == ()
    textures = AppearanceRanges.of([tumor_of(math.nan, 12, [math.nan] * 16)])
    assert textures.outside(strange) == ("texture",)
    assert AppearanceRanges.of([with_step(30)]).outside(lacking) == ()


def test_ranges_survive_json():
    lacking = tumor_of(math.nan, 1 / 3, [math.nan] * 16)
    for tumors in ([], [lacking], [with_step(0.1, -1 / 7, 9), with_step(30, -40, 15), lacking]):
        found = AppearanceRanges.of(tumors)
        assert AppearanceRanges.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tumors": -1}, "tumors is -1"),
        ({"tumors": True}, "tumors is True"),
        ({"tumors": "3"}, "tumors is '3'"),
        ({"percentiles": [0, 50, 100]}, r"percentiles are \[0, 50, 100\]"),
        ({"contrast_hu": [1.0] * 6}, r"contrast_hu is .* not 7 numbers that rise"),
        ({"sd_hu": [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}, "sd_hu is"),
        ({"sd_hu": [1.0] * 6 + [math.nan]}, "sd_hu is"),
        ({"edge_step_hu": ["1"] * 7}, "edge_step_hu is"),
        ({"edge_step_hu": 3}, "edge_step_hu is 3"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_ranges_that_are_none_are_refused(change, message):
    content = AppearanceRanges.of([with_step(30)]).to_dict()
    with pytest.raises(ValueError, match=message):
        AppearanceRanges.from_dict({**content, **change})
    with pytest.raises(ValueError, match="it has"):
        AppearanceRanges.from_dict({name: content[name] for name in list(content)[1:]})
