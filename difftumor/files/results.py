"""Deciding where results may be written, and which earlier ones they may replace."""

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from difftumor.errors import ConfigError
from difftumor.files.recovery import recover
from difftumor.files.texts import read_json
from difftumor.files.writing import LOCK, cannot_write, is_empty

# In a JSON file that describes an export, the key by which a later export knows that difftumor has made it.
MADE_BY = "difftumor"


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
                raise cannot_write(place, error) from error
            return
        if above.exists():
            what = "is a file" if above == path else f"lies inside the file {above}"
            raise ConfigError(f"{place} {what}: give a folder.")


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
        ConfigError: The folder is a file or lies in one, or it holds an earlier result, an input in the place of a
            result, or a link in the place of a folder of results.
    """
    check_folder(folder, option="out (--out)")
    recover(folder)
    names = list(names)
    inner = {parent for name in names for parent in Path(name).parents} - {Path()}
    if linked := [str(name) for name in inner if (folder / name).is_symlink()]:
        raise ConfigError(
            f"out (--out) {folder} holds the link {min(linked)}, and results are not written elsewhere: remove it, or "
            "give another folder."
        )
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


def check_file(
    file: Path, *, option: str, is_own: Callable[[Path], bool], inputs: Iterable[Path], overwrite: bool
) -> None:
    """Refuse a place for a single file that holds anything but an earlier result of the same kind.

    Args:
        file: What will be written; need not exist.
        option: By which it was given, for messages.
        is_own: Whether a file is an earlier result.
        inputs: Files that must stay.
        overwrite: Whether any other file may be replaced.

    Raises:
        ConfigError: It is a folder, an input or another file, or it cannot be written.
    """
    check_folder(file.parent, option=f"The folder of {option}")
    recover(file.parent)
    if not os.path.lexists(file):
        return
    if not file.is_file():
        raise ConfigError(f"{option} {file} is no regular file: give another name.")
    if os.path.realpath(file) in map(os.path.realpath, inputs):  # which, unlike resolve, takes loops of links
        raise ConfigError(f"{option} {file} would replace an input: give another file.")
    if not overwrite and not is_own(file):
        raise ConfigError(
            f"{option} {file} is there and no earlier result of this kind: give another file, or overwrite "
            "(--overwrite) it."
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


def is_json_with(key: str) -> Callable[[Path], bool]:
    """Return a function that says whether a file is a JSON object with a key."""

    def has_key(file: Path) -> bool:
        try:
            content = read_json(file)
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and key in content

    return has_key
