"""Tumors made during training, on the device, in healthy crops (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from difftumor.errors import ConfigError, SynthesisError
from difftumor.organs import BACKGROUND
from difftumor.seeding import Key, numpy_generator
from difftumor.synthesis.distributions import fixed
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.sizes import sizes_of, stage_of_size
from difftumor.synthesis.spec import TumorSpec
from difftumor.synthesis.synthesizer import Synthesis


class Synthesizer(Protocol):
    """What makes tumors: draws records, then applies them."""

    def draw(
        self, organ_mask_XYZ: np.ndarray | Tensor, tumors: TumorSpec, *, seed: int, keys: tuple[Key, ...] = ()
    ) -> tuple[TumorRecord, ...]:
        """Draw tumors for an organ mask."""
        ...

    def apply(
        self, ct_hu_B1XYZ: Tensor, organ_mask_B1XYZ: Tensor, records: Sequence[Sequence[TumorRecord]]
    ) -> Synthesis:
        """Apply records to a batch."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Move the networks."""
        ...


@dataclass(frozen=True, kw_only=True)
class TumorMix:
    """Which tumors are made: the group ``synthesis`` of the config.

    Args:
        probability: Chance that a healthy crop gets tumors.
        sizes: Size class or group (``early``: tiny or small) to its weight; weights need not sum to 1.
        most_early: Early tumors come one to so many at once; larger ones always come alone.

    Raises:
        ConfigError: A value is out of range, or a size is unknown.
    """

    probability: float
    sizes: Mapping[str, float]
    most_early: int

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"synthesis.probability is {self.probability!r}: give a number from 0 to 1.")
        if not isinstance(self.most_early, int) or self.most_early < 1:
            raise ConfigError(f"synthesis.most_early is {self.most_early!r}: give 1 or more.")
        for size, weight in self.sizes.items():
            sizes_of(size)
            if not weight >= 0:
                raise ConfigError(f"synthesis.sizes.{size} is {weight!r}: give a weight of 0 or more.")
        if not sum(self.sizes.values()) > 0:
            raise ConfigError("synthesis.sizes has no weight above 0: give one to a size whose model is there.")

    @property
    def models(self) -> frozenset[str]:
        """The diffusion models that are needed: ``"early"``, ``"late"`` or both."""
        return frozenset(stage_of_size(size) for size, weight in self.sizes.items() if weight > 0)

    def only(self, models: Sequence[str]) -> tuple[TumorMix, list[str]]:
        """Leave out sizes whose model (``"early"`` or ``"late"``) is not there; return their names too.

        Raises:
            ConfigError: Nothing remains.
        """
        kept = {size: weight for size, weight in self.sizes.items() if stage_of_size(size) in models}
        gone = [size for size, weight in self.sizes.items() if size not in kept and weight > 0]
        return TumorMix(probability=self.probability, sizes=kept, most_early=self.most_early), gone

    def draw(self, seed: int) -> tuple[str, int] | None:
        """Draw size and number of the tumors of a crop, or None for a crop that stays healthy."""
        generator = numpy_generator(seed, "mix")
        weights = np.array(list(self.sizes.values()), dtype=float)
        wanted = generator.random() < self.probability
        size = str(generator.choice(list(self.sizes), p=weights / weights.sum()))
        count = int(generator.integers(1, self.most_early + 1)) if stage_of_size(size) == "early" else 1
        return (size, count) if wanted else None


@dataclass(frozen=True, eq=False)
class Made:
    """A batch after tumors were made in it.

    Args:
        ct_hu: (B, 1, X, Y, Z); crops without a draw are bit-identical to the input.
        labels: uint8, 0 background, 1 organ, 2 tumor.
        records: What was made, per element.
        wanted: Crops that were to get tumors.
        rejected: Those of them that stayed healthy, for lack of room.
    """

    ct_hu: Tensor
    labels: Tensor
    records: tuple[tuple[TumorRecord, ...], ...] = field(default=())
    wanted: int = 0
    rejected: int = 0


class TumorsOnTheFly:
    """Puts tumors into the healthy crops of a batch; what a crop gets depends on its seed alone.

    Args:
        synthesizers: By model, ``"early"`` and ``"late"``; those for the sizes of the mix.
        mix: Which tumors are made.

    Raises:
        ConfigError: The mix has a size for which there is no synthesizer.
    """

    def __init__(self, *, synthesizers: Mapping[str, Synthesizer], mix: TumorMix) -> None:
        if missing := sorted(mix.models - set(synthesizers)):
            raise ConfigError(
                f"synthesis.sizes has sizes of the {missing[0]} model, which is not given: leave them out."
            )
        self.synthesizers = dict(synthesizers)
        self.mix = mix

    def to(self, device: torch.device | str) -> TumorsOnTheFly:
        """Move the networks to a device and return self."""
        for synthesizer in self.synthesizers.values():
            synthesizer.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self, ct_hu_B1XYZ: Tensor, labels_B1XYZ: Tensor, seeds: Sequence[int], healthy: Sequence[bool]
    ) -> Made:
        """Make tumors.

        Args:
            ct_hu_B1XYZ: Crops in HU, on the device of the synthesizers; not modified.
            labels_B1XYZ: Their labels; not modified.
            seeds: Of each crop.
            healthy: Which crops may get tumors.
        """
        organ_B1XYZ = labels_B1XYZ != BACKGROUND
        drawn: list[tuple[TumorRecord, ...]] = [()] * len(seeds)
        models: dict[int, str] = {}
        wanted = 0
        for element, seed in enumerate(seeds):
            choice = self.mix.draw(seed) if healthy[element] else None
            if choice is None:
                continue
            wanted += 1
            size, count = choice
            mask_XYZ = organ_B1XYZ[element, 0].cpu().numpy()
            try:
                drawn[element] = self.synthesizers[stage_of_size(size)].draw(
                    mask_XYZ, TumorSpec(size=size, count=fixed(count)), seed=seed
                )
            except SynthesisError:
                continue  # no room for a tumor of this size: the crop stays healthy
            models[element] = stage_of_size(size)
        ct, labels = ct_hu_B1XYZ.clone(), labels_B1XYZ.clone()
        for model, synthesizer in self.synthesizers.items():
            chosen = [element for element, used in models.items() if used == model]
            if chosen:
                made = synthesizer.apply(ct[chosen], organ_B1XYZ[chosen], [drawn[element] for element in chosen])
                ct[chosen], labels[chosen] = made.ct_hu, made.labels.to(labels.dtype)
        return Made(ct, labels, tuple(drawn), wanted, wanted - len(models))
