"""Data of stage 1: crops of scans with labels or without, and whole held-out scans for validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from difftumor.datasets.cases import Case
from difftumor.datasets.transforms import Item, RandomCrop, SeededDataset, load_case, pad_to, with_centers
from difftumor.seeding import torch_generator
from stages.run.data import CropData
from stages.run.loading import loading_processes

T = TypeVar("T")
# Every loading process holds one whole scan ahead, and a scan may take a gigabyte.
_MOST_SCAN_LOADERS = 2


@dataclass(eq=False)
class WholeScan:
    """A whole scan in model space; not a mapping of tensors, which Lightning would move to a GPU too small for it.

    Attributes:
        id: Of the case.
        ct_hu_XYZ: (X, Y, Z) float32 HU.
        labels_XYZ: (X, Y, Z) uint8, above 0 where anything is labeled; all 0 if the case has no labels.
    """

    id: str
    ct_hu_XYZ: Tensor
    labels_XYZ: Tensor


@dataclass(frozen=True, kw_only=True)
class AutoencoderReader:
    """Reads cases for stage 1, any label counting as foreground.

    Args:
        label_names: Of the case list.
        crop: Voxels along X, Y, Z that a case has at least.
        spacing_mm: Voxel size of model space.
        accept_hu: Whether CTs that cannot be in HU are used.
    """

    label_names: Mapping[str, int] = field(repr=False)
    crop: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    accept_hu: bool = False

    def about(self, case: Case) -> dict[str, Any]:
        """Return what decides how a case is read, besides its files."""
        return {
            "crop": list(self.crop),
            "spacing_mm": [float(step) for step in self.spacing_mm],
            "labels": "any",
            "label_names": dict(self.label_names),
            **({"accept_hu": True} if self.accept_hu else {}),
        }

    def __call__(self, case: Case) -> Item:
        """Load a case for ``RandomCrop``."""
        return with_centers(pad_to(self.whole(case), self.crop))

    def whole(self, case: Case) -> Item:
        """Load a case as it is."""
        return load_case(case, None, label_names=self.label_names, spacing_mm=self.spacing_mm, accept_hu=self.accept_hu)


class AutoencoderData(CropData):
    """Random crops for training; whole scans, one at a time, for validation.

    Args:
        reader: Reads the cases.
        foreground_ratio: Crops around labeled voxels per crop around another one; see ``RandomCrop``.
        rotation_probability: Chance that a crop is rotated; see ``RandomCrop``.
        options: Arguments of ``CropData``; all of ``validation`` is validated on.
    """

    def __init__(
        self, *, reader: AutoencoderReader, foreground_ratio: float, rotation_probability: float = 0.0, **options: Any
    ) -> None:
        cut = RandomCrop(reader.crop, foreground_ratio=foreground_ratio, rotation_probability=rotation_probability)
        super().__init__(load=reader, transform=cut, **options)
        self.reader = reader

    def setup(self, stage: str | None = None) -> None:
        """Fill the caches; of the whole scans, each rank keeps its own."""
        assert self.trainer is not None
        super().setup(stage)
        own = self.validation[self.trainer.global_rank :: self.trainer.world_size]
        self.validation_set = self._whole(own, self.reader.whole)

    def val_dataloader(self) -> DataLoader[WholeScan | None] | list[Any]:
        """Return the loader of this rank's whole scans; empty if no case is held out."""
        assert self.trainer is not None
        if not self.validation:
            return []
        workers = min(self.num_workers, _MOST_SCAN_LOADERS)
        return DataLoader(
            OwnScans(self.validation_set, math.ceil(len(self.validation) / self.trainer.world_size)),
            batch_size=None,
            prefetch_factor=1 if workers else None,
            # Otherwise the loader would take its workers' seeds from the global generator.
            generator=torch_generator(self.seed, "loader"),
            **loading_processes(workers),
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave whole scans where they are: only those that fit go to a GPU, and validation knows which."""
        return (
            batch if isinstance(batch, WholeScan) else super().transfer_batch_to_device(batch, device, dataloader_idx)
        )


class OwnScans(Dataset["WholeScan | None"]):
    """The whole scans of one rank, then None up to the length that every rank has.

    A rank with fewer steps than the others would leave them waiting forever.

    Args:
        loaded: The scans.
        length: Of every rank.
    """

    def __init__(self, loaded: SeededDataset, length: int) -> None:
        self.loaded = loaded
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> WholeScan | None:
        """Return a scan, or None past the last."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        if index >= len(self.loaded):
            return None
        item = self.loaded[index]
        return WholeScan(item["case"], item["ct"][0], item["labels"][0])


def evenly_spaced(items: Sequence[T], count: int | None) -> tuple[T, ...]:
    """Choose ``count`` of the items, evenly spaced: always the same, whatever the seed. None chooses all."""
    if count is None or count >= len(items):
        return tuple(items)
    # The middle of each of ``count`` equal parts.
    return tuple(items[(2 * part + 1) * len(items) // (2 * count)] for part in range(count))
