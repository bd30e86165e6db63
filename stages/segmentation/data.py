"""Data of stage 3: crops of scans with tumors and of healthy ones, and whole scans for validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader

from difftumor.datasets.cases import Case
from difftumor.datasets.crops import SegmentationCrop, with_class_centers
from difftumor.datasets.transforms import Item, load_case, pad_to, with_centers
from difftumor.scans.intensity import Normalization
from difftumor.scans.organs import Organ, resolve_labels
from stages.run.data import CropData, seeded_loader
from stages.segmentation.cases import Origin
from stages.segmentation.tumors import TumorsAhead


@dataclass(frozen=True, kw_only=True)
class SegmentationReader:
    """Reads cases for stage 3.

    Args:
        origins: Of every case.
        organ: What is segmented, with its tumors.
        crop: Voxels along X, Y, Z that a case has at least.
        spacing_mm: Voxel size of model space.
        normalization: How the segmenter's scans are scaled.
        by_class: Whether crops are centered on classes; otherwise on organ or tumor, or on background.
        accept_hu: Whether CTs that cannot be in HU are used.
    """

    origins: Mapping[Case, Origin] = field(repr=False)
    organ: Organ
    crop: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    normalization: Normalization
    by_class: bool = True
    accept_hu: bool = False

    def about(self, case: Case) -> dict[str, Any]:
        """Return what decides how a case is read, besides its files."""
        source = self.origins[case].source
        window = self.normalization.window
        return {
            "crop": list(self.crop),
            "spacing_mm": [float(step) for step in self.spacing_mm],
            "labels": resolve_labels(source.label_names, self.organ, source=source.source).to_dict(),
            "label_names": dict(source.label_names),
            "normalization": [self.normalization.kind, window.low_hu, window.high_hu],
            "healthy": self.origins[case].healthy,
            **({} if self.by_class else {"by_class": False}),
            **({"accept_hu": True} if self.accept_hu else {}),
        }

    def __call__(self, case: Case) -> Item:
        """Load a case for ``SegmentationCrop``."""
        item = with_class_centers(pad_to(self.whole(case), self.crop))
        item = item if self.by_class else with_centers(item)
        return {**item, "healthy": self.origins[case].healthy}

    def whole(self, case: Case) -> Item:
        """Load a case as it is, with ``offset_hu`` and ``scale_hu`` of the whole scan."""
        source = self.origins[case].source
        labels = resolve_labels(source.label_names, self.organ, source=source.source)
        item = load_case(
            case,
            labels,
            label_names=source.label_names,
            spacing_mm=self.spacing_mm,
            organ=self.organ,
            accept_hu=self.accept_hu,
        )
        scale = self.normalization.scale(item["ct"])
        return {**item, "offset_hu": scale.offset_hu, "scale_hu": scale.scale_hu}


class SegmentationData(CropData):
    """One random crop of every scan per epoch; whole scans, one at a time, for validation.

    Args:
        reader: Reads the cases.
        crops: Cuts and augments.
        made_share: Share of the crops from cases without real tumors, in (0, 1); None takes every case equally often,
            as does a run with only one kind of case.
        accumulate: Batches per step of the optimizer; an epoch has whole steps.
        ahead: Makes ``TumorsAhead`` of a loader, for a device; None leaves tumors to the training step.
        options: Arguments of ``CropData``; epochs are one pass long.
    """

    def __init__(
        self,
        *,
        reader: SegmentationReader,
        crops: SegmentationCrop,
        made_share: float | None = None,
        accumulate: int = 1,
        ahead: Callable[..., TumorsAhead] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(load=reader, transform=crops, steps_per_epoch=1, **options)
        self.reader = reader
        self.made_share = made_share
        self.accumulate = accumulate
        self.ahead = ahead

    def setup(self, stage: str | None = None) -> None:
        """Fill the caches."""
        super().setup(stage)
        self.validation_set = self._whole(self.validation, self.reader.whole)

    @property
    def ratio(self) -> tuple[Sequence[int], Sequence[int], float] | None:
        """Indices of the cases with real tumors and of the others, and the share of crops from these."""
        groups: tuple[list[int], list[int]] = ([], [])
        for index, case in enumerate(self.train):
            groups[self.reader.origins[case].made].append(index)
        return (*groups, self.made_share) if self.made_share is not None and all(groups) else None

    def train_dataloader(self) -> Any:
        """Return the loader of random crops; the last step of an epoch is filled up with the next pass."""
        assert self.trainer is not None
        per_step = self.batch_size * self.accumulate * self.trainer.world_size
        self.steps_per_epoch = math.ceil(len(self.train) / per_step) * self.accumulate
        loader = super().train_dataloader()
        if self.ahead is None:
            return loader
        return self.ahead(loader, device=self.trainer.strategy.root_device)

    def val_dataloader(self) -> DataLoader[Item] | list[Any]:
        """Return the loader of the held-out scans; empty if there are none."""
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
            # Every rank gets as many, or those with fewer scans would wait forever.
            samples_per_epoch=math.ceil(len(self.validation) / ranks) * ranks,
            training=False,
        )
