"""The studies of hand-crafted tumors, which train nothing: what they measure, from the command line to the table."""

import numpy as np
import pytest
from scipy import ndimage

from studies import handcrafted, rims
from tests.conftest import read_rows


def test_deviation_and_correlation_are_each_tumors_own():
    """Two tumors of another mean; along x voxels repeat, along z they alternate, along y they are independent."""
    pattern = np.random.default_rng(0).normal(size=(1, 40, 1)) * np.array([1, -1] * 6).reshape(1, 1, 12)
    noise = np.broadcast_to(pattern, (40, 40, 12)) * 10
    cores = np.zeros(noise.shape, np.uint8)
    cores[:18], cores[22:] = 1, 2
    ct_hu = np.where(cores == 1, 50, 90) + noise
    found = handcrafted._grain(ct_hu.astype(np.float32), cores)
    assert found["sd_hu"] == pytest.approx(noise.std(), abs=0.1)
    assert (found["lag_1_x"], found["lag_1_z"]) == (1.0, -1.0)
    assert abs(found["lag_1_y"]) < 0.4


@pytest.mark.slow
def test_in_the_synthetic_liver_scaled_tumors_vary_as_their_host(tmp_path, capsys):
    assert handcrafted.main(["--out", str(tmp_path), "--count", "2"]) == 0
    rows = {row["what"]: row for row in read_rows(tmp_path / "handcrafted.csv")}
    assert list(rows) == ["host", "eq. (3)", "scaled", "noise kept"]
    sd = {name: float(row["sd_hu"]) for name, row in rows.items()}
    assert sd["scaled"] == pytest.approx(15, rel=0.15)
    assert sd["noise kept"] == pytest.approx(15, rel=0.15)
    assert sd["eq. (3)"] < 8
    assert float(rows["noise kept"]["noise_in_common"]) > 0.8
    assert (tmp_path / "synthetic_liver.png").is_file()


def test_a_share_of_the_radius_leaves_something_of_tiny_tumors(tmp_path):
    soft, shared = (rims.measure("tiny", rim, count=12, crop=36) for rim in rims.RIMS.values())
    assert min(soft[0]) < rims.LEAST_WEIGHT < min(shared[0])
    assert np.median(np.abs(soft[1])) < np.median(np.abs(shared[1]))
    # A weight at the center by hand: that of a ball of 4 mm under a rim of 4 mm.
    ball = np.zeros((41, 41, 41))
    offsets = np.arange(41) - 20
    ball[sum(o**2 for o in np.meshgrid(offsets, offsets, offsets)) <= 16] = 1
    assert ndimage.gaussian_filter(ball, 4.0)[20, 20, 20] < 0.25
