"""Cached latents of stage 2: a fixed pool of crops per case, encoded once, from which training then draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from monai.transforms import Randomizable
from torch import Tensor

from difftumor.datasets.caching import file_facts
from difftumor.datasets.cases import Case
from difftumor.datasets.transforms import Item
from difftumor.errors import TrainingError
from difftumor.scans.grid import Voxel
from difftumor.seeding import derive_seed
from stages.diffusion.data import TumorCrops, crop_name
from stages.diffusion.latent_cache import LatentCache, latent_key
from stages.diffusion.latent_filling import CaseCrops, fill
from stages.diffusion.module import DiffusionModule


class CachedTumorCrops(TumorCrops):
    """The crops of ``TumorCrops`` as latents and conditions, from a fixed pool that is encoded before training starts.

    A crop is encoded alone, and its key names all that decides it, so that a latent is the same whoever made it, and
    when. Once the cache is full, no CT is read.

    Args:
        cache: Folder of the latents.
        crops: Size of the pool of each training case.
        validation_tumors: By validation case, the indices of its tumors.
        foreground_ratio: Crops around tumor voxels per crop around a voxel of the organ.
        rotation_probability: Chance that a crop of the pool is rotated, before it is encoded.
        options: Other arguments of ``TumorCrops``.
    """

    def __init__(
        self,
        *,
        cache: LatentCache,
        crops: int,
        validation_tumors: Mapping[str, Sequence[int]],
        foreground_ratio: float,
        rotation_probability: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(foreground_ratio=foreground_ratio, rotation_probability=rotation_probability, **options)
        self.transform = DrawLatent(cache)
        self.cache = cache
        self.crops = crops
        self.validation_tumors = validation_tumors
        self.cutting = {
            "foreground_ratio": float(foreground_ratio),
            "rotation_probability": float(rotation_probability),
        }

    def setup(self, stage: str | None = None) -> None:
        """Encode what is missing."""
        assert self.trainer is not None
        module, device = self.trainer.lightning_module, self.trainer.strategy.root_device
        assert isinstance(module, DiffusionModule)
        module.codec.autoencoder.to(device)
        common = {"device": device.type, **_of_module(module)}
        pools = {case.id: self._pool(case, common) for case in self.train}
        self._fixed: dict[str, tuple[str, str]] = {}
        held_out = [self._held_out(case, common) for case in self.validation]
        fill(
            self.cache,
            [*pools.values(), *held_out],
            encode=partial(_encoded, module=module, device=device),
            bytes_each=_bytes_each(module, self.reader.crop),
            silent=self.trainer.global_rank > 0,
        )
        self.load = PoolKeys({case: tuple(pool.cuts) for case, pool in pools.items()})
        super().setup(stage)

    def fixed_crops(self) -> list[Item]:
        """Return latent and condition of each held-out crop, with ``case`` and ``key`` as without a cache."""
        return [
            {**read_latent(self.cache, key), "case": case, "key": name} for name, (case, key) in self._fixed.items()
        ]

    def _pool(self, case: Case, common: Mapping[str, Any]) -> CaseCrops:
        """Return the crops to draw from; number k is the same however many there are."""
        about = {**common, **self._about(case), **self.cutting}
        states = [derive_seed(self.seed, "latents", case.id, number) for number in range(self.crops)]
        cuts = {latent_key(**about, state=state): partial(self._cut_at_random, state=state) for state in states}
        return CaseCrops(load=partial(self.reader, case), cuts=cuts)

    def _about(self, case: Case) -> dict[str, Any]:
        """Return all that decides what is read of a case, its files as they are now included."""
        return {**self.reader.about(case), "files": file_facts(case)}

    def _cut_at_random(self, item: Item, *, state: int) -> Item:
        return self.cut.set_random_state(seed=state % 2**32)(item)

    def _held_out(self, case: Case, common: Mapping[str, Any]) -> CaseCrops:
        about = {**common, **self._about(case)}
        cuts = {}
        for index in self.validation_tumors[case.id][: self.validation_crops - len(self._fixed)]:
            key = latent_key(**about, tumor=index)
            self._fixed[crop_name(case.id, index)] = (case.id, key)
            cuts[key] = partial(self._cut_around, index=index)
        return CaseCrops(load=partial(self.reader.load, case), cuts=cuts)

    def _cut_around(self, loaded: tuple[Item, Mapping[int, Voxel]], *, index: int) -> Item:
        item, middles = loaded
        return self.reader.around(item, index, middles[index])


@dataclass(frozen=True)
class PoolKeys:
    """Takes the place of reading a case: which latents there are of it.

    Args:
        keys: By case.
    """

    keys: Mapping[str, tuple[str, ...]]

    def __call__(self, case: Case) -> Item:
        """Return ``case`` and ``keys``."""
        return {"case": case.id, "keys": self.keys[case.id]}


class DrawLatent(Randomizable):
    """Takes the place of cutting a crop: read one of a case's latents.

    Args:
        cache: Folder of the latents.
    """

    def __init__(self, cache: LatentCache) -> None:
        self.cache = cache

    def __call__(self, item: Item) -> Item:
        """Return ``latent``, ``condition`` and ``case`` of an item of ``PoolKeys``."""
        key = item["keys"][self.R.randint(len(item["keys"]))]
        return {**read_latent(self.cache, key), "case": item["case"]}


def read_latent(cache: LatentCache, key: str) -> dict[str, Tensor]:
    """Read a latent that was there when training started.

    Raises:
        TrainingError: It is gone or damaged.
    """
    if (tensors := cache.read(key)) is None:
        raise TrainingError(
            f"{cache.file(key)} has gone or been damaged since the run started: rerun the same command, which makes "
            "it again."
        )
    return tensors


def _encoded(item: Item, *, module: DiffusionModule, device: torch.device) -> dict[str, Tensor]:
    """Latent and condition of one crop, as training would have them."""
    latent, condition = module.encoded({name: item[name][None].to(device) for name in ("ct", "labels")})
    return {"latent": latent[0], "condition": condition[0]}


def _bytes_each(module: DiffusionModule, crop: Sequence[int]) -> int:
    channels, *size = module.codec.latent_shape(crop)
    return (2 * channels + 1) * math.prod(size) * torch.float32.itemsize


def _of_module(module: DiffusionModule) -> dict[str, Any]:
    """What decides how a crop is encoded."""
    return {
        "autoencoder": module.parents["autoencoder"].identity,
        "masked": module.masked,
        "window_hu": [module.window.low_hu, module.window.high_hu],
    }
