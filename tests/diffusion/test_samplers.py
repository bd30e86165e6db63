"""Samplers against stored samples, against each other, and their invariants."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftumor.diffusion.samplers import SamplerConfig, sample
from difftumor.diffusion.schedule import NoiseSchedule
from difftumor.errors import ConfigError, ShapeError
from difftumor.networks.denoiser import Denoiser
from difftumor.seeding import torch_generator
from tests.reference import load_reference, reference_state, relative_error


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Oracle:
    """Knows x_0, so that its noise is always right; keeps what it has seen."""

    latent_channels = 2

    def __init__(self, x0, timesteps):
        self.x0, self.schedule, self.times, self.seen = x0, NoiseSchedule(timesteps), [], []

    def __call__(self, noisy, time, condition):
        self.times.append(int(time[0]))
        self.seen.append(noisy)
        alpha_bar = self.schedule.alphas_cumprod[time].reshape(-1, 1, 1, 1, 1)
        return (noisy - alpha_bar.sqrt() * self.x0) / (1 - alpha_bar).sqrt()


class Constant:
    """Predicts the same noise everywhere."""

    latent_channels = 2

    def __init__(self, value):
        self.value = value

    def __call__(self, noisy, time, condition):
        return torch.full_like(noisy, self.value)


@pytest.fixture(scope="module")
def stored():
    return {key: torch.from_numpy(value) for key, value in load_reference("diffusion").items()}


@pytest.fixture(scope="module")
def published():
    return reference_state(Denoiser(), prefix="denoise_fn.")


@pytest.fixture(scope="module")
def small():
    sizes = {
        "latent_channels": 2,
        "condition_channels": 3,
        "width": 8,
        "multipliers": (1, 2),
        "heads": 2,
        "head_dim": 8,
    }
    return reference_state(Denoiser(**sizes))


X0 = randn(1, 2, 2, 2, 2).clamp(-0.9, 0.9)
CONDITION = torch.zeros(1, 3, 2, 2, 2)


def test_reference_ddpm_sample(published, stored):
    ours = sample(published, stored["cond"], NoiseSchedule(4), SamplerConfig(), noise=stored["ddpm_noise"])
    assert relative_error(ours, stored["ddpm_T4_sample"]) < 1e-4


def test_reference_ddim_sample(published, stored):
    config = SamplerConfig("ddim", 50)
    ours = sample(published, stored["cond"], NoiseSchedule(200), config, noise=stored["ddpm_noise"][:1])
    assert relative_error(ours, stored["ddim_S50_T200_sample"]) < 1e-4


def test_reference_ddim_time_steps(stored):
    assert list(SamplerConfig("ddim", 50).time_steps(200)) == stored["ddim_S50_T200_timesteps"].tolist()


@torch.no_grad()
def test_reference_training_loss(published, stored):
    time, noise = torch.tensor([2]), stored["ddpm_noise"][0]
    noisy = NoiseSchedule(4).add_noise(stored["latent"], noise, time)
    loss = (noise - published(noisy, time, stored["cond"])).abs().mean()
    assert float(loss) == pytest.approx(float(stored["l1_loss_t2"]), rel=1e-5)


@given(total=st.integers(1, 300), data=st.data())
def test_ddim_visits_as_many_steps_as_asked_for(total, data):
    steps = data.draw(st.integers(1, total))
    visited = SamplerConfig("ddim", steps).time_steps(total)
    assert len(set(visited)) == steps
    assert list(visited) == sorted(visited)
    assert visited[0] in (0, 1)
    assert visited[-1] < total


@pytest.mark.parametrize(
    ("config", "total", "visited"),
    [
        (SamplerConfig(), 4, (0, 1, 2, 3)),
        (SamplerConfig("ddpm", 3), 3, (0, 1, 2)),
        (SamplerConfig("ddim"), 3, (0, 1, 2)),
        (SamplerConfig("ddim", 2), 4, (1, 3)),
        (SamplerConfig("ddim", 3), 4, (0, 1, 2)),
        (SamplerConfig("ddim", 3), 10, (1, 4, 7)),
        (SamplerConfig("ddim", 1), 1, (0,)),
    ],
)
def test_visited_steps(config, total, visited):
    assert config.time_steps(total) == visited
    oracle = Oracle(X0, total)
    sample(oracle, CONDITION, NoiseSchedule(total), config, noise=randn(total + 1, *X0.shape))
    assert tuple(reversed(oracle.times)) == visited


@pytest.mark.parametrize("timesteps", [1, 2, 4, 50])
@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_oracle_leads_to_its_latent(kind, timesteps):
    noise = randn(timesteps + 1, *X0.shape, seed=1)
    ours = sample(Oracle(X0, timesteps), CONDITION, NoiseSchedule(timesteps), SamplerConfig(kind), noise=noise)
    torch.testing.assert_close(ours, X0, rtol=1e-3, atol=2e-3)


def test_ddim_that_skips_ends_with_the_noise_of_step_0():
    """ᾱ before the first visited step is ᾱ_0, and without eta the direction of the noise is kept all along."""
    schedule, noise = NoiseSchedule(200), randn(1, *X0.shape, seed=1)
    ours = sample(Oracle(X0, 200), CONDITION, schedule, SamplerConfig("ddim", 20), noise=noise)
    steps = SamplerConfig("ddim", 20).time_steps(200)
    top = schedule.alphas_cumprod[steps[-1]]
    epsilon = (noise[0] - top.sqrt() * X0) / (1 - top).sqrt()
    torch.testing.assert_close(ours, schedule.add_noise(X0, epsilon, torch.tensor([0])), rtol=1e-3, atol=1e-3)


def test_ddim_with_eta_1_over_all_steps_is_ddpm():
    """Compared on the way, because the oracle leads every path to the same end."""
    noise = randn(6, *X0.shape, seed=1)
    paths = []
    for config in (SamplerConfig("ddpm"), SamplerConfig("ddim", eta=1.0)):
        oracle = Oracle(X0, 5)
        sample(oracle, CONDITION, NoiseSchedule(5), config, noise=noise)
        paths.append(torch.stack(oracle.seen))
    torch.testing.assert_close(paths[0], paths[1], rtol=1e-3, atol=2e-3)


def test_one_ddim_step_with_eta_by_hand():
    """T = 2, one visited step t = 1, ε = 0: x = √ᾱ_0 · x_1 / √ᾱ_1 + σ z."""
    schedule, noise, eta = NoiseSchedule(2), randn(2, 1, 2, 1, 1, 1), 0.5
    first, second = schedule.alphas_cumprod.double()
    sigma = eta * ((1 - first) / (1 - second) * (1 - second / first)).sqrt()
    expected = (first / second).sqrt() * noise[0] + sigma * noise[1]
    condition = torch.zeros(1, 3, 1, 1, 1)
    ours = sample(Constant(0.0), condition, schedule, SamplerConfig("ddim", 1, eta), noise=noise)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_ddpm_clamps_and_ddim_does_not():
    noise = 3 * randn(5, *X0.shape)
    ddpm = sample(Constant(0.0), CONDITION, NoiseSchedule(4), SamplerConfig(), noise=noise)
    ddim = sample(Constant(0.0), CONDITION, NoiseSchedule(4), SamplerConfig("ddim"), noise=noise)
    assert ddpm.abs().max() <= 1
    assert ddim.abs().max() > 10


@pytest.mark.parametrize("config", [SamplerConfig(), SamplerConfig("ddim", 3), SamplerConfig("ddim", 3, 0.7)])
def test_batch_equals_its_elements(small, config):
    condition, schedule = randn(3, 3, 3, 2, 4), NoiseSchedule(6 if config.kind == "ddim" else 4)

    def generators():
        return [torch_generator(7, "element", i) for i in range(3)]

    together = sample(small, condition, schedule, config, generators=generators())
    for i, generator in enumerate(generators()):
        alone = sample(small, condition[i : i + 1], schedule, config, generators=[generator])
        # Kernels may round otherwise in a batch, and DDPM's first step multiplies that by 1 / √ᾱ = 263.
        assert relative_error(together[i : i + 1], alone) < 1e-3
    assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize("config", [SamplerConfig(), SamplerConfig("ddim", 2, 1.0)])
def test_batch_equals_its_elements_exactly_when_the_denoiser_does(config):
    condition, schedule = CONDITION.expand(3, -1, -1, -1, -1), NoiseSchedule(4)
    together = sample(Constant(0.3), condition, schedule, config, generators=[torch_generator(7, i) for i in range(3)])
    for i in range(3):
        alone = sample(Constant(0.3), condition[:1], schedule, config, generators=[torch_generator(7, i)])
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("config", [SamplerConfig(), SamplerConfig("ddim", 2), SamplerConfig("ddim", 4, 1.0)])
def test_generators_give_the_noise_that_draws_counts(small, config):
    condition, schedule = randn(1, 3, 2, 2, 2), NoiseSchedule(4)
    generator, twin = torch_generator(3), torch_generator(3)
    drawn = sample(small, condition, schedule, config, generators=[generator])
    noise = torch.stack([torch.randn(2, 2, 2, 2, generator=twin)[None] for _ in range(config.draws(4))])
    assert torch.equal(drawn, sample(small, condition, schedule, config, noise=noise))
    assert torch.equal(generator.get_state(), twin.get_state())


def test_more_noise_than_needed_changes_nothing(small):
    condition, noise = randn(1, 3, 2, 2, 2), randn(5, 1, 2, 2, 2, 2)
    once, again = (sample(small, condition, NoiseSchedule(4), SamplerConfig(), noise=n) for n in (noise, noise[:4]))
    assert torch.equal(once, again)


def test_global_random_state_is_neither_read_nor_moved(small):
    before = torch.get_rng_state()
    sample(small, randn(1, 3, 2, 2, 2), NoiseSchedule(4), SamplerConfig(), generators=[torch_generator(0)])
    assert torch.equal(before, torch.get_rng_state())


def test_sample_has_no_history_but_may_be_trained_on(small):
    z = sample(small, randn(1, 3, 2, 2, 2), NoiseSchedule(4), SamplerConfig(), generators=[torch_generator(0)])
    assert not z.requires_grad
    assert not z.is_inference()
    weight = torch.ones(1, requires_grad=True)
    (weight * z).square().sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "euler"}, "'ddpm' or 'ddim', not 'euler'"),
        ({"steps": 0}, "steps must be a whole number from 1 up, not 0"),
        ({"kind": "ddim", "eta": 1.5}, r"eta must be in \[0, 1\]"),
        ({"kind": "ddim", "eta": float("nan")}, "eta"),
        ({"kind": "ddpm", "eta": 0.5}, "no meaning for 'ddpm'"),
    ],
)
def test_bad_configs_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SamplerConfig(**options)


def test_steps_must_fit_the_schedule():
    with pytest.raises(ConfigError, match="steps must be all 4"):
        SamplerConfig("ddpm", 2).time_steps(4)
    with pytest.raises(ConfigError, match="steps must be at most 4"):
        SamplerConfig("ddim", 5).time_steps(4)


def test_noise_must_fit():
    args = (Constant(0.0), CONDITION, NoiseSchedule(4), SamplerConfig())
    noise = randn(5, *X0.shape)
    with pytest.raises(ConfigError, match="exactly one of noise and generators"):
        sample(*args)
    with pytest.raises(ConfigError, match="exactly one of noise and generators"):
        sample(*args, noise=noise, generators=[torch_generator(0)])
    with pytest.raises(ShapeError, match="a batch of 1 needs as many generators, not 2"):
        sample(*args, generators=[torch_generator(0), torch_generator(1)])
    for wrong in (noise[:3], noise[:, :, :1], noise[0]):
        with pytest.raises(ShapeError, match="the noise must be"):
            sample(*args, noise=wrong)
