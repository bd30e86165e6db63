"""A tumor's score is that of what is predicted of it, whatever is predicted elsewhere."""

import numpy as np
import pytest

from difftumor.evaluation.metrics.detection import Matching
from difftumor.evaluation.robustness.scoring import score_tumor
from difftumor.scans.grid import Grid

GRID = Grid((20, 12, 12), np.diag([2.0, 2.0, 2.0, 1.0]))


def cube(start, side=4):
    labels = np.zeros(GRID.shape, np.uint8)
    labels[start : start + side, 2 : 2 + side, 2 : 2 + side] = 2
    return labels


def scored(prediction, before=None, **options):
    return score_tumor(prediction, cube(2) == 2, cube(0, 0) if before is None else before, GRID, **options)


def test_the_same():
    found = scored(cube(2))
    assert (found.found, found.dsc, found.nsd, found.false_positives, found.marked_before) == (True, 1, 1, 0, False)


def test_nothing_and_organ_alone_are_a_miss():
    for prediction in (cube(0, 0), cube(2) // 2):
        found = scored(prediction)
        assert (found.found, found.dsc, found.nsd, found.false_positives) == (False, 0, 0, 0)


def test_half():
    # 4 x 4 x 4 voxels, moved by two: 32 of 64 in common.
    assert scored(cube(4)).dsc == pytest.approx(0.5)
    assert 0 < scored(cube(4)).nsd < 1


def test_what_lies_elsewhere_is_counted_and_nothing_else():
    found = scored(np.maximum(cube(2), cube(12)))
    assert (found.found, found.dsc, found.false_positives) == (True, 1, 1)
    assert scored(cube(12)).false_positives == 1


def test_pieces_that_touch_it_count_together():
    pieces = cube(2)
    pieces[4] = 0  # two pieces of one and two slices
    found = scored(pieces)
    assert found.dsc == pytest.approx(2 * 48 / (64 + 48))
    assert found.false_positives == 0


def test_least_overlap():
    assert scored(cube(4), matching=Matching(rule="iou", minimum_iou=0.3)).found  # 32 of 96
    assert not scored(cube(4), matching=Matching(rule="iou", minimum_iou=0.4)).found


def test_what_was_predicted_there_before():
    assert scored(cube(2), cube(5)).marked_before
    assert not scored(cube(2), cube(6)).marked_before
    assert not scored(cube(2), cube(2) // 2).marked_before
