"""Boxes of voxels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from difftumor.scans.grid import Box

INDEX = st.integers(-6, 9)
BOXES = st.builds(Box, st.tuples(INDEX, INDEX, INDEX), st.tuples(INDEX, INDEX, INDEX))
OFFSETS = st.tuples(INDEX, INDEX, INDEX)
EMPTY = Box((0, 0, 0), (0, 0, 0))


def voxels(box):
    """Return the voxels of a box as a set; none where it is empty."""
    return {tuple(index + start for index, start in zip(v, box.start, strict=True)) for v in np.ndindex(box.shape)}


def test_hand_worked_boxes():
    one, other = Box((0, 1, 2), (3, 4, 5)), Box((2, 3, 4), (9, 5, 6))
    assert Box.joined([one, other]) == Box((0, 1, 2), (9, 5, 6))
    assert one.shifted((10, -1, 0)) == Box((10, 0, 2), (13, 3, 5))
    assert other.relative_to(one) == Box((2, 2, 2), (9, 4, 4))
    assert one.overlaps(other)
    # Side by side is not over each other.
    assert not one.overlaps(Box((3, 1, 2), (4, 4, 5)))
    assert not one.overlaps(Box((0, 1, 5), (3, 4, 7)))


def test_nothing_joined_is_nothing():
    assert Box.joined([]) == EMPTY
    assert Box.joined([EMPTY, Box((5, 5, 5), (5, 9, 9))]) == EMPTY
    far = Box((7, 7, 7), (8, 8, 8))
    # An empty box at the origin does not stretch the others to it.
    assert Box.joined([EMPTY, far]) == far


@given(st.lists(BOXES, max_size=4))
def test_the_joined_box_is_the_smallest_that_holds_all(boxes):
    joined = Box.joined(boxes)
    held = set().union(*(voxels(box) for box in boxes))
    assert all(joined.contains(box) for box in boxes)
    if not held:
        assert joined.empty
        return
    for axis in range(3):
        places = {voxel[axis] for voxel in held}
        assert (joined.start[axis], joined.stop[axis]) == (min(places), max(places) + 1)


@given(BOXES, BOXES)
def test_two_boxes_overlap_where_they_share_a_voxel(one, other):
    assert one.overlaps(other) == other.overlaps(one) == bool(voxels(one) & voxels(other))


@given(BOXES, OFFSETS)
def test_a_shifted_box_has_the_same_size_elsewhere(box, offset):
    shifted = box.shifted(offset)
    assert shifted.shape == box.shape
    assert voxels(shifted) == {tuple(int(v) for v in np.add(voxel, offset)) for voxel in voxels(box)}
    assert shifted.shifted([-step for step in offset]) == box


@given(BOXES, BOXES)
def test_relative_to_another_a_box_counts_from_its_start(box, other):
    relative = box.relative_to(other)
    assert relative.shifted(other.start) == box
    assert other.relative_to(other).start == (0, 0, 0)


def test_a_part_of_a_part_is_the_part_of_the_whole():
    whole = np.arange(9 * 8 * 7).reshape(9, 8, 7)
    outer, inner = Box((2, 1, 1), (8, 7, 6)), Box((3, 2, 4), (6, 7, 5))
    np.testing.assert_array_equal(whole[outer.slices][inner.relative_to(outer).slices], whole[inner.slices])
    with pytest.raises(ValueError, match="clip it"):
        outer.relative_to(inner).slices  # noqa: B018


@pytest.mark.parametrize(
    ("other", "common"),
    [
        (Box((2, 0, 1), (5, 9, 3)), Box((2, 1, 1), (4, 4, 3))),
        (Box((0, 0, 0), (9, 9, 9)), Box((1, 1, 1), (4, 4, 4))),
    ],
)
def test_intersection(other, common):
    box = Box((1, 1, 1), (4, 4, 4))
    assert box.intersection(other) == other.intersection(box) == common


def test_boxes_apart_have_an_empty_intersection():
    box = Box((1, 1, 1), (4, 4, 4))
    assert box.intersection(Box((4, 1, 1), (6, 4, 4))).empty
    assert box.intersection(Box((7, 8, 9), (9, 9, 9))).empty
    assert np.zeros((9, 9, 9))[box.intersection(Box((7, 1, 1), (9, 4, 4))).slices].size == 0
