"""What known damage does to a real CT, on which docs/autoencoder.md and the reasons of the thresholds rest."""

import pytest
import torch

from difftumor.evaluation.autoencoder.fidelity import measure_fidelity, smoothed
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import read_ct

WINDOW = IntensityWindow()


@pytest.mark.data
@pytest.mark.slow
def test_the_stated_effects_of_damage(real_data):
    """A sarcoma CT at 1 mm; the ranges are those of the table in docs/autoencoder.md, to rounding."""
    ct = read_ct(real_data / "sarcoma" / "STS_012" / "ct.nii.gz")
    hu = torch.from_numpy(ModelSpace(ct.grid).to_model(ct.data, kind="image")).clip(WINDOW.low_hu, WINDOW.high_hu)
    half = torch.nn.functional.avg_pool3d(hu[None, None], 2)
    damaged = {
        "blur 0.7": smoothed(hu, 0.7),
        "blur 1.0": smoothed(hu, 1.0),
        "half": torch.nn.functional.interpolate(half, size=hu.shape, mode="trilinear")[0, 0],
        "noise 20": (hu + 20 * torch.randn(hu.shape, generator=torch.Generator().manual_seed(0))).clip(-175, 250),
    }
    found = {name: measure_fidelity(hu, reconstruction, window=WINDOW) for name, reconstruction in damaged.items()}
    for name, measure, low, high in (
        ("blur 0.7", "edge_ratio", 0.79, 0.85),
        ("blur 1.0", "edge_ratio", 0.67, 0.75),
        ("blur 0.7", "ssim", 0.87, 0.93),
        ("half", "ssim", 0.64, 0.77),
        ("blur 0.7", "noise_ratio", 0.21, 0.30),
        ("blur 1.0", "psnr_db", 27.5, 29.9),
        ("noise 20", "noise_ratio", 2.0, 3.6),
        ("noise 20", "mae_hu", 15.3, 15.7),
    ):
        assert low <= getattr(found[name], measure) <= high, (name, measure, found[name])
