"""Where centers may lie: every way to them, what limits them, and the grid that a scan is stored on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from difftumor.errors import SynthesisError
from difftumor.scans.grid import Box
from difftumor.synthesis import candidates
from difftumor.synthesis.candidates import Candidates
from difftumor.synthesis.shapes import tumor_shape
from tests.synthesis.makers import ball, distances_mm, placement, record, rough_organ

SHAPE = tumor_shape(record())
VOXEL = np.ones((1, 1, 1), bool)
SPACING = (0.7, 1.3, 2.1)


@pytest.fixture(params=["clear", "listed", "picked"])
def path(request, monkeypatch):
    """Force one way to a center: points tested one by one, points looked up in tables, or picks from a table's list."""
    if request.param == "clear":
        monkeypatch.setattr(candidates, "_POINTS", 6000)
        monkeypatch.setattr(Candidates, "_listed", lambda *_: iter([]))
    else:
        monkeypatch.setattr(Candidates, "_tested", lambda *_: iter([]))
        monkeypatch.setattr(candidates, "_TABLE_POINTS", 0 if request.param == "picked" else 768)
    return request.param


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("reach_mm", [3.2, 4.2])
def test_every_way_chooses_uniformly_among_the_voxels_that_a_brute_force_search_allows(reach_mm):
    organ, vessels = rough_organ((22, 16, 12), 3), np.zeros((22, 16, 12), bool)
    vessels[11, 8, 6] = True
    voxels = np.argwhere(organ)
    deep = distances_mm(voxels, np.argwhere(~organ), SPACING) > reach_mm + 1e-3  # the surface at the reach is too near
    allowed = voxels[deep & (distances_mm(voxels, np.argwhere(vessels), SPACING) > reach_mm + 1 + 1e-3)]
    placed, generator = placement(organ, SPACING, vessels_XYZ=vessels), np.random.default_rng(0)
    rules = {"vessel_clearance_mm": 1.0}
    found = [placed.find_center(VOXEL, reach_mm, generator, **rules) for _ in range(5 * len(allowed))]
    assert len(allowed) > 8
    assert {*found} <= {*map(tuple, allowed.tolist())}
    counts = np.array([found.count(tuple(voxel)) for voxel in allowed.tolist()])
    # Mean 5 per voxel; chi-square has as many degrees of freedom as voxels less one.
    chi_square, freedom = ((counts - 5) ** 2 / 5).sum(), len(allowed) - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("reach_mm", [16.0, 26.0])
def test_coarse_distances_lower_what_is_demanded_by_no_more_than_stated(reach_mm, monkeypatch):
    monkeypatch.setattr(Candidates, "_tested", lambda *_: iter([]))
    organ = np.pad(rough_organ((90, 84, 76), 1), 1)
    placed = placement(organ)
    best = placed.host.depth_mm.max()
    level = max(level for level in candidates._FIT_LEVELS if level * reach_mm < best)
    for seed in range(40):
        center = placed.find_center(VOXEL, reach_mm, np.random.default_rng(seed))
        depth_mm = placed.host.depth_mm[tuple(np.subtract(center, placed.host.box.start))]
        assert depth_mm > (level - 0.2) * reach_mm


def test_coarse_distances_see_the_surface_where_the_organ_ends(monkeypatch):
    monkeypatch.setattr(Candidates, "_tested", lambda *_: iter([]))
    organ = np.zeros((70, 70, 70), bool)
    organ[4:66, 4:66, 4:] = True  # and beyond the array along z
    for open_border in (True, False):
        placed = placement(organ, open_border=open_border)
        found = [placed.find_center(VOXEL, 24.0, np.random.default_rng(seed)) for seed in range(60)]
        depth_mm = placed.host.depth_mm[tuple((np.array(found) - placed.host.box.start).T)]
        assert depth_mm.min() > 0.8 * 24
        assert (max(z for _, _, z in found) > 60) == open_border


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("side", [2, 5])
def test_centers_lie_in_the_organ_eroded_slice_by_slice(side):
    organ = rough_organ((11, 10, 6), 1)
    eroded = ndimage.minimum_filter(organ.view(np.uint8), size=(side, side, 1), mode="nearest") != 0
    placed, generator = placement(organ, erosion_voxels=side), np.random.default_rng(0)
    allowed = {*map(tuple, np.argwhere(eroded).tolist())}
    found = {placed.find_center(VOXEL, 0.5, generator) for _ in range(5 * len(allowed))}
    assert found <= allowed
    assert len(found) > 0.9 * len(allowed) > 5


