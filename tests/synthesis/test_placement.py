import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from difftumor.errors import SynthesisError
from difftumor.scans.grid import Box
from difftumor.synthesis.shapes import tumor_shape
from tests.synthesis.makers import ball, distances_mm, placement, record, rough_organ

SHAPE = tumor_shape(record())
SPACING = (0.7, 1.3, 2.1)


def place(placed, generator, **rules):
    center = placed.find_center(SHAPE, 4.0, generator, **rules)
    assert center is not None
    box, mask = placed.cut(SHAPE, center, may_leave=rules.get("may_leave", False))
    placed.add(box, mask)
    return center, box, mask


def test_where_there_is_room_a_tumor_is_whole_and_inside_the_organ():
    organ = ball((40, 40, 40), 16)
    for seed in range(20):
        _, box, mask = place(placement(organ), np.random.default_rng(seed))
        assert mask.sum() == SHAPE.sum()
        assert organ[box.slices][mask].all()


def test_every_voxel_where_it_fits_is_equally_likely():
    organ = np.zeros((30, 20, 20), bool)
    organ[4:26, 5:15, 5:15] = True
    centers = [placement(organ).find_center(SHAPE, 4.0, np.random.default_rng(seed)) for seed in range(600)]
    x, y, z = np.array(centers).T
    # More than 4 mm from the next background voxel on each side: 14 x 2 x 2 voxels are allowed.
    assert (x.min(), x.max(), y.min(), y.max(), z.min(), z.max()) == (8, 21, 9, 10, 9, 10)
    assert len({*centers}) == 14 * 2 * 2
    counts = np.bincount(x - 8)  # 43 expected, standard deviation 6
    assert 20 < counts.min() <= counts.max() < 66


def test_tumors_neither_overlap_nor_touch():
    placed, lesions = placement(ball((48, 48, 48), 22)), np.zeros((48, 48, 48), int)
    generator = np.random.default_rng(0)
    for number in range(1, 6):
        _, box, mask = place(placed, generator)
        around = box.padded(1)
        neighbors = lesions[around.slices][np.pad(mask, 1)]
        assert (neighbors == 0).all()
        lesions[box.slices][mask] = number
    from cc3d import connected_components

    assert connected_components(lesions > 0, connectivity=26).max() == 5


def test_an_empty_organ_is_refused():
    with pytest.raises(SynthesisError, match="no organ voxel"):
        placement(np.zeros((3, 3, 3), bool))


def test_an_organ_of_one_voxel_has_no_room_but_may_be_left():
    organ = np.zeros((21, 21, 21), bool)
    organ[10, 10, 10] = True
    assert placement(organ).find_center(SHAPE, 4.0, np.random.default_rng(0)) is None
    assert placement(organ).find_center(SHAPE, 4.0, np.random.default_rng(0), may_leave=True) == (10, 10, 10)
    voxel = np.ones((1, 1, 1), bool)
    assert placement(organ).find_center(voxel, 0.5, np.random.default_rng(0)) == (10, 10, 10)


def test_a_full_organ_takes_no_more():
    organ = ball((21, 21, 21), 5)
    placed = placement(organ)
    placed.add(Box.whole(organ.shape), organ)
    assert placed.find_center(SHAPE, 4.0, np.random.default_rng(0)) is None


def test_a_tumor_too_large_to_fit_is_cut_by_the_organ():
    organ = ball((31, 31, 31), 5)
    large = tumor_shape(record(half_axes_mm=(6.0, 6.0, 6.0)))
    placed = placement(organ)
    center = placed.find_center(large, 6.0, np.random.default_rng(0))
    box, mask = placed.cut(large, center, may_leave=False)
    assert 0.25 * large.sum() <= mask.sum() < large.sum()
    assert organ[box.slices][mask].all()


def test_cutting_keeps_one_component():
    organ = np.zeros((21, 21, 21), bool)
    organ[:9], organ[12:] = True, True  # a fissure through the tumor
    _, mask = placement(organ).cut(SHAPE, (9, 10, 10), may_leave=False)
    assert mask.any()
    columns = np.flatnonzero(mask.any(axis=(1, 2)))
    assert columns.max() - columns.min() + 1 == len(columns)


def test_erosion_acts_in_axial_slices_only_and_gives_way_when_nothing_is_left():
    voxel = np.ones((1, 1, 1), bool)
    organ = np.zeros((20, 20, 6), bool)
    organ[5:15, 5:15, 2:4] = True

    def centers(mask):
        return np.array(
            [placement(mask, erosion_voxels=5).find_center(voxel, 0.5, np.random.default_rng(s)) for s in range(99)]
        )

    found = centers(organ)
    assert found.min(axis=0).tolist() == [7, 7, 2]
    assert found.max(axis=0).tolist() == [12, 12, 3]
    thin = np.zeros((20, 20, 6), bool)
    thin[5:15, 5:7] = True
    assert set(centers(thin)[:, 1]) == {5, 6}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.tuples(*[st.integers(1, 14)] * 3), st.floats(0, 1), st.booleans(), st.booleans())
