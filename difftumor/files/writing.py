"""Writing files and folders whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from difftumor.errors import NO_ROOM, ConfigError
from difftumor.files.processes import mark

# Of a folder that is written to, where it cannot lie beside the folder.
LOCK = ".lock"
# What makes sure, within the blocks of `guarded`, that results may take their place.
_CHECKS: ContextVar[tuple[Callable[[], None], ...]] = ContextVar("checks", default=())
# Of a temporary folder whose files are complete and being moved, and of one that holds what is being replaced.
READY, OLD = ".ready", ".old"


@contextmanager
def guarded(check: Callable[[], None]) -> Iterator[None]:
    """Call ``check``, which may raise, whenever the block is about to put a file or folder in its place."""
    token = _CHECKS.set((*_CHECKS.get(), check))
    try:
        yield
    finally:
        _CHECKS.reset(token)


def _check() -> None:
    for check in _CHECKS.get():
        check()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write to, which replaces `path` when the block ends without error.

    The sibling is on the disk before it takes the place: a power cut leaves the old file or the new one. It keeps the
    file's full suffix, since some writers choose their format by it. Makes the folder if needed.
    """
    temporary = path.with_name(f".{mark()}.{path.name}")
    with _parents_made(path), _named_if_full(path):
        try:
            yield temporary
            _sync(temporary)
            _check()
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def give_name(file: Path, name: Path) -> None:
    """Give a file a second name, by which it stays when another takes its place."""
    with written_whole(name) as second:
        try:
            os.link(file, second)
        except OSError:  # a file system without links, or a link to another one
            shutil.copyfile(file, second)


@contextmanager
def folder_written_whole(
    folder: Path, *, keep_others: bool = False, last: str | None = None, without: Iterable[Path] = ()
) -> Iterator[Path]:
    """Yield a temporary folder to write to, which replaces `folder` when the block ends without error.

    Where it cannot be moved in one step, a process that is killed while it moves leaves the rest to `recover`.

    Args:
        folder: Replaced as a whole if it exists and is not empty. An empty one stays and is filled: it may be the
            current folder, or a mounted one.
        keep_others: Replace only the files that are written, and keep all others in the folder.
        last: File that tells readers that all are there: an old one is removed first, and the new one comes last.
        without: Earlier results, files or folders, that this one does not have: removed just before it takes its place.

    Raises:
        ConfigError: The place cannot be written to.
    """
    folder = folder.resolve()
    filled = folder.is_dir() and (keep_others or is_empty(folder))
    with _parents_made(folder), _named_if_full(folder):
        # Beside the final place, or inside, so that moving never crosses file systems.
        staging = folder / f".{mark()}" if filled else _beside(folder)
        ready = staging.with_name(staging.name + READY)
        try:
            staging.mkdir()
            staging.chmod(0o755)
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            yield staging
            for file in staging.rglob("*"):
                if file.is_file():
                    _sync(file)
            _check()
            for left in without:
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            # Others may have made it meanwhile.
            if filled or (keep_others and folder.is_dir()):
                staging.rename(ready)
                move_files(ready, folder, last=last)
            elif folder.exists():
                _exchange(staging, folder)
            else:
                os.replace(staging, folder)
            _sync_folder(folder if filled else folder.parent)
        finally:
            for left in (staging, ready):
                shutil.rmtree(left, ignore_errors=True)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but perhaps its lock."""
    return all(path.name == LOCK for path in folder.iterdir())


def own_prefix(folder: Path) -> str:
    """Return how the names of temporary folders beside a folder begin; the longest names are cut."""
    return f".{folder.name[:150]}."


def _beside(folder: Path, state: str = "") -> Path:
    return folder.with_name(f"{own_prefix(folder)}{mark()}{state}")


def _sync(file: Path) -> None:
    """Wait until a file is on the disk; what cannot be written for lack of room may only show here."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can do that."""
    with suppress(OSError):
        _sync(folder)


def move_files(source: Path, folder: Path, *, last: str | None) -> None:
    """Move all files of a folder to another one, with those that they replace.

    Args:
        source: The folder that is emptied.
        folder: Where they go; its other files stay.
        last: File that tells readers that all are there: an old one is removed first, and the new one comes last.
    """
    if last is not None:
        (folder / last).unlink(missing_ok=True)
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    moves = sorted(files, key=lambda file: (str(file) == last, file))
    try:
        _move(source, folder, moves)
    except (KeyboardInterrupt, SystemExit):  # what has begun is finished first
        _move(source, folder, [file for file in moves if (source / file).exists()])
        raise


def _move(source: Path, folder: Path, files: Iterable[Path]) -> None:
    for file in files:
        (folder / file.parent).mkdir(exist_ok=True, parents=True)
        os.replace(source / file, folder / file)


def _exchange(new: Path, target: Path) -> None:
    """Put ``new`` where ``target`` is; folders cannot be exchanged in one step, so the old one steps aside first."""
    aside = _beside(target, OLD)
    aside.mkdir()
    try:
        os.replace(target, aside / target.name)
        os.replace(new, target)
    finally:
        if not target.exists():
            os.replace(aside / target.name, target)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _parents_made(path: Path) -> Iterator[None]:
    """Make the folders above a path; those that were missing go again if the block fails."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    except BaseException:
        # Innermost first; one that has been filled by others stays, and so do those above it.
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


@contextmanager
def _named_if_full(place: Path) -> Iterator[None]:
    """Name the place in which there is no room: the system names none, or the file that is copied there."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(place)) from error


def cannot_write(place: Path | str, error: OSError) -> ConfigError:
    """Return the error that says why a place cannot be written to."""
    reason = (error.strerror or type(error).__name__).lower()
    return ConfigError(f"{place} cannot be written ({reason}): give a place where you may write.")
