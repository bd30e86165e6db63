"""Exponential moving average of a network's weights; the average, not the last weights, is what samples best."""

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from difftumor.errors import ConfigError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ExponentialMovingAverage(Generic[ModuleT]):
    """Keep a frozen copy of a network, in ``module``, that follows it slowly.

    Steps are counted from 0. Every ``every``-th step the copy is updated: until step ``start`` it becomes the network
    as it is, then each parameter becomes ``decay · average + (1 - decay) · network``. Buffers are copied as they are.

    Args:
        network: The network that is trained; it is copied and not kept.
        decay: Weight of the old average, in [0, 1).
        start: Step from which on weights are averaged.
        every: Steps between updates.

    Raises:
        ConfigError: A value is out of range.
    """

    def __init__(self, network: ModuleT, *, decay: float = 0.995, start: int = 2000, every: int = 10) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"the average's decay must be in [0, 1), not {decay}")
        if start < 0 or every < 1:
            raise ConfigError(f"the average's start must be at least 0 and every at least 1, not {start} and {every}")
        self.decay = decay
        self.start = start
        self.every = every
        self.step = 0
        self.module: ModuleT = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: ModuleT) -> None:
        """Take note of the network after an optimizer step."""
        if self.step % self.every == 0:
            weight = 1 - self.decay if self.step >= self.start else 1.0
            for average, current in zip(self.module.parameters(), network.parameters(), strict=True):
                # lerp with weight 1 is an exact copy.
                average.lerp_(current.to(average), weight)
            for kept, buffer in zip(self.module.buffers(), network.buffers(), strict=True):
                kept.copy_(buffer)
        self.step += 1

    def to(self, device: torch.device | str) -> "ExponentialMovingAverage[ModuleT]":
        """Move the copy to a device and return self."""
        self.module.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs: the step and the copy's weights (not cloned)."""
        return {"step": self.step, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.module.load_state_dict(state["module"])
        self.step = int(state["step"])