def test_any_organ_gives_a_center_inside_it_or_none(seed, size, share, may_leave, open_border):
    generator = np.random.default_rng(seed)
    organ = generator.random(size) < share
    if not organ.any():
        with pytest.raises(SynthesisError, match="no organ voxel"):
            placement(organ)
        return
    placed = placement(organ, erosion_voxels=5, open_border=open_border)
    center = placed.find_center(SHAPE, 4.0, generator, may_leave=may_leave)
    if center is not None:
        assert organ[center]
        _, mask = placed.cut(SHAPE, center, may_leave=may_leave)
        assert mask.sum() >= 0.25 * SHAPE.sum()


def test_a_closed_border_is_kept_away_from_and_an_open_one_is_not():
    organ = np.ones((20, 20, 20), bool)
    for open_border, expected in ((True, (0, 19)), (False, (4, 15))):
        placements = [placement(organ, open_border=open_border) for _ in range(150)]
        found = np.array(
            [placed.find_center(SHAPE, 4.0, np.random.default_rng(s)) for s, placed in enumerate(placements)]
        )
        low, high = found.min(), found.max()
        assert (low, high) == expected or (open_border and low <= 1 and high >= 18)


def test_centered_takes_the_organ_voxel_nearest_to_the_centroid():
    organ = np.zeros((30, 30, 10), bool)
    organ[2:28, 2:8], organ[2:8, 2:28] = True, True  # an L: its centroid lies outside
    center = placement(organ).find_center(SHAPE, 4.0, np.random.default_rng(0), centered=True)
    voxels = np.argwhere(organ)
    distances = np.linalg.norm(voxels - voxels.mean(0), axis=1)
    assert np.linalg.norm(np.array(center) - voxels.mean(0)) == distances.min()


def test_the_same_generator_gives_the_same_center():
    organ = ball((40, 40, 40), 16)
    first, second = (placement(organ).find_center(SHAPE, 4.0, np.random.default_rng(5)) for _ in range(2))
    assert first == second


def test_erosion_spares_the_border_of_a_crop():
    placed = placement(np.ones((5, 5, 5), bool), erosion_voxels=5)
    shape = np.ones((1, 1, 1), bool)
    centers = [placed.find_center(shape, 0.5, np.random.default_rng(seed)) for seed in range(60)]
    for axis in range(3):
        assert {center[axis] for center in centers} == set(range(5))


def test_tumors_overlap_only_where_they_may():
    organ = ball((40, 40, 40), 12)
    placed = placement(organ)
    placed.add(Box.whole(organ.shape), ball(organ.shape, 6))
    generator = np.random.default_rng(0)
    apart = [placed.find_center(SHAPE, 2.0, generator) for _ in range(60)]
    assert not ball(organ.shape, 7)[tuple(np.array(apart).T)].any()
    over = [placed.find_center(SHAPE, 2.0, generator, may_overlap=True) for _ in range(60)]
    assert ball(organ.shape, 6)[tuple(np.array(over).T)].any()
    assert placed.find_center(SHAPE, 4.0, generator, centered=True) is None
    assert placed.find_center(SHAPE, 4.0, generator, centered=True, may_overlap=True) == (20, 20, 20)
    assert not placed.cut(SHAPE, (20, 20, 20), may_leave=False)[1].any()
    assert placed.cut(SHAPE, (20, 20, 20), may_leave=False, may_overlap=True)[1].sum() == SHAPE.sum()
    assert placed.fits_at(SHAPE, (20, 20, 20), reach_mm=4.0, may_overlap=True)
    assert not placed.fits_at(SHAPE, (20, 20, 20), reach_mm=4.0)


def test_a_stated_center_fits_where_it_is_in_the_organ_and_enough_is_left(monkeypatch):
    monkeypatch.setattr("difftumor.synthesis.placement.MINIMUM_INSIDE", 0.7)
    organ = np.zeros((30, 20, 20), bool)
    organ[:10] = True
    placed = placement(organ)
    assert placed.fits_at(SHAPE, (5, 10, 10), reach_mm=4.0)
    assert not placed.fits_at(SHAPE, (9, 10, 10), reach_mm=4.0)  # little more than half
    assert placed.fits_at(SHAPE, (9, 10, 10), reach_mm=4.0, may_leave=True)
    for outside in ((10, 10, 10), (-1, 10, 10), (5, 10, 99)):
        assert not placed.fits_at(SHAPE, outside, reach_mm=4.0, may_leave=True)


def test_depth_is_the_distance_to_the_surface():
    organ = rough_organ((14, 12, 10), 2)
    for open_border in (True, False):
        placed = placement(organ, SPACING, open_border=open_border)
        voxels = np.argwhere(organ)
        outside = np.argwhere(~np.pad(organ, 1)) - 1 if not open_border else np.argwhere(~organ)
        expected = distances_mm(voxels, outside, SPACING)
        np.testing.assert_allclose(placed.host.depth_mm[tuple((voxels - placed.host.box.start).T)], expected, rtol=1e-6)


def test_a_tumor_takes_its_voxels_and_their_neighbors():
    tumors, mask = placement(np.ones((12, 11, 10), bool)), rough_organ((6, 5, 4), 0)
    placed = np.zeros((12, 11, 10), bool)
    placed[0:6, 3:8, 6:10] = mask
    tumors.add(Box((0, 3, 6), (6, 8, 10)), mask)
    _, left = tumors.cut(np.ones((25, 23, 21), bool), (6, 5, 5), may_leave=False)
    np.testing.assert_array_equal(left, ~ndimage.binary_dilation(placed, np.ones((3, 3, 3))))
