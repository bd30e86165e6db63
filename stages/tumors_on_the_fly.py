"""Tumors made during training, on the device, in healthy crops (DiffTumor, section 3.3; Hu et al., section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from difftumor.datasets.transforms import Item
from difftumor.errors import ConfigError, SynthesisError
from difftumor.organs import BACKGROUND
from difftumor.seeding import numpy_generator
from difftumor.synthesis.distributions import Distribution, fixed
from difftumor.synthesis.records import GeneratorName, TumorRecord
from difftumor.synthesis.sizes import Stage, sizes_of, stages_of_size
from difftumor.synthesis.spec import PAPER_COUNT, Placement, TumorSpec
from difftumor.synthesis.synthesizer import TumorSynthesizer


@dataclass(frozen=True, kw_only=True)
class TumorMix:
    """Which tumors are made.

    Args:
        probability: Chance that a healthy crop gets tumors.
        generators: ``"diffusion"`` and ``"handcrafted"`` to their weights; weights need not sum to 1.
        sizes: Size class or group (``early``: tiny or small) to its weight.
        most_early: Early diffusion tumors come one to so many at once, larger ones alone; of hand-crafted tumors there
            are as many as Hu et al. 2023 have them, Table 6.
        placement: ``"slice"`` (published) or ``"uniform"``.
        irregularity: Factor on the elastic deformation of a tumor's size; 0 for ellipsoids.
        blur_mm: σ of the Gaussian that softens rims, 0 for sharp ones; None leaves it to the generator.
        models: Stages whose diffusion models are there; the others' sizes are not made with diffusion.

    Raises:
        ConfigError: A value is out of range, a size is unknown, or no size is left for a generator.
    """

    probability: float
    generators: Mapping[str, float]
    sizes: Mapping[str, float]
    most_early: int
    placement: Placement = "slice"
    irregularity: Distribution | float = 1.0
    blur_mm: Distribution | float | None = None
    models: frozenset[Stage] = frozenset(get_args(Stage))

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"synthesis.probability is {self.probability!r}: give a number from 0 to 1.")
        if not isinstance(self.most_early, int) or self.most_early < 1:
            raise ConfigError(f"synthesis.most_early is {self.most_early!r}: give 1 or more.")
        if self.placement not in get_args(Placement):
            raise ConfigError(f"synthesis.placement is {self.placement!r}: choose {' or '.join(get_args(Placement))}.")
        try:
            TumorSpec(**self._shape)
        except ConfigError as error:
            raise ConfigError(f"synthesis.{error}") from error
        for name, weights in (("sizes", self.sizes), ("generators", self.generators)):
            for key, weight in weights.items():
                if name == "sizes":
                    sizes_of(key)
                elif key not in get_args(GeneratorName):
                    raise ConfigError(
                        f"synthesis.generators has {key!r}: choose {' and '.join(get_args(GeneratorName))}."
                    )
                if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
                    raise ConfigError(f"synthesis.{name}.{key} is {weight!r}: give a weight of 0 or more.")
            if not sum(weights.values()) > 0:
                raise ConfigError(f"synthesis.{name} has no weight above 0: give one to what is to be made.")
        if self.uses("diffusion") and not self._sizes_of("diffusion"):
            raise ConfigError(
                "synthesis.sizes has no weight above 0 for a size whose diffusion model is there: add one."
            )

    def uses(self, generator: GeneratorName) -> bool:
        """Whether some tumors come from a generator."""
        return self.generators.get(generator, 0) > 0

    @property
    def stages(self) -> frozenset[Stage]:
        """Stages of the diffusion tumors that are wanted, whether their model is there or not."""
        wanted = (stages_of_size(size) for size, weight in self.sizes.items() if weight > 0)
        return frozenset().union(*wanted) if self.uses("diffusion") else frozenset()

    @property
    def left_out(self) -> list[str]:
        """Sizes that are wanted and not made with diffusion, because a model of theirs is not there."""
        if not self.uses("diffusion"):
            return []
        return [size for size, weight in self.sizes.items() if weight > 0 and not stages_of_size(size) <= self.models]

    def draw(self, seed: int) -> TumorSpec | None:
        """Draw what tumors a crop is to get, or None for a crop that stays healthy."""
        generator = numpy_generator(seed, "mix")
        wanted = generator.random() < self.probability
        kind: GeneratorName = _drawn(generator, self.generators)  # type: ignore[assignment]
        size = _drawn(generator, self._sizes_of(kind))
        several = int(generator.integers(1, self.most_early + 1))
        if not wanted:
            return None
        count = fixed(several if stages_of_size(size) == {"early"} else 1)
        return TumorSpec(
            generator=kind,
            size=size,
            count=count if kind == "diffusion" else PAPER_COUNT,  # type: ignore[arg-type]
            placement=self.placement,
            **self._shape,
        )

    @property
    def _shape(self) -> dict[str, Any]:
        return {"irregularity": self.irregularity, "blur_mm": self.blur_mm}

    def _sizes_of(self, generator: GeneratorName) -> dict[str, float]:
        left_out = self.left_out if generator == "diffusion" else ()
        return {size: weight for size, weight in self.sizes.items() if weight > 0 and size not in left_out}


def _drawn(generator: np.random.Generator, weights: Mapping[str, float]) -> str:
    chances = np.array(list(weights.values()), dtype=float)
    return str(generator.choice(list(weights), p=chances / chances.sum()))


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
        synthesizer: With a diffusion model for every stage of the mix's.
        mix: Which tumors are made.

    Raises:
        ConfigError: The mix has a size whose model the synthesizer lacks.
    """

    def __init__(self, *, synthesizer: TumorSynthesizer, mix: TumorMix) -> None:
        if missing := sorted((mix.stages & mix.models) - set(synthesizer.diffusion)):
            raise ConfigError(
                f"synthesis.sizes has sizes of the {missing[0]} model, which is not given: leave them out."
            )
        self.synthesizer = synthesizer
        self.mix = mix

    def to(self, device: torch.device | str) -> TumorsOnTheFly:
        """Move the networks to a device and return self."""
        self.synthesizer.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self, ct_hu_B1XYZ: Tensor, labels_B1XYZ: Tensor, seeds: Sequence[int], healthy: Sequence[bool]
    ) -> Made:
        """Make tumors; all of one generator and stage go through the networks together.

        Args:
            ct_hu_B1XYZ: Crops in HU, on the device of the synthesizer; not modified.
            labels_B1XYZ: Their labels; not modified.
            seeds: Of each crop.
            healthy: Which crops may get tumors.
        """
        organ_B1XYZ = labels_B1XYZ != BACKGROUND
        wanted = {
            element: spec
            for element, seed in enumerate(seeds)
            if healthy[element] and (spec := self.mix.draw(seed)) is not None
        }
        drawn: dict[int, tuple[TumorRecord, ...]] = {}
        for element, spec in wanted.items():
            ct_XYZ = ct_hu_B1XYZ[element, 0] if spec.needs_hu else None
            try:
                drawn[element] = self.synthesizer.draw(
                    organ_B1XYZ[element, 0], spec, seed=seeds[element], ct_hu_XYZ=ct_XYZ
                )
            except SynthesisError:
                continue  # no room for a tumor of this size: the crop stays healthy
        ct, labels = ct_hu_B1XYZ.clone(), labels_B1XYZ.clone()
        if chosen := list(drawn):
            made = self.synthesizer.apply(ct[chosen], organ_B1XYZ[chosen], [drawn[element] for element in chosen])
            ct[chosen], labels[chosen] = made.ct_hu.to(ct.dtype), made.labels.to(labels.dtype)
        records = tuple(drawn.get(element, ()) for element in range(len(seeds)))
        return Made(ct, labels, records, len(wanted), len(wanted) - len(drawn))


def finished(batch: Item, tumors: TumorsOnTheFly | None) -> Item:
    """Return a batch of stage 3 with tumors in its healthy crops.

    Args:
        batch: ``ct`` and ``labels``, ``tumor_seed`` and ``healthy`` of every element.
        tumors: Makes them; None leaves the batch as it is.

    Returns:
        The batch with other ``ct`` and ``labels``, ``synthetic``, how many crops got tumors, and ``rejected``, how many
        were refused them for lack of room.
    """
    if tumors is None:
        return {**batch, "synthetic": 0, "rejected": 0}
    # In full precision, as the tumors of inference are made.
    with torch.autocast(batch["ct"].device.type, enabled=False):
        made = tumors(
            batch["ct"], batch["labels"], seeds=batch["tumor_seed"].tolist(), healthy=batch["healthy"].tolist()
        )
    counts = {"synthetic": made.wanted - made.rejected, "rejected": made.rejected}
    return {**batch, "ct": made.ct_hu, "labels": made.labels, **counts}
