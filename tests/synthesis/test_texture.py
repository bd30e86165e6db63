import pytest
import torch

from difftumor.diffusion.latent import LatentCodec
from difftumor.diffusion.schedule import NoiseSchedule
from difftumor.errors import SynthesisError
from difftumor.intensity import IntensityWindow
from difftumor.networks.autoencoder import Autoencoder
from difftumor.networks.denoiser import Denoiser
from difftumor.synthesis.blending import blend_change, blurred_weight
from difftumor.synthesis.texture import DiffusionTexture
from tests.reference import load_reference, reference_state, relative_error
from tests.synthesis.makers import ball, tiny_autoencoder, tiny_denoiser

WINDOW = IntensityWindow()


def texture(**changes) -> DiffusionTexture:
    networks = {"codec": LatentCodec(tiny_autoencoder()), "denoiser": tiny_denoiser(), "schedule": NoiseSchedule(4)}
    return DiffusionTexture(**{**networks, **changes})


def case(batch: int):
    generator = torch.Generator().manual_seed(0)
    ct = torch.randn(batch, 1, 16, 24, 8, generator=generator) * 100
    mask = torch.from_numpy(ball((16, 24, 8), 3)).expand(batch, 1, -1, -1, -1)
    return ct, mask


def test_reference_early_tumor_from_stored_noise():
    stored = {name: torch.from_numpy(value) for name, value in load_reference("early_tumor").items()}
    maker = texture(
        codec=LatentCodec(reference_state(Autoencoder())),
        denoiser=reference_state(Denoiser(), prefix="denoise_fn."),
    )
    ct_hu = WINDOW.from_unit(stored["ct"])
    tumor_hu = maker.make_from_noise(ct_hu, stored["tumor_mask"], stored["noise"])
    weight = blurred_weight(stored["tumor_mask"][0, 0], float(stored["blur_sigma"]))
    blended = WINDOW.to_unit(ct_hu[0, 0] + blend_change(ct_hu[0, 0], tumor_hu[0, 0], weight))
    assert relative_error(blended, stored["synthetic_ct"][0, 0]) < 1e-4


def test_same_seed_same_texture_other_seed_another():
    ct, mask = case(1)
    maker = texture()
    first = maker.make(ct, mask, [5])
    assert first.equal(maker.make(ct, mask, [5]))
    assert not first.equal(maker.make(ct, mask, [6]))
    assert first.shape == ct.shape
    assert -175 <= first.min() < first.max() <= 250


def test_a_batch_equals_its_elements():
    ct, mask = case(3)
    for patches_at_once in (1, 2, 8):
        together = texture(patches_at_once=patches_at_once).make(ct, mask, [1, 2, 3])
        alone = torch.cat([texture().make(ct[i : i + 1], mask[i : i + 1], [i + 1]) for i in range(3)])
        torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-5)


def test_what_lies_under_the_tumor_is_not_seen():
    ct, mask = case(1)
    changed = torch.where(mask, ct + 50, ct)
    torch.testing.assert_close(texture().make(ct, mask, [1]), texture().make(changed, mask, [1]))


def test_values_that_are_not_finite_are_refused():
    denoiser = tiny_denoiser()
    denoiser.final_conv[1].bias.fill_(float("nan"))
    with pytest.raises(SynthesisError, match="not finite"):
        texture(denoiser=denoiser).make(*case(1), [1])
