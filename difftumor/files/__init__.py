"""Writing files and folders whole or not at all, and deciding which earlier results may be replaced."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from difftumor.errors import ConfigError
from difftumor.files.processes import MARK, is_left_behind, mark

# Of a folder that is written to, where it cannot lie beside the folder.
LOCK = ".lock"
# What makes sure, within the blocks of `guarded`, that results may take their place.
_CHECKS: ContextVar[tuple[Callable[[], None], ...]] = ContextVar("checks", default=())


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
    with _parents_made(path):
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
    with _parents_made(folder):
        # Beside the final place, or inside, so that moving never crosses file systems.
        staging = folder / f".{mark()}" if filled else _beside(folder)
        ready = staging.with_name(staging.name + _READY)
        try:
            staging.mkdir()
            staging.chmod(0o755)
        except OSError as error:
            raise _cannot_write(folder, error) from error
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
                _move_files(ready, folder, last=last)
            elif folder.exists():
                _exchange(staging, folder)
            else:
                os.replace(staging, folder)
            _sync_folder(folder if filled else folder.parent)
        finally:
            for left in (staging, ready):
                shutil.rmtree(left, ignore_errors=True)


# Of a temporary folder whose files are complete and being moved, and of one that holds what is being replaced.
_READY, _OLD = ".ready", ".old"
_LEFT = re.compile(rf"(?:\.(?P<name>.+))?\.(?P<mark>{MARK})(?P<state>{_READY}|{_OLD})?")
_PARTIAL = re.compile(rf"\.(?P<mark>{MARK})\..+")


def _beside(folder: Path, state: str = "") -> Path:
    return folder.with_name(f".{folder.name[:150]}.{mark()}{state}")


def recover(folder: Path, *, ended: str | None = None) -> None:
    """Finish or undo what killed processes have left of results in a folder, or of the folder itself.

    Files that were complete and being moved are moved; what was half-written is removed. Whatever a living process is
    writing stays, and so does what one of another machine has touched within a day.

    Args:
        folder: The folder.
        ended: How each `mark` of a process begins that is known to have ended, perhaps on another machine.
    """
    folder = folder.resolve()
    own = f".{folder.name[:150]}."
    beside = [path for path in _entries(folder.parent) if path.name.startswith(own)]
    for path in [*beside, *_entries(folder)]:
        found = _LEFT.fullmatch(path.name) or _PARTIAL.fullmatch(path.name)
        with suppress(OSError):  # another process may be doing the same
            if found is None:
                continue
            known = ended is not None and found["mark"].startswith(ended)
            if not known and not is_left_behind(found["mark"], age_s=time.time() - path.lstat().st_mtime):
                continue
            if not path.is_dir():
                path.unlink()
                continue
            parts = found.groupdict()
            target = path.parent if parts["name"] is None else path.with_name(parts["name"])
            if parts["state"] == _READY:
                _move_files(path, target, last=None)
            elif parts["state"] == _OLD and not target.exists():
                os.replace(path / target.name, target)
            shutil.rmtree(path, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing for one that cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


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


def _move_files(source: Path, folder: Path, *, last: str | None) -> None:
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
    aside = _beside(target, _OLD)
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
        raise _cannot_write(path, error) from error
    try:
        yield
    except BaseException:
        # Innermost first; one that has been filled by others stays, and so do those above it.
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


def _cannot_write(place: Path | str, error: OSError) -> ConfigError:
    reason = (error.strerror or type(error).__name__).lower()
    return ConfigError(f"{place} cannot be written ({reason}): give a place where you may write.")


def check_folder(path: Path, *, option: str = "") -> None:
    """Refuse a path that cannot be written to as a folder, before hours are spent on its content.

    Args:
        path: The folder; need not exist.
        option: By which it was given, for messages.

    Raises:
        ConfigError: The path is a file, lies inside of one, or may not be written to.
    """
    place = f"{option} {path}".lstrip()
    for above in (path, *path.parents):
        if above.is_dir():
            try:
                tempfile.TemporaryDirectory(prefix=".", dir=above).cleanup()
            except OSError as error:
                raise _cannot_write(place, error) from error
            return
        if above.exists():
            what = "is a file" if above == path else f"lies inside the file {above}"
            raise ConfigError(f"{place} {what}: give a folder.")


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but perhaps its lock."""
    return all(path.name == LOCK for path in folder.iterdir())


def names_file(text: str) -> bool:
    """Whether a text can name a file or folder inside another folder."""
    return Path(text).name == text and text != ".."


