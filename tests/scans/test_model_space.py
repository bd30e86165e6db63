"""Grids, boxes, and model space."""

import itertools
import pickle

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from difftumor.errors import GridMismatchError
from difftumor.scans.grid import Box, Grid, compare_grids
from difftumor.scans.model_space import ModelSpace

FEW = settings(max_examples=25, deadline=None)


def _affine(axes=(0, 1, 2), signs=(1, 1, 1), spacing=(1, 1, 1), tilt_deg=0.0, origin=(0, 0, 0)):
    """Native axis i points to RAS axis axes[i], by signs[i], tilted about a skew line."""
    matrix = np.zeros((3, 3))
    for axis in range(3):
        matrix[axes[axis], axis] = signs[axis] * spacing[axis]
    tilt = Rotation.from_rotvec(np.deg2rad(tilt_deg) * np.array([1, 2, 2]) / 3).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt @ matrix
    affine[:3, 3] = origin
    return affine


@st.composite
def grids(draw):
    axes = draw(st.permutations((0, 1, 2)))
    signs = draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    spacing = draw(st.tuples(*[st.floats(0.4, 5.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    return Grid(shape, _affine(axes, signs, spacing, draw(st.floats(-25, 25)), origin))


def _boxes(shape):
    axis = [st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda p: p[0] < p[1]) for n in shape]
    return st.tuples(*axis).map(lambda p: Box([a for a, _ in p], [b for _, b in p]))


def _world(grid, index):
    return nib.affines.apply_affine(grid.affine, index)


def _indices(shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)


def _values(shape, seed=0):
    return np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32)


# Boxes


def test_box_geometry():
    box = Box((1, 2, 3), (4, 4, 9))
    assert box.shape == (3, 2, 6)
    assert box.slices == (slice(1, 4), slice(2, 4), slice(3, 9))
    assert box.padded(2) == Box((-1, 0, 1), (6, 6, 11))
    assert box.padded((0, 1, 0)) == Box((1, 1, 3), (4, 5, 9))
    assert box.padded(2).clipped((5, 5, 5)) == Box((0, 0, 1), (5, 5, 5))
    assert Box((7, 0, 0), (9, 2, 2)).clipped((5, 5, 5)).empty
    assert not box.empty
    assert Box((0, 0, 0), (3, 0, 3)).empty


def test_box_does_not_wrap_around_the_array():
    with pytest.raises(ValueError, match="clip it"):
        _ = Box((-1, 0, 0), (2, 2, 2)).slices


def test_box_around_a_mask():
    mask = np.zeros((4, 5, 6), bool)
    assert Box.around(mask).empty
    mask[1, 2, 3] = mask[2, 4, 3] = True
    assert Box.around(mask) == Box((1, 2, 3), (3, 5, 4))


@pytest.mark.parametrize(
    ("center", "box"),
    [
        ((5, 5, 2), Box((3, 4, 0), (7, 7, 4))),  # an even side puts the center right of the middle; Z is 4 voxels long
        ((0, 1, 0), Box((0, 0, 0), (4, 3, 4))),
        ((9, 9, 3), Box((6, 7, 0), (10, 10, 4))),
    ],
)
def test_box_centered_on_a_voxel_stays_inside_the_array(center, box):
    assert Box.centered(center, (4, 3, 6), within=(10, 10, 4)) == box


def test_box_centered_with_an_odd_side_has_the_voxel_in_its_middle():
    assert Box.centered((5, 5, 5), (3, 5, 1), within=(11, 11, 11)) == Box((4, 3, 5), (7, 8, 6))


def test_box_contains():
    outer = Box((0, 0, 0), (4, 4, 4))
    assert outer.contains(Box((1, 1, 1), (4, 4, 4)))
    assert not outer.contains(Box((1, 1, 1), (4, 4, 5)))


# Grids


def test_grid_of_a_scan():
    grid = Grid((4, 5, 6), _affine(signs=(-1, -1, 1), spacing=(0.98, 0.98, 3.27)))
    assert grid.axcodes == "LPS"
    assert grid.spacing_mm == pytest.approx((0.98, 0.98, 3.27))
    assert "LPS" in repr(grid)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 3


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3), np.diag([1.0, 0, 1, 1])])
def test_grid_refuses_an_affine_without_inverse(affine):
    with pytest.raises(ValueError, match="affine"):
        Grid((2, 2, 2), affine)


def test_grid_refuses_flat_axes():
    affine = np.eye(4)
    affine[:, 1] = affine[:, 0]
    with pytest.raises(ValueError, match="singular"):
        Grid((2, 2, 2), affine)


