"""A run's folder: resolved config, checkpoint, logs; what may be resumed and what may be removed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from difftumor.artifacts import read_config
from difftumor.errors import ArtifactError, ConfigError
from difftumor.files import written_whole
from stages.callbacks import LAST

CONFIG = "config.yaml"
FINISHED = "finished.json"
HEADER = "# Resolved config of a run of stages."
# Options that change where or how fast a run goes, and not what it computes.
NEUTRAL = (
    "name", "fresh", "runs_dir", "checkpoints_dir", "artifact", "data.num_workers", "data.cache_rate",
    "trainer.accelerator", "trainer.strategy", "trainer.max_epochs", "trainer.limit_val_batches",
    "trainer.validate_every_n_epochs", "trainer.checkpoint_every_n_epochs", "trainer.log_every_n_steps",
    "trainer.profiler", "trainer.progress_bar", "pictures_every_n_epochs",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """``runs/<stage>/<name>/``.

    Args:
        path: The folder.
    """

    path: Path

    @classmethod
    def of(cls, *, runs_dir: str, stage: str, name: str) -> RunFolder:
        """Return the folder of a run.

        Raises:
            ConfigError: The name would not be a single folder.
        """
        if not re.fullmatch(r"[\w][\w.+=-]*", str(name)):
            raise ConfigError(f"name is {name!r}: use letters, digits, '_', '-', '.', '+' and '=' only.")
        return cls(Path(runs_dir) / stage / str(name))

    @property
    def last(self) -> Path:
        """The checkpoint that a rerun resumes from."""
        return self.path / LAST

    def is_ours(self) -> bool:
        """Whether a stage made this folder."""
        config = self.path / CONFIG
        if self.path.is_symlink() or not config.is_file():
            return False
        with config.open(encoding="utf-8", errors="replace") as file:
            return file.read(len(HEADER)) == HEADER

    def check_usable(self) -> None:
        """Refuse a folder with somebody else's files.

        Raises:
            ConfigError: Names the folder.
        """
        if self.path.exists() and not self.is_ours() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(f"{self.path} exists and is not a run: choose another name=… or runs_dir=….")

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

    def changed(self, values: Mapping[str, Any], neutral: tuple[str, ...] = ()) -> list[tuple[str, Any, Any]]:
        """Options that differ from those the run was started with and that change its results.

        Args:
            values: The resolved config of this call.
            neutral: Options of the stage that change no result, besides the common ones.

        Returns:
            (name, value of the run, value of this call) of each.
        """
        stored = flatten(yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8")) or {})
        # Through YAML once, so that both sides went the same way.
        given = flatten(yaml.safe_load(yaml.safe_dump(dict(values))))
        names = [name for name in {**stored, **given} if name not in (*NEUTRAL, *neutral)]
        return [(n, stored.get(n), given.get(n)) for n in names if stored.get(n) != given.get(n)]

    def check_resumable(self, values: Mapping[str, Any], neutral: tuple[str, ...] = ()) -> None:
        """Refuse to go on with a run under other options.

        Raises:
            ConfigError: Names the first option that differs.
        """
        if changes := self.changed(values, neutral):
            name, stored, given = changes[0]
            raise ConfigError(
                f"{self.path} was started with {name}={stored}, not {given}: give the run another name=…, "
                "or fresh=true to start over."
            )

    def mark_finished(self, artifact: Path) -> None:
        """Record which artifact the run ended with."""
        with written_whole(self.path / FINISHED) as temporary:
            record = {"artifact": str(artifact), "identity": read_config(artifact).identity}
            temporary.write_text(json.dumps(record), encoding="utf-8")

    def is_finished(self, artifact: Path) -> bool:
        """Whether the run has ended and ``artifact`` still is what it ended with."""
        record = self.path / FINISHED
        if not (self.is_ours() and record.is_file()):
            return False
        try:
            config = read_config(artifact)
        except ArtifactError:
            return False
        return config.complete and json.loads(record.read_text(encoding="utf-8"))["identity"] == config.identity


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat
