"""Whose an artifact is: runs of different names may be pointed at one place."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from difftumor.artifact_config import CONFIG_FILE, read_config
from difftumor.errors import ArtifactError, ConfigError


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
        """Refuse a place where something lies that this run has not made.

        Raises:
            ArtifactError: It is no artifact.
            ConfigError: It is the artifact of another run.
        """
        if not artifact.exists() or self.has(artifact):
            return
        training = read_config(artifact).training
        other = f"run '{training['run']}'" if "run" in training else "something else"
        raise ConfigError(
            f"{artifact} was made by {other}, not by run '{self.run}' of this stage: give artifact=PATH for another "
            "place, or fresh=true to replace it."
        )

    def remove(self, artifact: Path) -> None:
        """Remove an artifact if this run made it."""
        if self.has(artifact):
            shutil.rmtree(artifact)
