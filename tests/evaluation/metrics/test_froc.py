"""FROC curves: a scan counted by hand, the means that are read from curves, and label maps as a special case."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difftumor.errors import ConfigError
from difftumor.evaluation.metrics.detection import Matching, match_lesions
from difftumor.evaluation.metrics.froc import RATES, CaseFroc, FrocCurve, case_froc, falling_thresholds, froc_curve
from difftumor.scans.grid import Grid
from difftumor.scans.lesions import find_lesions

SHAPE = (30, 6, 6)
GRID = Grid(SHAPE, np.eye(4))


def case(case: str, found: list[int], false: list[int], lesions: int) -> CaseFroc:
    thresholds = np.linspace(0.9, 0.1, len(found))
    return CaseFroc(
        case=case, thresholds=thresholds, found=np.array(found), false_positives=np.array(false), lesions=lesions
    )


@pytest.fixture
def scan() -> tuple[np.ndarray, np.ndarray]:
    """Two lesions, and probabilities that find the first from 0.9 on and both from 0.5 on, with false ones."""
    truth, probability = np.zeros(SHAPE, bool), np.zeros(SHAPE, np.float32)
    truth[2:5, 2:5, 2:5] = truth[10:13, 2:5, 2:5] = True
    probability[2:4, 2:4, 2:4] = 0.9
    probability[10, 2, 2] = 0.5
    probability[20, 2, 2] = 0.7  # false
    probability[25, 2, 2] = 0.3  # false
    probability[4:10, 2, 2] = 0.2  # joins both lesions
    return truth, probability


def test_counts_by_hand(scan):
    counts = case_froc("a", *scan, GRID, thresholds=falling_thresholds((0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95)))
    np.testing.assert_allclose(counts.thresholds, [0.95, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1])
    # In 32 bits 0.9 and 0.7 are a little less; they are compared with thresholds of 32 bits.
    assert counts.found.tolist() == [0, 1, 1, 2, 2, 1, 1]
    assert counts.false_positives.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert (counts.case, counts.lesions) == ("a", 2)


def test_the_matching_is_used(scan):
    truth, probability = scan
    strict = case_froc("a", truth, probability, GRID, thresholds=(0.5,), matching=Matching(rule="iou", minimum_iou=0.2))
    assert strict.found.tolist() == [1]  # 8 of 27 voxels; the other has 1 of 27
    assert strict.false_positives.tolist() == [2]


def test_scans_without_lesions_or_without_predictions(scan):
    truth, probability = scan
    healthy = case_froc("a", np.zeros(SHAPE), probability, GRID, thresholds=(0.8, 0.4))
    assert (healthy.found.tolist(), healthy.false_positives.tolist(), healthy.lesions) == ([0, 0], [1, 3], 0)
    silent = case_froc("a", truth, np.zeros(SHAPE), GRID, thresholds=(0.8,))
    assert (silent.found.tolist(), silent.false_positives.tolist(), silent.lesions) == ([0], [0], 2)
    nothing = case_froc("a", np.zeros(SHAPE), np.zeros(SHAPE), GRID)
    assert not nothing.found.any()
    assert not nothing.false_positives.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["overlap", "center"]))
def test_a_threshold_counts_as_its_label_map_does(seed, rule):
    generator = np.random.default_rng(seed)
    truth, probability = generator.random(SHAPE) < 0.02, generator.random(SHAPE) ** 4
    matching = Matching(rule=rule)
    counts = case_froc("a", truth, probability, GRID, thresholds=(0.9, 0.75), matching=matching)
    for i, threshold in enumerate(counts.thresholds):
        prediction = find_lesions(probability >= threshold, GRID)
        detection = match_lesions("a", find_lesions(truth, GRID), prediction, matching=matching)
        assert counts.found[i] == sum(match.prediction is not None for match in detection.matches)
        assert counts.false_positives[i] == len(detection.false_positives)
        assert counts.lesions == len(detection.matches)


def test_a_curve_sums_scans():
    curve = froc_curve(
        [case("a", [0, 1, 2], [0, 1, 1], 2), case("b", [1, 1, 1], [0, 0, 4], 2), case("c", [0] * 3, [0, 0, 3], 0)]
    )
    assert curve.sensitivity == pytest.approx([0.25, 0.5, 0.75])
    assert curve.false_positives_per_scan == pytest.approx([0, 1 / 3, 8 / 3])
    assert (curve.lesions, curve.scans) == (4, 3)


def test_a_scan_drawn_twice_counts_twice():
    a, b = case("a", [1, 2], [0, 3], 2), case("b", [0, 1], [1, 1], 4)
    curve = froc_curve([a, b, a])
    assert curve.sensitivity == pytest.approx([2 / 8, 5 / 8])
    assert curve.false_positives_per_scan == pytest.approx([1 / 3, 7 / 3])


def test_sensitivities_are_read_from_the_curve_by_hand():
    # Per scan 0, 0.5, 1 and 3 false positives; the sensitivity falls at the last, where lesions have grown together.
    curve = froc_curve([case("a", [1, 2, 4, 3], [0, 1, 2, 6], 5), case("b", [0] * 4, [0] * 4, 0)])
    assert curve.sensitivity_at((0, 0.49, 0.5, 0.99, 1, 3, 100)) == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.8, 0.8, 0.8])
    # 1/8 and 1/4: 0.2; 1/2: 0.4; 1, 2, 4 and 8: 0.8.
    assert len(RATES) == 7
    assert curve.mean_sensitivity() == pytest.approx((0.2 * 2 + 0.4 + 0.8 * 4) / 7)


def test_below_the_first_point_nothing_is_found():
    curve = froc_curve([case("a", [3], [2], 3)])
    assert curve.sensitivity_at((1.99, 2)) == pytest.approx([0, 1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=1, max_size=8))
def test_what_is_read_rises_with_the_rate_and_was_reached(points):
    curve = froc_curve([case("a", [found for found, _ in points], [false for _, false in points], 5)])
    read = curve.sensitivity_at(np.arange(0, 31))
    assert (np.diff(read) >= 0).all()
    assert set(read) <= {0.0, *curve.sensitivity}
    assert read[-1] == curve.sensitivity.max()


def test_without_lesions_there_is_no_sensitivity():
    curve = froc_curve([case("a", [0], [2], 0)])
    assert isinstance(curve, FrocCurve)
    assert curve.sensitivity is None
    assert curve.sensitivity_at() is None
    assert curve.mean_sensitivity() is None
    assert curve.false_positives_per_scan == pytest.approx([2])


def test_bad_arguments_are_refused(scan):
    truth, probability = scan
    for thresholds in ((0.0, 0.5), (0.5, 1.1), (float("nan"),)):
        with pytest.raises(ConfigError, match="thresholds"):
            falling_thresholds(thresholds)
    with pytest.raises(ValueError, match="not on the grid"):
        case_froc("a", truth[1:], probability, GRID)
    for wrong in (100 * probability, probability - 0.1, np.where(truth, np.nan, probability)):
        with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
            case_froc("a", truth, wrong, GRID)
    with pytest.raises(ValueError, match="at least one scan"):
        froc_curve([])
    with pytest.raises(ValueError, match="thresholds of the scans differ"):
        froc_curve([case("a", [1], [1], 1), case("b", [1, 1], [1, 1], 1)])