def test_small_voxels_are_not_singular():
    assert Grid((2, 2, 2), np.diag([1e-3, 1e-3, 1e-3, 1])).spacing_mm == pytest.approx((1e-3,) * 3)


def test_volume_of_a_voxel():
    assert Grid((2, 2, 2), np.diag([-2.0, 3, 0.5, 1])).voxel_mm3 == pytest.approx(3)
    sheared = np.array([[1.0, 0.6, 0, 0], [0, 0.8, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])  # sides of 1, 1 and 2 mm
    assert Grid((2, 2, 2), sheared).spacing_mm == pytest.approx((1, 1, 2))
    assert Grid((2, 2, 2), sheared).voxel_mm3 == pytest.approx(1.6)


@given(st.integers(0, 2**32), st.tuples(*[st.integers(1, 7)] * 3), st.permutations(range(3)), st.sampled_from("?Bf"))
def test_box_around_a_mask_whatever_its_type_and_order_in_memory(seed, shape, axes, dtype):
    mask = (np.random.default_rng(seed).random(shape) < 0.1).transpose(axes)[::-1, :, ::-1]
    voxels = np.argwhere(mask)
    expected = Box(voxels.min(axis=0), voxels.max(axis=0) + 1) if len(voxels) else Box((0, 0, 0), (0, 0, 0))
    assert Box.around(mask.astype(dtype, order="K")) == expected
    assert Box.around(mask) == expected


def test_grids_match_by_where_their_voxels_are():
    grid = Grid((501, 4, 4), np.eye(4))
    noise, drift, shift = np.eye(4), np.eye(4), np.eye(4)
    noise[0, 3] = 1e-5
    drift[0, 0] = 1.0005  # a quarter of a millimeter at the far end
    shift[2, 3] = 0.5
    assert grid.matches(Grid(grid.shape, noise))
    assert not grid.matches(Grid(grid.shape, drift))
    assert grid.displacement_mm(Grid(grid.shape, drift)) == pytest.approx(0.25)
    assert not grid.matches(Grid(grid.shape, shift))
    assert not grid.matches(Grid((500, 4, 4), np.eye(4)))


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((3, 3, 4), np.eye(4), r"a.nii and b.nii differ in shape \(3, 3, 3\) against \(3, 3, 4\)"),
        ((3, 3, 3), np.diag([-1.0, -1, 1, 1]), "orientation RAS against LPS"),
        ((3, 3, 3), np.diag([1.0, 1, 2.5, 1]), "spacing 1 x 1 x 1 against 1 x 1 x 2.5 mm"),
        ((3, 3, 3), _affine(origin=(0, 3, 4)), "up to 5 mm apart"),
    ],
)
def test_mismatch_says_what_differs(shape, affine, message):
    with pytest.raises(GridMismatchError, match=message):
        compare_grids(Grid((3, 3, 3), np.eye(4)), Grid(shape, affine), "a.nii", "b.nii")


# Model space


def test_model_shape_and_affine_by_hand():
    # 5 voxels of 3 mm span 12 mm: 13 voxels of 1 mm. LPS turned to RAS begins at the native corner (4, 2, 0).
    native = Grid((5, 3, 2), _affine(signs=(-1, -1, 1), spacing=(3, 2, 1.4), origin=(10, 20, 30)))
    space = ModelSpace(native)
    assert space.grid.shape == (13, 5, 2)  # 1.4 mm rounds to one step of 1 mm
    assert space.grid.axcodes == "RAS"
    np.testing.assert_allclose(space.grid.affine, _affine(origin=(10 - 12, 20 - 4, 30)), atol=1e-12)


def test_linear_values_by_hand():
    space = ModelSpace(Grid((3, 1, 1), np.diag([2.0, 1, 1, 1])))
    result = space.to_model(np.array([0, 10, 40], np.int16).reshape(3, 1, 1), kind="image")
    assert result.dtype == np.float32
    assert result.ravel().tolist() == [0, 5, 10, 25, 40]


def test_nearest_labels_by_hand():
    space = ModelSpace(Grid((2, 1, 1), np.diag([3.0, 1, 1, 1])))
    labels = np.array([1, 2], np.uint16).reshape(2, 1, 1)
    result = space.to_model(labels, kind="labels")
    assert result.dtype == np.uint16
    assert result.ravel().tolist() == [1, 1, 2, 2]
    np.testing.assert_array_equal(space.to_native(result, kind="labels"), labels)


def test_ras_at_model_spacing_is_the_identity():
    data = _values((4, 3, 5))
    space = ModelSpace(Grid(data.shape, _affine(origin=(1, 2, 3))))
    np.testing.assert_array_equal(space.to_model(data, kind="image"), data)
    np.testing.assert_array_equal(space.to_native(data, kind="image"), data)


