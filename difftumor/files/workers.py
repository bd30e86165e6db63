"""Work in several processes: one that is killed takes its own piece alone, and none outlives the process that asked."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")
Piece = tuple[Any, ...]
SetUp = Callable[[int], object]
# For the user, about the piece that a killed process had.
KILLED = "Its process was killed, perhaps for lack of memory: try fewer jobs (--jobs)."


def in_processes(
    work: Callable[..., T], pieces: Sequence[Piece], *, jobs: int, set_up: SetUp = id
) -> Iterator[tuple[Piece, T | None]]:
    """Call a function for every piece of work, in processes.

    The pieces that several processes had when one of them was killed run again one at a time, so that only the one to
    blame is lost.

    Args:
        work: Called with the parts of a piece; picklable, as are these. An error that it raises ends everything.
        pieces: Of work.
        jobs: Processes.
        set_up: Called at the start of every process with the number of those beside it.

    Yields:
        Pieces with what the function returned, as they come; None for one whose process was killed.
    """
    waiting = deque(pieces)
    while waiting:
        for piece in (yield from _until_killed(work, waiting, jobs, set_up)):
            if (yield from _until_killed(work, deque([piece]), 1, set_up)):
                yield piece, None


def _until_killed(
    work: Callable[..., T], waiting: deque[Piece], jobs: int, set_up: SetUp
) -> Generator[tuple[Piece, T | None], None, list[Piece]]:
    """Work until nothing waits or a process was killed; return the pieces that were under way then."""
    # Forking a process that has used threads, as PyTorch has, may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(set_up, jobs))
    running: dict[Future[T], Piece] = {}
    lost: list[Piece] = []
    try:
        while running or (waiting and not lost):
            while waiting and not lost and len(running) < jobs:
                piece = waiting[0]
                try:
                    running[pool.submit(work, *piece)] = piece
                except BrokenProcessPool:  # those that run have yet to say so
                    break
                waiting.popleft()
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                piece = running.pop(done)
                try:
                    yield piece, done.result()
                except BrokenProcessPool:
                    lost.append(piece)
    finally:
        # Whatever happens, even an interruption, nothing further is started.
        pool.shutdown(cancel_futures=True)
    return lost


def _begin(set_up: SetUp, jobs: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()
    set_up(jobs)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
