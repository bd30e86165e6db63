"""Intervals cover, tests keep their level, and both agree with hand-worked and independent results."""

import itertools

import numpy as np
import pytest
from scipy import stats

from difftumor.errors import ConfigError
from difftumor.evaluation.cohort.statistics import (
    bootstrap_mean,
    bootstrap_ratio,
    check_level,
    holm,
    paired_test,
    wilson_interval,
)

GENERATOR = np.random.default_rng(0)


def test_wilson_by_hand():
    """8 of 10, z = 1.96: center (0.8 + z²/20) / (1 + z²/10), half width z √(0.016 + z²/400) / (1 + z²/10)."""
    z = stats.norm.ppf(0.975)
    center, scale = 0.8 + z**2 / 20, 1 + z**2 / 10
    half = z * np.sqrt(0.8 * 0.2 / 10 + z**2 / 400)
    found = wilson_interval(8, 10)
    assert (found.low, found.high) == pytest.approx(((center - half) / scale, (center + half) / scale))


def test_wilson_stays_within_bounds_and_is_wide_for_few():
    assert wilson_interval(0, 4).low == 0
    assert wilson_interval(4, 4).high == 1
    assert wilson_interval(4, 4).low < 0.6
    assert wilson_interval(0, 0) is None
    with pytest.raises(ValueError, match="5 hits of 4"):
        wilson_interval(5, 4)


def test_bootstrap_of_a_mean_is_about_the_normal_interval():
    values = GENERATOR.normal(0.6, 0.2, 200)
    found = bootstrap_mean(values.tolist(), seed=1)
    half = 1.96 * values.std() / np.sqrt(200)
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_scans_of_one_patient_are_no_new_evidence():
    """Every scan four times over, of the same patients, gives the interval of the patients."""
    values = GENERATOR.uniform(size=12)
    once = bootstrap_mean(values.tolist(), seed=3)
    patients = np.repeat(np.arange(12), 4).tolist()
    again = bootstrap_mean(np.repeat(values, 4).tolist(), patients, seed=3)
    assert (again.low, again.high) == pytest.approx((once.low, once.high))
    naive = bootstrap_mean(np.repeat(values, 4).tolist(), seed=3)
    assert naive.high - naive.low < 0.7 * (once.high - once.low)


def test_the_interval_repeats_and_does_not_depend_on_the_order():
    values, patients = GENERATOR.uniform(size=9).tolist(), list("aabbccdde")
    order = GENERATOR.permutation(9)
    shuffled = bootstrap_mean([values[i] for i in order], [patients[i] for i in order], seed=5)
    found = bootstrap_mean(values, patients, seed=5)
    assert (shuffled.low, shuffled.high) == pytest.approx((found.low, found.high))
    assert bootstrap_mean(values, patients, seed=6) != found


def test_the_interval_covers():
    """95 % intervals of the mean of 30 hold the true mean in 88 to 98 % of 200 samples."""
    inside = 0
    for number in range(200):
        sample = np.random.default_rng(number).exponential(size=30)
        found = bootstrap_mean(sample.tolist(), seed=number, resamples=300)
        inside += found.low <= 1 <= found.high
    assert 0.88 <= inside / 200 <= 0.98


def test_a_ratio_weighs_patients_by_their_lesions():
    """1 of 1 and 0 of 9 lesions: resampling two patients gives 0, 0.1 or 1."""
    found = bootstrap_ratio([1, 0], [1, 9], seed=0)
    assert (found.low, found.high) == (0, 1)
    same = bootstrap_ratio([1, 1, 1], [2, 2, 2], seed=0)
    assert (same.low, same.high) == (0.5, 0.5)


def test_one_patient_has_no_interval():
    assert bootstrap_mean([0.5, 0.7], ["a", "a"], seed=0) is None
    assert bootstrap_mean([], seed=0) is None
    assert bootstrap_ratio([1, 0], [2, 0], seed=0) is None  # The second has no lesions.


def test_permutation_p_is_that_of_all_flips():
    differences = [0.3, -0.1, 0.2, 0.4, 0.05, -0.02]
    observed = abs(np.mean(differences))
    flips = [abs(np.mean(np.multiply(differences, signs))) for signs in itertools.product((1, -1), repeat=6)]
    found = paired_test([0.0] * 6, differences, seed=0)
    assert found.permutation_p == pytest.approx(np.mean([flip >= observed - 1e-12 for flip in flips]))
    assert found.difference == pytest.approx(np.mean(differences))


def test_wilcoxon_p_by_hand():
    """Of five differences of one sign, without ties, all signs are equal in 2 of 32 cases."""
    found = paired_test([0.5] * 5, [0.6, 0.7, 0.8, 0.9, 0.95], seed=0)
    assert found.wilcoxon_p == pytest.approx(2 / 32)


def test_wilcoxon_is_exact_where_few_patients_differ():
    """Five of thirty, all of one sign: 2 of 32 flips are as far out, however many patients are alike."""
    found = paired_test([0.5] * 30, [0.5] * 25 + [0.6, 0.7, 0.8, 0.9, 0.95], seed=0)
    assert found.wilcoxon_p == pytest.approx(2 / 32)
    assert found.permutation_p == pytest.approx(2 / 32, abs=0.01)


def test_rounding_is_no_difference():
    noise = paired_test([0.1 + 0.2] * 20, [0.3] * 20, seed=0)
    assert (noise.wilcoxon_p, noise.permutation_p, noise.difference) == (1.0, 1.0, 0.0)


def test_means_are_over_patients():
    found = paired_test([1.0, 1.0, 0.0], [0.0, 0.0, 1.0], ["a", "a", "b"], seed=0)
    assert (found.first, found.second, found.difference) == (0.5, 0.5, 0.0)


def test_the_level_decides_the_width():
    first, second = GENERATOR.uniform(size=(2, 30)).tolist()
    wide, narrow = (paired_test(first, second, seed=0, level=level).interval for level in (0.95, 0.5))
    assert narrow.high - narrow.low < wide.high - wide.low
    assert paired_test(first, second, seed=1).interval != wide


def test_equal_methods_do_not_differ():
    scores = GENERATOR.uniform(size=8).tolist()
    found = paired_test(scores, scores, seed=0)
    assert (found.difference, found.wilcoxon_p, found.permutation_p) == (0.0, 1.0, 1.0)
    assert paired_test([], [], seed=0) is None


def test_the_test_keeps_its_level_whatever_the_scans_per_patient():
    """If methods are alike, about 5 % of studies have p < 0.05, though each patient has five equal scans."""
    rejected = 0
    for number in range(200):
        generator = np.random.default_rng(number)
        shift = np.repeat(generator.normal(size=10), 5)
        found = paired_test([0.0] * 50, shift.tolist(), np.repeat(np.arange(10), 5).tolist(), seed=0)
        assert found.patients == 10
        rejected += found.permutation_p < 0.05
    assert rejected / 200 < 0.1


def test_a_difference_is_seen():
    generator = np.random.default_rng(4)
    first = generator.uniform(0.3, 0.7, 40)
    found = paired_test(first.tolist(), (first + generator.normal(0.05, 0.05, 40)).tolist(), seed=0)
    assert found.wilcoxon_p < 0.01
    assert found.permutation_p < 0.01
    assert found.interval.low > 0


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize("level", [0, 1, -1, float("nan")])
def test_a_level_is_between_0_and_1(level):
    with pytest.raises(ConfigError, match="confidence level"):
        check_level(level)
