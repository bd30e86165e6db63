"""What scans come to together."""

import math
from pathlib import Path

import pytest
import torch

from difftumor.evaluation.autoencoder.card import ScanCard, combined
from difftumor.evaluation.autoencoder.fidelity import Fidelity, StructureError


def card(case: str, counts: list[int], *, psnr_db: float, noise_ratio: float, **structures: StructureError) -> ScanCard:
    fidelity = Fidelity(
        psnr_db=psnr_db, ssim=0.5, mae_hu=10.0, bias_hu=-1.0, edge_ratio=math.nan, noise_ratio=noise_ratio,
        codes_used=sum(count > 0 for count in counts), structures=structures,
    )  # fmt: skip
    return ScanCard(case=case, image=Path(case), shape=(2, 2, 2), fidelity=fidelity, code_counts_K=torch.tensor(counts))


def test_what_a_scan_lacks_is_the_mean_of_the_others():
    liver, small = StructureError(100, 4.0, 2.0), StructureError(20, 8.0, -4.0)
    none = StructureError(0, math.nan, math.nan)
    overall = combined(
        [
            card("a", [3, 0, 0, 1], psnr_db=30.0, noise_ratio=math.nan, liver=liver, tumor=none),
            card("b", [0, 2, 0, 1], psnr_db=33.0, noise_ratio=0.5, liver=small),
            card("c", [0, 0, 0, 9], psnr_db=36.0, noise_ratio=0.7, liver=none),
        ]
    )
    assert overall.psnr_db == pytest.approx(33)
    assert overall.noise_ratio == pytest.approx(0.6)
    assert math.isnan(overall.edge_ratio)
    assert overall.codes_used == 3  # the first, the second and the last
    assert overall.structures["liver"] == StructureError(120, 6.0, -1.0)
    assert overall.structures["tumor"].voxels == 0
    assert math.isnan(overall.structures["tumor"].mae_hu)
