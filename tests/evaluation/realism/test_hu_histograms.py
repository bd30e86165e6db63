"""Distances of HU histograms."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from difftumor.evaluation.realism.tumor_samples import hu_histogram, hu_jensen_shannon, hu_wasserstein


def histograms(*tumors: np.ndarray) -> np.ndarray:
    return np.stack([hu_histogram(tumor) for tumor in tumors])


def test_a_shift_is_its_own_distance():
    tumors = [np.random.default_rng(seed).normal(40, 15, 200 + 50 * seed) for seed in range(4)]
    real = histograms(*tumors)
    assert hu_wasserstein(real, real) == 0
    assert hu_jensen_shannon(real, real) == 0
    for shift in (20, -35):
        moved = histograms(*[np.rint(tumor) + shift for tumor in tumors])
        assert hu_wasserstein(real, moved) == pytest.approx(abs(shift), abs=1e-3)


def test_wasserstein_is_scipy_s_with_every_tumor_counted_the_same():
    rng = np.random.default_rng(0)
    one, other = [rng.integers(-50, 90, n) for n in (30, 900)], [rng.integers(0, 120, n) for n in (7, 60, 300)]
    values, weights = zip(_joined(one), _joined(other), strict=True)
    expected = wasserstein_distance(*values, *weights)
    assert hu_wasserstein(histograms(*one), histograms(*other)) == pytest.approx(expected, abs=1e-3)


def _joined(tumors):
    return np.concatenate(tumors), np.concatenate([np.full(len(tumor), 1 / len(tumor)) for tumor in tumors])


def test_jensen_shannon_runs_from_0_to_1():
    assert hu_jensen_shannon(histograms(np.full(9, 0.0)), histograms(np.full(9, 400.0))) == pytest.approx(1)
    half = histograms(np.array([0.0, 400.0]))
    # Half of it is shared: JSD = 1 - h(3/4)... by hand from its definition, in bits.
    middle = np.array([0.75, 0.25])
    expected = 0.5 * np.log2(1 / 0.75) + 0.5 * (0.5 * np.log2(0.5 / middle)).sum()
    assert hu_jensen_shannon(histograms(np.full(9, 0.0)), half) == pytest.approx(np.sqrt(expected), abs=1e-6)


def test_what_lies_beyond_counts_at_the_ends():
    assert hu_histogram(np.array([-9000.0, 9000.0]))[[0, -1]].tolist() == [0.5, 0.5]
