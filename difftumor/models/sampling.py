"""Samplers: from noise to the latent of a CT with a tumor, by DDPM (Ho et al. 2020) or DDIM (Song et al. 2021).

Every element of a batch has noise of its own, so that a batch gives what its elements give one by one.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from difftumor.errors import ConfigError, ShapeError
from difftumor.models.diffusion_config import SamplerConfig

COSINE_OFFSET = 0.008
LARGEST_BETA = 0.9999
# The posterior variance at t = 0 is 0; its logarithm is clipped here. No noise is added in that step.
SMALLEST_VARIANCE = 1e-20


class NoiseSchedule(nn.Module):
    """Cosine schedule (Nichol & Dhariwal, Improved DDPM, eq. 17).

    Its buffers follow from T alone, so they are not part of a state dict. They are computed in float64 and kept in
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


class NoisePredictor(Protocol):
    """What a sampler needs of a denoiser."""

    latent_channels: int

    def __call__(self, noisy_BCZXY: Tensor, time_B: Tensor, condition_BCZXY: Tensor) -> Tensor:
        """Return the predicted noise, of the shape of ``noisy_BCZXY``."""
        ...


@torch.no_grad()
def sample(
    denoiser: NoisePredictor,
    condition: Tensor,
    schedule: NoiseSchedule,
    config: SamplerConfig,
    *,
    noise: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Draw latents z_0 given conditions, by the reverse process of DiffTumor's section 3.2.

    Exactly one of ``noise`` and ``generators`` is given. The result has no autograd history, yet may enter graphs.
    The denoiser stays in its mode, and runs in the precision of the caller's autocast; all else is float32.

    Args:
        denoiser: Predicts the noise ε_θ.
        condition: (B, C, Z, X, Y) healthy latent and mask; its device is where sampling runs.
        schedule: The schedule that the denoiser was trained with.
        config: Sampler, steps and eta.
        noise: (N, B, latent_channels, Z, X, Y) float: the start, then what is added step after step. N is at least
            ``config.draws(T)``; N = steps + 1 always serves. The rest is not used.
        generators: One CPU generator per element, from which the same noise is drawn in the same order.

    Returns:
        Latents (B, latent_channels, Z, X, Y), float32.

    Raises:
        ConfigError: Neither or both sources of noise are given, or the steps don't fit the schedule.
        ShapeError: The noise or the number of generators doesn't fit the condition.
    """
    shape = (condition.shape[0], denoiser.latent_channels, *condition.shape[2:])
    needed = config.draws(schedule.timesteps)
    if (noise is None) == (generators is None):
        raise ConfigError("give sample() exactly one of noise and generators")
    if noise is not None:
        source = _given(noise, needed, shape, condition.device)
    else:
        source = _drawn(generators or (), shape, condition.device)
    if config.kind == "ddpm":
        return _ddpm(denoiser, condition, schedule, source)
    return _ddim(denoiser, condition, schedule, config, source)


def _ddpm(denoiser: NoisePredictor, condition: Tensor, schedule: NoiseSchedule, source: Iterator[Tensor]) -> Tensor:
    """Ancestral sampling (DDPM, algorithm 2) with x_0 clamped to the range of scaled latents."""
    x = next(source)
    for t in reversed(range(schedule.timesteps)):
        time_B = torch.full((len(x),), t, device=x.device)
        epsilon = denoiser(x, time_B, condition).float()
        x0 = schedule.predict_x0(x, epsilon, time_B).clamp(-1, 1)
        x, log_variance = schedule.posterior(x0, x, time_B)
        if t > 0:
            x = x + (0.5 * log_variance).exp() * next(source)
    return x


def _ddim(
    denoiser: NoisePredictor,
    condition: Tensor,
    schedule: NoiseSchedule,
    config: SamplerConfig,
    source: Iterator[Tensor],
) -> Tensor:
    """DDIM over a part of the time steps."""
    steps = config.time_steps(schedule.timesteps)
    table = schedule.alphas_cumprod.tolist()
    alpha_bars = [table[t] for t in steps]
    trailing = config.spacing == "trailing"
    # Below the first visited step lies step 0, whose ᾱ is not quite 1; below step 0 itself there is no noise.
    lowest = table[0] if steps[0] > 0 and not trailing else 1.0

    x = next(source)
    for t, alpha_bar, previous in reversed(list(zip(steps, alpha_bars, [lowest, *alpha_bars[:-1]], strict=True))):
        time_B = torch.full((len(x),), t, device=x.device)
        epsilon = denoiser(x, time_B, condition).float()
        x0 = schedule.predict_x0(x, epsilon, time_B)
        if trailing:
            x0 = x0.clamp(-1, 1)
            epsilon = schedule.predict_noise(x, x0, time_B)
        # σ² = η² (1 - ᾱ_prev) / (1 - ᾱ_t) (1 - ᾱ_t / ᾱ_prev)   (DDIM, eq. 16)
        variance = config.eta**2 * (1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)
        # x_prev = √ᾱ_prev x_0 + √(1 - ᾱ_prev - σ²) ε + σ z   (DDIM, eq. 12)
        x = previous**0.5 * x0 + max(1 - previous - variance, 0.0) ** 0.5 * epsilon
        if config.eta > 0:
            x = x + variance**0.5 * next(source)
    return x


def _given(noise: Tensor, needed: int, shape: tuple[int, ...], device: torch.device) -> Iterator[Tensor]:
    if noise.shape[1:] != shape or len(noise) < needed:
        raise ShapeError(f"the noise must be {(needed, *shape)} or longer, not {tuple(noise.shape)}")
    return (step.to(device, torch.float32) for step in noise)


def _drawn(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Iterator[Tensor]:
    if len(generators) != shape[0]:
        raise ShapeError(f"a batch of {shape[0]} needs as many generators, not {len(generators)}")

    def draw() -> Iterator[Tensor]:
        while True:
            # Drawn on the CPU, so that CPU and CUDA runs see the same numbers.
            yield torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators]).to(device)

    return draw()
