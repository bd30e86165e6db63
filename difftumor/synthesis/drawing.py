"""Drawing: the tumors that are wanted for an organ, one after the other, each in the room that is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from difftumor.seeding import Key
from difftumor.synthesis.decisions import Drawing, Wanted
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.site import Site
from difftumor.synthesis.spec import TumorSpec

# Where so many sizes and shapes had no room, no more are tried.
_MISSES = 3


@dataclass(frozen=True)
class Drawn:
    """Tumors that were drawn.

    Args:
        records: In order; satellites follow their tumor.
        shortfalls: What could not be had, in sentences.
    """

    records: tuple[TumorRecord, ...]
    shortfalls: tuple[str, ...] = ()


class Choose(Protocol):
    """Decides which of the drawn tumors are kept."""

    def begin(self, wanted: int) -> None:
        """Forget what was tried for the tumor before; ``wanted`` counts all that are wanted, from 1."""
        ...

    def __call__(self, record: TumorRecord, accepted: Sequence[TumorRecord]) -> TumorRecord | None:
        """Return the tumor to keep in the place of one that was drawn, or None to have another drawn.

        Args:
            record: The tumor.
            accepted: Those that are kept already, in order.
        """
        ...


def draw_tumors(
    site: Site,
    specs: Sequence[TumorSpec],
    *,
    seed: int,
    keys: tuple[Key, ...] = (),
    choose: Choose | None = None,
    attempts: int = 1,
) -> Drawn:
    """Draw tumors for one organ; no network is needed.

    Args:
        site: The organ.
        specs: What is wanted.
        seed: With ``keys``, decides everything; the first tumors do not depend on how many follow.
        keys: For instance ``("epoch", 3, "sample", 17)``.
        choose: Which tumors to keep; by default all.
        attempts: How often a tumor that is not kept is drawn anew.

    Returns:
        The tumors, possibly none.

    Raises:
        SynthesisError: The mask is empty, or the CT is needed and not given.
    """
    drawing = Drawing(site, specs, seed=seed, keys=keys)
    records: list[TumorRecord] = []
    missing: list[tuple[Wanted, bool]] = []
    queue = list(drawing.wanted)
    total = len(queue)
    while queue:
        wanted = queue.pop(0)
        if choose is not None:
            choose.begin(total - len(queue))
        record, had_room = _kept(drawing, wanted, records, choose, attempts)
        if record is None:
            missing.append((wanted, had_room))
            continue
        records.append(record)
        satellites = drawing.satellites(wanted, record, len(records))
        total += len(satellites)
        queue = satellites + queue
        if queue:  # the last one is in nobody's way
            drawing.accept(record)
    return Drawn(tuple(records), _shortfalls(site, missing, total))


def _kept(
    drawing: Drawing, wanted: Wanted, accepted: Sequence[TumorRecord], choose: Choose | None, attempts: int
) -> tuple[TumorRecord | None, bool]:
    """Return the tumor that is kept, and whether there was room for any."""
    had_room, misses = False, 0
    for attempt in range(attempts if choose is not None else 1):
        record = drawing.draw(wanted, attempt=attempt)
        if record is None:
            misses += 1
            if misses == _MISSES:
                break
            continue  # another size or shape may fit
        had_room = True
        kept = record if choose is None else choose(record, accepted)
        if kept is not None:
            return kept, True
    return None, had_room


def _shortfalls(site: Site, missing: Sequence[tuple[Wanted, bool]], total: int) -> tuple[str, ...]:
    if not missing:
        return ()
    name = site.organ.name
    sentences = []
    crowded = [wanted for wanted, had_room in missing if not had_room]
    if crowded:
        kept_apart = any(wanted.spec.vessel_clearance_mm is not None for wanted in crowded)
        apart = " away from its vessels" if kept_apart else ""
        sentences.append(f"The {name} had room{apart} for {total - len(crowded)} of {total} tumors.")
    rejected = len(missing) - len(crowded)
    if rejected:
        sentences.append(f"{rejected} of {total} tumors were not made, since none that was tried was good enough.")
    return tuple(sentences)
