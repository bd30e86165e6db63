"""The next batch's tumors, made while the segmenter trains on this one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader

from difftumor.datasets.transforms import Item
from stages.segmentation.stopwatch import Stopwatch

# Keys of a batch that are computed with; the others stay where they are.
_ON_DEVICE = ("ct", "labels")


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
