"""Crops for segmentation: around a class for scans with tumors, with enough organ for healthy ones.

Legend of shape suffixes: C channel (one), X Y Z voxels of model space (RAS).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import RandCropByLabelClassesd, Randomizable, RandRotate90d

from difftumor.datasets.transforms import CENTERS, Item
from difftumor.errors import ConfigError, OrganError
from difftumor.scans.grid import Box, triple
from difftumor.scans.organs import BACKGROUND, ORGAN

VOLUMES = ("ct", "labels")
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
    centers = []
    for label in range(CLASSES):
        indices = np.flatnonzero(flat == label)
        if len(indices) > limit:
            indices = indices[np.linspace(0, len(indices) - 1, limit).astype(np.int64)]
        centers.append(indices)
    return {**item, "centers": centers}


class OrganCrop(Randomizable):
    """Cut a crop around a random organ voxel that holds at least a given volume of organ.

    The demand is halved after every few tries; if even that is not met, the crop with the most organ is used.

    Args:
        crop: Voxels along X, Y, Z.
        minimum_volume_mm3: Organ that a crop must hold.
        spacing_mm: Voxel size.
    """

    def __init__(self, crop: Sequence[int], *, minimum_volume_mm3: float, spacing_mm: Sequence[float]) -> None:
        self.crop = tuple(crop)
        self.minimum_voxels = minimum_volume_mm3 / math.prod(spacing_mm)

    def __call__(self, item: Mapping[str, Any]) -> Item:
        """Return ``ct``, ``labels`` (1, X, Y, Z) of the crop, and the rest of the item except the centers.

        Raises:
            OrganError: There is no organ voxel to center the crop on.
        """
        centers = item["centers"][ORGAN]
        if len(centers) == 0:
            raise OrganError(f"Case {item['case']!r} holds no organ to crop around; leave it out of the healthy cases.")
        shape = item["labels"].shape[1:]
        best: tuple[int, tuple[slice, ...]] | None = None
        for attempt in range(_TRIES_PER_LEVEL * _LEVELS):
            center = triple(np.unravel_index(centers[self.R.randint(len(centers))], shape))
            box = (slice(None), *Box.centered(center, self.crop, within=shape).slices)
            voxels = int((item["labels"][box] > 0).sum())
            if best is None or voxels > best[0]:
                best = voxels, box
            if voxels >= self.minimum_voxels / 2 ** (attempt // _TRIES_PER_LEVEL):
                break
        assert best is not None
        cut = {key: item[key][best[1]] for key in VOLUMES}
        return {**{key: value for key, value in item.items() if key != "centers"}, **cut}


class SegmentationCrop(Randomizable):
    """A crop with its augmentation, and what the device will do to it later.

    The intensity shift and the seed of tumors made on the fly are only drawn here: tumors come first, so that they
    are shifted along with their surroundings.

    Args:
        crop: Voxels along X, Y, Z; X and Y equal if crops are rotated.
        spacing_mm: Voxel size.
        class_ratios: Crops centered on background, organ and tumor, relative to each other, in scans with tumors.
        minimum_organ_mm3: Organ that a healthy crop must hold.
        healthy_background: Share of the crops of healthy scans that are centered on any background voxel instead.
        rotation_probability: Chance of a rotation by 90, 180 or 270 degrees in the axial plane.
        shift: Largest intensity shift, as a share of the window.
        shift_probability: Chance of a shift.

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
    ) -> None:
        if len(class_ratios) != CLASSES or min(class_ratios) < 0 or not sum(class_ratios) > 0:
            raise ConfigError(f"data.class_ratios is {list(class_ratios)}: give three numbers from 0, not all 0.")
        for name, chance in (
            ("augmentation.rotation_probability", rotation_probability),
            ("augmentation.shift_probability", shift_probability),
            ("data.healthy_background", healthy_background),
        ):
            if not 0 <= chance <= 1:
                raise ConfigError(f"{name} is {chance!r}: give a number from 0 to 1.")
        if rotation_probability and (crop[0] != crop[1] or spacing_mm[0] != spacing_mm[1]):
            raise ConfigError(
                f"Rotation in the axial plane needs crops and spacing alike along X and Y, not {list(crop)} and "
                f"{list(spacing_mm)}: change data.crop, or set augmentation.rotation_probability=0."
            )
        if not shift >= 0:
            raise ConfigError(f"augmentation.shift is {shift!r}: give 0 or more.")
        self.class_ratios = tuple(class_ratios)
        self.around, self.anywhere, self.background = (
            RandCropByLabelClassesd(
                VOLUMES,
                label_key="labels",
                spatial_size=tuple(crop),
                ratios=list(ratios),
                num_classes=CLASSES,
                indices_key="centers",
                warn=False,
            )
            for ratios in (class_ratios, (1.0,) * CLASSES, (1.0, 0.0, 0.0))
        )
        self.healthy = OrganCrop(crop, minimum_volume_mm3=minimum_organ_mm3, spacing_mm=spacing_mm)
        self.healthy_background = healthy_background
        self.rotate = RandRotate90d(VOLUMES, prob=rotation_probability, max_k=3, spatial_axes=(0, 1))
        self.shift = shift
        self.shift_probability = shift_probability

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> SegmentationCrop:
        """Seed every part with a stream of its own."""
        super().set_random_state(seed, state)
        for part in (self.around, self.anywhere, self.background, self.healthy, self.rotate):
            part.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, item: Mapping[str, Any]) -> Item:
        """Return a sample.

        Args:
            item: ``ct``, ``labels`` (1, X, Y, Z) at least as large as the crop, ``centers``, ``healthy``; whatever else
                it holds is passed on.

        Returns:
            ``ct`` float32 HU and ``labels`` uint8 of the crop, ``healthy``, ``shift`` as a share of the window,
            ``tumor_seed``, from 0 to 2⁶², and the rest of the item except the centers.
        """
        cut = self._of_healthy(item) if item["healthy"] else self._around_class(item)
        cut = self.rotate({key: cut[key] for key in VOLUMES})
        shifted = self.R.random_sample() < self.shift_probability
        amount = float(self.R.uniform(-self.shift, self.shift))
        high, low = (int(part) for part in self.R.randint(2**31, size=2))
        # MONAI returns tensors with metadata that view the cached volume.
        volumes = {k: (v.as_tensor() if hasattr(v, "as_tensor") else v).clone() for k, v in cut.items()}
        return {
            **{key: value for key, value in item.items() if key != "centers"},
            **volumes,
            "shift": amount if shifted else 0.0,
            "tumor_seed": high << 31 | low,
        }

    def _of_healthy(self, item: Mapping[str, Any]) -> Item:
        elsewhere = self.R.random_sample() < self.healthy_background and len(item["centers"][BACKGROUND])
        cut: Item = self.background(dict(item))[0] if elsewhere else self.healthy(item)
        return cut

    def _around_class(self, item: Mapping[str, Any]) -> Item:
        # Small tumors may be lost in resampling; MONAI leaves absent classes out, and fails if none remains.
        wanted = any(r > 0 and len(c) for r, c in zip(self.class_ratios, item["centers"], strict=True))
        cut: Item = (self.around if wanted else self.anywhere)(dict(item))[0]
        return cut
