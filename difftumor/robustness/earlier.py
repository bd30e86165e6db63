"""What an earlier command left in the same folder: which files are its own, so that nothing else is removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftumor.errors import ConfigError

JSON_FILE, WORST, PICTURES = "robustness.json", "worst", "pictures"


def check_worst(out: Path) -> None:
    """Refuse to replace a folder of worst tumors that no earlier command wrote.

    Args:
        out: Folder to write to; need not exist.

    Raises:
        ConfigError: It holds something that `JSON_FILE` does not name.
    """
    folder = out / WORST
    if folder.exists() and not _is_own(folder, out):
        raise ConfigError(
            f"{folder} is not what {JSON_FILE} names, and would be replaced: give another --out, or move it away."
        )


def remove_worst(out: Path) -> None:
    """Remove the worst tumors of an earlier command; a folder with anything else in it stays."""
    if (out / WORST).is_dir() and _is_own(out / WORST, out):
        shutil.rmtree(out / WORST)


def worst_names(out: Path) -> set[str]:
    """Return the names of the worst tumors that an earlier command has written."""
    try:
        return {Path(entry["folder"]).name for entry in read_earlier(out)["worst"]}
    except (TypeError, KeyError):
        return set()


def read_earlier(out: Path) -> Mapping[str, Any]:
    """Return the results of an earlier command; nothing where there are none that can be read."""
    try:
        content = json.loads((out / JSON_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_own(folder: Path, out: Path) -> bool:
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= worst_names(out)
