"""Check lists of cases before hours are spent on them: every problem at once, and which scans they share."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np

from difftumor.datasets.cases import Case, CaseList
from difftumor.errors import CaseListError, ConfigError, DiffTumorError
from difftumor.files.writing import written_whole
from difftumor.scans.fingerprint import Fingerprint, LandmarkIndex, Likeness, fingerprint
from difftumor.scans.grid import compare_grids
from difftumor.scans.hounsfield import HIGHEST_MINIMUM_HU
from difftumor.scans.nifti import Volume, read_ct, read_grid
from difftumor.scans.stored.header import is_nifti


@dataclass(frozen=True)
class Problem:
    """What is wrong with one case, in one sentence."""

    case_id: str
    message: str


@dataclass(frozen=True)
class IntegrityReport:
    """What a check found.

    Attributes:
        checked: Number of cases checked.
        problems: In the order of the cases; a case may have several.
    """

    checked: int
    problems: tuple[Problem, ...]

    def raise_if_any(self) -> None:
        """Raise one error that lists every problem, one per line.

        Raises:
            CaseListError: There is a problem.
        """
        if self.problems:
            count = len({problem.case_id for problem in self.problems})
            lines = "\n".join(f"  {problem.case_id}: {problem.message}" for problem in self.problems)
            raise CaseListError(f"{count} of {self.checked} cases cannot be used; fix or remove them:\n{lines}")


def check_cases(case_list: CaseList, *, accept_hu: bool = False) -> IntegrityReport:
    """Check every case: files readable, 3-D, image and labels on one grid, CT in HU as far as a slice can tell.

    Args:
        case_list: The cases.
        accept_hu: Whether values that cannot be HU are accepted.

    Returns:
        Every problem of every case. Nothing is raised for a bad file.
    """
    problems = [Problem(case.id, message) for case in case_list.cases for message in _header_problems(case, accept_hu)]
    return IntegrityReport(len(case_list.cases), tuple(problems))


def _header_problems(case: Case, accept_hu: bool) -> Iterator[str]:
    grid = None
    try:
        grid = read_grid(case.image)
    except DiffTumorError as error:
        yield str(error)
    else:
        yield from _scale_problems(case, accept_hu)
    for file in label_files_of(case):
        try:
            labels_grid = read_grid(file)
            if grid is not None:
                compare_grids(grid, labels_grid, case.image, file)
        except DiffTumorError as error:
            yield str(error)


def _scale_problems(case: Case, accept_hu: bool) -> Iterator[str]:
    """Recognize a CT that is not in HU; most show air in their first slice, which is proof enough and quick to read."""
    try:
        first = np.asanyarray(nib.load(case.image).dataobj[..., :1])
        in_hu = bool((first < HIGHEST_MINIMUM_HU).any())
    except (OSError, EOFError, ValueError, zlib.error):
        in_hu = False  # damaged: reading all of it will say so
    if in_hu:
        return
    try:
        read_ct(case.image, accept_hu=accept_hu)
    except DiffTumorError as error:
        yield str(error)


def label_files_of(case: Case) -> list[Path]:
    """Return the label maps of a case: one, or those of all structures, or none."""
    if case.labels is None:
        return []
    if case.labels.is_dir():
        return sorted(file for file in case.labels.iterdir() if is_nifti(file))
    return [case.labels]


S = TypeVar("S")
T = TypeVar("T")


def in_threads(
    look: Callable[[S], T], items: Sequence[S], *, workers: int, done: Callable[[], None] | None = None
) -> list[T]:
    """Return what ``look`` makes of each item, in order; its first error stops the others.

    Args:
        look: Called from the threads.
        items: Cases or files.
        workers: Threads.
        done: Called after every item.
    """
    results = []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        try:
            for result in pool.map(look, items):
                results.append(result)
                if done is not None:
                    done()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # one bad case is enough; the others need not be read
            raise
    return results


@dataclass(frozen=True)
class SharedScan:
    """Two scans that are one, or look like it.

    Attributes:
        one: Name of a scan.
        other: Name of the other.
        likeness: How they are the same.
    """

    one: str
    other: str
    likeness: Likeness

    @property
    def certain(self) -> bool:
        """Whether all voxels are the same."""
        return self.likeness != "suspected"


def fingerprints(
    files: Collection[Path],
    *,
    workers: int = 1,
    cache: Path | None = None,
    accept_hu: bool = False,
    done: Callable[[], None] | None = None,
    failed: Callable[[Path, DiffTumorError], None] | None = None,
) -> dict[Path, Fingerprint]:
    """Return the fingerprints of CTs; each is read once, and not again as long as its size and time stay the same.

    Args:
        files: The CTs.
        workers: Threads that read, each of which holds one scan.
        cache: Folder where fingerprints are kept; by default ``difftumor/fingerprints`` in the user's cache
            (``XDG_CACHE_HOME``, ``~/.cache``). One that cannot be written to does not matter.
        accept_hu: Whether values that cannot be HU are accepted.
        done: Called after every CT.
        failed: Called, from the threads, with a CT that cannot be read, which is then left out; by default an error.

    Raises:
        VolumeError: A CT cannot be read.
    """

    def look(file: Path) -> Fingerprint | None:
        try:
            return cached_fingerprint(file, cache=cache, accept_hu=accept_hu)
        except DiffTumorError as error:
            if failed is None:
                raise
            failed(file, error)
            return None

    distinct = list(dict.fromkeys(files))
    found = in_threads(look, distinct, workers=workers, done=done)
    return {file: each for file, each in zip(distinct, found, strict=True) if each is not None}


def with_fingerprints(
    cases: Sequence[Case], *, workers: int = 1, done: Callable[[], None] | None = None
) -> tuple[Case, ...]:
    """Return cases with the fingerprints of their CTs, for a list; errors as ``fingerprints``."""
    # Whether these CTs are in HU is for those to judge who use them.
    found = fingerprints([case.image for case in cases], workers=workers, accept_hu=True, done=done)
    return tuple(replace(case, fingerprint=str(found[case.image])) for case in cases)


def shared_scans(
    ones: Mapping[str, Fingerprint], others: Mapping[str, Fingerprint] | None = None
) -> tuple[SharedScan, ...]:
    """Return which scans two sets share.

    Args:
        ones: A set, by name.
        others: Another; None compares the scans of the first with each other.

    Returns:
        Pairs in the order of the sets. A scan that is certainly in the other set is suspected of nothing else.
    """
    theirs = list((ones if others is None else others).items())
    index = LandmarkIndex([each for _, each in theirs])
    same: dict[str, list[int]] = {}
    for number, (_, each) in enumerate(theirs):
        same.setdefault(each.content, []).append(number)
    found: list[SharedScan] = []
    for place, (name, own) in enumerate(ones.items()):
        first = place + 1 if others is None else 0
        certain = [number for number in same.get(own.content, ()) if number >= first]
        for number in certain or index.candidates(own, first=first):
            other, their = theirs[number]
            if (likeness := own.likeness(their)) is not None:
                found.append(SharedScan(name, other, likeness))
    return tuple(found)


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "difftumor" / "fingerprints"


def cached_fingerprint(
    file: Path, *, cache: Path | None = None, accept_hu: bool = False, ct: Volume | None = None
) -> Fingerprint:
    """Return the fingerprint of a CT as ``fingerprints`` does, and keep it.

    Args:
        file: The CT.
        cache: As for ``fingerprints``.
        accept_hu: Whether values that cannot be HU are accepted.
        ct: What was read of the file, with the same ``accept_hu``, if it has been read already.

    Raises:
        VolumeError: The CT cannot be read.
    """
    folder = _user_cache() if cache is None else cache
    stat = file.stat()
    key = [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
    usual, accepted = (
        folder / f"{hashlib.sha256(json.dumps(each).encode()).hexdigest()}.txt" for each in (key, [*key, "accept_hu"])
    )
    for kept in (usual, accepted) if accept_hu else (usual,):
        try:
            if (known := Fingerprint.from_text(kept.read_text(encoding="utf-8"))) is not None:
                return known
        except (OSError, ValueError):
            continue
    ct = read_ct(file, accept_hu=accept_hu) if ct is None else ct
    found = fingerprint(ct)
    try:
        # What others may not accept is kept apart.
        with written_whole(accepted if accept_hu and ct.doubts else usual) as temporary:
            temporary.write_text(str(found), encoding="utf-8")
    except (OSError, ConfigError):
        pass  # read-only or full: the scan is read again next time
    return found