def check_results(folder: Path, names: Iterable[str], *, inputs: Iterable[Path], overwrite: bool) -> None:
    """Refuse a folder (``--out``) in which results would replace what must stay; what else is in it is left alone.

    What a killed process has left there is finished or removed before; see `recover`.

    Args:
        folder: Where they will be written; need not exist.
        names: Files and folders that will be written; folders may be replaced as a whole.
        inputs: Files and folders that must stay.
        overwrite: Whether an earlier result may be replaced.

    Raises:
        ConfigError: The folder is a file or lies in one, or it holds an earlier result, or an input in the place of a
            result.
    """
    check_folder(folder, option="out (--out)")
    recover(folder)
    present = [name for name in names if (folder / name).exists()]
    results = {(folder / name).resolve() for name in present}
    for file in inputs:
        place = file.resolve()
        if not results.isdisjoint((place, *place.parents)):
            raise ConfigError(f"out (--out) {folder} would replace the input {file}: give another folder.")
    if present and not overwrite:
        raise ConfigError(
            f"out (--out) {folder} already holds {present[0]}: give another folder, or overwrite (--overwrite) it."
        )


@dataclass(frozen=True, kw_only=True)
class ResultFolder:
    """A kind of folder that is written, and later replaced, as a whole: by this an earlier one is recognized.

    Args:
        what: What it is, for messages, such as "export".
        holds: What it may hold: patterns of paths inside it, in which ``*`` stands for any part of a name and ``**`` at
            the end for any files and folders.
        mark: A file that every such folder has.
        is_own: Whether the file ``mark`` is ours; other programs may use its name.
    """

    what: str
    holds: tuple[str, ...] = ("**",)
    mark: str | None = None
    is_own: Callable[[Path], bool] = Path.is_file

    def is_earlier(self, folder: Path) -> bool:
        """Whether a folder is empty or an earlier result and nothing else."""
        return folder.is_dir() and self._objection(folder) is None

    def check(
        self,
        folder: Path,
        *,
        option: str = "",
        inputs: Iterable[Path] = (),
        overwrite: bool = True,
        remedy: str = "give another folder",
    ) -> None:
        """Refuse a place that such a result must not be written to; what a killed process has left goes before.

        Args:
            folder: Where it will be written; need not exist.
            option: By which it was given, for messages.
            inputs: Files and folders that must stay.
            overwrite: Whether an earlier result may be replaced.
            remedy: What else the user can do, for messages.

        Raises:
            ConfigError: It cannot be written to, or it is not empty and ``overwrite`` is not set, or it holds an input
                or anything else that is not part of an earlier result.
        """
        check_folder(folder, option=option)
        recover(folder)
        if not folder.is_dir() or is_empty(folder):
            return
        place = f"{option} {folder}".lstrip()
        if not overwrite:
            raise ConfigError(
                f"{place} is not empty: {remedy}, or replace an earlier {self.what} with overwrite (--overwrite)."
            )
        if objection := self._objection(folder):
            raise ConfigError(f"{place} {objection}: {remedy}.")
        for file in inputs:
            if file.resolve().is_relative_to(folder.resolve()):
                raise ConfigError(f"{place} holds the input {file}, which would be replaced: {remedy}.")

    def _objection(self, folder: Path) -> str | None:
        """Return what is wrong with a folder as an earlier result; an empty one is all right."""
        paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
        files = [path.relative_to(folder).as_posix() for path in paths if path != folder / LOCK]
        strange = [file for file in files if not any(_matches(file, pattern) for pattern in self.holds)]
        if strange:
            return f"holds {min(strange)}, which is not part of an earlier {self.what}"
        if files and self.mark is not None and not self.is_own(folder / self.mark):
            return f"is not an earlier {self.what}, for it has no {self.mark} written by difftumor"
        return None


def _matches(file: str, pattern: str) -> bool:
    names, patterns = file.split("/"), pattern.split("/")
    as_deep = len(names) == len(patterns) or (patterns[-1] == "**" and len(names) > len(patterns))
    return as_deep and all(map(fnmatchcase, names, patterns))


# In a JSON file that describes an export, the key by which a later export knows that difftumor has made it.
MADE_BY = "difftumor"


def is_json_with(key: str) -> Callable[[Path], bool]:
    """Return a function that says whether a file is a JSON object with a key."""

    def has_key(file: Path) -> bool:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and key in content

    return has_key


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def provenance(file: Path) -> dict[str, str]:
    """Return a file's path and SHA-256, as records name what was read."""
    return {"path": str(file.resolve()), "sha256": sha256_of(file)}
