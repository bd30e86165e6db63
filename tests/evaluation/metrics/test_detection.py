"""Lesions found, missed and false: every number here is counted by hand."""

import math

import numpy as np
import pytest

from difftumor.evaluation.metrics.detection import CaseDetection, Match, Matching, match_lesions, summarize_detection
from difftumor.scans.grid import Grid
from difftumor.scans.lesions import Lesion, find_lesions

SHAPE = (40, 20, 12)
GRID = Grid(SHAPE, np.eye(4))


def boxes(*parts: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for part in parts:
        mask[part] = True
    return mask


def cube(x: int, size: int = 3, y: int = 2, z: int = 2) -> tuple[slice, slice, slice]:
    return slice(x, x + size), slice(y, y + size), slice(z, z + size)


def detect(truth: np.ndarray, prediction: np.ndarray, case: str = "case", **options):
    return match_lesions(case, find_lesions(truth, GRID), find_lesions(prediction, GRID), **options)


def test_lesions_are_measured_in_the_space_of_the_patient():
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    affine[:3, 3] = (100, 50, -30)
    mask = np.zeros((10, 10, 10), bool)
    mask[2:4, 3, 4] = True
    mask[8, 8, 8] = True
    found = find_lesions(mask, Grid(mask.shape, affine))
    first, second = found.lesions
    assert (first.voxels, second.voxels) == (2, 1)
    assert first.volume_mm3 == pytest.approx(40)
    assert first.diameter_mm == pytest.approx(2 * (3 * 40 / (4 * math.pi)) ** (1 / 3))
    assert first.radius_mm == first.diameter_mm / 2
    assert first.center_mm == pytest.approx((100 - 2 * 2.5, 50 - 2 * 3, -30 + 5 * 4))
    np.testing.assert_array_equal(found.indices > 0, mask)


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    mask = np.zeros(SHAPE, bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert len(find_lesions(mask, GRID).lesions) == 1
    mask[2, 2, 2] = False
    mask[3, 3, 3] = True
    assert len(find_lesions(mask, GRID).lesions) == 2


def test_found_missed_and_false():
    case = detect(boxes(cube(0), cube(10)), boxes(cube(2), cube(20)))
    assert [match.prediction is not None for match in case.matches] == [True, False]
    assert [match.overlap_voxels for match in case.matches] == [9, 0]
    assert [lesion.center_mm[0] for lesion in case.false_positives] == [21]
    assert not case.healthy
    assert case.predicted_tumor


def test_one_prediction_over_two_lesions_finds_the_one_it_covers_more():
    truth = boxes(cube(0), cube(6, size=5))
    case = detect(truth, boxes((slice(0, 11), slice(2, 5), slice(2, 5))))
    assert [match.prediction is not None for match in case.matches] == [False, True]
    assert case.false_positives == ()


def test_of_two_predictions_in_one_lesion_the_smaller_is_false():
    truth = boxes((slice(0, 12), slice(2, 5), slice(2, 5)))
    case = detect(truth, boxes(cube(0, size=2), cube(6, size=3)))
    assert case.matches[0].overlap_voxels == 27
    assert [lesion.voxels for lesion in case.false_positives] == [8]


def test_matching_takes_the_most_common_voxels_over_all_pairs():
    def line(start: int, stop: int) -> tuple[slice, slice, slice]:
        return slice(start, stop), slice(0, 1), slice(0, 1)

    # The second prediction shares 5 voxels with the first lesion and 3 with the second; the first prediction shares
    # 4 with the first lesion. Taking the largest pair first would find one lesion (5); 4 + 3 finds both.
    case = detect(boxes(line(0, 10), line(12, 20)), boxes(line(0, 4), line(5, 15)))
    assert [match.overlap_voxels for match in case.matches] == [4, 3]
    assert case.false_positives == ()


def test_minimum_iou():
    truth, prediction = boxes(cube(0)), boxes(cube(1))  # 18 of 36 voxels in common
    half, more = (Matching(rule="iou", minimum_iou=iou) for iou in (0.5, 0.51))
    assert detect(truth, prediction, matching=half).matches[0].prediction is not None
    assert detect(truth, prediction, matching=more).matches[0].prediction is None


def test_empty_scans():
    empty = np.zeros(SHAPE, bool)
    healthy = detect(empty, empty)
    assert healthy.healthy
    assert not healthy.predicted_tumor
    assert detect(empty, boxes(cube(0))).predicted_tumor
    assert not detect(boxes(cube(0)), empty).predicted_tumor


def test_summary_by_hand():
    empty = np.zeros(SHAPE, bool)
    summary = summarize_detection(
        [
            detect(boxes(cube(0), cube(10)), boxes(cube(0), cube(20)), "a"),  # 1 found, 1 missed, 1 false
            detect(boxes(cube(0)), boxes(cube(20)), "b"),  # missed, 1 false
            detect(boxes(cube(0)), empty, "c"),  # missed
            detect(empty, empty, "d"),
            detect(empty, boxes(cube(0), cube(10)), "e"),  # 2 false
            detect(empty, empty, "f"),
        ]
    )
    assert (summary.sensitivity.hits, summary.sensitivity.total) == (1, 4)
    assert summary.sensitivity.value == pytest.approx(0.25)
    assert (summary.precision.hits, summary.precision.total) == (1, 5)
    assert summary.f1 == pytest.approx(2 / (2 + 4 + 3))
    assert summary.false_positives_per_scan == pytest.approx(4 / 6)
    assert (summary.patient_sensitivity.hits, summary.patient_sensitivity.total) == (2, 3)
    assert (summary.patient_specificity.hits, summary.patient_specificity.total) == (2, 3)
    assert summary.early_sensitivity == summary.sensitivity


def test_radius_bins():
    grid = Grid((60, 60, 60), np.eye(4))
    x, y, z = np.indices(grid.shape)

    def ball(radius: float, center: tuple[int, int, int]) -> np.ndarray:
        return (x - center[0]) ** 2 + (y - center[1]) ** 2 + (z - center[2]) ** 2 <= radius**2

    small, middle, large = ball(4, (8, 8, 8)), ball(8, (30, 12, 12)), ball(12, (40, 40, 40))
    truth = find_lesions(small | middle | large, grid)
    case = match_lesions("case", truth, find_lesions(small | large, grid))
    summary = summarize_detection([case])
    assert {name: (rate.hits, rate.total) for name, rate in summary.sensitivity_by_radius.items()} == {
        "up to 5 mm": (1, 1),
        "5–10 mm": (0, 1),
        "over 10 mm": (1, 1),
    }
    assert (summary.early_sensitivity.hits, summary.early_sensitivity.total) == (1, 2)


def test_a_lesion_on_a_border_is_of_the_smaller_bin_and_not_early():
    lesion = Lesion(index=1, voxels=1, volume_mm3=1.0, diameter_mm=20.0, center_mm=(0.0, 0.0, 0.0))
    case = CaseDetection(
        case="case", matches=(Match(truth=lesion, prediction=lesion, overlap_voxels=1),), false_positives=()
    )
    summary = summarize_detection([case])
    assert {name: rate.total for name, rate in summary.sensitivity_by_radius.items()} == {
        "up to 5 mm": 0,
        "5–10 mm": 1,
        "over 10 mm": 0,
    }
    assert summary.early_sensitivity.total == 0


def test_a_cohort_of_nothing_has_no_rates():
    summary = summarize_detection([])
    assert summary.sensitivity.value is None
    assert summary.f1 is None
    assert summary.false_positives_per_scan is None


def test_maps_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="not on the grid"):
        find_lesions(np.zeros((2, 2, 2)), GRID)
    small = find_lesions(np.zeros((2, 2, 2)), Grid((2, 2, 2), np.eye(4)))
    with pytest.raises(ValueError, match="differ in shape"):
        match_lesions("case", small, find_lesions(np.zeros(SHAPE), GRID))
