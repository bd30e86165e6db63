"""Which numbers label maps hold, and where."""

import numpy as np
import pytest

from difftumor.scans.grid import Box
from difftumor.scans.hounsfield import organ_doubts
from difftumor.scans.label_maps import label_boxes, label_values
from difftumor.scans.organs import get_organ


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_boxes_are_those_of_each_number_alone(dtype, order):
    random = np.random.default_rng(0)
    labels = np.zeros((9, 8, 7), dtype, order=order)
    labels[2:8, 1:5, 3:6] = random.choice([0, 0, 0, 3, 7, 200], size=(6, 4, 3))
    expected = {value: Box.around(labels == value) for value in (3, 7, 200)}
    assert label_boxes(labels) == expected
    assert label_boxes(np.zeros_like(labels)) == {}


def test_large_numbers_have_boxes_that_hold_them():
    labels = np.zeros((6, 6, 6), np.uint32)
    labels[1, 2, 3], labels[4, 4, 4] = 5, 2**32 - 1
    boxes = label_boxes(labels)
    assert sorted(boxes) == label_values(labels) == [5, 2**32 - 1]
    assert all(box.contains(Box.around(labels == value)) for value, box in boxes.items())


def test_an_organ_is_judged_alike_in_a_part_of_the_scan():
    hu = np.full((20, 20, 20), -1000.0, np.float32)
    hu[4:16] = np.random.default_rng(0).normal(50, 10, (12, 20, 20))
    for where, count in ((slice(0, 4), 1), (slice(6, 12), 0)):
        mask = np.zeros(hu.shape, np.uint8)
        mask[where, 5:15, 5:15] = 1
        box = Box.around(mask).padded(1).clipped(mask.shape)
        whole, part = (
            organ_doubts(hu, each, get_organ("liver"), ct="ct", mask="mask", box=inside)
            for each, inside in ((mask, None), (mask[box.slices], box))
        )
        assert whole == part
        assert len(whole) == count
