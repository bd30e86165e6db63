"""Data of stage 3: crops of scans with tumors and of healthy ones, and whole scans for validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader

from difftumor.datasets.cases import Case, CaseList
from difftumor.datasets.crops import SegmentationCrop, with_class_centers
from difftumor.datasets.transforms import Item, load_case, pad_to
from difftumor.organs import Organ, resolve_labels
from stages.data import CropData, seeded_loader


@dataclass(frozen=True)
class Origin:
    """Where a case comes from.

    Args:
        source: Its list, which says what its labels mean.
        healthy: Whether tumors may be made in it.
    """

    source: CaseList
    healthy: bool


@dataclass(frozen=True, kw_only=True)
class SegmentationReader:
    """Reads cases for stage 3.

    Args:
        origins: Of every case.
        organ: What is segmented, with its tumors.
        crop: Voxels along X, Y, Z that a case has at least.
        spacing_mm: Voxel size of model space.
    """

    origins: Mapping[Case, Origin] = field(repr=False)
    organ: Organ
    crop: tuple[int, ...]
    spacing_mm: tuple[float, ...]

    def __call__(self, case: Case) -> Item:
        """Load a case for ``SegmentationCrop``."""
        item = with_class_centers(pad_to(self.whole(case), self.crop))
        return {**item, "healthy": self.origins[case].healthy}

    def whole(self, case: Case) -> Item:
        """Load a case as it is."""
        source = self.origins[case].source
        labels = resolve_labels(source.label_names, self.organ, source=source.source)
        return load_case(case, labels, label_names=source.label_names, spacing_mm=self.spacing_mm)


class SegmentationData(CropData):
    """One random crop of every scan per epoch; whole scans, one at a time, for validation.

    Args:
        reader: Reads the cases.
        crops: Cuts and augments.
        options: See ``CropData``; epochs are one pass long.
    """

    def __init__(self, *, reader: SegmentationReader, crops: SegmentationCrop, **options: Any) -> None:
        super().__init__(load=reader, transform=crops, steps_per_epoch=1, **options)
        self.reader = reader

    def setup(self, stage: str | None = None) -> None:
        """Fill the caches."""
        super().setup(stage)
        self.validation_set = self._whole(self.validation, self.reader.whole)

    def train_dataloader(self) -> DataLoader[Item]:
        """Return the loader of random crops; the last batch of an epoch is filled up with the next pass."""
        assert self.trainer is not None
        self.steps_per_epoch = math.ceil(len(self.train) / (self.batch_size * self.trainer.world_size))
        return super().train_dataloader()

    def val_dataloader(self) -> DataLoader[Item] | list[Any]:
        """Return the loader of the held-out scans; empty where there are none."""
        assert self.trainer is not None
        if not self.validation:
            return []
        ranks = self.trainer.world_size
        return seeded_loader(
            self.validation_set,
            trainer=self.trainer,
            seed=self.seed,
            batch_size=1,
            num_workers=self.num_workers,
            # Every rank gets as many, or those with fewer scans would wait for ever.
            samples_per_epoch=math.ceil(len(self.validation) / ranks) * ranks,
            training=False,
        )
