"""Errors that a user can act on: one sentence that names the file, field or option and the remedy."""

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from difftumor.files.memory import free_memory_bytes

P = ParamSpec("P")
T = TypeVar("T")
# Characters of a sentence; names of files can have thousands.
_LONGEST = 2000
# Of the system: a full disk, a full quota, a limit to the size of files.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiffTumorError(Exception):
    """Base of all errors that the command line prints as one sentence, without a traceback.

    Example:
        >>> import difftumor as dt
        >>> try:
        ...     dt.TumorSpec(size="huge")
        ... except dt.DiffTumorError as error:
        ...     print(error)
        Tumor size 'huge' is unknown: use one of tiny, small, medium, large, early, late, mix.
    """


class VolumeError(DiffTumorError):
    """A NIfTI file cannot be used: missing, damaged, not 3-D, not in HU, or not a label map."""


class GridMismatchError(VolumeError):
    """Two volumes that must share a grid differ in shape or affine."""


class OrganError(DiffTumorError):
    """An organ is unknown, or absent from a label map."""


class CaseListError(DiffTumorError):
    """A list of cases (dataset.json, CSV, JSON, folder) is missing, malformed or empty."""


class ArtifactError(DiffTumorError):
    """An artifact is missing, damaged, incomplete, of the wrong kind, or its parent has changed."""


class PublishedFileError(DiffTumorError):
    """A published checkpoint is missing, damaged, of another network, or would run code."""


class ConfigError(DiffTumorError):
    """A configuration value or command-line option is unknown, missing or out of range."""


class DeviceError(DiffTumorError):
    """The requested device does not exist."""


class DependencyError(DiffTumorError):
    """A package that is not installed with difftumor is needed; the message names the extra that brings it."""


class SynthesisError(DiffTumorError):
    """A tumor cannot be made as requested, for instance because the organ has no room for it."""


class TrainingError(DiffTumorError):
    """A training run cannot start or continue."""


class ShapeError(DiffTumorError):
    """A tensor's shape does not fit the network it is given to."""


@contextmanager
def concerning(what: Path | str) -> Iterator[None]:
    """Note what is being read or made, for the sentence on an error of the block that nobody foresaw."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, DiffTumorError) and not getattr(error, "__notes__", ()):
            error.add_note(str(what))
        raise


def naming(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function whose unforeseen errors note its first argument, as `concerning` does."""

    @wraps(function)
    def noted(*args: P.args, **kwargs: P.kwargs) -> T:
        with concerning(str(args[0]) if args else function.__name__):
            return function(*args, **kwargs)

    return noted


def lacks_room(error: Exception) -> bool:
    """Whether a disk or a quota is full, which the next of many cases would find as well."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def sentence_of(error: Exception) -> str:
    """Say what went wrong, for a user; unforeseen errors are named by their class, and by what they concern.

    What quotes a whole file of somebody loses its middle.
    """
    if isinstance(error, DiffTumorError):
        text = str(error)
    else:
        about = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        text = about + (_about_memory(error) or _about_disk(error) or f"{type(error).__name__}: {error}")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def is_unexpected(error: Exception) -> bool:
    """Whether an error is none that a user can act on, and so likely a fault of the program."""
    return not isinstance(error, DiffTumorError | OSError | MemoryError)


def told(error: Exception, *, debug: str) -> str:
    """Say what went wrong, and of an unexpected error how to see where.

    Args:
        error: Any error.
        debug: What shows the traceback, such as an option.
    """
    said = sentence_of(error) or type(error).__name__
    if is_unexpected(error):
        return f"{said.rstrip('.')}. This is unexpected; {debug} shows where it happened."
    return said


def _about_memory(error: Exception) -> str:
    """Say that memory was lacking, and how much if the error says it; nothing for other errors."""
    said = str(error)
    on_gpu = type(error).__name__ == "OutOfMemoryError"
    if not (isinstance(error, MemoryError) or on_gpu or "can't allocate memory" in said):
        return ""
    wanted = re.search(r"allocate ([\d.]+) ?(\w+)", said)
    more = ""
    if wanted:
        more = f"{float(wanted[1]) / 2**30:.2f} GiB" if wanted[2] == "bytes" else f"{wanted[1]} {wanted[2]}"
    left = re.search(r"of which ([\d.]+ \w+) is free", said)
    free = left[1] if left else f"{free_memory_bytes() / 2**30:.2f} GiB" if not on_gpu else ""
    lacking = f" ({', '.join(part for part in (more and f'{more} more asked', free and f'{free} free') if part)})"
    lower = "windows_per_batch (--windows-per-batch)" if on_gpu else "jobs (--jobs) or workers (data.num_workers)"
    return f"there is not enough memory{lacking}: lower {lower}, in training data.batch_size, or give the job more."


def _about_disk(error: Exception) -> str:
    """Return the system's sentence on a file or disk; nothing for other errors."""
    if not isinstance(error, OSError):
        return ""
    remedy = ": make room there, or give another place" if lacks_room(error) else ""
    return f"{error.filename or 'A file'}: {error.strerror.lower()}{remedy}." if error.strerror else str(error)


def printable(text: str, *, lines: bool = True) -> str:
    """Return a text with control characters escaped, as a terminal may obey those in a file's name.

    Args:
        text: Perhaps with such a name.
        lines: Whether ends of lines stay.
    """
    kept = "\n" if lines else ""
    return "".join(letter if letter.isprintable() or letter in kept else ascii(letter)[1:-1] for letter in text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 case", "2 cases", "3 copies"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def first_few(names: Sequence[str]) -> str:
    """Return the first five names for a sentence, and an ellipsis if there are more."""
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)
