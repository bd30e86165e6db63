"""The noise schedule: how much noise a latent holds at every time step, and the formulas that follow from it.

Symbols are those of the papers: x_0 the clean latent, x_t the noisy one, ε the noise, β the variance added in a step,
α = 1 - β, ᾱ the product of all α up to t. Time steps count from 0 to T - 1; the papers count from 1 to T.
"""

import math

import torch
from torch import Tensor, nn

from difftumor.errors import ConfigError

COSINE_OFFSET = 0.008
LARGEST_BETA = 0.9999
# The posterior variance at t = 0 is 0; its logarithm is clipped here. No noise is added in that step.
SMALLEST_VARIANCE = 1e-20


class NoiseSchedule(nn.Module):
    """Cosine schedule (Nichol & Dhariwal, Improved DDPM, eq. 17).

    Its buffers follow from T alone, so they are no part of a state dict. They are computed in float64 and kept in
    float32. A schedule serves tensors on any device; on theirs it needs no copies.

    Args:
        timesteps: T, at least 1; 4 for early tumors and 200 for larger ones in the published models.

    Raises:
        ConfigError: T is less than 1.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        if timesteps < 1:
            raise ConfigError(f"the noise schedule needs at least 1 time step, not {timesteps}")
        self.timesteps = timesteps
        for name, table in _cosine_tables(timesteps).items():
            self.register_buffer(name, table.float(), persistent=False)

    def add_noise(self, x0: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Return x_t for x_0 and ε of shape (B, …): all steps of DiffTumor eq. 5 at once (Ho et al., DDPM, eq. 4)."""
        # x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε
        return (
            _at(self.sqrt_alphas_cumprod, time_B, x0) * x0 + _at(self.sqrt_one_minus_alphas_cumprod, time_B, x0) * noise
        )

    def predict_x0(self, xt: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Return the x_0 that ``noise`` would have turned into x_t (DDPM, eq. 15)."""
        # x_0 = (x_t - √(1 - ᾱ_t) ε) / √ᾱ_t
        return (
            _at(self.sqrt_recip_alphas_cumprod, time_B, xt) * xt
            - _at(self.sqrt_recipm1_alphas_cumprod, time_B, xt) * noise
        )

    def predict_noise(self, xt: Tensor, x0: Tensor, time_B: Tensor) -> Tensor:
        """Return the ε that would have turned x_0 into x_t; undoes `predict_x0`."""
        # ε = (x_t - √ᾱ_t x_0) / √(1 - ᾱ_t)
        return (xt - _at(self.sqrt_alphas_cumprod, time_B, xt) * x0) / _at(
            self.sqrt_one_minus_alphas_cumprod, time_B, xt
        )

    def posterior(self, x0: Tensor, xt: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (B, …) and log-variance (B, 1, …) of q(x_{t-1} | x_t, x_0) (DDPM, eq. 6 and 7)."""
        mean = _at(self.posterior_mean_coef1, time_B, xt) * x0 + _at(self.posterior_mean_coef2, time_B, xt) * xt
        return mean, _at(self.posterior_log_variance_clipped, time_B, xt)


def _cosine_tables(timesteps: int) -> dict[str, Tensor]:
    """Return the schedule's tables, (T,) float64 each."""
    # f(t) = cos²((t/T + s) / (1 + s) · π/2) and ᾱ_t = f(t) / f(0); β_t = 1 - ᾱ_t / ᾱ_{t-1}   (Improved DDPM, eq. 17)
    t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    f = torch.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    betas = (1 - f[1:] / f[:-1]).clamp(0, LARGEST_BETA)

    alphas = 1 - betas
    cumprod = alphas.cumprod(0)
    previous = torch.cat((torch.ones(1, dtype=torch.float64), cumprod[:-1]))
    # β̃_t = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) β_t   (DDPM, eq. 7)
    variance = (1 - previous) / (1 - cumprod) * betas
    return {
        "betas": betas,
        "alphas_cumprod": cumprod,
        "sqrt_alphas_cumprod": cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - cumprod).sqrt(),
        "sqrt_recip_alphas_cumprod": cumprod.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / cumprod - 1).sqrt(),
        "posterior_log_variance_clipped": variance.clamp(min=SMALLEST_VARIANCE).log(),
        # μ̃_t = √ᾱ_{t-1} β_t / (1 - ᾱ_t) x_0 + √α_t (1 - ᾱ_{t-1}) / (1 - ᾱ_t) x_t   (DDPM, eq. 7)
        "posterior_mean_coef1": previous.sqrt() * betas / (1 - cumprod),
        "posterior_mean_coef2": alphas.sqrt() * (1 - previous) / (1 - cumprod),
    }


def _at(table_T: Tensor, time_B: Tensor, like: Tensor) -> Tensor:
    """Return the table's entries at ``time_B``, shaped to be multiplied with ``like``, (B, 1, …)."""
    values_B = table_T.to(like.device)[time_B.to(like.device)]
    return values_B.reshape(-1, *(1,) * (like.ndim - 1))
