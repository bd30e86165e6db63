"""Fréchet and kernel distance against independent formulas and MONAI's metrics."""

import numpy as np
import pytest
import torch
from monai.metrics import FIDMetric, MMDMetric
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from difftumor.evaluation.realism.distances import frechet_distance, kernel_distance, kernel_matrix


def normal(count: int, dimensions: int, seed: int, *, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(shift, scale, (count, dimensions))
    return torch.from_numpy(values @ np.linspace(0.5, 1.5, dimensions * dimensions).reshape(dimensions, -1))


@pytest.mark.parametrize("counts", [(60, 50), (60, 4), (5, 60)], ids=["many", "few and many", "many and few"])
def test_frechet_against_the_root_of_the_product(counts):
    one, other = normal(counts[0], 6, 0), normal(counts[1], 6, 1, scale=1.4, shift=0.2)
    means = one.numpy().mean(axis=0), other.numpy().mean(axis=0)
    covariances = np.cov(one.numpy(), rowvar=False), np.cov(other.numpy(), rowvar=False)
    # A tiny multiple of the unit matrix keeps SciPy's root finite where few rows make the product singular.
    ridge = 1e-10 * np.eye(6)
    root = sqrtm((covariances[0] + ridge) @ (covariances[1] + ridge)).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-4)


def test_frechet_is_monai_s():
    one, other = torch.randn(80, 12, generator=torch.Generator().manual_seed(0)), normal(70, 12, 1)
    assert frechet_distance(one, other) == pytest.approx(float(FIDMetric()(one, other)), rel=1e-6)


def test_frechet_by_hand():
    # In one dimension it is the squared difference of means and of standard deviations.
    one, other = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0], [8.0]])
    deviation = np.sqrt(2) - np.sqrt(3)
    assert frechet_distance(one, other) == pytest.approx(5.0**2 + deviation**2)


@pytest.mark.parametrize("count", [3, 40])
def test_frechet_of_equal_sets_is_0_and_ignores_order(count):
    one, other = normal(count, 8, 0), normal(count, 8, 1)
    shuffled = one[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    assert frechet_distance(one, shuffled) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(shuffled, other))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))


def indices(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop)


def test_kernel_distance_is_torchmetrics_polynomial_mmd():
    features = torch.randn(30, 1, 7, generator=torch.Generator().manual_seed(0))
    features[15:] += 0.3
    one, other = features[:15, 0].double(), features[15:, 0].double()
    found = kernel_distance(kernel_matrix(features), indices(0, 15), indices(15, 30))
    assert found == pytest.approx(float(poly_mmd(one, other)), rel=1e-9)


def test_kernel_distance_of_a_linear_kernel_is_monai_s():
    one, other = (torch.randn(9, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    both = torch.cat([one, other])
    found = kernel_distance((both @ both.T).numpy(), indices(0, 9), indices(9, 18))
    assert found == pytest.approx(float(MMDMetric()(one, other)), rel=1e-9)


def test_kernel_distance_is_unbiased_and_grows():
    rng = np.random.default_rng(0)

    def mean(shift: float, count: int) -> float:
        found = []
        for _ in range(300):
            features = torch.from_numpy(rng.normal(0, 1, (2 * count, 1, 3)))
            features[count:] += shift
            found.append(kernel_distance(kernel_matrix(features), indices(0, count), indices(count, 2 * count)))
        return float(np.mean(found))

    assert abs(mean(0.0, 4)) < 0.25
    # The same truth from few and from many, which a biased estimate would not give.
    assert mean(1.0, 4) == pytest.approx(mean(1.0, 24), rel=0.15)
    assert mean(2.0, 8) > mean(1.0, 8) > 0.5


def test_slices_of_a_tumor_are_not_compared_with_each_other():
    # Slices of one tumor alike as twins: as pairs of a set they would make it look narrow, and all distances large.
    generator = torch.Generator().manual_seed(0)
    twins = torch.randn(16, 1, 3, generator=generator).expand(16, 4, 3)
    single = twins[:, :1]
    sets = indices(0, 8), indices(8, 16)
    assert kernel_distance(kernel_matrix(twins), *sets) == pytest.approx(kernel_distance(kernel_matrix(single), *sets))


def test_a_resample_does_not_compare_a_tumor_with_itself():
    kernel = kernel_matrix(torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(0)))
    twice = np.array([0, 0, 1, 1, 2, 2])
    assert kernel_distance(kernel, twice, indices(3, 6)) == pytest.approx(
        kernel_distance(kernel, indices(0, 3), indices(3, 6))
    )
    assert np.isnan(kernel_distance(kernel, np.array([0, 0]), indices(3, 6)))
