"""A run's folder: resolved config, checkpoint, logs; what may be resumed and what may be removed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from difftumor.errors import ArtifactError, ConfigError
from difftumor.files.recovery import recover
from difftumor.files.results import ResultFolder
from difftumor.files.texts import parse_yaml, read_json, read_text
from difftumor.files.writing import give_name, written_whole
from difftumor.models.artifact import Parent
from difftumor.models.artifact_config import CONFIG_FILE, read_config
from stages.config.comparing import differences

CONFIG = "config.yaml"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
FINISHED = "finished.json"
START = "start.json"
HEADER = "# Resolved config of a run of stages."


def _is_config(file: Path) -> bool:
    """Whether a file is the config of a run."""
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(len(HEADER)) == HEADER


_RUN_FOLDER = ResultFolder(what="run", mark=CONFIG, is_own=_is_config)


@dataclass(frozen=True)
class Start:
    """What a run was started with, besides its config.

    Args:
        parents: Artifacts that it loaded, by role.
        world_size: On how many devices it runs.
        choices: Files that its command chose, by group, such as ``{"experiment": "demo"}``; None if nobody recorded it.
        job: Of the scheduler, that ran it last; None for none.
        saved: Whether it has written a checkpoint; None if nobody recorded it.
    """

    parents: Mapping[str, Parent]
    world_size: int
    choices: Mapping[str, str] | None = None
    job: str | None = None
    saved: bool | None = None


@dataclass(frozen=True)
class RunFolder:
    """``runs/<stage>/<name>/``.

    Args:
        path: The folder.
    """

    path: Path

    @classmethod
    def of(cls, *, runs_dir: Path, stage: str, name: str) -> RunFolder:
        """Return the folder of a run.

        Raises:
            ConfigError: The name would not be a single folder.
        """
        if not re.fullmatch(r"[\w][\w.+=-]*", name):
            raise ConfigError(f"name is {name!r}: use letters, digits, '_', '-', '.', '+' and '=' only.")
        return cls(runs_dir / stage / name)

    @property
    def last(self) -> Path:
        """The checkpoint that a rerun resumes from."""
        return self.path / LAST

    def check_usable(self) -> None:
        """Refuse a folder with somebody else's files.

        Raises:
            ConfigError: Names the folder.
        """
        if self.path.is_symlink():
            raise ConfigError(f"{self.path} is a symbolic link: choose another name=… or runs_dir=….")
        _RUN_FOLDER.check(self.path, remedy="choose another name=… or runs_dir=…")

    def remove(self) -> None:
        """Remove the run's folder, after making sure that it is one.

        Raises:
            ConfigError: It is not.
        """
        self.check_usable()
        if self.path.exists():
            shutil.rmtree(self.path)

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write the resolved config."""
        with written_whole(self.path / CONFIG) as temporary:
            text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
            temporary.write_text(f"{HEADER}\n{text}", encoding="utf-8")

    def stored(self) -> dict[str, Any]:
        """Return the config that the run was started with.

        Raises:
            ConfigError: The file is damaged.
        """
        try:
            text = read_text(self.path / CONFIG)
            stored = parse_yaml(text)
        except ValueError as error:
            raise _damaged(self.path / CONFIG) from error
        # All values were resolved when it was written: a reference, to the environment perhaps, is not its own.
        if not isinstance(stored, dict) or not all(isinstance(key, str) for key in stored) or "${" in text:
            raise _damaged(self.path / CONFIG)
        return stored

    def choices(self) -> Mapping[str, str] | None:
        """Return the files that the command chose which started the run; None if nobody recorded them."""
        before = self._start()
        return before.choices if before else None

    def is_of(self, job: str | None) -> bool:
        """Whether this job has started or resumed the run before; not if the record of that is damaged."""
        try:
            before = self._start()
        except ConfigError:
            return False
        return job is not None and before is not None and before.job == job

    def has_saved(self) -> bool | None:
        """Whether the run has written a checkpoint, be it there or not; None if nobody recorded it."""
        if any(os.path.lexists(self.path / name) for name in (LAST, PREVIOUS, FINISHED)):
            return True
        before = self._start()
        return before.saved if before else None

    def mark_saved(self) -> None:
        """Record that the run has written a checkpoint: without one it does not silently start over."""
        before = self._start()
        if before is not None and not before.saved:
            self.write_start(replace(before, saved=True))

    def take_for_last(self, checkpoint: Path) -> None:
        """Let the checkpoint that a run goes on from be the last one, which the next save will keep."""
        if checkpoint != self.last:
            give_name(checkpoint, self.last)

    def remove_partial_files(self) -> None:
        """Remove what killed processes of the run left half-written, a checkpoint perhaps."""
        recover(self.path)
        (self.path / f".{LAST}.new").unlink(missing_ok=True)  # of earlier versions

    def changed(
        self, values: Mapping[str, Any], neutral: tuple[str, ...] = (), only_whether: tuple[str, ...] = ()
    ) -> list[tuple[str, Any, Any]]:
        """Options that differ from those the run was started with and that change its results.

        Args:
            values: The resolved config of this call.
            neutral: Options of the stage that change no result, besides the common ones.
            only_whether: Options of the stage of which all values but null give the same results.

        Returns:
            (name, value of the run, value of this call) of each.
        """
        return differences(self.stored(), values, neutral=neutral, only_whether=only_whether)

    def check_resumable(
        self, values: Mapping[str, Any], neutral: tuple[str, ...] = (), only_whether: tuple[str, ...] = ()
    ) -> None:
        """Refuse to resume a run with other options.

        Raises:
            ConfigError: Names the first option that differs.
        """
        if changes := self.changed(values, neutral, only_whether):
            name, stored, given = changes[0]
            raise ConfigError(
                f"{self.path} was started with {name}={stored}, not {given}: give the run another name=…, "
                "or fresh=true to start over."
            )

    def write_start(self, start: Start) -> None:
        """Record what the run was started with."""
        parents = {role: {"path": str(it.path), "identity": it.identity} for role, it in start.parents.items()}
        record = {"parents": parents, "world_size": start.world_size}
        if start.choices is not None:
            record["choices"] = dict(start.choices)
        if start.job is not None:
            record["job"] = start.job
        if start.saved is not None:
            record["saved"] = start.saved
        with written_whole(self.path / START) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")

    def check_start(self, start: Start) -> None:
        """Refuse to resume with other parents, or on another number of devices.

        Raises:
            ConfigError: Names what has changed.
        """
        if (before := self._start()) is None:
            return
        for role, parent in before.parents.items():
            if role not in start.parents or start.parents[role].identity != parent.identity:
                raise self._parent_changed(role, parent)
        if before.world_size != start.world_size:
            raise ConfigError(
                f"{self.path} was started on {before.world_size} devices in all, not {start.world_size}: give it the "
                "same number with trainer.devices=… and trainer.num_nodes=…, or fresh=true to start over."
            )

    def check_parents(self) -> None:
        """Refuse to call a run finished if a parent has been replaced since; a parent that is gone does not matter.

        Raises:
            ConfigError: Names the parent.
        """
        before = self._start()
        for role, parent in (before.parents if before else {}).items():
            if parent.path.is_dir() and Parent.at(parent.path).identity != parent.identity:
                raise self._parent_changed(role, parent)

    def _parent_changed(self, role: str, parent: Parent) -> ConfigError:
        return ConfigError(
            f"{parent.path} is not the {role} that {self.path} was started with (it has changed since): "
            "bring back the old one, or set fresh=true to train with the new one."
        )

    def _start(self) -> Start | None:
        stored = _read_json(self.path / START)
        if stored is None:
            return None
        try:
            parents = {role: Parent(Path(it["path"]), str(it["identity"])) for role, it in stored["parents"].items()}
            choices = stored.get("choices")
            return Start(
                parents,
                int(stored["world_size"]),
                None if choices is None else dict(choices),
                stored.get("job"),
                stored.get("saved"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(self.path / START) from error

    def mark_finished(self, artifact: Path, *, max_epochs: int | None) -> None:
        """Record which artifact the run ended with, and whether it was cut short by ``trainer.max_epochs``."""
        with written_whole(self.path / FINISHED) as temporary:
            record = {"artifact": str(artifact), "identity": read_config(artifact).identity, "max_epochs": max_epochs}
            temporary.write_text(json.dumps(record), encoding="utf-8")

    def is_finished(self, artifact: Path, *, max_epochs: int | None) -> bool:
        """Whether the run has ended, as long as is asked for, and ``artifact`` still is what it ended with."""
        record = _read_json(self.path / FINISHED) if _is_config(self.path / CONFIG) else None
        if record is None or record.get("max_epochs") != max_epochs:
            return False
        try:
            config = read_config(artifact)
        except ArtifactError:
            return False
        return config.complete and record.get("identity") == config.identity


def _read_json(file: Path) -> dict[str, Any] | None:
    """Return what a file of the run holds; None if there is none, or another rank is just removing it.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        stored = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _damaged(file) from error
    if not isinstance(stored, dict):
        raise _damaged(file)
    return stored


# What to do about a damaged file of a run.
_REMEDIES = {
    FINISHED: f"remove it, and the run ends once more from its {LAST}",
    START: "bring back a copy of it, or set fresh=true to start over",
    CONFIG: "bring back a copy of it, or set fresh=true to start over",
}


def _damaged(file: Path) -> ConfigError:
    empty = file.is_file() and file.stat().st_size == 0
    return ConfigError(f"{file} {'is empty' if empty else 'is damaged'}: {_REMEDIES[file.name]}.")


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """A run as its artifacts name it in their provenance.

    Args:
        stage: Name of the stage.
        run: Name of the run.
    """

    stage: str
    run: str

    def has(self, artifact: Path) -> bool:
        """Whether there is an artifact at a path and this run made it."""
        if not (artifact / CONFIG_FILE).is_file():
            return False
        try:
            training = read_config(artifact).training
        except ArtifactError:
            return False
        return (training.get("stage"), training.get("run")) == (self.stage, self.run)

    def check(self, artifact: Path) -> None:
        """Refuse a path at which there is something that this run did not make.

        Raises:
            ArtifactError: It is not an artifact.
            ConfigError: It is the artifact of another run.
        """
        if not artifact.exists() or self.has(artifact):
            return
        training = read_config(artifact).training
        other = f"run '{training['run']}'" if "run" in training else "something else"
        raise ConfigError(
            f"{artifact} was made by {other}, not by run '{self.run}' of this stage: give another artifact=PATH, "
            "or fresh=true to replace it."
        )

    def remove(self, artifact: Path) -> None:
        """Remove an artifact if this run made it."""
        if self.has(artifact):
            shutil.rmtree(artifact)
