"""Data of stage 2: crops around tumors of one stage; the other tumors count as organ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from difftumor.datasets.cases import Case, CaseList
from difftumor.datasets.transforms import Item, RandomCrop, load_case, pad_to, with_centers
from difftumor.datasets.tumor_stages import Lesion, TumorStage, keep_stage, split_tumors
from difftumor.grids import Box
from difftumor.organs import TUMOR, Organ, resolve_labels
from difftumor.spaces import ModelSpace
from difftumor.volume import Volume
from stages.data import CropData


@dataclass(frozen=True, kw_only=True)
class LesionRules:
    """The group ``lesions`` of the config: which tumors the model is to learn.

    Args:
        stage: ``"early"`` or ``"late"``.
        early_radius_mm: Largest equivalent radius of an early tumor.
        minimum_voxels: Smaller components are no tumors.
    """

    stage: TumorStage
    early_radius_mm: float
    minimum_voxels: int

    def choose(self, labels_XYZ: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, tuple[Lesion, ...]]:
        """Return labels in which other tumors are organ, and the lesions that are wanted."""
        split = split_tumors(
            labels_XYZ,
            triple_mm(spacing_mm),
            early_radius_mm=self.early_radius_mm,
            minimum_voxels=self.minimum_voxels,
        )
        return keep_stage(labels_XYZ, split, self.stage), split.of_stage(self.stage)


@dataclass(frozen=True, kw_only=True)
class TumorReader:
    """Reads cases for stage 2.

    Args:
        cases: Where they come from; says what their labels mean.
        organ: Where the tumors are.
        rules: Which tumors are wanted.
        crop: Voxels along X, Y, Z that a case has at least.
        spacing_mm: Voxel size of model space.
    """

    cases: CaseList
    organ: Organ
    rules: LesionRules
    crop: tuple[int, ...]
    spacing_mm: tuple[float, ...]

    def __call__(self, case: Case) -> Item:
        """Load a case for ``RandomCrop``, which will center crops on the voxels of wanted tumors."""
        item, _ = self.load(case)
        centers = with_centers({"labels": (item["labels"] == TUMOR).to(torch.uint8)})
        return {**item, "foreground": centers["foreground"], "background": centers["background"]}

    def load(self, case: Case) -> tuple[Item, tuple[Lesion, ...]]:
        """Load a case, padded to the crop, and the lesions that are wanted."""
        names = self.cases.label_names
        labels = resolve_labels(names, self.organ, source=self.cases.source)
        item = pad_to(load_case(case, labels, label_names=names, spacing_mm=self.spacing_mm), self.crop)
        kept, lesions = self.rules.choose(item["labels"][0].numpy(), self.spacing_mm)
        return {**item, "labels": torch.from_numpy(kept)[None]}, lesions

    def lesions(self, labels: Volume) -> tuple[Lesion, ...]:
        """Return the wanted lesions of a label map of 0 background, 1 organ, 2 tumor on its own grid."""
        model = ModelSpace(labels.grid, self.spacing_mm).to_model(labels.data, kind="labels")
        return self.rules.choose(model, self.spacing_mm)[1]

    def fixed_crops(self, cases: Sequence[Case], *, limit: int) -> list[Item]:
        """Cut one crop around each wanted lesion, case after case, at most ``limit``.

        Returns:
            Items with ``ct``, ``labels``, ``case`` and ``key``, which is unique.
        """
        crops: list[Item] = []
        for case in cases:
            if len(crops) >= limit:
                break
            item, lesions = self.load(case)
            for lesion in lesions[: limit - len(crops)]:
                box = Box.centered(lesion.center, self.crop, within=item["ct"].shape[1:])
                # Cloned, so that the whole scan is not kept.
                cut = {key: item[key][(slice(None), *box.slices)].clone() for key in ("ct", "labels")}
                crops.append({**cut, "case": case.id, "key": f"{case.id}/{lesion.index}"})
        return crops


class TumorCrops(CropData):
    """Random crops around tumors for training, one fixed crop around each held-out tumor for validation.

    Args:
        reader: Reads the cases.
        foreground_ratio: Crops around tumor voxels per crop around another voxel.
        validation_crops: Crops of a validation at most, over all ranks.
        options: See ``CropData``.
    """

    def __init__(self, *, reader: TumorReader, foreground_ratio: float, validation_crops: int, **options: Any) -> None:
        transform: Callable[[Item], Item] = RandomCrop(reader.crop, foreground_ratio=foreground_ratio)
        super().__init__(load=reader, transform=transform, **options)
        self.reader = reader
        self.validation_crops = validation_crops

    def setup(self, stage: str | None = None) -> None:
        """Fill the cache and cut the validation crops."""
        super().setup(stage)
        self.fixed = self.reader.fixed_crops(self.validation, limit=self.validation_crops)

    def val_dataloader(self) -> DataLoader[Item] | list[Any]:
        """Return the loader of the fixed crops; empty where no tumor is held out."""
        assert self.trainer is not None
        if not self.fixed:
            return []
        rank, ranks, total = self.trainer.global_rank, self.trainer.world_size, len(self.fixed)
        # Every rank gets as many, or those with fewer batches would wait for ever.
        own = [self.fixed[index % total] for index in range(rank, -(-total // ranks) * ranks, ranks)]
        return DataLoader(own, batch_size=self.batch_size)  # type: ignore[arg-type]


def triple_mm(spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    """Return three lengths as a tuple of floats."""
    x, y, z = (float(step) for step in spacing_mm)
    return x, y, z


def describe(counts: dict[str, int], rules: LesionRules, source: Path) -> str:
    """Say how many tumors there are, and which cases are left out for having none."""
    without = sorted(case for case, count in counts.items() if not count)
    total = sum(counts.values())
    text = f"{total} {rules.stage} tumors in {len(counts) - len(without)} cases of {source}"
    if not without:
        return text + "."
    shown = ", ".join(without[:5]) + (" …" if len(without) > 5 else "")
    return f"{text}; left out for having none: {len(without)} ({shown})."
