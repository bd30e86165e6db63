"""Validation of stage 2: the loss of held-out tumors by timestep, and tumors made in healthy crops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from difftumor.scans.appearance import EDGE_BINS_MM, Appearance, appearance_distance
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.diffusion.hosts import HeldOut, HeldOutOrgans, synthesize
from stages.diffusion.pictures import HostPictures
from stages.run.module import StageModule
from stages.run.pictures import due

# The best network is chosen by this.
MONITOR = "validation/loss"
# Held-out crops are judged at so many timesteps, evenly spread, or at all where there are fewer.
MOST_TIMES = 8
_ROW = len(EDGE_BINS_MM) - 1 + 3


def visited_times(timesteps: int) -> list[int]:
    """Return the timesteps at which held-out crops are judged, the first and the last among them."""
    count = min(MOST_TIMES, timesteps)
    return sorted({round(index * (timesteps - 1) / max(1, count - 1)) for index in range(count)})


class TimestepLosses(Metric):
    """Mean losses over crops, by timestep; over all ranks, whatever share each has.

    Args:
        times: The timesteps.
    """

    full_state_update = False
    sums_T: Tensor
    crops: Tensor

    def __init__(self, times: Sequence[int]) -> None:
        super().__init__()
        self.times = tuple(times)
        self.add_state("sums_T", torch.zeros(len(self.times), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("crops", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses_TB: Tensor, counted_B: Tensor) -> None:
        """Add crops.

        Args:
            losses_TB: (timesteps, B).
            counted_B: False for crops that another rank counts.
        """
        self.sums_T += losses_TB[:, counted_B].double().sum(dim=1)
        self.crops += counted_B.sum()

    def compute(self) -> dict[str, float]:
        """Return the mean over crops and timesteps, and of each timestep, by the names they are logged under."""
        if not self.crops:
            return {}
        means = (self.sums_T / self.crops).tolist()
        named = {f"{MONITOR}_t{time:03d}": mean for time, mean in zip(self.times, means, strict=True)}
        return {MONITOR: math.fsum(means) / len(means), **named}


class HostedAppearances(Metric):
    """How the tumor of each host looks, gathered over all ranks.

    Args:
        count: Hosts.
    """

    full_state_update = False
    rows_HN: Tensor
    measured_H: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.add_state("rows_HN", torch.zeros(count, _ROW, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("measured_H", torch.zeros(count, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, number: int, appearance: Appearance | None) -> None:
        """Add the tumor of a host, which no other rank has; None for no host."""
        if appearance is None:
            return
        self.rows_HN[number] = torch.tensor(appearance.to_row(), dtype=torch.float64)
        self.measured_H[number] = 1

    def compute(self) -> Tensor:
        """Return the rows of the tumors in the order of their hosts."""
        return self.rows_HN[self.measured_H > 0]


class HostValidation(nn.Module):
    """Makes tumors in the hosts, measures and plots them.

    Args:
        held_out: Hosts, and real tumors: to compare with, and to describe in the artifact.
        synthesizer: With the average of the denoiser and the artifact's sampler, as users will have it.
        every_n_epochs: In the first validation after so many epochs, and in the last of all; 0 for never.
        pictures: Number of hosts that are plotted.
    """

    def __init__(
        self, held_out: HeldOut | HeldOutOrgans, synthesizer: TumorSynthesizer, *, every_n_epochs: int, pictures: int
    ) -> None:
        super().__init__()
        self.held_out = held_out
        self.synthesizer = synthesizer
        self.every_n_epochs = every_n_epochs
        self.metric = HostedAppearances(held_out.count)
        self.pictured = pictures
        self._pictures: HostPictures | None = None

    def due(self, trainer: pl.Trainer) -> bool:
        """Whether the validation of this epoch makes tumors."""
        return self.held_out.count > 0 and due(trainer, self.every_n_epochs)

    @property
    def pictures(self) -> HostPictures:
        """Those of the first hosts, once there are hosts."""
        if self._pictures is None:
            ids = [host.id for host in self.held_out.hosts[: self.pictured]]
            self._pictures = HostPictures(ids, spacing_mm=self.synthesizer.spacing_mm, window=self.synthesizer.window)
        return self._pictures

    def start(self) -> None:
        """Forget the tumors of the validation before."""
        self.metric.reset()

    def take(self, number: int, module: StageModule) -> None:
        """Make the tumor of a host if it is time; a number beyond the last stands for no host."""
        if not self.due(module.trainer):
            return
        if number >= len(self.held_out.hosts):
            self.metric.update(number, None)
            return
        for made in synthesize(self.synthesizer, [self.held_out.hosts[number]]):
            self.metric.update(number, made.appearance)
            self.pictures.plot(made, module)

    def finish(self, module: StageModule) -> dict[str, float]:
        """Return how far the tumors of all ranks are from real ones, by the names it is logged under."""
        if not self.due(module.trainer):
            return {}
        self.pictures.show(module)
        made, real = [Appearance.from_row(row) for row in self.metric.compute().tolist()], self.held_out.real
        found = {"synthetic_tumors": float(len(made)), "real_tumors": float(len(real))}
        distance = appearance_distance(made, real)
        for name in ("contrast", "sd", "edge"):
            # Without real tumors there is nothing to compare with; a distance of 0 would be wrong, NaN a nuisance.
            if math.isfinite(value := getattr(distance, f"{name}_hu")):
                found[f"{name}_distance_hu"] = value
        return {f"validation/{name}": value for name, value in found.items()}
