"""What an earlier command left in the same folder: which files are its own, so that nothing else is removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from difftumor.errors import ConfigError

# The models are compared by what they are.
_NOT_ASKED = ("model", "cases", "device")
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


def check_request(out: Path, request: Mapping[str, Any]) -> None:
    """Refuse to replace results that were asked for in another way; of other scans they may be.

    Args:
        out: Folder to write to; need not exist.
        request: What `request_of` makes of the results to be.

    Raises:
        ConfigError: `JSON_FILE` is of another request.
    """
    if (out / JSON_FILE).exists() and request_of(read_earlier(out)) != request_of(json.loads(json.dumps(request))):
        raise ConfigError(
            f"{out / JSON_FILE} holds results that were asked for in another way: give another --out or --overwrite."
        )


def request_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the results, of all that `JSON_FILE` says; not where files lie, nor which scans there are."""
    settings = results.get("settings")
    plain = dict(settings) if isinstance(settings, Mapping) else {}
    asked = {name: value for name, value in plain.items() if name not in _NOT_ASKED}
    return {"organ": results.get("organ"), "dimensions": results.get("dimensions"), "settings": asked}


def remove_worst(out: Path) -> None:
    """Remove the worst tumors of an earlier command; a folder with anything else in it stays."""
    if (out / WORST).is_dir() and _is_own(out / WORST, out):
        shutil.rmtree(out / WORST)


def remove_drawn(out: Path, curve: str) -> None:
    """Remove the pictures of earlier worst tumors and an earlier curve, which need not be there again.

    Args:
        out: Folder that was written to.
        curve: File of the curve.
    """
    if read_earlier(out):
        (out / curve).unlink(missing_ok=True)
    for name in worst_names(out):
        (out / PICTURES / f"{name}.png").unlink(missing_ok=True)
    with suppress(OSError):  # pictures of others may be in it
        (out / PICTURES).rmdir()


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
