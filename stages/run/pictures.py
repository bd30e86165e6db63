"""Pictures of a training, of the same things every time, in the run's folder and TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytorch_lightning as pl
from matplotlib.figure import Figure
from matplotlib.image import imread
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from difftumor.reporting.plots import save_png
from stages.run.module import StageModule


def due(trainer: pl.Trainer, every_n_epochs: int) -> bool:
    """Whether the validation of this epoch is the first after so many epochs, or the last of all; 0: never."""
    if not every_n_epochs:
        return False
    epoch, interval = trainer.current_epoch + 1, trainer.check_val_every_n_epoch or 1
    # The last epoch is validated whatever the intervals are.
    return epoch == trainer.max_epochs or epoch // every_n_epochs > (epoch - interval) // every_n_epochs


class PictureFolder:
    """Names and files of a training's pictures.

    Args:
        ids: What is pictured; ``01_CASE_step_0005000.png`` is the first of them after 5000 steps.
        group: Under which TensorBoard shows them.
    """

    def __init__(self, ids: Iterable[str], *, group: str) -> None:
        # Numbered, since two ids may be alike once they are file names.
        self.names = {each: f"{number:02d}_{_file_name(each)}" for number, each in enumerate(ids, start=1)}
        self.group = group

    def save(self, figure: Figure, each: str, *, module: StageModule) -> Path:
        """Write the picture of one id; called by the rank that has it."""
        return save_png(figure, self._file(module, each))

    def show(self, module: StageModule) -> None:
        """Put the pictures of all ranks into TensorBoard; all ranks call it once they have plotted."""
        module.trainer.strategy.barrier("pictures")
        if not module.trainer.is_global_zero or not isinstance(module.logger, TensorBoardLogger):
            return
        for each, name in self.names.items():
            if (file := self._file(module, each)).is_file():  # fewer may have been validated on, see limit_val_batches
                image = imread(file)[..., :3]
                tag = f"{self.group}/{name}"
                module.logger.experiment.add_image(tag, image, module.steps_done, dataformats="HWC")

    def _file(self, module: StageModule, each: str) -> Path:
        folder = Path(module.trainer.default_root_dir) / "pictures"
        return folder / f"{self.names[each]}_step_{module.steps_done:07d}.png"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)[:80]


Curve = tuple[list[int], list[float]]


def read_curves(run: Path, names: Sequence[str]) -> dict[str, Curve]:
    """Return steps and values of what a run has logged under these names, without those that it has not.

    Args:
        run: Folder of the run.
        names: For instance ``"training/loss"``.
    """
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    known = set(events.Tags()["scalars"])
    scalars = {name: events.Scalars(name) for name in names if name in known}
    return {name: ([s.step for s in found], [s.value for s in found]) for name, found in scalars.items()}