def test_float32_affine_noise_does_not_blur():
    # A unit axis read from a float32 affine or a quaternion is a hair off 1 mm.
    data = _values((300, 2, 2))
    space = ModelSpace(Grid(data.shape, np.diag([1 - 1e-7, 1, 1, 1])))
    np.testing.assert_array_equal(space.to_model(data, kind="image"), data)


@pytest.mark.parametrize(
    ("axes", "signs"), list(itertools.product(itertools.permutations((0, 1, 2)), itertools.product((-1, 1), repeat=3)))
)
def test_every_storage_order_gives_the_same_model(axes, signs):
    """The same scan stored in any of the 48 orders looks the same, bit for bit, to a network."""
    data = _values((5, 4, 3))
    spacing = (1.3, 0.8, 3.0)
    reference = ModelSpace(Grid(data.shape, np.diag([*spacing, 1])))
    flips = [0 if signs[i] > 0 else data.shape[axes[i]] - 1 for i in range(3)]
    stored = data.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    affine = _affine(axes, signs, [spacing[axis] for axis in axes])
    affine[:3, 3] = -affine[:3, :3] @ flips
    space = ModelSpace(Grid(stored.shape, affine))
    np.testing.assert_allclose(space.grid.affine, reference.grid.affine, atol=1e-12)
    model = space.to_model(stored, kind="image")
    np.testing.assert_array_equal(model, reference.to_model(data, kind="image"))
    native = reference.to_native(model, kind="image")
    expected = native.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    np.testing.assert_array_equal(space.to_native(model, kind="image"), expected)


@FEW
@given(grid=grids(), spacing=st.tuples(*[st.floats(0.7, 2.0)] * 3))
def test_model_equals_sampling_at_the_same_place(grid, spacing):
    """Independent: send each model voxel through both affines and interpolate in 3-D."""
    space = ModelSpace(grid, spacing)
    assert space.grid.spacing_mm == pytest.approx(spacing)
    data = _values(grid.shape)
    places = _world(Grid(grid.shape, np.linalg.inv(grid.affine)), _world(space.grid, _indices(space.grid.shape)))
    expected = ndimage.map_coordinates(data.astype(np.float64), np.moveaxis(places, -1, 0), order=1, mode="nearest")
    # Positions snap to voxels within 1e-4 voxels.
    np.testing.assert_allclose(space.to_model(data, kind="image"), expected, atol=0.5)
    tie = np.abs(places - np.floor(places) - 0.5).min(axis=-1) < 1e-3
    labels = np.arange(data.size).reshape(data.shape)
    nearest = ndimage.map_coordinates(labels, np.moveaxis(places, -1, 0), order=0, mode="nearest")
    np.testing.assert_array_equal(space.to_model(labels, kind="labels")[~tie], nearest[~tie])


@FEW
@given(grid=grids())
def test_native_equals_sampling_at_the_same_place(grid):
    space = ModelSpace(grid)
    data = _values(space.grid.shape)
    places = _world(Grid(grid.shape, np.linalg.inv(space.grid.affine)), _world(grid, _indices(grid.shape)))
    expected = ndimage.map_coordinates(data.astype(np.float64), np.moveaxis(places, -1, 0), order=1, mode="nearest")
    np.testing.assert_allclose(space.to_native(data, kind="image"), expected, atol=0.5)


@FEW
@given(grid=grids())
def test_model_covers_the_field_of_view(grid):
    """First centers coincide; the far one is at most half a voxel off along each axis."""
    space = ModelSpace(grid)
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in grid.shape])))
    places = _world(Grid((1, 1, 1), np.linalg.inv(space.grid.affine)), _world(grid, corners))
    np.testing.assert_allclose(places.min(axis=0), 0, atol=1e-6)
    assert (np.abs(places.max(axis=0) - (np.array(space.grid.shape) - 1)) <= 0.5 + 1e-3).all()


@FEW
@given(grid=grids(), data=st.data(), kind=st.sampled_from(("image", "labels")))
def test_a_box_equals_the_same_part_of_the_whole(grid, data, kind):
    space = ModelSpace(grid)
    native, model = _values(grid.shape), _values(space.grid.shape, 1)
    box = data.draw(_boxes(space.grid.shape))
    whole = space.to_model(native, kind=kind)
    np.testing.assert_array_equal(space.to_model(native, kind=kind, box=box), whole[box.slices])
    box = data.draw(_boxes(grid.shape))
    whole = space.to_native(model, kind=kind)
    np.testing.assert_array_equal(space.to_native(model, kind=kind, box=box), whole[box.slices])


