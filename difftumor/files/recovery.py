"""Finishing or undoing what killed processes have left half-written."""

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from difftumor.files.processes import MARK, is_left_behind
from difftumor.files.writing import OLD, READY, move_files, own_prefix

# A name has more than dots: "..", which others may have made, would lead out of the folder.
_LEFT = re.compile(rf"(?:\.(?P<name>.*[^.].*))?\.(?P<mark>{MARK})(?P<state>{READY}|{OLD})?")
_PARTIAL = re.compile(rf"\.(?P<mark>{MARK})\..+")


def recover(folder: Path, *, ended: str | None = None) -> None:
    """Finish or undo what killed processes have left of results in a folder, or of the folder itself.

    Files that were complete and being moved are moved; what was half-written is removed. Whatever a living process is
    writing stays, and so does what one of another machine has touched within a day.

    Args:
        folder: The folder.
        ended: How each `mark` of a process begins that is known to have ended, perhaps on another machine.
    """
    folder = folder.resolve()
    own = own_prefix(folder)
    beside = [path for path in _entries(folder.parent) if path.name.startswith(own)]
    for path in [*beside, *_entries(folder)]:
        found = _LEFT.fullmatch(path.name) or _PARTIAL.fullmatch(path.name)
        with suppress(OSError):  # another process may be doing the same
            if found is None:
                continue
            known = ended is not None and found["mark"].startswith(ended)
            if not known and not is_left_behind(found["mark"], age_s=time.time() - path.lstat().st_mtime):
                continue
            if path.is_symlink() or not path.is_dir():  # what a link leads to is somebody else's
                path.unlink()
                continue
            parts = found.groupdict()
            target = path.parent if parts["name"] is None else path.with_name(parts["name"])
            if path.parent == folder.parent and path.name.startswith(f"{own}{found['mark']}"):
                target = folder  # whose name may be longer than what was kept of it
            if parts["state"] == READY:
                move_files(path, target, last=None)
            elif parts["state"] == OLD and not target.exists():
                os.replace(path / target.name, target)
            shutil.rmtree(path, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing for one that cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
