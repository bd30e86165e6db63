"""Fidelity of reconstructions: hand-worked arrays, known damage, and independent implementations."""

import math

import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import peak_signal_noise_ratio

from difftumor.evaluation.autoencoder import fidelity as module
from difftumor.evaluation.autoencoder.fidelity import (
    body_mask,
    gradient_magnitude,
    grown,
    measure_fidelity,
    smoothed,
    structural_similarity,
)
from difftumor.scans.intensity import IntensityWindow
from tests.conftest import randn

WINDOW = IntensityWindow()


@pytest.fixture(scope="module")
def ct() -> torch.Tensor:
    """A ball of noisy liver with a vessel, in fat, in air."""
    x, y, z = (axis - 24 for axis in torch.meshgrid(*(torch.arange(48.0),) * 3, indexing="ij"))
    hu = torch.full((48, 48, 48), -1000.0)
    hu[x**2 + y**2 + z**2 < 22**2] = -100
    hu[x**2 + y**2 + z**2 < 18**2] = 60
    hu[(x - 8) ** 2 + y**2 < 3**2] = 180
    return hu + 12 * randn(48, 48, 48) * (hu > -900)


def clipped(ct: torch.Tensor) -> torch.Tensor:
    return ct.clip(WINDOW.low_hu, WINDOW.high_hu)


def blurred(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(volume.numpy(), sigma))


def measure(ct: torch.Tensor, reconstruction: torch.Tensor, **more):
    return measure_fidelity(ct, reconstruction, window=WINDOW, **more)


def test_the_same_scan_is_perfect(ct):
    result = measure(ct, clipped(ct))
    assert result.psnr_db == math.inf
    assert result.ssim == pytest.approx(1, abs=1e-5)
    assert (result.mae_hu, result.bias_hu, result.edge_ratio, result.noise_ratio) == (0, 0, 1, 1)
    assert result.codes_used is None
    assert result.structures == {}


def test_what_lies_beyond_the_window_is_no_error(ct):
    hard = ct.clone()
    hard[20:28, 20:28, 20:28] = 1500
    assert measure(hard, clipped(hard)).mae_hu == 0


def test_a_shift_is_all_bias():
    ct = randn(16, 16, 16) * 10
    result = measure(ct, ct + 10)
    assert result.bias_hu == pytest.approx(10, abs=1e-4)
    assert result.mae_hu == pytest.approx(10, abs=1e-4)
    assert result.psnr_db == pytest.approx(20 * math.log10(425 / 10), abs=1e-4)
    assert result.noise_ratio == pytest.approx(1, abs=1e-4)


def test_errors_by_hand():
    """Two voxels of tissue side by side in air that the window clips: the body is both with all they touch."""
    ct = torch.full((6, 5, 5), -1000.0)
    ct[2, 2, 2], ct[3, 2, 2] = 40.0, 300.0
    reconstruction = clipped(ct)
    reconstruction[2, 2, 2] += 8  # in the body
    reconstruction[3, 2, 2] -= 20  # of the 250 HU that the window leaves
    reconstruction[1, 1, 1] += 4  # beside the body
    reconstruction[0, 0, 0] += 100  # in the air, which is not looked at
    tumor = torch.zeros_like(ct, dtype=torch.bool)
    tumor[2:4, 2, 2] = True
    nowhere = torch.zeros_like(tumor)
    result = measure(ct, reconstruction, structures={"tumor": tumor, "nowhere": nowhere})
    voxels = 4 * 3 * 3
    assert result.mae_hu == pytest.approx((8 + 20 + 4) / voxels)
    assert result.bias_hu == pytest.approx((8 - 20 + 4) / voxels)
    assert result.psnr_db == pytest.approx(10 * math.log10(425**2 / ((64 + 400 + 16) / voxels)))
    inside = result.structures["tumor"]
    assert (inside.voxels, inside.mae_hu, inside.bias_hu) == (2, 14, -6)
    assert result.structures["nowhere"].voxels == 0
    assert math.isnan(result.structures["nowhere"].mae_hu)
    # So few voxels hold neither edges nor tissue to speak of.
    assert math.isnan(result.edge_ratio)
    assert math.isnan(result.noise_ratio)


