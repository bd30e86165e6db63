"""What stage 2 is judged by besides its loss: held-out tumors, and fixed healthy crops that host synthetic ones.

Neither needs a training: ``stages.diffusion.train.held_out`` gives both from a config, ``synthesize`` takes any
synthesizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, zip_longest
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from difftumor.datasets.cases import Case
from difftumor.datasets.crops import OrganCrop, with_class_centers
from difftumor.datasets.transforms import Item
from difftumor.errors import OrganError, SynthesisError
from difftumor.scans.appearance import SURROUNDINGS_MM, Appearance, measure_appearance
from difftumor.scans.grid import Box, triple
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.organs import ORGAN, TUMOR, Organ
from difftumor.seeding import derive_seed
from difftumor.synthesis.draw import draw_tumors
from difftumor.synthesis.host import Host
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.sizes import sizes_of
from difftumor.synthesis.spec import TumorSpec
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.diffusion.data import TumorReader, tumors_of
from stages.ranks import say

T = TypeVar("T")
# Organ this near to an annotated tumor neither hosts tumors nor counts as healthy surroundings.
MARGIN_MM = SURROUNDINGS_MM[0]
# Crops tried for each size before the next smaller one.
_TRIES = 4


@dataclass(eq=False)
class HostCrop:
    """A healthy crop, and the tumor that it is to host. Not a mapping of tensors, which Lightning would move to a GPU.

    Attributes:
        id: The case, and the crop's number in it from 1.
        ct_hu_XYZ: (X, Y, Z) float32 HU, of ``data.crop``.
        organ_XYZ: (X, Y, Z) bool: the organ without annotated tumors of any size and what lies around them, and
            without bone, gas and metal.
        record: Drawn for this organ mask.
        organ: The organ.
    """

    id: str
    ct_hu_XYZ: Tensor
    organ_XYZ: Tensor
    record: TumorRecord
    organ: Organ


@dataclass(eq=False)
class HostedTumor:
    """What a synthesizer made of a host.

    Attributes:
        host: The crop that it is in.
        ct_hu_XYZ: (X, Y, Z) HU, on the host's device, as the tumor.
        tumor_XYZ: (X, Y, Z) bool.
        appearance: How it looks.
    """

    host: HostCrop
    ct_hu_XYZ: Tensor
    tumor_XYZ: Tensor
    appearance: Appearance


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What stage 2 is judged by. Loaded when it is first asked for, always the same whatever is trained how.

    Args:
        reader: Reads the cases.
        window: HU that count.
        tumor_cases: Cases whose tumors of the size group are compared with; not trained on.
        learned_cases: Cases whose tumors of the size group may be trained on.
        host_cases: Cases that may host tumors; not trained on.
        tumors: Tumors to measure, at most, of either cases.
        count: Number of hosts.
        seed: With the cases' ids, decides which crops and which tumors.
    """

    reader: TumorReader
    window: IntensityWindow
    tumor_cases: tuple[Case, ...]
    learned_cases: tuple[Case, ...]
    host_cases: tuple[Case, ...]
    tumors: int
    count: int
    seed: int

    @cached_property
    def hosts(self) -> tuple[HostCrop, ...]:
        """The hosts, evenly over the cases; the first ones are of different cases."""
        ordered = sorted(self.host_cases, key=lambda case: derive_seed(self.seed, "host", case.id))
        found: dict[int, HostCrop] = {}
        for place, case in enumerate(ordered[: self.count]):
            item = self._healthy(case)
            for number in range(place, self.count, len(ordered)):
                if (host := self._host(item, number // len(ordered) + 1)) is not None:
                    found[number] = host
        return tuple(found[number] for number in sorted(found))

    @cached_property
    def real(self) -> tuple[Appearance, ...]:
        """How the held-out tumors look: those of the validation crops, each as a whole."""
        return self._looks(self.tumor_cases)

    @cached_property
    def learned(self) -> tuple[Appearance, ...]:
        """How tumors of the training cases look, chosen for training or not."""
        return self._looks(self.learned_cases)

    def _looks(self, cases: Sequence[Case]) -> tuple[Appearance, ...]:
        measured: list[Appearance] = []
        for case in cases:
            if len(measured) >= self.tumors:
                break
            measured += islice(self._measured(case), self.tumors - len(measured))
        return tuple(measured)

    def _measured(self, case: Case) -> Iterator[Appearance]:
        item, spacing_mm = self.reader.whole(case), self.reader.spacing_mm
        ct_hu, labels = item["ct"][0].numpy(), item["labels"][0].numpy()
        rules, lesions = self.reader.rules, tumors_of(labels, spacing_mm)
        margin = [round((SURROUNDINGS_MM[1] + MARGIN_MM) / step) + 2 for step in spacing_mm]
        for lesion in rules.choose(lesions, rules.stage):
            box = Box.around(lesions.indices == lesion.index).padded(margin).clipped(labels.shape).slices
            tumor = lesions.indices[box] == lesion.index
            organ = _apart(labels[box] == ORGAN, (labels[box] == TUMOR) & ~tumor, spacing_mm)
            organ &= _seen(ct_hu[box], self.window)
            yield measure_appearance(ct_hu[box], tumor, organ, spacing_mm=spacing_mm, window=self.window)

    def _healthy(self, case: Case) -> Item:
        """Load a case in which all but healthy organ is background."""
        item = self.reader.whole(case)
        labels = item["labels"][0].numpy()
        organ = _apart(labels == ORGAN, labels == TUMOR, self.reader.spacing_mm)
        organ &= _seen(item["ct"][0].numpy(), self.window)
        return with_class_centers({**item, "labels": torch.from_numpy(organ.astype(np.uint8) * ORGAN)[None]})

    def _host(self, item: Item, number: int) -> HostCrop | None:
        reader, name = self.reader, f"{item['case']}/{number}"
        cutter = OrganCrop(
            reader.crop, minimum_volume_mm3=reader.organ.minimum_volume_mm3, spacing_mm=reader.spacing_mm
        )
        cutter.set_random_state(seed=derive_seed(self.seed, "host", name) % 2**32)
        stage = reader.rules.stage
        for size in (stage, sizes_of(stage)[0]):
            for _ in range(_TRIES):
                try:
                    cut = cutter(item)
                    organ = (cut["labels"][0] == ORGAN).clone()
                    record = self._drawn(organ.numpy(), size, name)
                except (OrganError, SynthesisError):
                    continue
                if record is None:
                    continue
                if size != stage:
                    say(f"{item['case']} has no room for most {stage} tumors: it hosts a {size} one.")
                return HostCrop(name, cut["ct"][0].float().clone(), organ, record, reader.organ)
        say(f"{item['case']} hosts no tumor: it has no room for a {stage} one.")
        return None

    def _drawn(self, organ_XYZ: np.ndarray, size: str, name: str) -> TumorRecord | None:
        x, y, z = (float(step) for step in self.reader.spacing_mm)
        organ = Host(organ_XYZ, organ=self.reader.organ, spacing_mm=(x, y, z), open_border=False)
        drawn = draw_tumors(organ, [TumorSpec(size=size)], seed=self.seed, keys=("host", name))
        return drawn.records[0] if drawn.records else None


@dataclass(frozen=True)
class HeldOutOrgans:
    """What stage 2 is judged by if it learns several organs: the same for each.

    Args:
        parts: Of each organ.
    """

    parts: tuple[HeldOut, ...]

    @property
    def count(self) -> int:
        """Number of hosts."""
        return sum(part.count for part in self.parts)

    @cached_property
    def hosts(self) -> tuple[HostCrop, ...]:
        """The hosts, one of each organ in turn."""
        return tuple(in_turn([part.hosts for part in self.parts]))

    @cached_property
    def real(self) -> tuple[Appearance, ...]:
        """How the held-out tumors look."""
        return tuple(look for part in self.parts for look in part.real)

    @cached_property
    def learned(self) -> tuple[Appearance, ...]:
        """How tumors of the training cases look."""
        return tuple(look for part in self.parts for look in part.learned)


def in_turn(groups: Sequence[Sequence[T]]) -> Iterator[T]:
    """Yield the first of each group, then the second of each, and so on."""
    for row in zip_longest(*groups):
        yield from (each for each in row if each is not None)


def synthesize(synthesizer: TumorSynthesizer, hosts: Sequence[HostCrop]) -> Iterator[HostedTumor]:
    """Make the tumor of each host as in a scan, one after the other, and measure it.

    Args:
        synthesizer: Of the hosts' spacing; may be on a GPU.
        hosts: Crops to make them in.
    """
    device = synthesizer.device
    for host in hosts:
        ct, organ = (volume[None, None].to(device) for volume in (host.ct_hu_XYZ, host.organ_XYZ))
        made = synthesizer.for_organ(host.organ).apply(ct, organ, [[host.record]], patch_per_tumor=True)
        ct_hu_XYZ, tumor_XYZ = made.ct_hu[0, 0].cpu(), made.labels[0, 0].cpu() == TUMOR
        appearance = measure_appearance(
            ct_hu_XYZ.numpy(),
            tumor_XYZ.numpy(),
            host.organ_XYZ.numpy(),
            spacing_mm=synthesizer.spacing_mm,
            window=synthesizer.window,
        )
        yield HostedTumor(host, ct_hu_XYZ, tumor_XYZ, appearance)


def _seen(ct_hu_XYZ: np.ndarray, window: IntensityWindow) -> np.ndarray:
    """Return the voxels at which a CT lies inside the window, apart from noise: bone, gas and metal do not host tumors.

    A synthesizer keeps what stands out of the window, which the networks do not see: a tumor in bone would stay bone.
    """
    smooth_hu = ndimage.gaussian_filter(ct_hu_XYZ, sigma=1.0, mode="nearest")
    seen: np.ndarray = (smooth_hu >= window.low_hu) & (smooth_hu <= window.high_hu)
    return seen


def _apart(organ_XYZ: np.ndarray, tumors_XYZ: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the organ without what lies within ``MARGIN_MM`` of tumors."""
    margin = triple([int(MARGIN_MM / step) + 1 for step in spacing_mm])
    box = Box.around(tumors_XYZ).padded(margin).clipped(organ_XYZ.shape)
    apart: np.ndarray = organ_XYZ & ~tumors_XYZ
    if tumors_XYZ.any():
        apart[box.slices] &= ndimage.distance_transform_edt(~tumors_XYZ[box.slices], sampling=spacing_mm) > MARGIN_MM
    return apart
