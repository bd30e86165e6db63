"""Diffusion models compared with real tumors: each makes tumors of the same masks in the same healthy crops."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import CaseListError
from difftumor.models.artifact import pick_device
from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import mask_center
from difftumor.scans.appearance import Appearance, AppearanceDistance, appearance_distance, measure_appearance
from difftumor.scans.grid import Voxel
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.organs import TUMOR
from stages.config.compose import compose_options
from stages.diffusion.options import DiffusionOptions
from studies.jobs.graph import Graph

if TYPE_CHECKING:  # PyTorch, which plans do without
    import torch

    from difftumor.synthesis.synthesizer import TumorSynthesizer
    from stages.diffusion.hosts import HeldOut, HostCrop, HostedTumor

REAL = "real tumors, training cases"
HEALTHY = "no tumor"
READING = (
    "Distances are from held-out real tumors, in HU. Contrast (mean inside, less the mean of the surroundings) and "
    "standard deviation inside are compared by their distributions over the tumors (Wasserstein-1 distance), the edge "
    "by the mean profile across the tumor's surface (mean absolute difference). The row of the training "
    "cases shows how close two sets of real tumors are, the row without tumors how far healthy tissue in the same "
    "masks is."
)
# Timed runs of each model, after one that does not count because it loads code.
REPEATS = 3


@dataclass(frozen=True, eq=False)
class Compared:
    """A model, or a reference to compare models with.

    Args:
        name: Its name in table and figures.
        appearances: How its tumors look.
        distance: Their distance from the held-out real tumors.
        tumors: The tumors, host by host; empty for a reference.
        seconds: Median time of one tumor, from CT to CT; None for a reference.
    """

    name: str
    appearances: tuple[Appearance, ...]
    distance: AppearanceDistance
    tumors: tuple[HostedTumor, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Models side by side.

    Args:
        real: How the held-out real tumors look.
        hosts: Healthy crops that host the tumors of all models.
        references: Real tumors of the training cases, the best a model can hope for, and the masks without tumors.
        models: The models.
        spacing_mm: Voxel size.
        window: HU window of the networks.
    """

    real: tuple[Appearance, ...]
    hosts: tuple[HostCrop, ...]
    references: tuple[Compared, ...]
    models: tuple[Compared, ...]
    spacing_mm: tuple[float, ...]
    window: IntensityWindow

    @property
    def rows(self) -> tuple[Compared, ...]:
        """References, then models."""
        return *self.references, *self.models

    @property
    def sets(self) -> dict[str, tuple[Appearance, ...]]:
        """The held-out tumors and those of the models, for ``appearance_figure``."""
        return {"real, held out": self.real, **{each.name: each.appearances for each in self.models}}

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of hosts and real tumors, by name."""
        return {"hosts": len(self.hosts), "held-out real tumors": len(self.real)}


def judged_by(options: Sequence[str]) -> HeldOut:
    """Return hosts and real tumors to judge models by; called before training, which takes longer.

    Args:
        options: Overrides of stage 2 that choose data, crops and hosts; the models share them.

    Raises:
        CaseListError: No case hosts a tumor, or no real tumor is held out.
        DiffTumorError: An option is wrong.
    """
    from stages.diffusion.train import held_out

    unseen = held_out(compose_options("diffusion", DiffusionOptions, options))
    source, rules = unseen.reader.cases.source, unseen.reader.rules
    if not unseen.real:
        raise CaseListError(
            f"{source} holds out no {rules.stage} {unseen.reader.organ.name} tumor to compare with: give fold=0, "
            "another fold, or another tumor_stage."
        )
    if not unseen.hosts:
        raise CaseListError(
            f"{source} has no room for tumors to compare: give validation.hosts=8, or hold out cases with more of the "
            f"{unseen.reader.organ.name}."
        )
    return unseen


class JudgedGraph(Graph):
    """Diffusion models that the same held-out tumors and hosts judge.

    Attributes:
        options: Overrides of stage 2 that the models share.
        device: Where their tumors are made.
    """

    options: Sequence[str]
    device: str

    def check(self) -> None:
        """Refuse a device that is not there, and data that judge nothing, before hours are spent."""
        pick_device(self.device)
        _ = self.unseen

    @cached_property
    def unseen(self) -> HeldOut:
        """What the models are judged by."""
        return judged_by(self.options)


def compare(artifacts: Mapping[str, Path], unseen: HeldOut, *, device: torch.device) -> Comparison:
    """Make the same tumors with several diffusion models.

    Args:
        artifacts: Models by name.
        unseen: Result of ``judged_by``.
        device: Where to make the tumors.

    Raises:
        DiffTumorError: An artifact cannot be used.
    """
    from difftumor.synthesis.scan.loading import load_synthesizer
    from stages.diffusion.hosts import synthesize

    models = []
    for name, path in artifacts.items():
        synthesizer = load_synthesizer(path, organ=unseen.reader.organ, device=device)
        tumors = tuple(synthesize(synthesizer, unseen.hosts))
        looks = tuple(tumor.appearance for tumor in tumors)
        seconds = seconds_per_tumor(synthesizer, unseen.hosts[0])
        models.append(Compared(name, looks, appearance_distance(looks, unseen.real), tumors, seconds))
    references = (
        _reference(REAL, unseen.learned, unseen.real),
        _reference(HEALTHY, [_without_tumor(tumor, unseen) for tumor in models[0].tumors], unseen.real),
    )
    return Comparison(
        real=unseen.real,
        hosts=unseen.hosts,
        references=references,
        models=tuple(models),
        spacing_mm=unseen.reader.spacing_mm,
        window=unseen.window,
    )


def seconds_per_tumor(synthesizer: TumorSynthesizer, host: HostCrop) -> float:
    """Return the median time of one tumor in one crop: placing, encoding, sampling, decoding, blending."""
    times = []
    ct, organ = (volume[None, None].to(synthesizer.device) for volume in (host.ct_hu_XYZ, host.organ_XYZ))
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        # Copied to the CPU, so that a GPU has finished.
        synthesizer.apply(ct, organ, [[host.record]], patch_per_tumor=True).ct_hu.cpu()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def picture_rows(comparison: Comparison, *, hosts: int) -> tuple[dict[str, list[Panel]], list[Voxel]]:
    """Return panels (before, then each model) and centers of the hosts with the largest tumors, for ``axial_rows``."""
    rows: dict[str, list[Panel]] = {}
    centers: list[Voxel] = []
    sizes = [tumor.appearance.voxels for tumor in comparison.models[0].tumors]
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number])[:hosts]:
        host = comparison.hosts[number]
        made = [model.tumors[number] for model in comparison.models]
        mask: NDArray[np.uint8] = made[0].tumor_XYZ.numpy().astype(np.uint8) * TUMOR
        before = Panel(title="before", image=host.ct_hu_XYZ.numpy(), labels=mask)
        tumors = [
            Panel(title=model.name, image=tumor.ct_hu_XYZ.numpy())
            for model, tumor in zip(comparison.models, made, strict=True)
        ]
        rows[host.id] = [before, *tumors]
        centers.append(mask_center(mask))
    return rows, centers


def table_rows(comparison: Comparison) -> list[dict[str, str | int | float | None]]:
    """Return a row of numbers per model and reference; None for what was not measured."""
    rows: list[dict[str, str | int | float | None]] = []
    for each in comparison.rows:
        distances = {
            "contrast_distance_hu": each.distance.contrast_hu,
            "sd_distance_hu": each.distance.sd_hu,
            "edge_distance_hu": each.distance.edge_hu,
        }
        measured = {name: round(value, 2) if math.isfinite(value) else None for name, value in distances.items()}
        seconds = None if each.seconds is None else round(each.seconds, 4)
        rows.append({"tumors of": each.name, "tumors": len(each.appearances), **measured, "seconds_per_tumor": seconds})
    return rows


def _reference(name: str, looks: Sequence[Appearance], real: Sequence[Appearance]) -> Compared:
    return Compared(name, tuple(looks), appearance_distance(looks, real))


def _without_tumor(made: HostedTumor, unseen: HeldOut) -> Appearance:
    """Measure the healthy tissue in place of a tumor."""
    return measure_appearance(
        made.host.ct_hu_XYZ.numpy(),
        made.tumor_XYZ.numpy(),
        made.host.organ_XYZ.numpy(),
        spacing_mm=unseen.reader.spacing_mm,
        window=unseen.window,
    )
