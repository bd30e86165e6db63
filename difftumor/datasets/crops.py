"""Crops for segmentation: around a class for scans with tumors, with enough organ for healthy ones.

Legend of shape suffixes: C channel (one), X Y Z voxels of model space (RAS).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, RandRotate90d
from monai.transforms.utils import generate_label_classes_crop_centers
from torch import Tensor

from difftumor.datasets.transforms import AIR_HU, CENTERS, Item, thinned
from difftumor.errors import ConfigError, OrganError
from difftumor.scans.grid import Box, triple
from difftumor.scans.organs import BACKGROUND

# Volumes of a case, with what stands outside of the scan in crops that reach beyond it.
OUTSIDE = 255
VOLUMES: Mapping[str, float] = {"ct": AIR_HU, "labels": OUTSIDE}
CLASSES = 3
# After so many tries of a healthy crop half of the organ is enough, and so on; in the end the best one is used.
_TRIES_PER_LEVEL = 4
_LEVELS = 5


def with_class_centers(item: Item, limit: int = CENTERS) -> Item:
    """Add ``centers``: flat indices of voxels of each class, at most ``limit`` of each, evenly spaced.

    Args:
        item: With ``labels`` (1, X, Y, Z) of 0 background, 1 organ, 2 tumor.
        limit: Largest number of centers of each class; keeps a cached case small.

    Returns:
        A new item.
    """
    flat = item["labels"].numpy().ravel()
    return {**item, "centers": [thinned(np.flatnonzero(flat == label), limit) for label in range(CLASSES)]}


class CenteredCrop(Randomizable):
    """Choose a crop centered on a random voxel of one of several groups.

    Args:
        crop: Voxels along X, Y, Z.
        ratios: Weight of each group; empty groups are left out.
    """

    def __init__(self, crop: Sequence[int], ratios: Sequence[float]) -> None:
        self.crop = tuple(crop)
        self.ratios = tuple(ratios)

    def box(self, groups: Sequence[np.ndarray], shape: Sequence[int]) -> Box:
        """Return a crop, moved inside the scan.

        Args:
            groups: Flat indices of the voxels of each group.
            shape: Voxels of the scan along X, Y, Z, at least those of the crop.
        """
        ratios = list(self.ratios)
        (center,) = generate_label_classes_crop_centers(self.crop, 1, shape, groups, ratios, self.R, warn=False)
        return Box.centered(center, self.crop, within=shape)


class OrganCrop(Randomizable):
    """Cut a crop that holds at least a given volume of organ, around a random voxel.

    The demand is halved after every few tries; if even that is not met, the crop with the most organ is used.

    Args:
        crop: Voxels along X, Y, Z.
        minimum_volume_mm3: Organ that a crop must hold.
        spacing_mm: Voxel size.
        positive_share: Share of the tries that are centered on the organ; the others are centered on background.
    """

    def __init__(
        self,
        crop: Sequence[int],
        *,
        minimum_volume_mm3: float,
        spacing_mm: Sequence[float],
        positive_share: float = 1.0,
    ) -> None:
        self.crop = tuple(crop)
        self.minimum_voxels = minimum_volume_mm3 / math.prod(spacing_mm)
        self.positive_share = positive_share

    def __call__(self, item: Mapping[str, Any]) -> Item:
        """Return ``ct``, ``labels`` (1, X, Y, Z) of the crop, and the rest of the item except the centers.

        Raises:
            OrganError: There is no organ voxel to center the crop on.
        """
        return _cut(item, self.box(item))

    def box(self, item: Mapping[str, Any]) -> Box:
        """Choose the crop.

        Raises:
            OrganError: There is no organ voxel to center the crop on.
        """
        background, organ, _ = item["centers"]
        if len(organ) == 0:
            raise OrganError(f"Case {item['case']!r} holds no organ to crop around; leave it out of the healthy cases.")
        shape = item["labels"].shape[1:]
        best: tuple[int, Box] | None = None
        for attempt in range(_TRIES_PER_LEVEL * _LEVELS):
            positive = self.positive_share == 1 or self.R.random_sample() < self.positive_share
            centers = organ if positive or len(background) == 0 else background
            center = triple(np.unravel_index(centers[self.R.randint(len(centers))], shape))
            box = Box.centered(center, self.crop, within=shape)
            voxels = int((item["labels"][(slice(None), *box.slices)] > 0).sum())
            if best is None or voxels > best[0]:
                best = voxels, box
            if voxels >= self.minimum_voxels / 2 ** (attempt // _TRIES_PER_LEVEL):
                break
        assert best is not None
        return best[1]


def _cut(item: Mapping[str, Any], box: Box, margin: Sequence[int] = (0, 0, 0)) -> Item:
    """Return an item whose volumes are those of a box and a margin around it, without its centers."""
    rest = {key: value for key, value in item.items() if key not in ("centers", "foreground", "background")}
    return {**rest, **{key: _taken(item[key], box.padded(margin), fill) for key, fill in VOLUMES.items()}}


def _taken(volume_CXYZ: Tensor, box: Box, fill: float) -> Tensor:
    """Return the voxels of a box that may reach beyond the array."""
    shape = volume_CXYZ.shape[1:]
    inside = box.clipped(shape)
    taken = volume_CXYZ[(slice(None), *inside.slices)]
    if inside == box:
        return taken
    lacking = zip(inside.start, box.start, box.stop, inside.stop, strict=True)
    sides = [(low - start, stop - high) for low, start, stop, high in lacking]
    return torch.nn.functional.pad(taken, [side for pair in reversed(sides) for side in pair], value=fill)


class SegmentationCrop(Randomizable):
    """A crop with its augmentation, and what the device will do to it later.

    Changes of intensity and the seed of tumors made on the fly are only drawn here: tumors come first, so that they
    are changed along with their surroundings.

    Args:
        crop: Voxels along X, Y, Z; X and Y equal if crops are rotated.
        spacing_mm: Voxel size.
        class_ratios: Crops centered on background, organ and tumor, relative to each other, in scans with tumors.
        positive_share: Instead of ``class_ratios``: share of the crops of all scans that are centered on organ or
            tumor, whichever comes; the others are centered on background. None for ``class_ratios``.
        minimum_organ_mm3: Organ that a healthy crop must hold.
        healthy_background: Share of the crops of healthy scans that are centered on any background voxel instead.
        rotation_probability: Chance of a rotation by 90, 180 or 270 degrees in the axial plane.
        flip_probability: Chance of a flip, for each axis.
        shift: Largest intensity shift, as a share of the window.
        shift_probability: Chance of a shift.
        scale: Largest relative change of the intensity above the window's lower end.
        scale_probability: Chance of such a change.
        margin: Voxels around the crop that are returned with it; labels are ``OUTSIDE`` beyond the scan.

    Raises:
        ConfigError: A value is out of range.
    """

    def __init__(
        self,
        crop: Sequence[int],
        *,
        spacing_mm: Sequence[float],
        class_ratios: Sequence[float],
        minimum_organ_mm3: float,
        healthy_background: float,
        rotation_probability: float,
        shift: float,
        shift_probability: float,
        positive_share: float | None = None,
        flip_probability: float = 0.0,
        scale: float = 0.0,
        scale_probability: float = 0.0,
        margin: Sequence[int] = (0, 0, 0),
    ) -> None:
        if len(class_ratios) != CLASSES or min(class_ratios) < 0 or not sum(class_ratios) > 0:
            raise ConfigError(f"data.class_ratios is {list(class_ratios)}: give three numbers from 0, not all 0.")
        for name, chance in (
            ("augmentation.rotation_probability", rotation_probability),
            ("augmentation.flip_probability", flip_probability),
            ("augmentation.shift_probability", shift_probability),
            ("augmentation.scale_probability", scale_probability),
            ("data.healthy_background", healthy_background),
            ("data.positive_share", 1.0 if positive_share is None else positive_share),
        ):
            if not 0 <= chance <= 1:
                raise ConfigError(f"{name} is {chance!r}: give a number from 0 to 1.")
        if rotation_probability and (crop[0] != crop[1] or spacing_mm[0] != spacing_mm[1]):
            raise ConfigError(
                f"Rotation in the axial plane needs crops and spacing alike along X and Y, not {list(crop)} and "
                f"{list(spacing_mm)}: change data.crop, or set augmentation.rotation_probability=0."
            )
        for name, most in (("shift", shift), ("scale", scale)):
            if not most >= 0:
                raise ConfigError(f"augmentation.{name} is {most!r}: give 0 or more.")
        self.by_class = positive_share is None
        share = 1.0 if positive_share is None else positive_share
        self.around = CenteredCrop(crop, class_ratios if positive_share is None else (1.0 - share, share))
        self.anywhere, self.background = (CenteredCrop(crop, ratios) for ratios in ((1.0,) * CLASSES, (1.0, 0.0, 0.0)))
        self.healthy = OrganCrop(
            crop, minimum_volume_mm3=minimum_organ_mm3, spacing_mm=spacing_mm, positive_share=share
        )
        self.healthy_background = healthy_background
        self.rotate = RandRotate90d(VOLUMES, prob=rotation_probability, max_k=3, spatial_axes=(0, 1))
        self.flip_probability = flip_probability
        self.shift, self.shift_probability = shift, shift_probability
        self.scale, self.scale_probability = scale, scale_probability
        self.margin = tuple(margin)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> SegmentationCrop:
        """Seed every part with a stream of its own."""
        super().set_random_state(seed, state)
        for part in (self.around, self.anywhere, self.background, self.healthy, self.rotate):
            part.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, item: Mapping[str, Any]) -> Item:
        """Return a sample.

        Args:
            item: ``ct``, ``labels`` (1, X, Y, Z) at least as large as the crop, ``healthy`` and ``centers``, with
                ``positive_share`` also ``foreground`` and ``background``; whatever else it holds is passed on.

        Returns:
            ``ct`` float32 HU and ``labels`` uint8 of the crop and its margin, ``healthy``, ``shift`` as a share of the
            window, ``scale`` as a relative change, ``tumor_seed``, from 0 to 2⁶², and the rest of the item except the
            centers.
        """
        box = self._healthy_box(item) if item["healthy"] else self._box_around_class(item)
        cut = _cut(item, box, self.margin)
        turned = self.rotate({key: cut[key] for key in VOLUMES})
        shift = self._amount(self.shift, self.shift_probability)
        high, low = (int(part) for part in self.R.randint(2**31, size=2))
        # What came later draws last, and only if it is asked for: a seed gives what it has always given.
        axes: list[int] = []
        if self.flip_probability:
            axes = [axis for axis in (1, 2, 3) if self.R.random_sample() < self.flip_probability]
        scale = self._amount(self.scale, self.scale_probability) if self.scale_probability else 0.0
        # MONAI returns tensors with metadata that view the cached volume.
        volumes = {k: (v.as_tensor() if hasattr(v, "as_tensor") else v).clone() for k, v in turned.items()}
        if axes:
            volumes = {key: volume.flip(axes) for key, volume in volumes.items()}
        return {**cut, **volumes, "shift": shift, "scale": scale, "tumor_seed": high << 31 | low}

    def _amount(self, most: float, probability: float) -> float:
        wanted = self.R.random_sample() < probability
        amount = float(self.R.uniform(-most, most))
        return amount if wanted else 0.0

    def _healthy_box(self, item: Mapping[str, Any]) -> Box:
        elsewhere = self.R.random_sample() < self.healthy_background and len(item["centers"][BACKGROUND])
        if elsewhere:
            return self.background.box(item["centers"], item["labels"].shape[1:])
        return self.healthy.box(item)

    def _box_around_class(self, item: Mapping[str, Any]) -> Box:
        classes, shape = item["centers"], item["labels"].shape[1:]
        groups = classes if self.by_class else (item["background"], item["foreground"])
        # Small tumors may be lost in resampling; absent groups are left out, and one must remain.
        if any(ratio > 0 and len(group) for ratio, group in zip(self.around.ratios, groups, strict=True)):
            return self.around.box(groups, shape)
        return self.anywhere.box(classes, shape)
