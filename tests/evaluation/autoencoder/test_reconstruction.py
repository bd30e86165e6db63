"""Whole scans through the autoencoder: as one pass where a window covers them, without seams where many do."""

from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from difftumor.errors import ArtifactError, ConfigError
from difftumor.evaluation.autoencoder.reconstruction import reconstruct, reconstruct_scan, windows_together
from difftumor.models.artifact import Artifact
from difftumor.models.artifact_config import ArtifactConfig
from difftumor.models.autoencoder import Autoencoder
from difftumor.scans.nifti import read_ct


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def autoencoder() -> Autoencoder:
    """Small, with a codebook placed on the features of some noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Autoencoder(base_channels=4, norm_groups=4, codes=16).eval()
    with torch.no_grad():
        features = network.encode(noise(2, 1, 16, 16, 16))
    network.codebook.initialize(features, generator=torch.Generator().manual_seed(0))
    return network


class Pointwise(nn.Module):
    """Stands for an autoencoder without borders: every voxel stays as it is, every latent vector takes one code."""

    downsampling = 4

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.inner = nn.Dropout(0.5)
        self.codebook = SimpleNamespace(codes=5)
        self.seen: list[torch.Tensor] = []

    def forward(self, ct_BCZXY):
        assert not self.training
        assert not self.inner.training
        self.seen.append(ct_BCZXY)
        b, _, z, x, y = ct_BCZXY.shape
        indices = torch.full((b, z // 4, x // 4, y // 4), 3)
        return SimpleNamespace(reconstruction=self.gain * ct_BCZXY, quantized=SimpleNamespace(indices=indices))


def test_one_window_over_the_scan_is_the_plain_forward_pass(autoencoder):
    ct_XYZ = noise(8, 12, 16)
    result = reconstruct(autoencoder, ct_XYZ, window=(8, 12, 16))
    with torch.no_grad():
        output = autoencoder(ct_XYZ.permute(2, 0, 1)[None, None])
    expected_XYZ = output.reconstruction[0, 0].permute(1, 2, 0).clip(-1, 1)
    torch.testing.assert_close(result.ct_signed_XYZ, expected_XYZ)
    counts = torch.bincount(output.quantized.indices.flatten(), minlength=16)
    torch.testing.assert_close(result.code_counts_K, counts)
    assert counts.sum() == 2 * 3 * 4


def test_a_small_scan_is_surrounded_by_air(autoencoder):
    ct_XYZ = noise(7, 12, 9)
    result = reconstruct(autoencoder, ct_XYZ, window=(8, 12, 16))
    padded = torch.full((8, 12, 16), -1.0)
    padded[:7, :, 3:12] = ct_XYZ
    with torch.no_grad():
        whole = autoencoder(padded.permute(2, 0, 1)[None, None]).reconstruction[0, 0].permute(1, 2, 0)
    torch.testing.assert_close(result.ct_signed_XYZ, whole[:7, :, 3:12].clip(-1, 1))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("value", [-1.0, 0.3])
def test_a_constant_scan_has_no_seams(value, overlap):
    ct_XYZ = torch.full((21, 18, 11), value)
    result = reconstruct(Pointwise(), ct_XYZ, window=(8, 8, 8), overlap=overlap)
    torch.testing.assert_close(result.ct_signed_XYZ, ct_XYZ, rtol=0, atol=1e-6)


def test_windows_keep_every_voxel_in_its_place():
    ct_XYZ = noise(21, 18, 11)
    network = Pointwise()
    result = reconstruct(network, ct_XYZ, window=(8, 12, 4), overlap=0.5, windows_per_batch=3)
    torch.testing.assert_close(result.ct_signed_XYZ, ct_XYZ, rtol=0, atol=1e-6)
    assert {tuple(seen.shape[2:]) for seen in network.seen} == {(4, 8, 12)}  # depth first
    windows = sum(len(seen) for seen in network.seen)
    assert result.code_counts_K.tolist() == [0, 0, 0, windows * 2 * 3 * 1, 0]
    assert result.code_counts_K.dtype == torch.int64


@pytest.mark.parametrize(("window", "count"), [((8, 8, 8), 8), ((64, 64, 64), 3), ((96,) * 3, 1), ((160,) * 3, 1)])
def test_small_windows_go_together(window, count):
    assert windows_together(window) == count


def test_a_scan_goes_through_in_batches_of_that_many():
    network = Pointwise()
    reconstruct(network, noise(24, 16, 16), window=(8, 8, 8), overlap=0.0)
    assert [len(seen) for seen in network.seen] == [8, 4]


def test_what_leaves_the_window_of_hu_is_clipped():
    result = reconstruct(Pointwise(gain=3.0), noise(8, 8, 8), window=(8, 8, 8))
    assert result.ct_signed_XYZ.min() == -1
    assert result.ct_signed_XYZ.max() == 1


def test_nothing_is_left_changed():
    network, ct_XYZ = Pointwise().train(), noise(9, 8, 8)
    network.inner.eval()  # one frozen part, as in a network that is half trained
    before = ct_XYZ.clone()
    result = reconstruct(network, ct_XYZ, window=(8, 8, 8))
    assert network.training
    assert not network.inner.training
    assert not result.ct_signed_XYZ.requires_grad
    assert torch.equal(ct_XYZ, before)
    result.ct_signed_XYZ.zero_()
    assert torch.equal(ct_XYZ, before)


def test_the_mode_comes_back_after_an_error(autoencoder):
    autoencoder.train()
    with pytest.raises(RuntimeError):
        reconstruct(autoencoder, noise(8, 8, 8).to(torch.int32), window=(8, 8, 8))
    assert autoencoder.training


@pytest.mark.parametrize("window", [(8, 8, 6), (8, 8), (0, 8, 8)])
def test_windows_that_do_not_fit_the_latent_are_refused(autoencoder, window):
    with pytest.raises(ConfigError, match="multiples of 4"):
        reconstruct(autoencoder, noise(8, 8, 8), window=window)


def test_bad_overlap_is_refused(autoencoder):
    with pytest.raises(ConfigError, match="overlap"):
        reconstruct(autoencoder, noise(8, 8, 8), window=(8, 8, 8), overlap=1.0)


def artifact(network: nn.Module) -> Artifact:
    preprocessing = {"spacing_mm": [2.0, 2.0, 2.0], "window_hu": [-175.0, 250.0], "crop": [8, 8, 8]}
    return Artifact(Path("autoencoder"), ArtifactConfig("autoencoder", {}, preprocessing, weights_sha256=""), network)


def write_scan(path: Path) -> Path:
    """LPS at 1 mm with 100 HU towards the patient's right and 400 HU, beyond the window, towards the left."""
    ct = np.full((16, 12, 10), -1000, np.int16)
    ct[:8], ct[8:] = 100, 400
    ct[0, 0, 0] = -1000
    nibabel.save(nibabel.Nifti1Image(ct, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    return path


def test_a_scan_is_reconstructed_in_model_space(tmp_path):
    ct = read_ct(write_scan(tmp_path / "ct.nii.gz"))
    network = Pointwise()
    result = reconstruct_scan(ct, artifact(network))
    assert {tuple(seen.shape[2:]) for seen in network.seen} == {(8, 8, 8)}  # the crop of the training
    assert tuple(result.ct_hu_XYZ.shape) == tuple(result.reconstruction_hu_XYZ.shape) == result.space.grid.shape
    assert result.space.grid.spacing_mm == (2.0, 2.0, 2.0)
    # The first axis of RAS grows towards the right, that of the file towards the left.
    assert result.ct_hu_XYZ[0, 2, 2] == 400
    assert result.reconstruction_hu_XYZ[0, 2, 2].item() == pytest.approx(250, abs=1e-3)
    assert result.reconstruction_hu_XYZ[6, 2, 2].item() == pytest.approx(100, abs=1e-3)


def test_a_network_that_gives_no_numbers_is_refused(tmp_path):
    ct = read_ct(write_scan(tmp_path / "ct.nii.gz"))
    broken = artifact(Pointwise(gain=float("nan")))
    with pytest.raises(ArtifactError, match=r"NaN or infinity.*ct\.nii\.gz"):
        reconstruct_scan(ct, broken)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_scan_on_the_cpu_meets_a_network_on_the_gpu(autoencoder):
    ct_XYZ = noise(20, 20, 20)
    on_cpu = reconstruct(autoencoder, ct_XYZ, window=(16, 16, 16))
    on_gpu = reconstruct(autoencoder.to("cuda"), ct_XYZ, window=(16, 16, 16))
    assert on_gpu.ct_signed_XYZ.device.type == on_gpu.code_counts_K.device.type == "cpu"
    # A vector between two codes may fall on the other side.
    assert (on_gpu.ct_signed_XYZ - on_cpu.ct_signed_XYZ).abs().mean() < 1e-2