def test_noise_is_not_looked_for_in_bright_tissue_nor_in_too_little_of_any():
    bright, liver = (level + 5 * randn(30, 24, 24) for level in (225, 60))
    assert math.isnan(measure(bright, bright).noise_ratio)
    assert measure(liver, liver).noise_ratio == 1
    assert math.isnan(measure(liver[:4, :4, :6], liver[:4, :4, :6]).noise_ratio)  # 96 voxels


def test_a_ct_without_noise_has_none_to_keep():
    ct = torch.full((20, 20, 20), 60.0)
    assert math.isnan(measure(ct, ct + 10 * randn(20, 20, 20)).noise_ratio)


def test_a_step_that_becomes_a_ramp_by_hand():
    """A step has a slope of 50 HU per voxel on both sides; with 25 and 75 HU there instead of 0 and 100, 37.5."""
    ct = torch.zeros(20, 12, 12)
    ct[10:] = 100
    ramp = ct.clone()
    ramp[9], ramp[10] = 25, 75
    assert measure(ct, ramp).edge_ratio == pytest.approx(0.75)


def test_the_body_is_the_largest_part_without_its_gas():
    ct = torch.full((20, 12, 12), -1000.0)
    ct[2:12, 2:10, 2:10] = 40
    ct[5:9, 4:8, 4:8] = -1000  # gas, which lies within one voxel only at its border
    ct[16:19] = 40  # a table
    body = body_mask(ct, WINDOW)
    expected = torch.zeros(20, 12, 12, dtype=torch.bool)
    expected[1:13, 1:11, 1:11] = True
    expected[6:8, 5:7, 5:7] = False
    assert torch.equal(body, expected)
    assert body_mask(torch.full((3, 3, 3), -1000.0), WINDOW).all()
    # A window that shows the lungs does not make them body.
    assert torch.equal(body_mask(ct, IntensityWindow(-1100, 300)), expected)


def test_a_scan_without_air_is_all_body():
    assert body_mask(randn(9, 8, 7) * 10 + 50, WINDOW).all()


def test_a_chest_that_fills_the_scan_is_body_but_for_its_lungs():
    """It touches five sides; of the lung only the vessel is body, and what touches tissue."""
    ct = torch.full((14, 14, 14), 40.0)
    ct[:, 13:] = -1000  # in front of the patient
    ct[3:11, 3:11, 3:11] = -850
    ct[3:11, 7, 7] = 60
    expected = torch.ones(14, 14, 14, dtype=torch.bool)
    expected[4:10, 4:10, 4:10] = False
    expected[4:10, 6:9, 6:9] = True
    assert torch.equal(body_mask(ct, WINDOW), expected)


def test_blur_softens_edges_and_takes_noise(ct):
    results = [measure(ct, blurred(clipped(ct), sigma)) for sigma in (0.5, 0.8, 1.2)]
    edges, noises = [r.edge_ratio for r in results], [r.noise_ratio for r in results]
    assert 1 > edges[0] > edges[1] > edges[2] > 0.2
    assert 1 > noises[0] > noises[1] > noises[2] > 0
    assert 1 > results[0].ssim > results[1].ssim > results[2].ssim


def test_a_noise_ratio_is_a_ratio_of_powers(ct):
    """Noise of 12 HU with as much again, in power, and noise of half the amplitude."""
    more = measure(ct, clipped(ct) + 12 * randn(48, 48, 48, seed=1))
    assert more.noise_ratio == pytest.approx(2, rel=0.05)
    assert more.edge_ratio > 1.01
    smooth = clipped(ct) - 6 * randn(48, 48, 48)  # the very noise that the CT is made of
    assert measure(ct, smooth).noise_ratio == pytest.approx(0.25, rel=0.05)


