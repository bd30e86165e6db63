"""The HU window."""

import numpy as np
import pytest
import torch

from difftumor.intensity import IntensityWindow

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
