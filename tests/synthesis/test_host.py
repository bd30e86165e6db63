import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from difftumor.errors import SynthesisError
from difftumor.scans.organs import get_organ
from difftumor.synthesis.blending import smoothed_tissue
from difftumor.synthesis.host import Host, Parenchyma, find_vessels, measure_noise, measure_parenchyma
from tests.synthesis.makers import ball

EVEN = (1.0, 1.0, 1.0)


def liver(sd_hu=10.0, seed=0):
    """A block of 100 HU with a bright plate of 200 HU inside, between bone and fat."""
    ct = np.full((44, 40, 36), -100.0)
    ct[:, :, :4] = 1200.0
    organ = np.zeros(ct.shape, bool)
    organ[8:40, 6:34, 5:33] = True
    ct[organ] = 100.0
    plate = np.zeros(ct.shape, bool)
    plate[20:24, 10:30, 9:29] = True
    ct[plate] = 200.0
    ct += np.random.default_rng(seed).normal(0, sd_hu, ct.shape)
    return ct.astype(np.float32), organ, plate


@pytest.mark.parametrize("spacing", [EVEN, (0.7, 0.8, 5.0)])
def test_vessels_are_the_smoothed_ct_above_the_threshold_inside_the_organ(spacing):
    ct, organ, _ = liver()
    values = ct[organ].astype(np.float64)
    sigma_mm = 0.5 + 0.025 * values.std()
    smooth = gaussian_filter(ct.astype(np.float64), [sigma_mm / step for step in spacing], truncate=3.0)
    margin = smooth - (values.mean() + 12.0)
    vessels = find_vessels(ct, organ, spacing_mm=spacing, offset_hu=12.0)
    clear = np.abs(margin) > 1e-3  # float32 may decide the others either way
    np.testing.assert_array_equal(vessels[clear], (organ & (margin > 0))[clear])
    assert vessels.dtype == bool
    assert not vessels[~organ].any()


def test_a_vessel_is_found_and_noise_is_not():
    ct, organ, plate = liver(sd_hu=25.0)
    vessels = find_vessels(ct, organ, spacing_mm=EVEN)
    assert vessels[plate].mean() > 0.95
    # The blurred plate is up to two voxels wider, and the bone below shines into the organ's first slices.
    away = organ.copy()
    away[18:26] = False
    away[:, :, :10] = False
    assert vessels[away].mean() < 1e-3


def test_specks_are_no_vessels():
    ct, organ, _ = liver(sd_hu=0.0)
    ct[organ] = 100.0
    ct[10:12, 10:12, 10:12] = 300.0
    ct[20:26, 20:26, 20:26] = 300.0
    vessels = find_vessels(ct, organ, spacing_mm=EVEN)
    assert vessels[20:26, 20:26, 20:26].all()
    assert not vessels[:18].any()


def test_the_same_vessels_in_mm_at_any_spacing():
    ct, organ, _ = liver(sd_hu=0.0)
    fine = [np.repeat(np.repeat(a, 2, axis=0), 2, axis=1) for a in (ct, organ)]
    once = find_vessels(ct, organ, spacing_mm=EVEN)
    twice = find_vessels(*fine, spacing_mm=(0.5, 0.5, 1.0))
    assert twice.sum() / 4 == pytest.approx(once.sum(), rel=0.05)


def test_the_parenchyma_is_the_organ_without_vessels():
    ct, organ, _ = liver(sd_hu=0.0)
    vessels = np.zeros_like(organ)
    vessels[ct == 200] = True
    assert measure_parenchyma(ct, organ, vessels) == Parenchyma(100.0, 0.0)
    # A share p of 1600 / 25088 voxels at 200 HU: mean 100 + 100 p, sd 100 · √(p · (1 − p)).
    share = 1600 / 25088
    whole = measure_parenchyma(ct, organ, np.zeros_like(organ))
    assert whole.mean_hu == pytest.approx(100 + 100 * share)
    assert whole.sd_hu == pytest.approx(100 * np.sqrt(share * (1 - share)))


def test_noise_is_what_a_gaussian_takes_away():
    """Of white noise with a deviation of 15 HU, 15 times the norm of the kernel less a Gaussian is left."""
    hu = np.random.default_rng(0).normal(110, 15, (60, 60, 60)).astype(np.float32)
    organ = np.ones(hu.shape, bool)
    x = np.arange(-8, 9)
    kernel = np.exp(-0.5 * (x / 2) ** 2)
    kernel /= kernel.sum()
    expected = 15 * (1 - 2 * kernel[8] ** 3 + (kernel**2).sum() ** 3) ** 0.5
    found = measure_noise(hu, organ, organ, sigma_mm=2.0, spacing_mm=(1.0, 1.0, 1.0))
    assert found == pytest.approx(expected, rel=0.01)


