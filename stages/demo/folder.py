"""The files of the demo, and what each of its steps cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from difftumor.files.results import ResultFolder
from difftumor.files.writing import written_whole


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a step took.

    Args:
        command: As a user would type it.
        wall_s: Wall time in seconds.
        peak_memory_gib: Largest resident set of its process.
    """

    command: str
    wall_s: float
    peak_memory_gib: float


@dataclass(frozen=True)
class DemoFolder:
    """The demo's folder.

    Args:
        path: ``runs/demo`` by default.
    """

    path: Path

    @property
    def training(self) -> Path:
        """Phantom cohort that the stages train on."""
        return self.path / "data" / "training"

    @property
    def test(self) -> Path:
        """Phantom cohort that no stage sees."""
        return self.path / "data" / "test"

    @property
    def checkpoints(self) -> Path:
        """Artifacts."""
        return self.path / "checkpoints"

    @property
    def autoencoder(self) -> Path:
        """Artifact of stage 1."""
        return self.checkpoints / "autoencoder"

    @property
    def card(self) -> Path:
        """Test card of the autoencoder."""
        return self.path / "card"

    @property
    def diffusion(self) -> Path:
        """Artifact of stage 2."""
        return self.checkpoints / "diffusion_liver_early"

    @property
    def segmenter(self) -> Path:
        """Artifact of stage 3."""
        return self.checkpoints / "segmentation_liver_unet_mixed_fold0"

    @property
    def synthesis(self) -> Path:
        """A healthy test scan with tumors."""
        return self.path / "synthesis"

    @property
    def own_scan(self) -> Path:
        """The user's scan with tumors."""
        return self.path / "own_scan"

    @property
    def predictions(self) -> Path:
        """Predicted label maps of the test cohort."""
        return self.path / "predictions"

    @property
    def evaluation(self) -> Path:
        """Scores of the predictions."""
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def logs(self, stage: str) -> Path:
        """Folder of a stage's run."""
        return self.path / stage / "demo"

    @property
    def _costs(self) -> Path:
        return self.path / "costs.json"

    def read_costs(self) -> dict[str, StepCost]:
        """Return what the steps of earlier calls took, by name."""
        if not self._costs.is_file():
            return {}
        return {name: StepCost(**cost) for name, cost in json.loads(self._costs.read_text()).items()}

    def write_costs(self, costs: Mapping[str, StepCost]) -> None:
        """Keep them for the next call."""
        with written_whole(self._costs) as file:
            file.write_text(json.dumps({name: asdict(cost) for name, cost in costs.items()}, indent=2) + "\n")

    def remove(self) -> None:
        """Remove what an earlier demo made.

        Raises:
            ConfigError: The folder holds files of somebody else.
        """
        earlier = ResultFolder(what="demo", mark=self._costs.name)
        earlier.check(self.path, remedy="give another folder with --out")
        shutil.rmtree(self.path, ignore_errors=True)