def test_a_center_is_never_a_voxel_of_another_tumor():
    organ = ball((21, 21, 21), 5)
    placed = placement(organ)
    placed.add(Box.whole(organ.shape), ball(organ.shape, 1))
    generator = np.random.default_rng(0)
    found = np.array([placed.find_center(SHAPE, 12.0, generator) for _ in range(300)])
    assert not ndimage.binary_dilation(ball(organ.shape, 1), np.ones((3, 3, 3)))[tuple(found.T)].any()


@pytest.mark.usefixtures("path")
def test_no_vessel_is_within_reach_and_clearance():
    shape = (30, 24, 16)
    organ, vessels = np.ones(shape, bool), np.random.default_rng(1).random(shape) < 0.004
    placed = placement(organ, SPACING, vessels_XYZ=vessels)
    for seed in range(30):
        center = placed.find_center(SHAPE, 3.0, np.random.default_rng(seed), may_leave=True, vessel_clearance_mm=1.2)
        assert distances_mm(np.array([center]), np.argwhere(vessels), SPACING)[0] > 4.2
        assert placed.fits_at(SHAPE, center, reach_mm=3.0, may_leave=True, vessel_clearance_mm=1.2)
    near = tuple(np.argwhere(vessels)[0] + (1, 0, 0))
    assert placed.fits_at(SHAPE, near, reach_mm=3.0, may_leave=True)
    assert not placed.fits_at(SHAPE, near, reach_mm=3.0, may_leave=True, vessel_clearance_mm=0.0)


def test_vessels_beyond_the_organ_count_too():
    organ, vessels = np.zeros((30, 9, 9), bool), np.zeros((30, 9, 9), bool)
    organ[3:12], vessels[16] = True, True
    placed = placement(organ, vessels_XYZ=vessels)
    for way in ({}, {"by_slice": True}):
        found = [
            placed.find_center(VOXEL, 0.5, np.random.default_rng(s), vessel_clearance_mm=8.4, **way) for s in range(80)
        ]
        assert {center[0] for center in found} == {3, 4, 5, 6, 7}


@pytest.mark.parametrize("rules", [{}, {"may_leave": True}, {"centered": True}, {"by_slice": True}])
def test_where_vessels_are_everywhere_there_is_no_place(rules):
    organ = ball((21, 21, 21), 8)
    vessels = np.zeros(organ.shape, bool)
    vessels[::3, ::3, ::3] = True
    placed = placement(organ, vessels_XYZ=vessels)
    generator = np.random.default_rng(0)
    assert placed.find_center(SHAPE, 4.0, generator, vessel_clearance_mm=0.0, **rules) is None
    assert placed.find_center(SHAPE, 4.0, generator, **rules) is not None


@pytest.mark.usefixtures("path")
def test_within_limits_the_center_and_nothing_else():
    organ = ball((31, 31, 31), 12)
    part = np.zeros(organ.shape, bool)
    part[3:15, 8:14, 16:20] = True
    part[5:13, 10:12, 17:19] = False
    placed = placement(organ, erosion_voxels=3)
    box = Box((2, 7, 15), (16, 15, 21))
    for seed in range(25):
        whole = placed.find_center(SHAPE, 4.0, np.random.default_rng(seed), within=part)
        assert part[whole]
        assert organ[whole]
        assert placed.find_center(SHAPE, 4.0, np.random.default_rng(seed), within=(box, part[box.slices])) == whole
    generator = np.random.default_rng(0)
    assert placed.find_center(SHAPE, 4.0, generator, within=~organ) is None
    beyond = (Box((-5, -5, -5), (16, 40, 40)), np.ones((21, 45, 45), bool))
    assert {placed.find_center(SHAPE, 4.0, generator, within=beyond)[0] <= 15 for _ in range(20)} == {True}
    assert placed.find_center(SHAPE, 4.0, generator, within=part, centered=True) is None
    with pytest.raises(SynthesisError, match="shape"):
        placed.find_center(SHAPE, 4.0, generator, within=part[1:])


def test_by_slice_takes_the_middle_slices_and_widens_where_they_are_closed():
    organ = np.ones((12, 12, 22), bool)
    organ[:, :, 0] = organ[:, :, -1] = False  # 20 slices, 1 to 20
    placed = placement(organ, erosion_voxels=5)
    part = np.zeros(organ.shape, bool)

    def slices(**rules):
        found = [placed.find_center(SHAPE, 4.0, np.random.default_rng(s), by_slice=True, **rules) for s in range(150)]
        return found and {center[2] for center in found}

    assert slices() == set(range(7, 15))
    part[:, :, [1, 3, 4, 6, 18]] = True
    assert slices(within=part) == {6}  # 20-80 %
    part[:, :, 6] = False
    assert slices(within=part) == {3, 4, 18}  # 10-90 %
    part[:, :, [1, 3, 4, 18]] = False
    part[:, :, 20] = True
    assert slices(within=part) == {20}
    for z in (1, 2, 3):
        thin = np.zeros((12, 12, z), bool)
        thin[2:9, 2:9] = True
        assert thin[placement(thin).find_center(VOXEL, 4.0, np.random.default_rng(z), by_slice=True)]