def test_noise_is_measured_as_it_is_kept():
    """By the Gaussian of ``smoothed_tissue``, between the vessels, whatever lies around the organ."""
    organ = ball((40, 36, 32), 14)
    vessels = ball((40, 36, 32), 4)
    hu = np.where(organ, np.random.default_rng(0).normal(110, 15, organ.shape), -1000).astype(np.float32)
    spacing = (1.0, 1.0, 2.0)
    smooth = smoothed_tissue(torch.from_numpy(hu), torch.from_numpy(organ), [3.0, 3.0, 1.5]).numpy()
    found = measure_noise(hu, organ, organ & ~vessels, sigma_mm=3.0, spacing_mm=spacing)
    assert found == pytest.approx((hu - smooth)[organ & ~vessels].std(), rel=1e-4)


def test_tissue_is_measured_away_from_the_surface_of_the_organ():
    """Voxels at the surface are half fat, as in thick slices; they are no part of the tissue's deviation."""
    organ = ball((48, 48, 48), 18)
    hu = np.where(organ, np.random.default_rng(0).normal(100, 5, organ.shape), -100).astype(np.float32)
    hu[organ & ~ball(organ.shape, 16)] -= 100
    liver = Host(organ, organ=get_organ("liver"), spacing_mm=EVEN, ct_hu_XYZ=hu, open_border=False)
    assert liver.parenchyma.sd_hu > 30
    assert liver.tissue_sd_hu == pytest.approx(5, rel=0.05)
    assert liver.noise_sd_hu(0.5) < 5
    thin = np.zeros(organ.shape, bool)
    thin[10:40, 10:40, 20:24] = True
    plate = Host(thin, organ=get_organ("pancreas"), spacing_mm=EVEN, ct_hu_XYZ=hu, open_border=False)
    plate.vessels = ~thin
    assert (plate.inside == thin).all()


def test_mean_and_deviation_come_back():
    ct, organ, _ = liver(sd_hu=25.0)
    found = measure_parenchyma(ct, organ, find_vessels(ct, organ, spacing_mm=EVEN))
    assert found.mean_hu == pytest.approx(100, abs=2)
    assert found.sd_hu == pytest.approx(25, rel=0.05)


def test_metal_is_not_measured_and_hides_no_vessel():
    ct, organ, plate = liver()
    without = find_vessels(ct, organ, spacing_mm=EVEN)
    ct[36, 14, 14] = 30000.0
    organ[38, 20, 20], ct[38, 20, 20] = True, -8000.0
    before = ct.copy()
    vessels = find_vessels(ct, organ, spacing_mm=EVEN)
    assert vessels[plate].mean() > 0.95
    assert not vessels[36, 14, 14]  # a clip is no vein
    assert (vessels & without).sum() > 0.9 * (vessels | without).sum()
    assert measure_parenchyma(ct, organ, vessels).mean_hu == pytest.approx(100, abs=2)
    # Alone, every value counts as the nearest of the range.
    single = np.zeros_like(organ)
    single[36, 14, 14] = True
    assert measure_parenchyma(ct, single, ~single) == Parenchyma(3000.0, 0.0)
    np.testing.assert_array_equal(ct, before)


def test_where_vessels_cover_everything_the_whole_organ_counts():
    ct, organ, _ = liver()
    expected = measure_parenchyma(ct, organ, np.zeros_like(organ))
    assert measure_parenchyma(ct, organ, organ) == expected


def test_a_constant_organ_has_no_vessels():
    ct, organ = np.full((8, 9, 10), 100, np.float32), np.ones((8, 9, 10), bool)
    assert not find_vessels(ct, organ, spacing_mm=EVEN).any()
    assert measure_parenchyma(ct, organ, ~organ) == Parenchyma(100.0, 0.0)


def test_an_empty_organ_is_refused():
    ct, organ = np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 4), bool)
    with pytest.raises(SynthesisError, match="holds no organ voxel"):
        find_vessels(ct, organ, spacing_mm=EVEN)
    with pytest.raises(SynthesisError, match="holds no organ voxel"):
        measure_parenchyma(ct, organ, organ)
