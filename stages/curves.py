"""The numbers that a run has logged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = tuple[list[int], list[float]]


def read_curves(run: Path, names: Sequence[str]) -> dict[str, Curve]:
    """Return steps and values of what a run has logged under these names, without those that it has not.

    Args:
        run: Folder of the run.
        names: For instance ``"training/loss"``.
    """
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    known = set(events.Tags()["scalars"])
    scalars = {name: events.Scalars(name) for name in names if name in known}
    return {name: ([s.step for s in found], [s.value for s in found]) for name, found in scalars.items()}