def test_by_slice_keeps_no_distance_from_the_surface():
    organ = ball((31, 31, 31), 12)
    placed = placement(organ)
    found = np.array([placed.find_center(SHAPE, 4.0, np.random.default_rng(s), by_slice=True) for s in range(300)])
    depth_mm = placed.host.depth_mm[tuple((found - placed.host.box.start).T)]
    assert depth_mm.min() <= 2
    assert {*found[:, 2]} <= set(range(10, 21))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_the_same_scan_turned_and_flipped_has_its_tumor_at_the_same_place(axes, flips):
    organ = rough_organ((36, 30, 26), 5)
    to_world = np.diag([1.1, 0.9, 1.3, 1.0])
    to_world[:3, 3] = (-31, 17, 120)
    step = np.eye(4)
    for axis, (source, flip) in enumerate(zip(axes, flips, strict=True)):
        step[:3, axis] = 0
        step[source, axis] = flip
        step[source, 3] += 0 if flip > 0 else organ.shape[source] - 1
    turned = organ.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    spacing = tuple((1.1, 0.9, 1.3)[axis] for axis in axes)
    first, second = (
        placement(organ, (1.1, 0.9, 1.3), affine=to_world),
        placement(turned, spacing, affine=to_world @ step),
    )
    for seed in range(12):
        centers = [placed.find_center(VOXEL, 4.0, np.random.default_rng(seed)) for placed in (first, second)]
        places = [(m @ [*c, 1.0])[:3] for m, c in zip((to_world, to_world @ step), centers, strict=True)]
        np.testing.assert_allclose(*places, atol=1e-6)


def test_the_same_scan_on_an_oblique_grid_has_its_tumor_near_the_same_place():
    organ = np.pad(rough_organ((72, 64, 60), 2), 14)
    angle = np.radians(15)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]])
    middle = (np.array(organ.shape) - 1) / 2
    to_world = np.eye(4)
    to_world[:3, :3], to_world[:3, 3] = turn, middle - turn @ middle
    copy = ndimage.affine_transform(organ.astype(float), turn, to_world[:3, 3], order=1) > 0.5
    placements = placement(organ, affine=np.eye(4)), placement(copy, affine=to_world)
    near = 0
    for seed in range(40):
        first, second = (placed.find_center(SHAPE, 4.0, np.random.default_rng(seed)) for placed in placements)
        near += np.linalg.norm(first - (to_world @ [*second, 1.0])[:3]) < 2
    assert near >= 36


def test_a_speck_at_the_organs_end_moves_no_tumor():
    organ = np.pad(rough_organ((50, 46, 40), 4), 9)
    speck = organ.copy()
    speck[2, 30, 30] = True
    for seed in range(20):
        first, second = (
            placement(mask).find_center(SHAPE, 4.0, np.random.default_rng(seed)) for mask in (organ, speck)
        )
        assert first == second


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.tuples(*[st.integers(1, 14)] * 3),
    share=st.floats(0.01, 1),
    spacing_mm=st.tuples(*[st.floats(0.4, 5)] * 3),
    reach_mm=st.floats(0.1, 60),
    clearance_mm=st.none() | st.floats(0, 4),
    rules=st.fixed_dictionaries({name: st.booleans() for name in ("may_leave", "centered", "may_overlap", "by_slice")}),
    open_border=st.booleans(),
)
def test_any_demand_gives_a_center_in_the_organ_or_none(
    seed, size, share, spacing_mm, reach_mm, clearance_mm, rules, open_border
):
    generator = np.random.default_rng(seed)
    organ, vessels, within = generator.random(size) < share, generator.random(size) < 0.02, generator.random(size) < 0.9
    organ[tuple(generator.integers(size))] = True
    placed = placement(organ, spacing_mm, erosion_voxels=int(seed % 7), open_border=open_border, vessels_XYZ=vessels)
    for _ in range(3):
        center = placed.find_center(
            SHAPE, reach_mm, generator, within=within, vessel_clearance_mm=clearance_mm, **rules
        )
        if center is None:
            continue
        assert organ[center]
        assert within[center]
        if clearance_mm is not None and vessels.any():
            nearest_mm = distances_mm(np.array([center]), np.argwhere(vessels), spacing_mm)[0]
            assert nearest_mm > reach_mm + clearance_mm
        cuts = {name: rules[name] for name in ("may_leave", "may_overlap")}
        box, mask = placed.cut(SHAPE, center, **cuts)
        assert mask.sum() >= (1 if rules["centered"] else 0.25 * SHAPE.sum())
        placed.add(box, mask)