@FEW
@given(grid=grids(), data=st.data(), kind=st.sampled_from(("image", "labels")))
def test_a_change_in_a_box_equals_the_same_change_in_the_whole(grid, data, kind):
    space = ModelSpace(grid)
    box = data.draw(_boxes(space.grid.shape))
    change = _values(box.shape)
    whole = np.zeros(space.grid.shape, np.float32)
    whole[box.slices] = change
    carry = space.change_to_native if kind == "image" else space.labels_to_native
    part, native_box = carry(change, box=box)
    assert part.shape == native_box.shape
    result = np.zeros(grid.shape, np.float32)
    result[native_box.slices] = part
    # Equal, so also exactly zero wherever the whole is.
    np.testing.assert_array_equal(result, space.to_native(whole, kind=kind))


def test_change_reaches_only_its_neighbors():
    # Model voxels 0..8 at 1 mm, native ones at 0, 2, 4, 6, 8 mm; a change at 3..5 mm is seen only at 4 mm.
    space = ModelSpace(Grid((5, 1, 1), np.diag([2.0, 1, 1, 1])))
    change, box = space.change_to_native(
        np.array([1, 2, 3], np.float32).reshape(3, 1, 1), box=Box((3, 0, 0), (6, 1, 1))
    )
    assert box == Box((2, 0, 0), (3, 1, 1))
    assert change.ravel().tolist() == [2]


def test_change_between_native_voxels_is_lost_without_error():
    space = ModelSpace(Grid((3, 2, 2), np.diag([4.0, 1, 1, 1])))
    change, box = space.change_to_native(np.ones((1, 1, 1), np.float32), box=Box((2, 0, 0), (3, 1, 1)))
    assert box.empty
    assert change.size == 0


def test_change_to_a_finer_grid_by_hand():
    # Native voxels every half millimeter: a change of 8 at 2 mm tapers to 4 half a millimeter away.
    space = ModelSpace(Grid((9, 1, 1), np.diag([-0.5, 1, 1, 1])))
    change, box = space.change_to_native(np.full((1, 1, 1), 8, np.float32), box=Box((2, 0, 0), (3, 1, 1)))
    assert box == Box((3, 0, 0), (6, 1, 1))
    assert change.ravel().tolist() == [4, 8, 4]


@FEW
@given(grid=grids(), data=st.data())
def test_model_boxes_enclose_native_boxes(grid, data):
    space = ModelSpace(grid)
    assume(min(grid.shape) > 1)
    box = data.draw(_boxes(grid.shape))
    enclosing = space.model_box(box)
    assert Box.whole(space.grid.shape).contains(enclosing)
    assert not enclosing.empty
    corners = np.array(list(itertools.product(*zip(box.start, np.array(box.stop) - 1, strict=True))))
    places = _world(Grid((1, 1, 1), np.linalg.inv(space.grid.affine)), _world(grid, corners))
    # The model grid may end up to half a voxel before or after the native one.
    places = np.clip(places, 0, np.array(space.grid.shape) - 1)
    assert (places >= np.array(enclosing.start) - 1e-3).all()
    assert (places <= np.array(enclosing.stop) - 1 + 1e-3).all()
    # Smallest: no side could move in by a whole voxel.
    assert (places.min(axis=0) < np.array(enclosing.start) + 1 + 1e-3).all()
    assert (places.max(axis=0) > np.array(enclosing.stop) - 2 - 1e-3).all()


def test_boxes_by_hand():
    space = ModelSpace(Grid((5, 4, 4), np.diag([-2.0, 1, 1, 1])))
    # Native x 0..1 is the far end in RAS: millimeters 6..8.
    assert space.model_box(Box((0, 0, 0), (2, 1, 1))) == Box((6, 0, 0), (9, 1, 1))
    assert space.model_box(Box((0, 0, 0), (0, 0, 0))).empty


@FEW
@given(grid=grids())
def test_labels_survive_the_round_trip_through_finer_model_space(grid):
    space = ModelSpace(grid, [0.9 * min(grid.spacing_mm)] * 3)
    labels = np.random.default_rng(0).integers(0, 200, grid.shape).astype(np.uint8)
    np.testing.assert_array_equal(space.to_native(space.to_model(labels, kind="labels"), kind="labels"), labels)


def test_constants_stay_exact():
    space = ModelSpace(Grid((4, 5, 3), _affine(spacing=(0.7, 1.3, 5.0), tilt_deg=10)))
    assert np.unique(space.to_model(np.full((4, 5, 3), -1024.1, np.float32), kind="image")).size == 1


