"""Label maps are read by several threads, as unpacking them takes longer than the disk."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from difftumor.datasets.cases import Case

T = TypeVar("T")


def for_each_case(
    look: Callable[[Case], T], cases: Sequence[Case], *, workers: int, done: Callable[[], None] | None = None
) -> list[T]:
    """Return what ``look`` makes of each case, in order; its first error stops the others.

    Args:
        look: Called from the threads.
        cases: What to look at.
        workers: Threads.
        done: Called after every case.
    """
    results = []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        try:
            for result in pool.map(look, cases):
                results.append(result)
                if done is not None:
                    done()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # one bad case is enough; the others need not be read
            raise
    return results
