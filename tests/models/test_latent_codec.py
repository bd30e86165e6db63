"""The latent codec: layout, scale, condition; against stored values and against an autoencoder that can be read."""

import pytest
import torch
import torch.nn.functional as F

from difftumor.errors import ConfigError, ShapeError
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.denoiser import Denoiser
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.models.latent_codec import LatentCodec, depth_first, depth_last
from difftumor.models.sampling import NoiseSchedule, sample
from tests.reference import load_reference, reference_state, relative_error


class Averaging(Autoencoder):
    """Latent = mean of 2³ voxels in both channels; codes are the numbers -1.5, -1.25, …, 2.5."""

    def __init__(self):
        super().__init__(base_channels=4, levels=1, latent_channels=2, codes=17, norm_groups=4)
        self.codebook.embeddings.copy_(torch.linspace(-1.5, 2.5, 17)[:, None].expand(17, 2))

    def encode(self, ct):
        return F.avg_pool3d(ct, 2).expand(-1, 2, -1, -1, -1)

    def decode(self, codes):
        return F.interpolate(codes.mean(1, keepdim=True), scale_factor=2, mode="nearest")


@pytest.fixture
def readable():
    return LatentCodec(Averaging())


@pytest.fixture(scope="module")
def small():
    return LatentCodec(reference_state(Autoencoder(base_channels=4, latent_channels=4, codes=64, norm_groups=4)))


@pytest.fixture(scope="module")
def published():
    return LatentCodec(reference_state(Autoencoder()))


@pytest.fixture(scope="module")
def stored():
    return {key: torch.from_numpy(value) for key, value in load_reference("early_tumor").items()}


def blocks(*coarse_XYZ, seed=0):
    """CT that is constant on blocks of 2³, with values the readable codebook holds."""
    levels = torch.randint(-4, 5, (2, 1, *coarse_XYZ), generator=torch.Generator().manual_seed(seed)) / 4
    return F.interpolate(levels, scale_factor=2, mode="nearest")