def test_inputs_stay_as_they_were():
    space = ModelSpace(Grid((4, 5, 3), _affine(signs=(-1, 1, 1), spacing=(1, 1, 2.0))))
    data = _values((4, 5, 3))
    before = data.copy()
    result = space.to_model(data, kind="image", box=Box((0, 0, 0), (2, 2, 2)))
    result += 1
    np.testing.assert_array_equal(data, before)
    labels = np.ones((4, 5, 5), np.uint8)
    space.to_native(labels, kind="labels")[:] = 7
    assert (labels == 1).all()


def test_result_never_shares_memory_with_the_input():
    space = ModelSpace(Grid((4, 5, 3), np.eye(4)))
    data = np.zeros((4, 5, 3), np.float32)
    for kind in ("image", "labels"):
        assert not np.shares_memory(space.to_model(data, kind=kind), data)
        assert not np.shares_memory(space.to_native(data, kind=kind), data)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -1, 1), (1, np.nan, 1)])
def test_refuses_bad_spacing(spacing):
    with pytest.raises(ValueError, match="spacing"):
        ModelSpace(Grid((2, 2, 2), np.eye(4)), spacing)


def test_refuses_data_of_another_grid():
    space = ModelSpace(Grid((4, 5, 3), np.diag([2.0, 1, 1, 1])))
    with pytest.raises(ValueError, match="native grid"):
        space.to_model(np.zeros((4, 5, 4)), kind="image")
    with pytest.raises(ValueError, match="model grid"):
        space.to_native(np.zeros((4, 5, 3)), kind="image")
    with pytest.raises(ValueError, match="leaves the grid"):
        space.to_model(np.zeros((4, 5, 3)), kind="image", box=Box((0, 0, 0), (8, 1, 1)))
    with pytest.raises(ValueError, match="box"):
        space.change_to_native(np.zeros((1, 1, 2), np.float32), box=Box((0, 0, 0), (1, 1, 1)))


def test_goes_to_a_worker():
    space = ModelSpace(Grid((4, 5, 3), np.diag([2.0, 1, 1, 1])))
    assert pickle.loads(pickle.dumps(space)).grid.shape == space.grid.shape


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR", "AIL", "PIR"])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.8, 1.7, 0.6)])
@pytest.mark.parametrize("slices", [1, 4, 100])
def test_native_slabs_are_those_of_the_whole_from_what_they_need(axcodes, spacing_mm, slices):
    directions = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(axcodes), (9, 8, 7))
    grid = Grid((9, 8, 7), directions @ np.diag([1.1, 0.9, 2.3, 1.0]))
    space = ModelSpace(grid, spacing_mm)
    model = np.random.default_rng(0).normal(size=space.grid.shape).astype(np.float32)
    whole = space.to_native(model, kind="image")
    seen = np.full(grid.shape, np.nan, np.float32)
    highest = -np.inf
    for slab in space.native_slabs(slices):
        needed = space.model_box(slab)
        seen[slab.slices] = space.to_native(model[needed.slices], kind="image", box=slab, part=needed)
        corners = np.array(np.meshgrid(*zip(slab.start, np.subtract(slab.stop, 1), strict=True))).reshape(3, -1).T
        heights = nib.affines.apply_affine(grid.affine, corners)[:, 2]
        assert heights.min() > highest
        highest = heights.max()
    np.testing.assert_array_equal(seen, whole)
    short = Box(needed.start, (*needed.stop[:2], needed.stop[2] - 1))
    with pytest.raises(ValueError, match="does not hold"):
        space.to_native(model[short.slices], kind="image", box=slab, part=short)


def test_turned_data_is_a_view_in_ras_order():
    grid = Grid((3, 4, 5), np.array([[0, 0, -3.0, 9], [-1, 0, 0, 5], [0, 2, 0, 0], [0, 0, 0, 1]]))
    data = np.arange(60).reshape(3, 4, 5)
    space = ModelSpace(grid)
    turned = space.turned(data)
    assert np.shares_memory(turned, data)
    np.testing.assert_array_equal(turned, data.transpose(2, 0, 1)[::-1, ::-1])
    assert space.turned_spacing_mm == (3.0, 1.0, 2.0)
    box = Box((0, 1, 2), (2, 3, 5))
    np.testing.assert_array_equal(
        space.turned(data[box.slices], box=box), data[0:2, 1:3, 2:5].transpose(2, 0, 1)[::-1, ::-1]
    )
    with pytest.raises(ValueError, match="box's shape"):
        space.turned(data, box=box)
