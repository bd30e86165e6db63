"""Copied tumors: the voxels of a real tumor, pasted into a healthy organ.

This is the plain control of every generator: nothing is learned or modeled. Only the tumor's own voxels are copied, cut
out along its annotation; all of them are shifted by the same HU, the difference of the means of the two organs, so that
the tumor keeps its contrast to its parenchyma, its texture and its inner edges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.errors import ConfigError, SynthesisError
from difftumor.scans.distances import Mask, box_about, cut_to
from difftumor.scans.grid import Box
from difftumor.synthesis.records import MaskRecord, SourceRecord, TumorRecord
from difftumor.synthesis.shapes import MaskShape, tumor_shape
from difftumor.synthesis.sizes import SIZES, sizes_of
from difftumor.synthesis.spec import PAPER_COUNT, TumorSpec


@dataclass(frozen=True, eq=False, kw_only=True)
class SourceTumor(MaskShape):
    """A real tumor to copy.

    Args:
        case: Id of its case.
        number: Its number among the components of the case's tumor mask, from 1.
        sha256: Of the case's CT.
        hu: float32 CT, of the mask's shape; values outside the mask do not matter.
        parenchyma_hu: Mean of its organ without vessels and tumors.
    """

    case: str
    number: int
    sha256: str
    hu: NDArray[np.float32]
    parenchyma_hu: float

    @property
    def can_turn(self) -> bool:
        """Whether it can be turned by 90 degrees in the axial plane without resampling."""
        return self.spacing_mm[0] == self.spacing_mm[1]


class SourceTumors:
    """Real tumors that can be copied, and masks that give shapes; nothing modifies them.

    Args:
        tumors: In any order.
        origin: What errors call the place where they come from.
        notes: What a user should know of them, in sentences.
        masks: Shapes that records name, as `MaskShape.mask`.
    """

    def __init__(
        self,
        tumors: Iterable[SourceTumor] = (),
        *,
        origin: str = "the source",
        notes: Sequence[str] = (),
        masks: Mapping[MaskRecord, Mask] | None = None,
    ) -> None:
        # What is drawn does not depend on the order in which cases were read.
        self.tumors = tuple(sorted(tumors, key=lambda tumor: (tumor.case, tumor.number)))
        self.origin, self.notes, self.masks = origin, tuple(notes), dict(masks or {})
        self._by_name = {(tumor.case, tumor.number): tumor for tumor in self.tumors}

    @cached_property
    def identity(self) -> str:
        """SHA-256 over what can be copied: cases, numbers and CTs, and the masks, which annotations may change."""
        parts = [
            (t.case, t.number, t.sha256, t.mask.shape, hashlib.sha256(np.packbits(t.mask).tobytes()).hexdigest())
            for t in self.tumors
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def sizes(self) -> frozenset[str]:
        """Size classes that there are."""
        return frozenset(tumor.size for tumor in self.tumors)

    @property
    def reach_mm(self) -> float:
        """How far any of them extends from its center along an axis; 0 for none."""
        sides = (n // 2 * step for t in self.tumors for n, step in zip(t.mask.shape, t.spacing_mm, strict=True))
        return max(sides, default=0.0)

    def of_size(self, size: str) -> tuple[SourceTumor, ...]:
        """Return the tumors of a size class or group."""
        return tuple(tumor for tumor in self.tumors if tumor.size in sizes_of(size))

    def with_masks(self, masks: Mapping[MaskRecord, Mask]) -> SourceTumors:
        """Return the same real tumors with other masks."""
        return SourceTumors(self.tumors, origin=self.origin, notes=self.notes, masks=masks)

    def check(self, specs: Sequence[TumorSpec]) -> None:
        """Refuse wishes that no tumor fulfills.

        Raises:
            ConfigError: No tumor has a size that is asked for.
        """
        for spec in (spec for spec in specs if spec.generator == "copy_paste"):
            wanted = {size for size, weight in spec.weights.items() if weight > 0}
            if spec.count == PAPER_COUNT and "mix" in wanted:
                wanted = wanted - {"mix"} | set(sizes_of("mix"))  # this mode has tumors of every size
            if spec.satellites is not None:
                wanted |= {size for size, weight in spec.satellites.size.items() if weight > 0}
            for size in sorted(wanted):
                if not self.of_size(size):
                    there = ", ".join(name for name in SIZES if name in self.sizes)
                    raise ConfigError(
                        f"None of the {len(self.tumors)} tumors of {self.origin} is {size}: they are {there}; ask for "
                        "one of these sizes, or give other cases."
                    )

    def find(self, source: SourceRecord) -> SourceTumor:
        """Return the tumor that a record copies.

        Raises:
            SynthesisError: It is not here, or its CT is another one.
        """
        tumor = self._by_name.get((source.case, source.tumor))
        if tumor is None or tumor.sha256 != source.sha256:
            what = "is not among the source tumors" if tumor is None else "has another CT now"
            raise SynthesisError(
                f"A record copies tumor {source.tumor} of case {source.case!r}, which {what}: give the same source."
            )
        return tumor

    def shape(self, record: TumorRecord) -> np.ndarray:
        """Return the mask of a tumor of any generator: ``tumor_shape``, that of the copy, or a given one.

        Raises:
            SynthesisError: The tumor that it copies, or the mask that it names, is not here.
        """
        if record.mask is not None:
            if record.mask not in self.masks:
                raise SynthesisError("A record takes its shape from another mask than this one: give that mask.")
            return self.masks[record.mask]
        if record.source is None:
            return tumor_shape(record)
        return _oriented(self.find(record.source).mask, record.source)

    def texture(self, record: TumorRecord, box: Box) -> NDArray[np.float32]:
        """Return the HU of a copy in a box of the array that it is in; beyond the tumor those of its nearest voxel.

        Neither the tissue around the original, which may be gas or bone, nor the host is needed for the rim then.

        Args:
            record: A copied tumor.
            box: May reach beyond the array.
        """
        assert record.source is not None
        tumor = self.find(record.source)
        mask, hu = (_oriented(array, record.source) for array in (tumor.mask, tumor.hu))
        own = box_about(record.center_voxel, mask)
        whole = Box.joined([box, own])
        missing = [(a - w, v - b) for a, b, w, v in zip(own.start, own.stop, whole.start, whole.stop, strict=True)]
        nearest = scipy.ndimage.distance_transform_edt(
            ~np.pad(mask, missing), sampling=record.spacing_mm, return_distances=False, return_indices=True
        )
        extended = np.pad(hu, missing)[tuple(nearest)]
        return cut_to(extended, whole, box) + np.float32(record.source.shift_hu)


NO_SOURCES = SourceTumors()


def _oriented(array: NDArray[Any], source: SourceRecord) -> NDArray[Any]:
    turned = np.rot90(array) if source.turned else array
    return np.flip(turned, tuple(axis for axis, flipped in enumerate(source.flipped) if flipped))
