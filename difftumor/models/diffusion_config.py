"""What a diffusion model is used with, as plain values: its sampler, and what its condition is made of."""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from difftumor.errors import ConfigError

SamplerKind = Literal["ddpm", "ddim"]
StepSpacing = Literal["leading", "trailing"]
# What the tumor is removed from for the condition: the CT before it is encoded, or its latent.
Masked = Literal["image", "latent"]


@dataclass(frozen=True)
class SamplerConfig:
    """How to sample.

    Attributes:
        kind: "ddpm" goes through all time steps and adds noise in each; "ddim" may skip steps.
        steps: Number of calls of the denoiser; None for all time steps of the schedule, the only choice with DDPM.
        eta: DDIM's noise in [0, 1]: 0 none, 1 as much as DDPM with its posterior variance.
        spacing: Which time steps DDIM visits if it skips some. "leading", as in the published models, starts below
            the last time step and ends at step 0; with few steps it starts from noise alone, but the denoiser expects
            some of the latent. "trailing" (Lin et al. 2024, Common Diffusion Noise Schedules, table 2) starts at the
            last time step, where noise alone is right, and ends at x_0. So little of x_0 is left there that it clamps
            the x_0 it predicts, as DDPM does.

    Raises:
        ConfigError: A value is unknown or out of range.
    """

    kind: SamplerKind = "ddpm"
    steps: int | None = None
    eta: float = 0.0
    spacing: StepSpacing = "leading"

    def __post_init__(self) -> None:
        if self.kind not in get_args(SamplerKind):
            raise ConfigError(f"the sampler's kind must be 'ddpm' or 'ddim', not {self.kind!r}")
        if self.steps is not None and (not isinstance(self.steps, int) or self.steps < 1):
            raise ConfigError(f"the sampler's steps must be a whole number from 1 up, not {self.steps!r}")
        if not isinstance(self.eta, int | float) or not 0 <= self.eta <= 1:
            raise ConfigError(f"the sampler's eta must be in [0, 1], not {self.eta!r}")
        if self.spacing not in get_args(StepSpacing):
            raise ConfigError(f"the sampler's spacing must be 'leading' or 'trailing', not {self.spacing!r}")
        if self.kind == "ddpm" and self.eta != 0:
            raise ConfigError(f"the sampler's eta {self.eta} has no meaning for 'ddpm'; leave it at 0 or use 'ddim'")
        if self.kind == "ddpm" and self.spacing != "leading":
            raise ConfigError(f"the sampler's spacing {self.spacing!r} has no meaning for 'ddpm'; use 'ddim'")

    def changed(
        self,
        *,
        kind: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        spacing: str | None = None,
    ) -> "SamplerConfig":
        """Return the config with other values; None keeps what is, except that another kind starts from its defaults.

        Raises:
            ConfigError: A value is unknown or out of range.
        """
        options = {"kind": kind, "steps": steps, "eta": eta, "spacing": spacing}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        return replace(self if kind in (None, self.kind) else SamplerConfig(), **given)

    def time_steps(self, total: int) -> tuple[int, ...]:
        """Return the visited time steps of a schedule with ``total`` ones, ascending.

        Leading DDIM visits 1 + i·T/S, rounded down: 1, 5, …, 197 for S = 50 of T = 200. With fewer than two time steps
        per visited one there is no room for the 1, and the visited ones start at 0. Trailing DDIM visits
        (i + 1)·T/S - 1, rounded: 3, 7, …, 199.

        Raises:
            ConfigError: ``steps`` doesn't fit the schedule.
        """
        steps = total if self.steps is None else self.steps
        if steps > total or (self.kind == "ddpm" and steps != total):
            allowed = f"all {total}" if self.kind == "ddpm" else f"at most {total}"
            raise ConfigError(f"the sampler's steps must be {allowed} of the schedule with {self.kind!r}, not {steps}")
        if self.spacing == "trailing":
            return tuple(round((i + 1) * total / steps) - 1 for i in range(steps))
        offset = 1 if self.kind == "ddim" and total >= 2 * steps else 0
        return tuple(offset + i * total // steps for i in range(steps))

    def draws(self, total: int) -> int:
        """Return how many noise tensors a sample takes: the one it starts from, and those added on the way."""
        steps = len(self.time_steps(total))
        if self.kind == "ddpm":
            return steps  # The last step, to t = 0, adds none.
        return 1 + steps if self.eta > 0 else 1
