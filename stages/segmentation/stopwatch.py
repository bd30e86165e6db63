"""How long a part of many steps takes, on the device that computes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up seconds; on a GPU those of the stream, without having the processor wait for it."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._started: float | torch.cuda.Event | None = None

    def start(self, device: torch.device) -> None:
        """Start; a start that nothing has stopped is forgotten."""
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
        """Return the seconds so far, and begin anew at 0."""
        if self._events:
            self._events[-1][1].synchronize()
        total = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return total


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
