"""Folders of exports: which may be written to, and which may be replaced."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from difftumor.errors import ConfigError
from difftumor.files import check_folder

# In the JSON file that describes an export, the key by which a later export knows that difftumor has made it.
MADE_BY = "difftumor"


def check_export(
    out: Path, *, mark: str, holds: Collection[str], inputs: Sequence[Path] = (), overwrite: bool = False
) -> None:
    """Refuse a place that an export must not be written to, before hours are spent on it.

    Args:
        out: Where it is to go.
        mark: JSON file in it, with the key ``MADE_BY``.
        holds: Names that an export has at its top.
        inputs: Files and folders that must stay.
        overwrite: Whether an earlier export may be replaced.

    Raises:
        ConfigError: It cannot be written to, is not empty, holds an input, or is no earlier export alone.
    """
    check_folder(out, option="OUT")
    present = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not present:
        return
    if not overwrite:
        raise ConfigError(f"OUT {out} is not empty: give another folder, or --overwrite to replace an earlier export.")
    if strange := present - set(holds):
        raise ConfigError(f"OUT {out} holds {min(strange)}, so it is no earlier export alone: give another folder.")
    if not _made_here(out / mark):
        raise ConfigError(f"OUT {out} was not made by this command, going by its {mark}: give another folder.")
    for file in inputs:
        if file.resolve().is_relative_to(out.resolve()):
            raise ConfigError(f"OUT {out} holds the input {file}, which would be replaced: give another folder.")


def _made_here(mark: Path) -> bool:
    try:
        content = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and MADE_BY in content
