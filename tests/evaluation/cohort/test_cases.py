"""Scores of one case: which masks are compared, and that every setting reaches what it sets."""

import numpy as np
import pytest

from difftumor.errors import ConfigError
from difftumor.evaluation.cohort.cases import Rules, evaluate_case
from difftumor.evaluation.metrics.detection import Matching
from difftumor.scans.grid import Grid

GRID = Grid((16, 16, 16), np.diag([-1.0, -1.0, 2.0, 1.0]))


def label_map(*tumors: int) -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:14, 2:14, 2:14] = 1
    for x in tumors:
        labels[x : x + 3, 4:6, 4:6] = 2
    return labels


def test_the_organ_includes_its_tumors():
    result = evaluate_case("a", label_map(), label_map(3), GRID)
    assert result.organ is not None
    assert (result.organ.dsc, result.organ.hd95_mm, result.organ.empty) == (1.0, 0.0, "neither")
    assert (result.tumor.dsc, result.tumor.empty) == (0.0, "prediction")
    assert result.tumor.volume_error_ml == pytest.approx(-3 * 2 * 2 * 2 / 1000)
    assert [match.prediction for match in result.detection.matches] == [None]


def test_without_an_organ_it_is_not_scored():
    prediction, truth = (np.where(label_map(x) == 2, np.uint8(2), np.uint8(0)) for x in (3, 4))
    result = evaluate_case("a", prediction, truth, GRID)
    assert result.organ is None
    assert result.tumor == evaluate_case("a", label_map(3), label_map(4), GRID).tumor


def test_the_matching_is_used():
    prediction, truth = label_map(5), label_map(3)  # 4 of 20 voxels in common
    for matching, found in ((Matching(), True), (Matching(rule="iou", minimum_iou=0.3), False)):
        result = evaluate_case("a", prediction, truth, GRID, rules=Rules(matching=matching))
        assert (result.detection.matches[0].prediction is not None) == found
        assert len(result.detection.false_positives) == (not found)


def test_the_tolerance_is_used():
    prediction, truth = label_map(4), label_map(3)
    rules = [Rules(tolerance_mm=mm) for mm in (0.5, 1.0)]
    strict, wide = (evaluate_case("a", prediction, truth, GRID, rules=each).tumor.nsd for each in rules)
    assert strict < wide == 1.0


def test_rules_are_checked_when_they_are_made():
    with pytest.raises(ConfigError, match="tolerance"):
        Rules(tolerance_mm=-1)
    with pytest.raises(ConfigError, match="thresholds"):
        Rules(thresholds=(0.5, 2))
    assert Rules(thresholds=(0.5, 0.9, 0.5)).thresholds == (0.9, 0.5)


def test_volumes_of_a_tilted_grid_are_those_of_its_lesions():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 1.5  # slices are shifted against each other
    grid = Grid(GRID.shape, affine)
    assert grid.voxel_mm3 < np.prod(grid.spacing_mm)
    result = evaluate_case("a", label_map(3), label_map(), grid)
    lesion_mm3 = result.detection.false_positives[0].volume_mm3
    assert result.tumor.volume_error_ml == pytest.approx(lesion_mm3 / 1000)


def test_label_maps_must_be_on_the_grid():
    with pytest.raises(ValueError, match="grid"):
        evaluate_case("a", label_map()[1:], label_map()[1:], GRID)
