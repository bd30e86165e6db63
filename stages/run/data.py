"""Data modules' shared parts: checks of their options, loaders in a seeded order, and random crops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from difftumor.datasets.caching import CachedOnDisk, cache_rate
from difftumor.datasets.cases import Case
from difftumor.datasets.sampling import EvenSampler, RatioSampler, SeededSampler
from difftumor.datasets.transforms import Item, SeededDataset
from difftumor.errors import ConfigError
from difftumor.files.results import check_folder
from difftumor.models.artifact_config import read_config
from difftumor.seeding import derive_seed, torch_generator
from stages.config.options import DataOptions
from stages.run.loading import Noting, loading_processes
from stages.run.module import StageModule


def check_same_preprocessing(
    data: DataOptions, artifact: Path, *, names: Sequence[str] = ("spacing_mm", "window_hu")
) -> None:
    """Check that an earlier stage saw CT at the same spacing and window.

    Args:
        data: The options under ``data``.
        artifact: Folder of the earlier stage's artifact.
        names: Which of the two have to be the same.

    Raises:
        ConfigError: Names the option that differs.
        ArtifactError: There is no such artifact.
    """
    preprocessing = read_config(artifact).preprocessing
    for name in names:
        trained, given = ([float(value) for value in values] for values in (preprocessing[name], getattr(data, name)))
        if trained != given:
            raise ConfigError(f"data.{name} is {given}, but {artifact} was trained with {trained}: give both the same.")


def seeded_loader(
    dataset: SeededDataset,
    *,
    trainer: pl.Trainer,
    seed: int,
    batch_size: int,
    num_workers: int = 0,
    samples_per_epoch: int | None = None,
    training: bool = True,
    fixed: bool = False,
    ratio: tuple[Sequence[int], Sequence[int], float] | None = None,
    even: Sequence[Sequence[int]] = (),
) -> DataLoader[Item]:
    """Make a loader whose order depends on seed and epoch alone.

    Args:
        dataset: Cases to sample from.
        trainer: Knows rank, world size and, when resuming, the epoch and batch to start with.
        seed: The order derives from it.
        batch_size: Samples per batch on this rank.
        num_workers: Processes that load; 0 loads in this one.
        samples_per_epoch: Over all ranks; None means every case once.
        training: Shuffles, and drops an incomplete batch.
        fixed: Repeats the first epoch forever.
        ratio: Indices of two groups of cases, and the share of the samples that come from the second; None takes every
            case equally often.
        even: Indices of groups of cases from which equally many samples come; none for no groups.
    """
    options: dict[str, Any] = {
        "samples_per_epoch": samples_per_epoch,
        "seed": seed,
        "rank": trainer.global_rank,
        "world_size": trainer.world_size,
        "shuffle": training,
        "fixed": fixed or not training,
    }
    if even:
        sampler: SeededSampler = EvenSampler(even, **options)
    elif ratio is None:
        sampler = SeededSampler(len(dataset), **options)
    else:
        sampler = RatioSampler(ratio[:2], second_share=ratio[2], **options)
    # Workers fetch their first batches before Lightning sets the epoch of a resumed run.
    if isinstance(module := trainer.lightning_module, StageModule):
        sampler.set_epoch(module.epochs_done)
        if training:
            sampler.resume_at(module.epochs_done, module.batches_done * batch_size)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=training,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        # Otherwise the loader would take its workers' seeds from the global generator.
        generator=torch_generator(seed, "loader"),
        **loading_processes(num_workers),
    )


@dataclass(frozen=True, kw_only=True)
class Caching:
    """What is kept of cases that were read, so that they are resampled once: options of the group ``data``.

    Args:
        rate: Share of the cases kept in memory; ``"auto"`` for as many as half of the free memory holds.
        folder: Where all are kept on disk, for this job and others; None for nowhere.
        spacing_mm: Voxel size that they are kept at.

    Raises:
        ConfigError: The folder cannot be one.
    """

    rate: float | Literal["auto"] = 0.0
    folder: Path | None = None
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.folder is not None and not self.folder.is_dir():  # an existing one may be full, and is then only read
            check_folder(self.folder, option="data.cache_dir")

    @classmethod
    def of(cls, data: DataOptions) -> Caching:
        """Return what the options under ``data`` say."""
        return cls(rate=data.cache_rate, folder=data.cache_dir, spacing_mm=data.spacing_mm)

    def rate_of(self, cases: Sequence[Case], *, processes: int) -> float:
        """Return the share of the cases that each of so many processes on this machine keeps in memory."""
        if self.rate != "auto":
            return self.rate
        # What is on disk is mapped into memory, and the system decides what stays there.
        return 0.0 if self.folder is not None else cache_rate(cases, spacing_mm=self.spacing_mm, processes=processes)

    def on_disk(self, load: Callable[[Case], Item], part: str) -> Callable[[Case], Item]:
        """Return a reader that keeps what ``load``, or the object that it is a method of, reads and describes."""
        about = getattr(getattr(load, "__self__", load), "about", None)
        if self.folder is None or about is None:
            return load
        return CachedOnDisk(load, partial(_described, about=about, part=part), self.folder)


def _described(case: Case, *, about: Callable[[Case], dict[str, Any]], part: str) -> dict[str, Any]:
    return {**about(case), "part": part}


class CropData(pl.LightningDataModule):
    """Random crops to train on. Each stage decides what it does with the held-out cases.

    Args:
        train: Cases to train on.
        validation: Cases to validate on; may be empty.
        load: Reads a case; see ``SeededDataset``.
        transform: Random transforms; see ``SeededDataset``.
        seed: Everything random derives from it.
        batch_size: Crops per step on each rank.
        steps_per_epoch: Length of an epoch.
        num_workers: Loading processes per rank.
        caching: What is kept of cases that were read.
        overfit: Repeats the crops of the first epoch.
    """

    def __init__(
        self,
        *,
        train: Sequence[Case],
        validation: Sequence[Case],
        load: Callable[[Case], Item],
        transform: Callable[[Item], Item],
        seed: int,
        batch_size: int,
        steps_per_epoch: int,
        num_workers: int = 0,
        caching: Caching | None = None,
        overfit: bool = False,
    ) -> None:
        super().__init__()
        self.train = tuple(train)
        self.validation = tuple(validation)
        self.load = load
        self.transform = transform
        self.seed = seed
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.num_workers = num_workers
        self.caching = caching or Caching()
        self.overfit = overfit

    def setup(self, stage: str | None = None) -> None:
        """Fill the cache."""
        processes = getattr(self.trainer, "num_devices", 1)  # no trainer yet when only the data are looked at
        self._cache_rate = self.caching.rate_of((*self.train, *self.validation), processes=processes)
        self.train_set = self._dataset(self.train, "training", load=self.load, transform=self.transform)

    def train_dataloader(self) -> DataLoader[Item]:
        """Return the loader of random crops."""
        assert self.trainer is not None
        return seeded_loader(
            self.train_set,
            trainer=self.trainer,
            seed=self.seed,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            samples_per_epoch=self.steps_per_epoch * self.batch_size * self.trainer.world_size,
            fixed=self.overfit,
            ratio=self.ratio,
            even=self.even,
        )

    @property
    def ratio(self) -> tuple[Sequence[int], Sequence[int], float] | None:
        """See ``seeded_loader``; None in most stages."""
        return None

    @property
    def even(self) -> Sequence[Sequence[int]]:
        """See ``seeded_loader``; none in most stages."""
        return ()

    def _whole(self, cases: Sequence[Case], load: Callable[[Case], Item]) -> SeededDataset:
        """Cases as ``load`` reads them."""
        return self._dataset(cases, "validation", load=load, transform=unchanged)

    def _dataset(
        self, cases: Sequence[Case], part: str, *, load: Callable[[Case], Item], transform: Callable[[Item], Item]
    ) -> SeededDataset:
        return SeededDataset(
            cases,
            load=Noting(self.caching.on_disk(load, part)),
            transform=transform,
            seed=derive_seed(self.seed, part),
            cache_rate=self._cache_rate,
            cache_workers=self.num_workers,
        )


def unchanged(item: Item) -> Item:
    """Return the item."""
    return item
