"""Co-occurrence matrices against scikit-image and by hand."""

import math

import numpy as np
import pytest

from difftumor.evaluation.realism.texture import LEVELS, cooccurrence, measure_texture
from difftumor.scans.intensity import IntensityWindow

# One HU is one level.
WINDOW = IntensityWindow(0.0, float(LEVELS))
SPACING = (1.0, 1.0, 3.0)


def tumor(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, LEVELS, (14, 12, 5))
    grid = np.indices(levels.shape)
    return levels + 0.5, ((grid[0] - 7) / 6) ** 2 + ((grid[1] - 6) / 5) ** 2 + ((grid[2] - 2) / 2.2) ** 2 < 1


@pytest.mark.parametrize("distance", [1, 2])
def test_it_is_that_of_scikit_image(distance):
    feature = pytest.importorskip("skimage.feature")
    hu, mask = tumor()
    found = cooccurrence(hu, mask, spacing_mm=(1 / distance, 1 / distance, 3.0), window=WINDOW)
    # scikit-image knows no masks: what lies outside gets a level of its own, whose row and column are dropped. Its
    # angles are in the picture, and its diagonals are rounded by their cosine, hence pairs of steps by hand.
    image = np.where(mask, np.floor(hu).astype(int) + 1, 0).astype(np.uint8)
    counts = np.zeros((LEVELS, LEVELS))
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    for z in range(image.shape[2]):
        for angle in angles:
            reach = distance * (math.sqrt(2) if angle in angles[1::2] else 1)
            matrix = feature.graycomatrix(image[..., z], [reach], [angle], levels=LEVELS + 1, symmetric=True)
            counts += matrix[1:, 1:, 0, 0]
    assert np.array_equal(found, counts)
    share = (counts / counts.sum())[..., None, None]
    texture = measure_texture(hu, mask, spacing_mm=(1 / distance, 1 / distance, 3.0), window=WINDOW)
    for name in ("contrast", "homogeneity", "correlation", "entropy"):
        expected = feature.graycoprops(share, name)[0, 0]
        expected = expected / math.log(2) if name == "entropy" else expected
        assert getattr(texture, name) == pytest.approx(expected), name


def test_stripes_by_hand():
    hu = np.zeros((8, 8, 3))
    hu[1::2] = 4.5  # level 0 and level 4 in turn along X
    texture = measure_texture(hu, np.ones(hu.shape, bool), spacing_mm=SPACING, window=WINDOW)
    # In each slice 7·8 pairs along X and 2·7·7 diagonal ones differ by 4, 8·7 along Y are equal.
    different = (56 + 98) / (56 + 98 + 56)
    assert texture.contrast == pytest.approx(16 * different)
    assert texture.homogeneity == pytest.approx(1 - different + different / 17)
    shares = [different / 2, different / 2, (1 - different) / 2, (1 - different) / 2]
    assert texture.entropy == pytest.approx(-sum(share * math.log2(share) for share in shares))


def test_only_the_inside_counts_and_far_slices_are_no_neighbors():
    hu, mask = tumor()
    texture = measure_texture(hu, mask, spacing_mm=SPACING, window=WINDOW)
    outside = np.where(mask, hu, np.random.default_rng(1).uniform(0, 30, hu.shape))
    assert measure_texture(outside, mask, spacing_mm=SPACING, window=WINDOW) == texture
    reordered = measure_texture(hu[..., ::-1], mask[..., ::-1], spacing_mm=SPACING, window=WINDOW)
    assert reordered == texture


def test_blur_and_noise_move_it_their_ways():
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    hu = gaussian_filter(rng.normal(0, 12, (20, 20, 8)), 0.7) + 16
    mask = np.ones(hu.shape, bool)

    def of(image):
        return measure_texture(image, mask, spacing_mm=SPACING, window=WINDOW)

    usual, soft, noisy = of(hu), of(gaussian_filter(hu, 1.5)), of(hu + rng.normal(0, 3, hu.shape))
    assert soft.contrast < usual.contrast < noisy.contrast
    assert soft.correlation > usual.correlation > noisy.correlation
    assert soft.homogeneity > usual.homogeneity > noisy.homogeneity


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 1, 40), (3, 1, 1)])
def test_what_is_too_small_is_unknown(shape):
    texture = measure_texture(np.zeros(shape), np.ones(shape, bool), spacing_mm=SPACING, window=WINDOW)
    assert math.isnan(texture.contrast)
    assert math.isnan(texture.entropy)


def test_an_even_tumor_has_no_correlation():
    texture = measure_texture(np.full((9, 9, 3), 7.0), np.ones((9, 9, 3), bool), spacing_mm=SPACING, window=WINDOW)
    assert (texture.contrast, texture.homogeneity, texture.entropy) == (0, 1, 0)
    assert math.isnan(texture.correlation)
