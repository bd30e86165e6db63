"""The HU window."""

import math

import numpy as np
import pytest
import torch

from difftumor.scans.intensity import IntensityWindow, Normalization

HU = [-1000.0, -175.0, 37.5, 250.0, 3000.0]


@pytest.mark.parametrize("make", [lambda v: np.array(v, np.float32), torch.tensor], ids=["numpy", "torch"])
def test_values_by_hand(make):
    window, hu = IntensityWindow(), make(HU)
    assert window.to_unit(hu).tolist() == [0, 0, 0.5, 1, 1]
    assert window.to_signed(hu).tolist() == [-1, -1, 0, 1, 1]
    assert window.from_unit(make([0.0, 0.5, 1.0])).tolist() == [-175, 37.5, 250]
    assert window.from_signed(make([-1.0, 0.0, 1.0])).tolist() == [-175, 37.5, 250]
    assert window.to_unit(hu).dtype == hu.dtype
    assert hu.tolist() == HU


@pytest.mark.parametrize("way", ["unit", "signed"])
def test_inverse_inside_the_window(way):
    window = IntensityWindow(-100, 300)
    hu = torch.linspace(-100, 300, 401)
    there = getattr(window, f"to_{way}")(hu)
    torch.testing.assert_close(getattr(window, f"from_{way}")(there), hu, atol=1e-4, rtol=0)


def test_refuses_an_empty_window():
    with pytest.raises(ValueError, match="low_hu < high_hu"):
        IntensityWindow(250, -175)


@pytest.mark.parametrize("make", [lambda v: np.asarray(v, np.float32), lambda v: torch.tensor(v)])
def test_a_scan_is_brought_to_zero_mean_and_unit_deviation_after_clipping(make):
    scan = make([[-1000.0, 0.0], [100.0, 3000.0]])  # clipped to -20, 0, 100, 180
    scale = Normalization(IntensityWindow(-20, 180), "zscore").scale(scan)
    assert (scale.offset_hu, scale.scale_hu) == (65, pytest.approx(math.sqrt((85**2 + 65**2 + 35**2 + 115**2) / 4)))
    scaled = np.asarray(scale(scan))
    assert scaled.mean() == pytest.approx(0, abs=1e-6)
    assert scaled.std() == pytest.approx(1)
    assert scale.lowest == pytest.approx(scaled.min())


def test_without_more_a_scale_is_the_windows_own():
    window = IntensityWindow()
    scale = Normalization.of({"window_hu": [-175, 250]}).scale(torch.tensor(HU))
    assert scale(torch.tensor(HU)).tolist() == window.to_unit(torch.tensor(HU)).tolist()
    assert scale.lowest == 0


def test_a_scan_of_one_value_stays_finite():
    scan = torch.full((2, 2), 40.0)
    assert Normalization(IntensityWindow(), "zscore").scale(scan)(scan).tolist() == [[0, 0], [0, 0]]


def test_refuses_an_unknown_normalization():
    with pytest.raises(ValueError, match="one of unit, zscore, not 'minmax'"):
        Normalization.of({"window_hu": [0, 1], "normalization": "minmax"})
