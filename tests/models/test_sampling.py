"""Samplers against stored samples, against each other, and their invariants."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftumor.errors import ConfigError, ShapeError
from difftumor.models.denoiser import Denoiser
from difftumor.models.diffusion_config import SamplerConfig
from difftumor.models.sampling import NoiseSchedule, sample
from difftumor.seeding import torch_generator
from tests.conftest import randn
from tests.reference import load_reference, reference_state, relative_error


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


def elementwise(noisy, time, condition):
    """A denoiser that rounds each voxel alike in any batch."""
    return noisy * 0.7 + condition[:, :1] * 0.1 + 0.01 * time[:, None, None, None, None]


elementwise.latent_channels = 2


class Spy:
    """Notes under what it is called."""

    latent_channels = 2

    def __init__(self):
        self.grad_modes, self.dtypes = set(), set()

    def __call__(self, noisy, time, condition):
        self.grad_modes.add(torch.is_grad_enabled())
        self.dtypes |= {noisy.dtype, condition.dtype}
        return elementwise(noisy, time, condition).bfloat16()


@st.composite
def configs(draw, most=12):
    """Draw any sampler and the T of a schedule that it fits."""
    total = draw(st.integers(1, most))
    if draw(st.booleans()):
        return SamplerConfig(steps=draw(st.sampled_from([None, total]))), total
    steps, eta = draw(st.none() | st.integers(1, total)), draw(st.sampled_from([0.0, 0.3, 1.0]))
    return SamplerConfig("ddim", steps, eta, draw(st.sampled_from(["leading", "trailing"]))), total


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
TRAILING = SamplerConfig("ddim", spacing="trailing")


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
    leading, trailing = (SamplerConfig("ddim", steps, spacing=s).time_steps(total) for s in ("leading", "trailing"))
    for visited in (leading, trailing):
        assert len(set(visited)) == steps
        assert list(visited) == sorted(visited)
        assert 0 <= visited[0] <= visited[-1] < total
    assert leading[0] in (0, 1)
    assert trailing[-1] == total - 1
    if steps == total:
        assert leading == trailing


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
        (SamplerConfig("ddim", 1), 200, (1,)),
        (TRAILING, 3, (0, 1, 2)),
        (SamplerConfig("ddim", 1, spacing="trailing"), 1, (0,)),
        (SamplerConfig("ddim", 1, spacing="trailing"), 200, (199,)),
        (SamplerConfig("ddim", 2, spacing="trailing"), 4, (1, 3)),
        # Lin et al. round T - i·T/S: 4, 2.67, 1.33; 10, 6.67, 3.33; 6, 4.5, 3, 1.5, halves to the even number.
        (SamplerConfig("ddim", 3, spacing="trailing"), 4, (0, 2, 3)),
        (SamplerConfig("ddim", 3, spacing="trailing"), 10, (2, 6, 9)),
        (SamplerConfig("ddim", 4, spacing="trailing"), 6, (1, 2, 3, 5)),
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


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 200])
def test_trailing_steps_start_from_noise_alone_and_lead_to_the_latent(steps):
    noise, oracle = randn(1, *X0.shape, seed=1), Oracle(X0, 200)
    config = SamplerConfig("ddim", steps, spacing="trailing")
    ours = sample(oracle, CONDITION, NoiseSchedule(200), config, noise=noise)
    assert oracle.times[0] == 199
    assert torch.equal(oracle.seen[0], noise[0])
    # At t = 199 the oracle's float32 rounding counts 1 / √ᾱ = 13 000 times.
    torch.testing.assert_close(ours, X0, rtol=1e-3, atol=2e-3 if steps > 1 else 5e-3)


def test_one_trailing_step_is_the_clamped_prediction():
    noise = torch.tensor([-0.5, 2.0, 1e-5, 0.0]).reshape(1, 1, 1, 4, 1, 1).expand(1, 1, 2, 4, 1, 1)
    schedule, config = NoiseSchedule(200), SamplerConfig("ddim", 1, spacing="trailing")
    ours = sample(Constant(0.0), torch.zeros(1, 3, 4, 1, 1), schedule, config, noise=noise)
    third = 1e-5 / schedule.alphas_cumprod[199].sqrt().item()
    assert 0.1 < third < 0.2
    assert ours[0, 1].flatten().tolist() == pytest.approx([-1.0, 1.0, third, 0.0], rel=1e-4)


@pytest.mark.parametrize("timesteps", [1, 2, 4, 9])
def test_trailing_ddim_with_eta_1_over_all_steps_is_ddpm_clamping_and_all(timesteps):
    noise = randn(timesteps + 1, *X0.shape, seed=1)
    for denoiser in (Constant(0.0), Constant(0.4), elementwise):
        ddpm, ddim = (
            sample(denoiser, CONDITION, NoiseSchedule(timesteps), config, noise=noise)
            for config in (SamplerConfig(), SamplerConfig("ddim", eta=1.0, spacing="trailing"))
        )
        torch.testing.assert_close(ddpm, ddim, rtol=1e-3, atol=1e-3)


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


@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(),
        SamplerConfig("ddim", 3),
        SamplerConfig("ddim", 3, 0.7),
        SamplerConfig("ddim", 2, 0.7, "trailing"),
    ],
)
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


@given(sampling=configs(), batch=st.integers(1, 5), data=st.data())
def test_batch_of_any_size_equals_its_elements_exactly_when_the_denoiser_does(sampling, batch, data):
    config, schedule = sampling[0], NoiseSchedule(sampling[1])
    condition, order = randn(batch, 3, 2, 3, 2, seed=4), data.draw(st.permutations(range(batch)))

    def generator(i):
        return torch_generator(7, "element", i)

    together = sample(elementwise, condition, schedule, config, generators=[generator(i) for i in range(batch)])
    assert together.isfinite().all()
    turned = sample(elementwise, condition[order], schedule, config, generators=[generator(i) for i in order])
    assert torch.equal(turned, together[order])
    for i in range(batch):
        alone = sample(elementwise, condition[i : i + 1], schedule, config, generators=[generator(i)])
        assert torch.equal(together[i : i + 1], alone)


@given(sampling=configs(), batch=st.integers(1, 3))
def test_generators_are_left_where_draws_says(sampling, batch):
    (config, total), condition = sampling, randn(batch, 3, 2, 1, 2)
    used, twins = ([torch_generator(3, i) for i in range(batch)] for _ in range(2))
    sample(elementwise, condition, NoiseSchedule(total), config, generators=used)
    for generator, twin in zip(used, twins, strict=True):
        for _ in range(config.draws(total)):
            torch.randn(2, 2, 1, 2, generator=twin)
        assert torch.equal(generator.get_state(), twin.get_state())


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


ALL_KINDS = [SamplerConfig(), SamplerConfig("ddim", 2, 0.5), SamplerConfig("ddim", 2, 0.5, "trailing")]


@pytest.mark.parametrize("config", ALL_KINDS)
def test_global_random_state_is_neither_read_nor_moved(small, config):
    ours = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            ours.append(sample(small, CONDITION, NoiseSchedule(4), config, generators=[torch_generator(0)]))
            assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*ours)


@pytest.mark.parametrize("training", [True, False])
def test_the_denoiser_keeps_its_mode_and_gradients_and_its_mode_changes_nothing(small, training):
    denoiser = copy.deepcopy(small).train(training).requires_grad_(True)
    gradients = [p.grad for p in denoiser.parameters()]
    with torch.enable_grad():
        z = sample(denoiser, CONDITION, NoiseSchedule(4), SamplerConfig(), generators=[torch_generator(0)])
    assert {module.training for module in denoiser.modules()} == {training}
    assert all(p.grad is g for p, g in zip(denoiser.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in denoiser.parameters())
    assert torch.equal(z, sample(small, CONDITION, NoiseSchedule(4), SamplerConfig(), generators=[torch_generator(0)]))


@pytest.mark.parametrize("config", ALL_KINDS)
def test_the_denoiser_is_called_without_autograd_and_with_float32_whatever_surrounds_it(config):
    def ours(denoiser):
        return sample(denoiser, CONDITION, NoiseSchedule(4), config, generators=[torch_generator(0)])

    spy = Spy()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        z = ours(spy)
    assert spy.grad_modes == {False}
    assert spy.dtypes == {torch.float32}
    assert z.dtype == torch.float32
    assert torch.equal(z, ours(Spy()))


def test_sample_has_no_history_but_may_be_trained_on(small):
    small = copy.deepcopy(small).requires_grad_(True)
    with torch.enable_grad():
        z = sample(small, randn(1, 3, 2, 2, 2), NoiseSchedule(4), SamplerConfig(), generators=[torch_generator(0)])
    assert not z.requires_grad
    assert z.grad_fn is None
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
        ({"kind": "ddim", "steps": 2.5}, "steps must be a whole number from 1 up, not 2.5"),
        ({"kind": "ddim", "eta": "much"}, "eta must be in .*, not 'much'"),
        ({"kind": "ddim", "spacing": "even"}, "spacing must be 'leading' or 'trailing', not 'even'"),
        ({"kind": "ddpm", "spacing": "trailing"}, "spacing 'trailing' has no meaning for 'ddpm'"),
    ],
)
def test_bad_configs_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SamplerConfig(**options)


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        (SamplerConfig("ddim", 50, 0.5), {}, SamplerConfig("ddim", 50, 0.5)),
        (SamplerConfig("ddim", 50, 0.5), {"steps": 4}, SamplerConfig("ddim", 4, 0.5)),
        (SamplerConfig("ddim", 50, 0.5), {"kind": "ddim", "eta": 0.0}, SamplerConfig("ddim", 50, 0.0)),
        (SamplerConfig("ddim", 50, 0.5, "trailing"), {"kind": "ddpm"}, SamplerConfig()),
        (SamplerConfig(), {"kind": "ddim", "spacing": "trailing"}, TRAILING),
    ],
)
def test_a_config_is_changed_by_what_is_given(base, changes, expected):
    assert base.changed(**changes) == expected
    assert base.changed(**{name: changes.get(name) for name in ("kind", "steps", "eta", "spacing")}) == expected


def test_changes_are_checked():
    with pytest.raises(ConfigError, match=r"eta 0\.5 has no meaning for 'ddpm'"):
        SamplerConfig().changed(eta=0.5)
    with pytest.raises(ConfigError, match="not 'euler'"):
        SamplerConfig().changed(kind="euler")


@pytest.mark.parametrize("config", ALL_KINDS)
def test_a_denoiser_in_bf16_samples_nearly_the_same(published, stored, config):
    def ours(seed):
        return sample(
            published, stored["cond"], NoiseSchedule(4), config, generators=[torch_generator(seed, "element")]
        )

    exact, other = ours(0), ours(1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ours(0)
    assert 0 < relative_error(rounded, exact) < 0.15
    assert relative_error(other, exact) > 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("config", ALL_KINDS)
def test_cuda_samples_the_same_from_the_same_noise(published, stored, config):
    gpu = copy.deepcopy(published).to("cuda")
    condition = stored["cond"].expand(2, -1, -1, -1, -1)

    def ours(denoiser, condition):
        generators = [torch_generator(0, i) for i in range(2)]
        return sample(denoiser, condition, NoiseSchedule(4), config, generators=generators)

    here, there = ours(published, condition), ours(gpu, condition.to("cuda"))
    assert there.is_cuda
    # Convolutions of CUDA may round their factors to TF32, 10 bits, which the first step multiplies.
    assert relative_error(there, here) < 5e-2
    with torch.autocast("cuda", torch.bfloat16):
        assert relative_error(ours(gpu, condition.to("cuda")), here) < 0.3


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
