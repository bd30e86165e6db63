"""From a case on disk to a crop: loading into model space, seeded random transforms.

Legend of shape suffixes: C channel (one), X Y Z voxels of model space (RAS).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import RandCropByPosNegLabeld, Randomizable, RandRotate90d, RandSpatialCropd, Transform
from torch.utils.data import Dataset

from difftumor.datasets.cases import Case, case_label_files, read_case_labels
from difftumor.errors import DiffTumorError
from difftumor.scans.hounsfield import organ_doubts, settle, warn
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import check_same_grid, read_ct
from difftumor.scans.organs import Organ, OrganLabels
from difftumor.seeding import derive_seed

AIR_HU = -1024.0
# So many candidate centers per case are plenty for crops, and keep a cached case small.
CENTERS = 65_536
Item = dict[str, Any]


def load_case(
    case: Case,
    labels: OrganLabels | None,
    *,
    label_names: Mapping[str, int] | None = None,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    require_organ: bool = True,
    organ: Organ | None = None,
    accept_hu: bool = False,
) -> Item:
    """Read a case and bring it into model space.

    Args:
        case: What to read.
        labels: Which label values are organ and tumor; None counts every label above 0 as organ.
        label_names: Names of the case list; needed if labels are a folder with one file per structure.
        spacing_mm: Voxel size of model space, along X, Y, Z.
        require_organ: Refuse a label map without the organ.
        organ: Whose HU are judged; None judges the CT alone.
        accept_hu: Whether values that cannot be HU are accepted.

    Returns:
        ``ct`` float32 HU (1, X, Y, Z); ``labels`` uint8 (1, X, Y, Z) of 0 background, 1 organ, 2 tumor, all 0 where the
        case has none; ``case`` its id.

    Raises:
        VolumeError: A file cannot be used, image and labels lie on different grids, or the CT cannot be in HU.
        OrganError: The labels hold no organ, and ``require_organ`` is set.
    """
    only = None if labels is None else (*labels.organ, *labels.tumor, *labels.ignore)
    ct = read_ct(case.image, beside=case_label_files(case, label_names or {}, only=only), accept_hu=accept_hu)
    doubts = ct.doubts
    space = ModelSpace(ct.grid, spacing_mm)
    ct_CXYZ = torch.from_numpy(np.ascontiguousarray(space.to_model(ct.data, kind="image")))[None]
    labels_CXYZ = torch.zeros(ct_CXYZ.shape, dtype=torch.uint8)
    if case.labels is not None:
        stored = read_case_labels(case, label_names or {}, only=only)
        check_same_grid(ct, stored)
        if labels is None:
            standard = (stored.data > 0).astype(np.uint8)
        else:
            standard = labels.to_standard(stored.data, source=case.labels, require_organ=require_organ)
            if labels.ignore and np.isin(stored.data, labels.ignore).any():
                doubts += (f"{case.labels} holds voxels to be ignored: in training they count as background.",)
            if organ is not None and standard.any():
                found = organ_doubts(ct.data, standard, organ, ct=str(ct.path), mask=str(case.labels))
                doubts += settle(found, accept=accept_hu)
        labels_CXYZ = torch.from_numpy(np.ascontiguousarray(space.to_model(standard, kind="labels")))[None]
    warn(doubts)
    return {"ct": ct_CXYZ, "labels": labels_CXYZ, "case": case.id}


def pad_to(item: Item, crop: Sequence[int]) -> Item:
    """Surround a case that is smaller than the crop with air and background, evenly on both sides.

    Args:
        item: With ``ct`` in HU and ``labels``, (1, X, Y, Z).
        crop: Voxels along X, Y, Z that the result has at least.

    Returns:
        A new item; the volumes are the same objects if nothing was missing.
    """
    missing = [max(0, wanted - size) for wanted, size in zip(crop, item["ct"].shape[1:], strict=True)]
    if not any(missing):
        return dict(item)
    sides = [side for lack in reversed(missing) for side in (lack // 2, lack - lack // 2)]
    return {
        **item,
        "ct": torch.nn.functional.pad(item["ct"], sides, value=AIR_HU),
        "labels": torch.nn.functional.pad(item["labels"], sides, value=0),
    }


def with_centers(item: Item, limit: int = CENTERS) -> Item:
    """Add ``foreground`` and ``background``: flat indices of voxels that crops may be centered on.

    Args:
        item: With ``labels`` (1, X, Y, Z).
        limit: At most so many of each, evenly spaced.

    Returns:
        A new item.
    """
    flat = item["labels"].numpy().ravel()
    foreground = np.flatnonzero(flat)
    anywhere = np.linspace(0, flat.size - 1, min(flat.size, 2 * limit)).astype(np.int64)
    background = anywhere[flat[anywhere] == 0]
    return {**item, "foreground": thinned(foreground, limit), "background": thinned(background, limit)}


def thinned(indices: np.ndarray, limit: int) -> np.ndarray:
    """Return at most ``limit`` of some indices, evenly spaced."""
    if len(indices) <= limit:
        return indices
    return indices[np.linspace(0, len(indices) - 1, limit).astype(np.int64)]


class RandomCrop(Randomizable):
    """Cut a crop whose center is a labelled voxel in ``foreground_ratio`` of ``foreground_ratio + 1`` cases.

    A case without labels is cut anywhere. The item passes through ``pad_to`` and ``with_centers`` first.

    Args:
        crop: Voxels along X, Y, Z; X and Y equal if crops are rotated.
        foreground_ratio: Crops around labelled voxels per crop around another one.
        rotation_probability: Chance that a crop is rotated by 90, 180 or 270 degrees in the axial plane, CT and labels
            alike.
    """

    def __init__(self, crop: Sequence[int], *, foreground_ratio: float, rotation_probability: float = 0.0) -> None:
        keys = ("ct", "labels")
        self.around = RandCropByPosNegLabeld(
            keys,
            label_key="labels",
            spatial_size=tuple(crop),
            pos=foreground_ratio,
            neg=1.0,
            fg_indices_key="foreground",
            bg_indices_key="background",
        )
        self.anywhere = RandSpatialCropd(keys, roi_size=tuple(crop), random_size=False)
        self.rotate = RandRotate90d(keys, prob=rotation_probability, max_k=3, spatial_axes=(0, 1))

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandomCrop:
        """Seed both ways of cropping alike, and the rotation with a stream of its own."""
        self.around.set_random_state(seed, state)
        self.anywhere.set_random_state(seed, state)
        # With the same stream, the number that decides about the center would decide about the rotation too.
        self.rotate.set_random_state(None if seed is None else derive_seed(seed, "rotation") % 2**32, state)
        return self

    def __call__(self, item: Mapping[str, Any]) -> Item:
        """Return ``ct``, ``labels`` (1, X, Y, Z) of the crop, and what else the item holds but the centers."""
        if len(item["foreground"]) and len(item["background"]):
            cut = self.around(item)[0]
        else:
            cut = self.anywhere({k: v for k, v in item.items() if k not in ("foreground", "background")})
        cut = self.rotate(cut)
        # MONAI returns tensors with metadata that view the cached volume.
        return {k: v.as_tensor().clone() if hasattr(v, "as_tensor") else v for k, v in cut.items()}


class _Loading(Transform):
    """A reader whose results MONAI keeps; it takes plain functions for random ones and would call them every time."""

    def __init__(self, load: Callable[[Case], Item]) -> None:
        self.load = load

    def __call__(self, case: Case) -> Item:
        return self.load(case)


class SeededDataset(Dataset[Item]):
    """Cases through deterministic loading, which is cached, and random transforms, which depend on the key alone.

    A sample is the same whatever the worker, rank, batch size or number of interruptions.

    Args:
        cases: What to read.
        load: Reads a case; everything deterministic belongs here.
        transform: Applied last; seeded for every sample if it is a MONAI ``Randomizable``.
        seed: Randomness derives from it.
        cache_rate: Share of the loaded cases kept in memory, 0 to 1.
        cache_workers: Threads that fill the cache.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        *,
        load: Callable[[Case], Item],
        transform: Callable[[Item], Item],
        seed: int,
        cache_rate: float = 0.0,
        cache_workers: int = 1,
    ) -> None:
        # The transform is the loader alone, and MONAI's cache hands its result out without a copy.
        with _our_errors():
            self.loaded = CacheDataset(
                list(cases), _Loading(load), cache_rate=cache_rate, num_workers=max(1, cache_workers), progress=False
            )
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.loaded)

    def __getitem__(self, key: tuple[int, int] | int) -> Item:
        """Return the sample of ``(epoch, index)``; a plain index means epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if isinstance(self.transform, Randomizable):
            seed = derive_seed(self.seed, "epoch", epoch, "sample", index)
            self.transform.set_random_state(seed=seed % 2**32)
        with _our_errors():
            item = self.loaded[index]
        return self.transform(item)


@contextmanager
def _our_errors() -> Iterator[None]:
    """Undo MONAI's wrapping of errors that name a file and a remedy."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, DiffTumorError):
            raise error.__cause__ from None
        raise
