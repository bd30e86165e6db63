"""Which tumors a healthy crop gets during training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from difftumor.errors import ConfigError
from difftumor.scans.lesions import SizeGroup
from difftumor.scans.organs import SIZE_NAMES
from difftumor.seeding import numpy_generator
from difftumor.synthesis.distributions import Distribution, fixed
from difftumor.synthesis.records import GeneratorName
from difftumor.synthesis.sizes import size_groups_of, sizes_of
from difftumor.synthesis.spec import PAPER_COUNT, PlacementRule, TumorSpec
from stages.segmentation.options import SegmentationOptions

# Options of a run that are fields of all its tumors.
_LOOKS = ("irregularity", "blur_mm", "blur_share", "scale_texture", "host_noise_mm")


@dataclass(frozen=True, kw_only=True)
class TumorMix:
    """Which tumors are made.

    Args:
        probability: Chance that a healthy crop gets tumors.
        generators: ``"diffusion"``, ``"handcrafted"`` and ``"copy_paste"`` to their weights; they need not sum to 1.
        sizes: Size class or group (``early``: tiny or small) to its weight.
        most_early: Early diffusion tumors and copies come one to so many at once, larger ones alone; of hand-crafted
            tumors there are as many as Hu et al. 2023 have them, Table 6.
        placement: ``"slice"`` (published) or ``"uniform"``.
        irregularity: Factor on the elastic deformation of a tumor's size; 0 for ellipsoids. Copies stay as they are.
        blur_mm: σ of the Gaussian that softens rims, 0 for sharp ones; None leaves it to the generator.
        blur_share: Instead of ``blur_mm``: σ as a share of the tumor's radius.
        scale_texture: Whether hand-crafted texture is scaled to the deviation of the organ's tissue.
        host_noise_mm: How much of the CT's noise stays under hand-crafted tumors; None for nothing.
        models: Size groups whose diffusion models are there; the others' sizes are not made with diffusion.
        copied: Size classes of the real tumors that can be copied; the others' sizes are not copied.

    Raises:
        ConfigError: A field of the tumors is out of range, a size is unknown, or no size is left for a generator.
    """

    probability: float
    generators: Mapping[str, float]
    sizes: Mapping[str, float]
    most_early: int
    placement: PlacementRule = "slice"
    irregularity: Distribution | float = 1.0
    blur_mm: Distribution | float | None = None
    blur_share: Distribution | float | None = None
    scale_texture: bool = True
    host_noise_mm: Distribution | float | None = None
    models: frozenset[SizeGroup] = frozenset(get_args(SizeGroup))
    copied: frozenset[str] = frozenset(SIZE_NAMES)

    @classmethod
    def of(cls, options: SegmentationOptions) -> TumorMix:
        """Return what the options say, as if all models were there.

        Raises:
            ConfigError: See above.
        """
        synthesis, kind = options.synthesis, options.tumors
        return cls(
            probability=synthesis.probability,
            generators={kind: 1.0} if kind in get_args(GeneratorName) else asdict(synthesis.generators),
            sizes=asdict(synthesis.sizes),
            most_early=synthesis.most_early,
            placement=synthesis.placement,
            **{name: getattr(synthesis, name) for name in _LOOKS},
        )

    def __post_init__(self) -> None:
        try:
            TumorSpec(**self._looks)
        except ConfigError as error:
            raise ConfigError(f"synthesis.{error}") from error
        for size in self.sizes:
            sizes_of(size)
        for name, weights in (("sizes", self.sizes), ("generators", self.generators)):
            if not sum(weights.values()) > 0:
                raise ConfigError(f"synthesis.{name} has no weight above 0: give a weight above 0 to at least one.")
        if self.uses("diffusion") and not self._sizes_of("diffusion"):
            raise ConfigError(
                "synthesis.sizes has no weight above 0 for a size whose diffusion model is given: add one."
            )
        if self.uses("copy_paste") and not self._sizes_of("copy_paste"):
            there = ", ".join(name for name in SIZE_NAMES if name in self.copied)
            raise ConfigError(
                "synthesis.sizes has no weight above 0 for a size of the training patients' tumors, which are "
                f"{there}: add one."
            )

    def uses(self, generator: GeneratorName) -> bool:
        """Whether some tumors come from a generator."""
        return self.generators.get(generator, 0) > 0

    @property
    def groups(self) -> frozenset[SizeGroup]:
        """Size groups of the diffusion tumors that may be drawn, whether their model is there or not."""
        wanted = (size_groups_of(size) for size, weight in self.sizes.items() if weight > 0)
        return frozenset().union(*wanted) if self.uses("diffusion") else frozenset()

    def left_out(self, generator: GeneratorName) -> list[str]:
        """Return sizes with a weight that a generator can't make: their model, or a tumor to copy, is missing."""
        weighted = [size for size, weight in self.sizes.items() if weight > 0 and self.uses(generator)]
        if generator == "diffusion":
            return [size for size in weighted if not size_groups_of(size) <= self.models]
        return [size for size in weighted if generator == "copy_paste" and self.copied.isdisjoint(sizes_of(size))]

    def draw(self, seed: int) -> TumorSpec | None:
        """Draw what tumors a crop is to get, or None for a crop that stays healthy."""
        generator = numpy_generator(seed, "mix")
        wanted = generator.random() < self.probability
        kind: GeneratorName = _draw(generator, self.generators)  # type: ignore[assignment]
        size = _draw(generator, self._sizes_of(kind))
        several = int(generator.integers(1, self.most_early + 1))
        if not wanted:
            return None
        count = fixed(several if size_groups_of(size) == {"early"} else 1)
        return TumorSpec(
            generator=kind,
            size=size,
            count=count if kind != "handcrafted" else PAPER_COUNT,  # type: ignore[arg-type]
            placement=self.placement,
            **{**self._looks, "irregularity": 1.0 if kind == "copy_paste" else self.irregularity},
        )

    @property
    def _looks(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _LOOKS}

    def _sizes_of(self, generator: GeneratorName) -> dict[str, float]:
        left_out = self.left_out(generator)
        return {size: weight for size, weight in self.sizes.items() if weight > 0 and size not in left_out}


def _draw(generator: np.random.Generator, weights: Mapping[str, float]) -> str:
    chances = np.array(list(weights.values()), dtype=float)
    return str(generator.choice(list(weights), p=chances / chances.sum()))
