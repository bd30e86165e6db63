"""Tumors made during training, on the device, in healthy crops (DiffTumor, section 3.3; Hu et al., section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from difftumor.datasets.cases import Case
from difftumor.datasets.transforms import Item
from difftumor.errors import ArtifactError, ConfigError, SynthesisError
from difftumor.models.artifact import Parent
from difftumor.models.artifact_config import read_config
from difftumor.scans.lesions import SizeGroup
from difftumor.scans.organs import BACKGROUND, Organ
from difftumor.seeding import numpy_generator
from difftumor.synthesis.distributions import Distribution, fixed
from difftumor.synthesis.records import GeneratorName, TumorRecord
from difftumor.synthesis.scan.loading import load_synthesizer
from difftumor.synthesis.sizes import size_groups_of, sizes_of
from difftumor.synthesis.spec import PAPER_COUNT, PlacementRule, TumorSpec
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.run.data import check_same_preprocessing
from stages.run.run import say
from stages.run.settings import Settings


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
    placement: PlacementRule = "slice"
    irregularity: Distribution | float = 1.0
    blur_mm: Distribution | float | None = None
    models: frozenset[SizeGroup] = frozenset(get_args(SizeGroup))

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"synthesis.probability is {self.probability!r}: give a number from 0 to 1.")
        if not isinstance(self.most_early, int) or self.most_early < 1:
            raise ConfigError(f"synthesis.most_early is {self.most_early!r}: give 1 or more.")
        if self.placement not in get_args(PlacementRule):
            raise ConfigError(
                f"synthesis.placement is {self.placement!r}: choose {' or '.join(get_args(PlacementRule))}."
            )
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
    def stages(self) -> frozenset[SizeGroup]:
        """Stages of the diffusion tumors that are wanted, whether their model is there or not."""
        wanted = (size_groups_of(size) for size, weight in self.sizes.items() if weight > 0)
        return frozenset().union(*wanted) if self.uses("diffusion") else frozenset()

    @property
    def left_out(self) -> list[str]:
        """Sizes that are wanted and not made with diffusion, because a model of theirs is not there."""
        if not self.uses("diffusion"):
            return []
        return [size for size, weight in self.sizes.items() if weight > 0 and not size_groups_of(size) <= self.models]

    def draw(self, seed: int) -> TumorSpec | None:
        """Draw what tumors a crop is to get, or None for a crop that stays healthy."""
        generator = numpy_generator(seed, "mix")
        wanted = generator.random() < self.probability
        kind: GeneratorName = _drawn(generator, self.generators)  # type: ignore[assignment]
        size = _drawn(generator, self._sizes_of(kind))
        several = int(generator.integers(1, self.most_early + 1))
        if not wanted:
            return None
        count = fixed(several if size_groups_of(size) == {"early"} else 1)
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


def tumors_of(settings: Settings, organ: Organ) -> tuple[TumorsOnTheFly | None, dict[str, Parent]]:
    """Load what makes the tumors of a run.

    Returns:
        It, or None where tumors are real or made before; and the diffusion models by role, as they were when they were
        loaded.

    Raises:
        ConfigError: An option is wrong, or a model is missing.
        ArtifactError: A model cannot be used, or was replaced while it was loaded.
    """
    options = settings.synthesis
    given: dict[SizeGroup, Path | None] = {"early": _path(options.early_model), "late": _path(options.late_model)}
    generators = dict(options.generators)
    if settings.tumors in ("diffusion", "handcrafted"):
        generators = {settings.tumors: 1.0}
    mix = TumorMix(
        probability=options.probability,
        generators=generators,
        sizes=dict(options.sizes),
        most_early=options.most_early,
        placement=options.placement,
        irregularity=options.irregularity,
        blur_mm=options.blur_mm,
    )
    allow_incomplete = options.allow_incomplete
    if settings.tumors == "real" or options.offline is not None:
        return None, {}
    models = _models(given, mix, settings)
    if models:
        mix = TumorMix(**{**vars(mix), "models": frozenset(models)})
    if mix.left_out:
        say(f"No tumors of size {', '.join(mix.left_out)} are made, because their diffusion model is not given.")
    parents = {f"diffusion_{stage}": Parent.at(path) for stage, path in models.items()}
    for path in models.values():
        check_same_preprocessing(settings.data, path, names=("spacing_mm",))
    if models:
        synthesizer = load_synthesizer(models, organ=organ, allow_incomplete=allow_incomplete)
    else:
        synthesizer = TumorSynthesizer(organ=organ, spacing_mm=settings.data.spacing_mm)
    _check_unchanged(parents)
    return TumorsOnTheFly(synthesizer=synthesizer, mix=mix), parents


def warn_of_leaks(settings: Settings, models: Mapping[str, Parent], validation: Sequence[Case]) -> None:
    """Say where a diffusion model has seen scans that are to judge the segmenter, and how to train it without."""
    for role, model in models.items():
        seen = set(read_config(model.path).training.get("cases", {}).get("training", ()))
        shared = [case.id for case in validation if case.id in seen]
        if shared:
            fold = "" if settings.fold is None else f" fold={settings.fold}"
            stage = role.removeprefix("diffusion_")
            say(
                f"Note: {model.path} was trained on {len(shared)} of the {len(validation)} validation cases; to keep "
                f"them unseen, train it with python -m stages.diffusion organ={settings.organ.name} "
                f"tumor_stage={stage} data.root={settings.data.root}{fold} folds.count={settings.folds.count} "
                f"folds.seed={settings.folds.seed}."
            )


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _models(given: Mapping[SizeGroup, Path | None], mix: TumorMix, settings: Settings) -> dict[SizeGroup, Path]:
    """Return the diffusion artifacts that are given and needed."""
    if not mix.uses("diffusion"):
        return {}
    models = {stage: path for stage, path in given.items() if path is not None and stage in mix.stages}
    if not models:
        raise ConfigError(
            f"tumors={settings.tumors} needs a diffusion model for its sizes: give synthesis.early_model=PATH, "
            "or do without: tumors=handcrafted, tumors=real."
        )
    for stage, path in models.items():
        if not path.is_dir():
            raise ConfigError(
                f"synthesis.{stage}_model is {path}, where no artifact is: train it with python -m stages.diffusion "
                f"organ={settings.organ.name} tumor_stage={stage}, or do without it: synthesis.{stage}_model=null."
            )
    return models


def _check_unchanged(parents: Mapping[str, Parent]) -> None:
    """Refuse models that were replaced between reading their descriptions and loading them."""
    for parent in parents.values():
        if Parent.at(parent.path) != parent:
            raise ArtifactError(f"{parent.path} was replaced while it was being loaded: rerun the same command.")