def ct(*size_XYZ, batch=1, seed=0):
    return torch.rand(batch, 1, *size_XYZ, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_reference_condition(published, stored):
    ours = published.condition(stored["ct"] * 2 - 1, stored["tumor_mask"])
    assert relative_error(ours, stored["condition"]) < 1e-4


def test_reference_early_tumor_up_to_decoded(published, stored):
    denoiser = reference_state(Denoiser(), prefix="denoise_fn.")
    condition = published.condition(stored["ct"] * 2 - 1, stored["tumor_mask"])
    latent = sample(denoiser, condition, NoiseSchedule(4), SamplerConfig(), noise=stored["noise"])
    assert relative_error(latent, stored["latent"]) < 1e-4
    # The stored patch is as the decoder gave it, depth first.
    assert relative_error(depth_first(published.decode(latent)), stored["decoded"]) < 1e-4


def test_layouts_undo_each_other():
    x = torch.arange(2 * 3 * 4 * 5).reshape(1, 2, 3, 4, 5)
    assert depth_first(x).shape == (1, 2, 5, 3, 4)
    assert depth_first(x)[0, 1, 4, 2, 3] == x[0, 1, 2, 3, 4]
    assert torch.equal(depth_last(depth_first(x)), x)


def test_decode_undoes_layout_and_scale_of_encode(readable):
    scan = blocks(2, 3, 4)
    latent = readable.encode(scan)
    assert latent.shape == (2, 2, 4, 2, 3)
    torch.testing.assert_close(readable.decode(latent), scan)


def test_scale_spans_the_whole_codebook(readable):
    scan = torch.full((1, 1, 2, 2, 2), -1.5)
    torch.testing.assert_close(readable.encode(scan), torch.full((1, 2, 1, 1, 1), -1.0))
    torch.testing.assert_close(readable.encode(scan + 4), torch.full((1, 2, 1, 1, 1), 1.0))
    torch.testing.assert_close(readable.encode(scan + 2), torch.zeros(1, 2, 1, 1, 1))


def test_encode_does_not_quantize_and_decode_does(readable):
    scan = torch.full((1, 1, 2, 2, 2), 0.55)
    torch.testing.assert_close(readable.encode(scan), torch.full((1, 2, 1, 1, 1), (0.55 + 1.5) / 4 * 2 - 1))
    torch.testing.assert_close(readable.decode(readable.encode(scan)), torch.full((1, 1, 2, 2, 2), 0.5))


def test_scale_follows_weights_loaded_later(readable):
    before = readable.encode(blocks(1, 1, 1))
    readable.autoencoder.codebook.embeddings.mul_(2)
    assert not torch.allclose(readable.encode(blocks(1, 1, 1)), before)


def test_image_condition_is_the_ct_without_tumor(small):
    scan = ct(8, 12, 16)
    tumor = torch.zeros(1, 1, 8, 12, 16, dtype=torch.uint8)
    tumor[..., 4:, :4, 8:12] = 1
    scan_before, tumor_before = scan.clone(), tumor.clone()

    condition = small.condition(scan, tumor)
    assert condition.shape == (1, 5, 4, 2, 3)
    assert torch.equal(condition[:, :4], small.encode(torch.where(tumor.bool(), 0.0, scan)))
    expected = -torch.ones(4, 2, 3)
    expected[2, 1, 0] = 1
    assert torch.equal(condition[0, 4], expected)
    assert torch.equal(scan, scan_before)
    assert torch.equal(tumor, tumor_before)


def test_latent_condition_is_the_latent_without_tumor(small):
    scan = ct(8, 12, 16)
    tumor = torch.zeros(1, 1, 8, 12, 16, dtype=torch.bool)
    tumor[..., 4:, :4, 8:12] = True
    expected = small.encode(scan)
    expected[:, :, 2, 1, 0] = 0
    condition = small.condition(scan, tumor, masked="latent")
    torch.testing.assert_close(condition[:, :4], expected)
    assert torch.equal(condition[:, 4:], small.condition(scan, tumor)[:, 4:])


@pytest.mark.parametrize(("masked", "passes"), [("image", 2), ("latent", 1)])
def test_latent_and_condition_at_once_are_those_made_one_by_one(small, masked, passes, monkeypatch):
    scan, tumor = ct(8, 12, 16, batch=2), ct(8, 12, 16, batch=2, seed=1) > 0.5
    expected = small.encode(scan), small.condition(scan, tumor, masked=masked)
    calls, encode = [], small.autoencoder.encode
    monkeypatch.setattr(small.autoencoder, "encode", lambda x: calls.append(x) or encode(x))
    found = small.encode_both(scan, tumor, masked=masked)
    assert len(calls) == passes
    assert all(map(torch.equal, found, expected))


def test_mask_takes_the_first_voxel_of_each_block(readable):
    scan, tumor = blocks(1, 1, 1)[:1], torch.zeros(1, 1, 2, 2, 2)
    tumor[..., 1, 1, 1] = 1
    assert readable.condition(scan, tumor)[:, 2] == -1
    tumor[..., 0, 0, 0] = 1
    assert readable.condition(scan, tumor)[:, 2] == 1


def test_batch_equals_its_elements(small):
    scan = ct(8, 8, 4, batch=2)
    tumor = (ct(8, 8, 4, batch=2, seed=1) > 0.5).float()
    together = small.condition(scan, tumor)
    alone = torch.cat([small.condition(scan[i : i + 1], tumor[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    decoded = torch.cat([small.decode(together[i : i + 1, :4]) for i in range(2)])
    torch.testing.assert_close(small.decode(together[:, :4]), decoded, rtol=1e-4, atol=1e-5)


def test_no_history(small):
    scan = ct(4, 4, 4).requires_grad_()
    latent = small.encode(scan)
    assert not latent.requires_grad
    assert not latent.is_inference()
    assert not small.decode(latent.clone().requires_grad_()).requires_grad


def test_sizes(small, published):
    assert small.latent_shape((96, 64, 32)) == (4, 8, 24, 16)
    assert (published.downsampling, published.latent_channels) == (4, 8)


@pytest.mark.parametrize("size", [(8, 8, 6), (7, 8, 8), (8, 9, 8)])
def test_sizes_that_do_not_divide_are_refused(small, size):
    with pytest.raises(ShapeError, match="must be a multiple of 4 along every axis"):
        small.encode(ct(*size))
    with pytest.raises(ShapeError, match="must be a multiple of 4 along every axis"):
        small.condition(ct(*size), torch.zeros(1, 1, *size))
    with pytest.raises(ShapeError, match="must be a multiple of 4 along every axis"):
        small.latent_shape(size)


def test_other_misfits_are_refused(small):
    scan, tumor = ct(4, 4, 8), torch.zeros(1, 1, 4, 4, 8)
    with pytest.raises(ShapeError, match=r"must be \(B, 1, X, Y, Z\)"):
        small.encode(scan[0])
    with pytest.raises(ShapeError, match="must have the CT's shape"):
        small.condition(scan, tumor[..., :4])
    with pytest.raises(ConfigError, match="0 and 1 only"):
        small.condition(scan, tumor + 2)
    with pytest.raises(ConfigError, match="masked must be 'image' or 'latent', not 'both'"):
        small.condition(scan, tumor, masked="both")


def test_untrained_codebook_is_refused():
    codec = LatentCodec(Autoencoder(base_channels=4, codes=8, norm_groups=4))
    with pytest.raises(ConfigError, match="holds no codes yet"):
        codec.encode(ct(4, 4, 4))
