"""Which tumors are kept: near the organ that is given or predicted, and large enough."""

import numpy as np
import pytest

from difftumor.segmentation.filters import drop_small_tumors, keep_inside_organ, predicted_organ


def test_filter_measures_in_millimeters():
    labels = np.full((21, 21, 21), 2, np.uint8)
    organ = np.zeros(labels.shape, bool)
    organ[10, 10, 10] = True
    kept = keep_inside_organ(labels, organ, spacing_mm=(1.0, 2.0, 5.0), closing_mm=0, dilation_mm=5.0) == 2
    reach = [int((np.argwhere(kept)[:, axis] - 10).max()) for axis in range(3)]
    assert reach == [5, 2, 1]
    x, y, z = np.indices(labels.shape) - 10
    np.testing.assert_array_equal(kept, x**2 + (2 * y) ** 2 + (5 * z) ** 2 <= 25)


def test_closing_fills_a_hole_where_the_tumor_was_left_out():
    x, y, z = np.indices((31, 31, 31)) - 15
    organ = (np.abs(x) <= 12) & (np.abs(y) <= 12) & (np.abs(z) <= 12)
    tumor = x**2 + y**2 + z**2 <= 36
    labels = np.where(tumor, 2, organ).astype(np.uint8)
    mask = organ & ~tumor
    kept = {
        closing_mm: keep_inside_organ(labels, mask, spacing_mm=(1, 1, 1), closing_mm=closing_mm, dilation_mm=0) == 2
        for closing_mm in (0.0, 8.0)
    }
    assert not kept[0.0].any()
    np.testing.assert_array_equal(kept[8.0], tumor)


def test_organs_at_the_border_are_not_eroded_by_closing():
    organ = np.ones((6, 6, 6), bool)
    organ[3:, 3:, 3:] = False
    labels = np.where(organ, 2, 0).astype(np.uint8)
    np.testing.assert_array_equal(
        keep_inside_organ(labels, organ, spacing_mm=(1, 1, 1), closing_mm=2, dilation_mm=0), labels
    )


def test_filter_without_organ_drops_all_tumor_and_keeps_its_input():
    labels = np.array([[[0, 1, 2]]], np.uint8)
    copy = labels.copy()
    kept = keep_inside_organ(labels, np.zeros(labels.shape, bool), spacing_mm=(1, 1, 1))
    np.testing.assert_array_equal(kept, [[[0, 1, 0]]])
    np.testing.assert_array_equal(labels, copy)
    with pytest.raises(ValueError, match="differ in shape"):
        keep_inside_organ(labels, np.zeros((2, 2, 2)), spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match="negative"):
        keep_inside_organ(labels, labels, spacing_mm=(1, 1, 1), closing_mm=-1)


def test_the_organ_is_its_largest_piece_with_tumors_that_touch_it():
    """Of 1000 voxels; another piece has 99 voxels of organ and many of tumor, and a third one is tumor alone."""
    labels = np.zeros((40, 12, 12), np.uint8)
    labels[1:11, 1:11, 1:11] = 1
    labels[11:14, 4:8, 4:8] = 2
    labels[20:31, 1:4, 1:4] = 1
    labels[20:31, 4:11, 1:11] = 2
    labels[36:38, 5:7, 5:7] = 2
    organ = predicted_organ(labels)
    np.testing.assert_array_equal(organ[:16], labels[:16] > 0)
    assert not organ[16:].any()


def test_a_second_kidney_is_organ_too():
    labels = np.zeros((40, 12, 12), np.uint8)
    labels[1:11, 1:11, 1:11] = 1
    labels[30:35, 1:6, 1:5] = 1  # exactly a tenth
    labels[38, 1, 1] = 1
    organ = predicted_organ(labels)
    np.testing.assert_array_equal(organ[:36], labels[:36] == 1)
    assert not organ[36:].any()


def test_tumor_alone_is_no_organ():
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 2
    assert not predicted_organ(labels).any()
    assert not predicted_organ(np.zeros((4, 4, 4), np.uint8)).any()


def test_an_organ_full_of_tumor_stays_the_organ():
    """A piece counts by its organ voxels, but all of it is organ: its tumor may be far from what is left."""
    labels = np.zeros((40, 10, 10), np.uint8)
    labels[1:30, 1:9, 1:9] = 2
    labels[30:32, 1:9, 1:9] = 1
    np.testing.assert_array_equal(predicted_organ(labels), labels > 0)


def test_small_tumors_become_what_is_around_them():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:18, 2:18, 2:10] = 1
    labels[5, 5, 5] = 2  # in the organ
    labels[10, 10, 10] = 2  # on its surface: 9 neighbors of 26 are organ
    labels[12, 12, 16] = 2  # outside
    labels[14:16, 14:16, 4:6] = 2  # 8 voxels
    expected = labels.copy()
    expected[5, 5, 5] = 1
    expected[10, 10, 10] = expected[12, 12, 16] = 0
    before = labels.copy()
    np.testing.assert_array_equal(drop_small_tumors(labels, least_mm3=16.0, voxel_mm3=2.0), expected)
    np.testing.assert_array_equal(labels, before)
    expected[14:16, 14:16, 4:6] = 1
    np.testing.assert_array_equal(drop_small_tumors(labels, least_mm3=16.1, voxel_mm3=2.0), expected)


def test_touching_corners_make_one_tumor():
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1, 1, 1] = labels[2, 2, 2] = 2
    np.testing.assert_array_equal(drop_small_tumors(labels, least_mm3=2, voxel_mm3=1.0), labels)
