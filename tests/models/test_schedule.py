"""The noise schedule against stored tables and against Bayes' rule."""

import pytest
import torch

from difftumor.errors import ConfigError
from difftumor.models.sampling import NoiseSchedule
from tests.conftest import randn
from tests.reference import load_reference, relative_error

TABLES = ("betas", "alphas_cumprod", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2")


@pytest.mark.parametrize("timesteps", [4, 200])
@pytest.mark.parametrize("table", TABLES)
def test_reference_tables(timesteps, table):
    stored = load_reference("diffusion")[f"T{timesteps}_{table}"]
    ours = getattr(NoiseSchedule(timesteps), table)
    assert ours.dtype == torch.float32
    assert relative_error(ours, stored) < 1e-6


def test_reference_noised_latent():
    stored = {key: torch.from_numpy(value) for key, value in load_reference("diffusion").items()}
    ours = NoiseSchedule(4).add_noise(stored["latent"], stored["ddpm_noise"][0], torch.tensor([2]))
    assert relative_error(ours, stored["noised_t2"]) < 1e-6


@pytest.mark.parametrize("timesteps", [1, 2, 4, 200, 1000])
def test_noise_grows_from_little_to_all(timesteps):
    schedule = NoiseSchedule(timesteps)
    alpha_bar = schedule.alphas_cumprod
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[-1] < 1e-3
    assert ((schedule.betas > 0) & (schedule.betas <= 0.9999)).all()


def test_prediction_undoes_noise_with_a_time_per_element():
    schedule, time = NoiseSchedule(200), torch.tensor([0, 50, 150])
    x0, noise = randn(3, 2, 2, 3, 4), randn(3, 2, 2, 3, 4, seed=1)
    xt = schedule.add_noise(x0, noise, time)
    torch.testing.assert_close(schedule.predict_x0(xt, noise, time), x0, rtol=1e-4, atol=1e-4)
    for i in range(3):
        alone = schedule.add_noise(x0[i : i + 1], noise[i : i + 1], time[i : i + 1])
        assert torch.equal(alone, xt[i : i + 1])


@pytest.mark.parametrize("timesteps", [1, 4, 200])
def test_noise_and_latent_are_predicted_from_each_other(timesteps):
    schedule = NoiseSchedule(timesteps)
    time = torch.arange(timesteps)
    x0, noise = randn(timesteps, 1, 2, 2, 2).clamp(-1, 1), randn(timesteps, 1, 2, 2, 2, seed=1)
    xt = schedule.add_noise(x0, noise, time)
    torch.testing.assert_close(schedule.predict_noise(xt, x0, time), noise, rtol=1e-4, atol=1e-4)
    again = schedule.predict_noise(xt, schedule.predict_x0(xt, noise, time), time)
    torch.testing.assert_close(again, noise, rtol=1e-4, atol=1e-4)


def test_noise_keeps_unit_variance():
    schedule = NoiseSchedule(7)
    total = schedule.sqrt_alphas_cumprod**2 + schedule.sqrt_one_minus_alphas_cumprod**2
    torch.testing.assert_close(total, torch.ones(7))


@pytest.mark.parametrize("t", [1, 2, 3])
def test_posterior_is_the_product_of_two_gaussians(t):
    """q(x_{t-1} | x_t, x_0) ∝ N(x_t; √α x_{t-1}, β) · N(x_{t-1}; √ᾱ_{t-1} x_0, 1 - ᾱ_{t-1}); precisions add up."""
    schedule = NoiseSchedule(4)
    beta, before = schedule.betas[t].double(), schedule.alphas_cumprod[t - 1].double()
    x0, xt = randn(1, 1, 2, 2, 2).double(), randn(1, 1, 2, 2, 2, seed=1).double()
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = ((1 - beta).sqrt() * xt / beta + before.sqrt() * x0 / (1 - before)) / precision

    ours, log_variance = schedule.posterior(x0, xt, torch.tensor([t]))
    torch.testing.assert_close(ours, mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(log_variance.double().flatten(), -precision.log()[None], rtol=1e-3, atol=1e-4)


def test_last_step_returns_x0():
    schedule = NoiseSchedule(4)
    x0 = randn(2, 1, 2, 2, 2)
    mean, log_variance = schedule.posterior(x0, randn(2, 1, 2, 2, 2, seed=1), torch.tensor([0, 0]))
    assert torch.equal(mean, x0)
    assert (log_variance < -40).all()
    assert log_variance.shape == (2, 1, 1, 1, 1)


def test_schedule_is_no_part_of_saved_state():
    assert NoiseSchedule(4).state_dict() == {}


def test_no_steps_are_refused():
    with pytest.raises(ConfigError, match="at least 1 time step, not 0"):
        NoiseSchedule(0)
