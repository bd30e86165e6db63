"""Tumors made during training, in healthy crops (DiffTumor, section 3.3; Hu et al., section 3).

They are made on the device when a batch is there, or one batch ahead, and the time they take is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from difftumor.datasets.crops import OUTSIDE
from difftumor.datasets.transforms import Item
from difftumor.errors import ConfigError, SynthesisError
from difftumor.scans.grid import Box, Voxel
from difftumor.scans.organs import BACKGROUND, TUMOR
from difftumor.seeding import numpy_generator
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.synthesizer import TumorSynthesizer
from stages.segmentation.tumor_mix import TumorMix

# Keys of a batch that are computed with; the others stay where they are.
_ON_DEVICE = ("ct", "labels")


@dataclass(frozen=True, eq=False)
class Made:
    """A batch after tumors were made in it.

    Args:
        ct_hu: (B, 1, X, Y, Z); crops without tumors are bit-identical to the input.
        labels: uint8, 0 background, 1 organ, 2 tumor.
        records: What was made, per element.
        wanted: Crops meant to get tumors.
        rejected: Those of them that stayed healthy, for lack of room or because their tumors were too faint.
        faint: Tumors that were left out because they were too faint.
    """

    ct_hu: Tensor
    labels: Tensor
    records: tuple[tuple[TumorRecord, ...], ...] = field(default=())
    wanted: int = 0
    rejected: int = 0
    faint: int = 0


class TumorsOnTheFly:
    """Puts tumors into the healthy crops of a batch; what a crop gets depends on its seed alone.

    Args:
        synthesizer: With a diffusion model for every size group of the mix's.
        mix: Which tumors are made.
        minimum_change_hu: A tumor that changes the mean HU inside its label by less is left out; None keeps all.
        center: Share of the crops whose tumors are made in the crop and its margin, of which then a crop is cut that
            is centered on a random voxel of a tumor.
        margin: Voxels along X, Y, Z around each crop that come with it.

    Raises:
        ConfigError: The mix has a size whose model the synthesizer lacks, or copies and no tumor to copy.
    """

    def __init__(
        self,
        *,
        synthesizer: TumorSynthesizer,
        mix: TumorMix,
        minimum_change_hu: float | None = None,
        center: float = 0.0,
        margin: Sequence[int] = (0, 0, 0),
    ) -> None:
        if missing := sorted((mix.groups & mix.models) - set(synthesizer.diffusion)):
            raise ConfigError(
                f"synthesis.sizes has sizes of the {missing[0]} model, which is not given: leave them out."
            )
        if mix.uses("copy_paste") and not synthesizer.sources.tumors:
            raise ConfigError("synthesis.generators has copy_paste, and there is no tumor to copy: leave it out.")
        self.synthesizer = synthesizer
        self.mix = mix
        self.minimum_change_hu = minimum_change_hu or 0.0
        self.center = center
        self.margin = tuple(margin)

    def to(self, device: torch.device | str) -> TumorsOnTheFly:
        """Move the networks to a device and return self."""
        self.synthesizer.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self, ct_hu_B1XYZ: Tensor, labels_B1XYZ: Tensor, seeds: Sequence[int], healthy: Sequence[bool]
    ) -> Made:
        """Make tumors; all of one generator and size group go through the networks together.

        Args:
            ct_hu_B1XYZ: Crops in HU with their margin, on the device of the synthesizer; not modified.
            labels_B1XYZ: Their labels, ``OUTSIDE`` beyond the scan; not modified.
            seeds: Of each crop.
            healthy: Which crops may get tumors.
        """
        inner = Box.whole(ct_hu_B1XYZ.shape[2:]).padded([-voxels for voxels in self.margin])
        movable = [element for element, may in enumerate(healthy) if may]
        moving = [e for e in movable if numpy_generator(seeds[e], "move").random() < self.center]
        here = (..., *inner.slices)
        staying = [element in movable and element not in moving for element in range(len(seeds))]
        made = self._make(ct_hu_B1XYZ[here], labels_B1XYZ[here], seeds, staying)
        if not moving:
            return made
        elsewhere = self._make(
            ct_hu_B1XYZ[moving], labels_B1XYZ[moving], [seeds[element] for element in moving], [True] * len(moving)
        )
        records = list(made.records)
        for place, element in enumerate(moving):
            labels_XYZ, box = elsewhere.labels[place, 0], inner
            if elsewhere.records[place]:
                box = _around_tumor(labels_XYZ, labels_B1XYZ[element, 0], inner.shape, seeds[element])
            made.ct_hu[element, 0] = elsewhere.ct_hu[place, 0][box.slices]
            made.labels[element, 0] = labels_XYZ[box.slices]
            records[element] = tuple(record.moved(-n for n in box.start) for record in elsewhere.records[place])
        return replace(
            made,
            records=tuple(records),
            wanted=made.wanted + elsewhere.wanted,
            rejected=made.rejected + elsewhere.rejected,
            faint=made.faint + elsewhere.faint,
        )

    def _make(self, ct_hu_B1XYZ: Tensor, labels_B1XYZ: Tensor, seeds: Sequence[int], healthy: Sequence[bool]) -> Made:
        """Make tumors, and leave the crops where they are."""
        organ_B1XYZ = (labels_B1XYZ != BACKGROUND) & (labels_B1XYZ != OUTSIDE)
        wanted = {
            element: spec
            for element, seed in enumerate(seeds)
            if healthy[element] and (spec := self.mix.draw(seed)) is not None
        }
        drawn: dict[int, tuple[TumorRecord, ...]] = {}
        for element, spec in wanted.items():
            ct_XYZ = ct_hu_B1XYZ[element, 0] if spec.needs_hu else None
            try:
                drawn[element] = self.synthesizer.draw(
                    organ_B1XYZ[element, 0], spec, seed=seeds[element], ct_hu_XYZ=ct_XYZ
                )
            except SynthesisError:
                continue  # no room for a tumor of this size: the crop stays healthy
        ct, labels, faint = ct_hu_B1XYZ.clone(), labels_B1XYZ.clone(), 0
        if chosen := list(drawn):
            made = self.synthesizer.apply(
                ct[chosen],
                organ_B1XYZ[chosen],
                [drawn[element] for element in chosen],
                minimum_change_hu=self.minimum_change_hu,
            )
            ct[chosen], labels[chosen] = made.ct_hu.to(ct.dtype), made.labels.to(labels.dtype)
            faint = sum(map(len, drawn.values())) - sum(map(len, made.records))
            drawn = {element: kept for element, kept in zip(chosen, made.records, strict=True) if kept}
        records = tuple(drawn.get(element, ()) for element in range(len(seeds)))
        return Made(ct, labels, records, len(wanted), len(wanted) - len(drawn), faint)


def _around_tumor(labels_XYZ: Tensor, before_XYZ: Tensor, shape: Voxel, seed: int) -> Box:
    """Return a crop centered on a random tumor voxel, inside the scan, which ``before_XYZ`` tells."""
    voxels = (labels_XYZ == TUMOR).nonzero()
    center = voxels[int(numpy_generator(seed, "center").integers(len(voxels)))].tolist()
    scan = Box.around((before_XYZ != OUTSIDE).cpu().numpy())
    inside = [index - start for index, start in zip(center, scan.start, strict=True)]
    return Box.centered(inside, shape, within=scan.shape).shifted(scan.start)


def finished(batch: Item, tumors: TumorsOnTheFly | None) -> Item:
    """Return a batch of stage 3 with tumors in its healthy crops.

    Args:
        batch: ``ct`` and ``labels``, ``tumor_seed`` and ``healthy`` of every element.
        tumors: Makes them; None leaves the batch as it is.

    Returns:
        The batch with other ``ct`` and ``labels``, ``synthetic``, how many crops got tumors, ``rejected``, how many
        could not get any, and ``faint``, how many tumors were left out because they were too faint.
    """
    if tumors is None:
        return {**batch, "synthetic": 0, "rejected": 0, "faint": 0}
    # In full precision, as the tumors of inference are made.
    with torch.autocast(batch["ct"].device.type, enabled=False):
        made = tumors(
            batch["ct"], batch["labels"], seeds=batch["tumor_seed"].tolist(), healthy=batch["healthy"].tolist()
        )
    counts = {"synthetic": made.wanted - made.rejected, "rejected": made.rejected, "faint": made.faint}
    return {**batch, "ct": made.ct_hu, "labels": made.labels, **counts}


class Stopwatch:
    """Adds up seconds; on a GPU those of the stream, without making the processor wait for it."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._started: float | torch.cuda.Event | None = None

    def start(self, device: torch.device) -> None:
        """Start; a start that was never stopped is forgotten."""
        self._started = time.perf_counter() if device.type != "cuda" else _event()

    def stop(self) -> None:
        """Stop, if it was started."""
        if isinstance(self._started, float):
            self._seconds += time.perf_counter() - self._started
        elif self._started is not None:
            self._events.append((self._started, _event()))
        self._started = None

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Measure a block."""
        self.start(device)
        try:
            yield
        finally:
            self.stop()

    def add(self, seconds: float) -> None:
        """Add what was measured elsewhere."""
        self._seconds += seconds

    def take(self) -> float:
        """Return the seconds so far, and start over at 0."""
        if self._events:
            self._events[-1][1].synchronize()
        total = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return total


class TumorsAhead:
    """A loader whose batches have their tumors already: one thread makes those of the next, on a GPU in its own stream.

    What is made does not depend on it: tumors follow from each crop's seed.

    Args:
        loader: Batches of stage 3.
        finish: Makes the tumors of a batch that is on the device.
        device: Where the segmenter trains.
        waited: Adds up how long training waited for tumors.
    """

    def __init__(
        self, loader: DataLoader[Item], *, finish: Callable[[Item], Item], device: torch.device, waited: Stopwatch
    ) -> None:
        self.loader = loader
        self.finish = finish
        self.device = device
        self.waited = waited

    @property
    def sampler(self) -> Any:
        """The loader's, which Lightning tells the epoch."""
        return self.loader.sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Item]:
        """Yield the loader's batches, in order."""
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        batches = iter(self.loader)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tumors") as pool:
            ahead = pool.submit(self._next, batches, stream)
            while True:
                asked = time.perf_counter()
                if stream is not None:
                    self.waited.start(self.device)  # when the GPU has done all that it was given
                batch, event, seconds = ahead.result()
                if batch is None:
                    return
                ahead = pool.submit(self._next, batches, stream)
                if event is not None:
                    current = torch.cuda.current_stream(self.device)
                    current.wait_event(event)
                    self.waited.stop()
                    for name in _ON_DEVICE:
                        batch[name].record_stream(current)
                else:
                    # Waiting for the disk is not waiting for tumors.
                    self.waited.add(min(time.perf_counter() - asked, seconds))
                yield batch

    def _next(
        self, batches: Iterator[Item], stream: torch.cuda.Stream | None
    ) -> tuple[Item | None, torch.cuda.Event | None, float]:
        """Return the next batch with its tumors, when they are there, and the seconds they took; None at the end."""
        batch = next(batches, None)
        if batch is None:
            return None, None, 0.0
        begun = time.perf_counter()
        with torch.cuda.stream(stream):  # of no effect without one
            moved = {name: batch[name].to(self.device, non_blocking=True) for name in _ON_DEVICE}
            batch = self.finish({**batch, **moved})
            event = stream.record_event() if stream is not None else None
        return batch, event, time.perf_counter() - begun


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