def test_ringing_sharpens_edges(ct):
    overshot = clipped(ct) + 0.7 * (blurred(clipped(ct), 0.7) - blurred(clipped(ct), 1.4))
    assert measure(ct, overshot).edge_ratio > 1.1


def test_noise_is_not_looked_for_at_edges_nor_in_fat():
    ct = torch.full((40, 30, 30), -100.0)
    ct[20:] = 60
    ct += 5 * randn(40, 30, 30)
    reconstruction = ct.clone()
    reconstruction[:23] += 50 * randn(23, 30, 30)  # fat, and the liver next to it
    assert measure(ct, reconstruction).noise_ratio == pytest.approx(1, abs=0.02)


def test_similarity_and_psnr_agree_with_other_implementations(ct):
    part = clipped(ct)[10:36, 8:30, 12:40]
    noisy = 0.8 * part + 20 + 10 * randn(*part.shape, seed=2)
    a, b = ((values[None, None] + 175) / 425 for values in (part, noisy))
    theirs, _ = compute_ssim_and_cs(b, a, 3, [11] * 3, [1.5] * 3, data_range=1.0)
    ours = structural_similarity(a[0, 0], b[0, 0])
    torch.testing.assert_close(ours[5:-5, 5:-5, 5:-5], theirs[0, 0], rtol=1e-3, atol=1e-4)
    body = body_mask(part, WINDOW)
    result = measure(part, noisy)
    assert result.ssim == pytest.approx(ours[body].mean().item(), abs=1e-5)
    expected = peak_signal_noise_ratio(noisy[body], part[body], data_range=425.0)
    assert result.psnr_db == pytest.approx(expected.item(), abs=1e-3)


def test_slabs_give_what_the_whole_gives(ct, monkeypatch):
    reconstruction = blurred(clipped(ct), 0.7) + 3 * randn(48, 48, 48, seed=3)
    monkeypatch.setattr(module, "_SLAB", 48)
    whole = measure(ct, reconstruction)
    for slab in (7, 24, 47):
        monkeypatch.setattr(module, "_SLAB", slab)
        part = measure(ct, reconstruction)
        for name in ("ssim", "edge_ratio", "noise_ratio"):
            assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=1e-6), (slab, name)


@pytest.mark.parametrize("shape", [(48, 40, 3), (1, 30, 30), (12, 1, 1)])
def test_scans_thinner_than_the_filters_are_measured(shape):
    ct = randn(*shape) * 10 + 50
    result = measure(ct, ct)
    assert result.ssim == pytest.approx(1, abs=1e-5)
    assert result.mae_hu == 0


def test_codes_that_were_used_are_counted(ct):
    assert measure(ct, ct, code_counts_K=torch.tensor([0, 3, 0, 1])).codes_used == 2


def test_inputs_stay_as_they_are_and_must_fit(ct):
    copy = ct.clone()
    measure(ct, ct)
    assert torch.equal(ct, copy)
    with pytest.raises(ValueError, match="one shape"):
        measure(ct, ct[1:])
    with pytest.raises(ValueError, match="structure 'liver'"):
        measure(ct, ct, structures={"liver": torch.ones(2, 2, 2, dtype=torch.bool)})


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_smoothing_agrees_with_scipy(sigma):
    volume = randn(9, 20, 14)
    expected = gaussian_filter(volume.numpy(), sigma, mode="nearest", truncate=4)
    torch.testing.assert_close(smoothed(volume, sigma), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


def test_gradient_by_hand():
    x, y, z = torch.meshgrid(torch.arange(5.0), torch.arange(4.0), torch.arange(6.0), indexing="ij")
    magnitude = gradient_magnitude(2 * x - 3 * y + 6 * z)
    torch.testing.assert_close(magnitude[1:-1, 1:-1, 1:-1], torch.full((3, 2, 4), 7.0))


def test_growing_by_hand():
    mask = torch.zeros(5, 5, 5, dtype=torch.bool)
    mask[0, 2, 4] = True
    expected = torch.zeros_like(mask)
    expected[:2, 1:4, 3:] = True
    assert torch.equal(grown(mask), expected)
