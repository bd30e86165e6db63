import pytest
import torch

from difftumor.errors import ConfigError, SynthesisError
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.denoiser import Denoiser
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.models.latent_codec import LatentCodec
from difftumor.models.sampling import NoiseSchedule
from difftumor.scans.intensity import IntensityWindow
from difftumor.synthesis.blending import blend_change, blurred_weight
from difftumor.synthesis.generators.diffusion import DiffusionTexture
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


SAMPLERS = [
    SamplerConfig(),
    SamplerConfig("ddim", 2, 0.5),
    SamplerConfig("ddim", 3, spacing="trailing"),
    SamplerConfig("ddim", 1, 1.0, "trailing"),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_equals_its_elements(sampler):
    ct, mask = case(4)
    alone = torch.cat([texture(sampler=sampler).make(ct[i : i + 1], mask[i : i + 1], [i + 1]) for i in range(4)])
    assert (alone[0] - alone[1]).abs().max() > 1
    for patches_at_once in (1, 3, 4, 99):
        maker = texture(sampler=sampler, patches_at_once=patches_at_once)
        torch.testing.assert_close(maker.make(ct, mask, [1, 2, 3, 4]), alone, atol=1e-3, rtol=1e-5)
        turned = maker.make(ct.flip(0), mask.flip(0), [4, 3, 2, 1])
        torch.testing.assert_close(turned.flip(0), alone, atol=1e-3, rtol=1e-5)


def dtypes_in(maker, monkeypatch):
    """Note what the networks return, and what the sampler and the codec hand them."""
    seen = {"encoder": set(), "denoiser": set(), "decoder": set(), "state": set()}

    def note(name):
        return lambda module, inputs, output: seen[name].add(output.dtype)

    autoencoder, denoiser = maker.codec.autoencoder, maker._denoiser
    autoencoder.encoder.register_forward_hook(note("encoder"))
    autoencoder.decoder.register_forward_hook(note("decoder"))
    denoiser.register_forward_hook(note("denoiser"))
    denoiser.register_forward_pre_hook(lambda module, inputs: seen["state"].update(each.dtype for each in inputs))
    decode = maker.codec.decode
    monkeypatch.setattr(maker.codec, "decode", lambda latent: (seen["state"].add(latent.dtype), decode(latent))[1])
    return seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("around", [False, True])
def test_networks_compute_as_asked_whatever_the_callers_autocast_is(monkeypatch, precision, around):
    maker = texture(precision=precision)
    seen = dtypes_in(maker, monkeypatch)
    expected = texture(precision=precision).make(*case(2), [1, 2])
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        ours = maker.make(*case(2), [1, 2])
        assert torch.is_autocast_enabled("cpu") == around
    assert ours.dtype == torch.float32
    assert ours.equal(expected)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert seen["encoder"] == seen["denoiser"] == seen["decoder"] == {dtype}
    assert seen["state"] == {torch.float32, torch.int64}  # int64: the time steps


def test_bf16_makes_nearly_the_same_texture():
    ct, mask = case(2)
    exact, rounded = (texture(precision=precision).make(ct, mask, [1, 2]) for precision in ("fp32", "bf16"))
    assert not exact.equal(rounded)
    other = texture().make(ct, mask, [3, 4])
    # Random codes lie close together, and rounding takes some latents to another one.
    assert (exact - rounded).abs().mean() < 0.25 * (exact - other).abs().mean()
    assert rounded.equal(texture(precision="bf16").make(ct, mask, [1, 2]))


def test_nothing_is_differentiated_and_the_networks_stay_as_they_are():
    maker = texture()
    networks = [maker.codec.autoencoder, maker._denoiser]
    expected = maker.make(*case(1), [5])
    for network in networks:
        network.train().requires_grad_(True)
    before, state = (
        [{k: v.clone() for k, v in network.state_dict().items()} for network in networks],
        torch.get_rng_state(),
    )
    ct, mask = case(1)
    with torch.enable_grad():
        made = maker.make(ct.requires_grad_(True), mask, [5])
    assert made.grad_fn is None
    assert not made.requires_grad
    assert made.equal(expected)
    assert torch.equal(state, torch.get_rng_state())
    for network, values in zip(networks, before, strict=True):
        assert all(module.training for module in network.modules())
        assert all(p.grad is None and p.requires_grad for p in network.parameters())
        assert all(torch.equal(values[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_under_the_same_autocast_still_learns(precision):
    """Autocast keeps rounded weights for as long as it lasts; those made without autograd must not be among them."""
    maker = texture(precision=precision)
    denoiser = maker._denoiser.requires_grad_(True)
    x, condition, time = torch.randn(1, 4, 2, 4, 6), torch.randn(1, 5, 2, 4, 6), torch.tensor([1])
    with torch.autocast("cpu", torch.bfloat16):
        maker.make(*case(1), [5])
        denoiser(x, time, condition).float().square().mean().backward()
    assert all(p.grad is not None for p in denoiser.parameters())


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match=r"precision 'fp16' is unknown: choose fp32 or bf16"):
        texture(precision="fp16")
    with pytest.raises(ConfigError, match="patches_at_once is 0: give 1 or more"):
        texture(patches_at_once=0)
    with pytest.raises(SynthesisError, match="2 patches need as many seeds, not 3"):
        texture().make(*case(2), [1, 2, 3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_makes_the_same_texture_from_the_same_seeds():
    ct, mask = case(2)
    here = texture().make(ct, mask, [1, 2])
    for precision, limit in (("fp32", 0.05), ("bf16", 0.2)):
        gpu = texture(precision=precision)
        gpu.to("cuda")
        there = gpu.make(ct.to("cuda"), mask.to("cuda"), [1, 2])
        assert there.is_cuda
        assert there.equal(gpu.make(ct.to("cuda"), mask.to("cuda"), [1, 2]))
        # A code that rounding turns into its neighbor changes a voxel; few may be.
        assert (there.cpu() - here).abs().mean() < limit * here.std()


def test_what_lies_under_the_tumor_is_not_seen():
    ct, mask = case(1)
    changed = torch.where(mask, ct + 50, ct)
    torch.testing.assert_close(texture().make(ct, mask, [1]), texture().make(changed, mask, [1]))


def test_values_that_are_not_finite_are_refused():
    denoiser = tiny_denoiser()
    denoiser.final_conv[1].bias.fill_(float("nan"))
    with pytest.raises(SynthesisError, match="not finite"):
        texture(denoiser=denoiser).make(*case(1), [1])
