"""What decides the results of a job: options, the content of the lists that it reads, the models that it takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from difftumor.datasets.cases import read_cases
from difftumor.files.checksums import sha256_of
from difftumor.models.artifact_config import CONFIG_FILE, read_config
from stages.config.comparing import EARLIER, NEUTRAL, flatten

# A run that is cut short has other results.
_DECIDES = {"trainer.max_epochs"}
# What is pictured decides none.
PICTURES = {"pictures.hosts", "pictures.scans", "pictures.every_n_epochs", "validation.synthesize_every_n_epochs"}
# Paths of which the content decides results, not the name.
_LISTS = ("data.root", "data.healthy_root", "synthesis.offline")
READ = (*_LISTS, "autoencoder.artifact", "synthesis.early_model", "synthesis.late_model")


class Contents:
    """Hashes of lists of cases and of folders, each read once."""

    def __init__(self) -> None:
        self._keys: dict[Path, str] = {}

    def key(self, path: Path) -> str:
        """Return that of a list or folder, as ``content_key`` does."""
        if path not in self._keys:
            self._keys[path] = content_key(path)
        return self._keys[path]

    def decisive(self, config: Mapping[str, Any], *, made: Collection[str] = ()) -> dict[str, Any]:
        """Return the options of a stage that decide its results, with what is read in place of where it is.

        Args:
            config: Resolved options.
            made: Options whose files are made by other jobs, and may not be there yet.
        """
        found = {option: value for option, value in flatten(config).items() if _decides(option, value)}
        if "latents.cache" in found:  # whether there is one decides which crops are drawn, where it is does not
            found["latents.cache"] = found["latents.cache"] is not None
        if more := found.get("more_organs"):
            found["more_organs"] = [{**each, "root": self.key(Path(each["root"]))} for each in more]
        return found | {
            option: self._read(option, found) for option in READ if found.get(option) and option not in made
        }

    def _read(self, option: str, config: Mapping[str, Any]) -> str:
        """Return the content of a list, or the identity of a model."""
        path = Path(config[option])
        if option in _LISTS:
            return self.key(path)
        if option.startswith("synthesis.") and config["tumors"] not in ("diffusion", "mixed"):
            return "unused"
        return read_config(path).identity if (path / CONFIG_FILE).is_file() else str(path)


def content_key(path: Path) -> str:
    """Return a hash of a list's cases, or of the files of a folder, wherever they lie.

    Raises:
        CaseListError: A list is malformed, or names a file that is not there.
    """
    if path.is_dir() and not (path / "dataset.json").is_file():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest([[str(file.relative_to(path)), *_checksum(file)] for file in files])
    listed = read_cases(path)
    cases = [
        [case.id, case.patient, _checksum(case.image), _checksum(case.labels), case.id in listed.validation_ids]
        for case in listed.cases
    ]
    return digest([dict(listed.label_names), cases])


def _checksum(path: Path | None) -> list[Any]:
    """Return what changes with the content of a file, or of the files of a folder."""
    if path is None or path.is_dir():
        return [] if path is None else [[file.name, *_checksum(file)] for file in sorted(path.iterdir())]
    if path.suffix != ".gz":
        return [sha256_of(path)]
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 8))
        return [path.stat().st_size, stream.read().hex()]  # gzip ends with the CRC-32 and size of what was compressed


def _decides(name: str, value: Any) -> bool:
    """Whether an option's value decides results; what versions without the option did is as if it were not there."""
    if name in {*NEUTRAL, *PICTURES} - _DECIDES:
        return False
    return not (name in EARLIER and EARLIER[name] == value)


def digest(value: Any) -> str:
    """Return the SHA-256 of a plain value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
