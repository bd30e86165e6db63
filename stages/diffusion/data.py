"""Data of stage 2: crops around tumors of one stage, and some around the organ; the other tumors count as organ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from difftumor.datasets.cases import Case, CaseList
from difftumor.datasets.crops import with_class_centers
from difftumor.datasets.transforms import Item, RandomCrop, load_case, pad_to
from difftumor.datasets.tumor_cases import AnnotatedTumor
from difftumor.errors import counted
from difftumor.scans.grid import Box, Grid, Voxel, triple
from difftumor.scans.lesions import LesionMap, find_lesions
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import Volume, read_grid
from difftumor.scans.organs import TUMOR, Organ, resolve_labels
from stages.diffusion.options import LesionRules
from stages.run.data import CropData

# A tumor that is unseen in more than a tenth of its crops is worth a warning.
_WELL_SEEN = 0.9


def tumors_of(labels_XYZ: np.ndarray, spacing_mm: Sequence[float]) -> LesionMap:
    """Return the lesions of a label map in model space."""
    return find_lesions(labels_XYZ == TUMOR, Grid(triple(labels_XYZ.shape), np.diag([*spacing_mm, 1.0])))


@dataclass(frozen=True, kw_only=True)
class SeenTumor(AnnotatedTumor):
    """One tumor of a case, and how well the denoiser sees its mask.

    Args:
        voxels: Its size in model space.
        seen: Share of all positions of a crop in which its mask in the latent is not empty.
    """

    voxels: int
    seen: float


def share_seen(voxels_NV: np.ndarray, downsampling: int) -> float:
    """Return the share of all positions of a crop in which something is left of a mask that is reduced.

    Nearest-neighbor resizing keeps every fourth voxel along each axis, beginning with the crop's first. So the mask is
    seen if one of its voxels has, along all three axes, the remainder of the crop's position.

    Args:
        voxels_NV: (N, 3) voxels of the mask.
        downsampling: 4, for an autoencoder of two levels.
    """
    return len(np.unique(voxels_NV % downsampling, axis=0)) / downsampling**3


class CropReader(ABC):
    """Reads cases whose crops sit on tumors.

    Attributes:
        crop: Voxels along X, Y, Z that a case has at least.
    """

    crop: tuple[int, ...]

    @abstractmethod
    def about(self, case: Case) -> dict[str, Any]:
        """Return what decides how a case is read, besides its files."""

    @abstractmethod
    def __call__(self, case: Case) -> Item:
        """Load a case for ``RandomCrop``."""

    @abstractmethod
    def load(self, case: Case) -> tuple[Item, dict[int, Voxel]]:
        """Load a case, padded to the crop, and the middle voxels of the lesions to learn, by their index."""

    def around(self, item: Item, index: int, middle: Voxel) -> Item:
        """Cut the crop around a lesion out of a case that ``load`` returned.

        Args:
            item: The case.
            index: Index of the lesion.
            middle: Its middle voxel.

        Returns:
            ``ct``, ``labels``, ``case``, and ``key``, which no other lesion has.
        """
        box = Box.centered(middle, self.crop, within=item["ct"].shape[1:])
        # Cloned, so that the whole scan is not kept.
        cut = {key: item[key][(slice(None), *box.slices)].clone() for key in ("ct", "labels")}
        return {**cut, "case": item["case"], "key": crop_name(item["case"], index)}

    def fixed_crops(self, cases: Sequence[Case], *, limit: int) -> list[Item]:
        """Cut one crop around each lesion to learn, case after case, at most ``limit``."""
        crops: list[Item] = []
        for case in cases:
            if len(crops) >= limit:
                break
            item, lesions = self.load(case)
            crops += [self.around(item, *lesion) for lesion in islice(lesions.items(), limit - len(crops))]
        return crops


@dataclass(frozen=True, kw_only=True)
class TumorReader(CropReader):
    """Reads cases for stage 2.

    Args:
        cases: Their list, which says what their labels mean.
        organ: The organ with the tumors.
        rules: Which tumors are learned.
        crop: Voxels along X, Y, Z that a case has at least.
        spacing_mm: Voxel size of model space.
        only: By case, the ``AnnotatedTumor.index`` of the tumors to learn; in other cases, all of the size group.
        downsampling: Of the autoencoder, along each axis.
        accept_hu: Whether CTs that cannot be in HU are used.
    """

    cases: CaseList
    organ: Organ
    rules: LesionRules
    crop: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    only: Mapping[str, Collection[int]] = field(default_factory=dict)
    downsampling: int = 4
    accept_hu: bool = False

    def about(self, case: Case) -> dict[str, Any]:
        """Return what decides how a case is read, besides its files."""
        names = self.cases.label_names
        return {
            "crop": list(self.crop),
            "spacing_mm": [float(step) for step in self.spacing_mm],
            "lesions": asdict(self.rules),
            "labels": resolve_labels(names, self.organ, source=self.cases.source).to_dict(),
            "label_names": dict(names),
            "tumors": sorted(self.only[case.id]) if case.id in self.only else "all",
            "background": "organ",  # was any voxel beside these tumors in what earlier versions kept
            **({"accept_hu": True} if self.accept_hu else {}),
        }

    def __call__(self, case: Case) -> Item:
        """Load a case for ``RandomCrop``, which centers crops on voxels of these tumors or of the organ."""
        item, _ = self.load(case)
        _, organ, tumor = with_class_centers(item)["centers"]
        # Never on background: without an organ, all crops sit on tumors.
        return {**item, "foreground": tumor, "background": organ if len(organ) else tumor}

    def whole(self, case: Case) -> Item:
        """Load a case, padded to the crop, with all tumors that are annotated."""
        names = self.cases.label_names
        labels = resolve_labels(names, self.organ, source=self.cases.source)
        options: dict[str, Any] = {"spacing_mm": self.spacing_mm, "organ": self.organ, "accept_hu": self.accept_hu}
        return pad_to(load_case(case, labels, label_names=names, **options), self.crop)

    def load(self, case: Case) -> tuple[Item, dict[int, Voxel]]:
        """Load a case, padded to the crop, and the middle voxels of the lesions to learn, by their index."""
        item = self.whole(case)
        labels_XYZ = item["labels"][0].numpy()
        lesions = tumors_of(labels_XYZ, self.spacing_mm)
        chosen = {
            lesion.index: lesions.middle_voxel(lesion)
            for lesion in self.rules.choose(lesions, self.rules.stage)
            if case.id not in self.only or lesion.index in self.only[case.id]
        }
        return {**item, "labels": torch.from_numpy(lesions.keep(chosen, labels_XYZ))[None]}, chosen

    def tumors(self, case: Case, labels: Volume) -> tuple[SeenTumor, ...]:
        """Return the tumors of the size group in a label map of 0 background, 1 organ, 2 tumor on its own grid."""
        space = ModelSpace(read_grid(case.image), self.spacing_mm)  # as `load` has it, to the last bit
        lesions = tumors_of(space.to_model(labels.data, kind="labels"), self.spacing_mm)
        return tuple(
            SeenTumor(
                case=case.id,
                index=lesion.index,
                center_mm=space.grid.position_mm(lesions.middle_voxel(lesion)),
                radius_mm=lesion.radius_mm,
                voxels=lesion.voxels,
                seen=share_seen(lesions.voxels_of(lesion), self.downsampling),
            )
            for lesion in self.rules.choose(lesions, self.rules.stage)
        )


@dataclass(frozen=True)
class SeveralReaders(CropReader):
    """Reads the cases of several organs, each as the reader of its organ does.

    Args:
        readers: Of one spacing; no id is in two of their lists.
        crop: Voxels along X, Y, Z that a case has at least.
    """

    readers: tuple[TumorReader, ...]
    crop: tuple[int, ...]

    def about(self, case: Case) -> dict[str, Any]:
        """Return what decides how a case is read, besides its files."""
        return self._of[case.id].about(case)

    def __call__(self, case: Case) -> Item:
        """Load a case for ``RandomCrop``."""
        return self._of[case.id](case)

    def load(self, case: Case) -> tuple[Item, dict[int, Voxel]]:
        """Load a case, and the middle voxels of the lesions to learn, by their index."""
        return self._of[case.id].load(case)

    @cached_property
    def _of(self) -> dict[str, TumorReader]:
        return {case.id: reader for reader in self.readers for case in reader.cases.cases}


def crop_name(case: str, index: int) -> str:
    """Return the name of the crop around a lesion."""
    return f"{case}/{index}"


class TumorCrops(CropData):
    """Random crops around tumors for training; for validation a fixed crop around each held-out tumor, and hosts.

    Args:
        reader: Reads the cases.
        even: Places in ``train`` of the cases of each organ, of which equally many crops come; none for one organ.
        foreground_ratio: Crops around tumor voxels per crop around a voxel of the organ.
        rotation_probability: Chance that a crop is rotated in the axial plane.
        validation_crops: Crops of a validation at most, over all ranks.
        hosts: Hosts that tumors are made in, over all ranks; validation gets their numbers, see ``HostValidation``.
        options: Arguments of ``CropData``.
    """

    def __init__(
        self,
        *,
        reader: CropReader,
        foreground_ratio: float,
        validation_crops: int,
        rotation_probability: float = 0.0,
        hosts: int = 0,
        even: Sequence[Sequence[int]] = (),
        **options: Any,
    ) -> None:
        cut = RandomCrop(reader.crop, foreground_ratio=foreground_ratio, rotation_probability=rotation_probability)
        super().__init__(load=reader, transform=cut, **options)
        self.cut = cut
        self.reader = reader
        self.validation_crops = validation_crops
        self.hosts = hosts
        self._even = tuple(map(tuple, even))

    @property
    def even(self) -> Sequence[Sequence[int]]:
        """See ``seeded_loader``."""
        return self._even

    def setup(self, stage: str | None = None) -> None:
        """Fill the cache and cut the validation crops."""
        super().setup(stage)
        self.fixed = self.fixed_crops()

    def fixed_crops(self) -> list[Item]:
        """Cut the validation crops."""
        return self.reader.fixed_crops(self.validation, limit=self.validation_crops)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return the loaders of this rank's fixed crops and of its hosts' numbers; none if there are none.

        Every rank gets as many, or those with fewer batches would wait forever. What it gets on top is not counted
        (``counted`` is False), and a number beyond the last host.
        """
        assert self.trainer is not None
        rank, ranks, total = self.trainer.global_rank, self.trainer.world_size, len(self.fixed)

        def own(count: int) -> range:
            return range(rank, -(-count // ranks) * ranks, ranks)

        crops = [{**self.fixed[index % total], "counted": index < total} for index in own(total)]
        loaders: list[DataLoader[Any]] = []
        if crops:
            loaders.append(DataLoader(crops, batch_size=self.batch_size))  # type: ignore[arg-type]
        if self.hosts:
            loaders.append(DataLoader(own(self.hosts), batch_size=None))  # type: ignore[arg-type]
        return loaders


def describe(counts: dict[str, int], rules: LesionRules, source: Path) -> str:
    """Say how many tumors there are, and which cases are left out for having none."""
    without = sorted(case for case, count in counts.items() if not count)
    total = sum(counts.values())
    text = f"{counted(total, f'{rules.stage} tumor')} in {counted(len(counts) - len(without), 'case')} of {source}"
    if not without:
        return text + "."
    shown = ", ".join(without[:5]) + (" …" if len(without) > 5 else "")
    return f"{text}; left out for having none: {len(without)} ({shown})."


def describe_unseen(tumors: Sequence[SeenTumor], rules: LesionRules) -> str | None:
    """Say which tumors the denoiser does not see in a good part of their crops; None if there are none."""
    unseen = sorted((tumor for tumor in tumors if tumor.seen < _WELL_SEEN), key=lambda tumor: tumor.seen)
    if not unseen:
        return None
    shown = ", ".join(
        f"{tumor.case} (radius {tumor.radius_mm:.1f} mm, {tumor.voxels} voxels) in {1 - tumor.seen:.0%}"
        for tumor in unseen[:5]
    )
    return (
        f"Warning: the masks of {len(unseen)} of {len(tumors)} {rules.stage} tumors vanish in the latent, where "
        f"few voxels of a mask are left, in a part of their crops: {shown}{', …' if len(unseen) > 5 else ''}. "
        "Give a finer data.spacing_mm, or leave such tumors out with lesions.minimum_voxels."
    )


def describe_choice(chosen: Sequence[AnnotatedTumor], available: int, rules: LesionRules) -> str:
    """Say which tumors were chosen, one per line."""
    lines = [f"Learning {len(chosen)} of {available} {rules.stage} tumors, chosen by seed:"]
    for tumor in chosen:
        place = ", ".join(f"{value:.0f}" for value in tumor.center_mm)
        lines.append(f"  {tumor.case}: radius {tumor.radius_mm:.1f} mm, at ({place}) mm")
    return "\n".join(lines)
