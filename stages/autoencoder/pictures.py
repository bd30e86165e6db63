"""Pictures of stage 1: CT, reconstruction and difference in crops of held-out scans, the same crops every time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from difftumor.reporting.pictures import reconstruction_planes
from difftumor.scans.grid import Box, Voxel, triple
from difftumor.scans.intensity import IntensityWindow
from stages.autoencoder.data import WholeScan
from stages.run.module import StageModule
from stages.run.pictures import PictureFolder, due

# One scale for all pictures, so that they can be compared.
DIFFERENCE_HU = 100.0


class ScanPictures:
    """Plots crops into the run's folder and TensorBoard.

    Args:
        cases: Ids of the scans to picture.
        every_n_epochs: In the first validation after so many epochs, and in the last; 0 for never.
        window: HU that the network sees.
        crop: Voxels along X, Y, Z that are shown.
        spacing_mm: Voxel size.
    """

    def __init__(
        self,
        cases: Sequence[str],
        *,
        every_n_epochs: int,
        window: IntensityWindow,
        crop: Sequence[int],
        spacing_mm: Sequence[float],
    ) -> None:
        self.every_n_epochs = every_n_epochs
        self.folder = PictureFolder(cases, group="reconstruction")
        self.window = window
        self.crop = tuple(crop)
        self.spacing_mm = tuple(spacing_mm)

    @property
    def cases(self) -> Collection[str]:
        """Ids of the scans to plot."""
        return self.folder.names.keys()

    def due(self, trainer: pl.Trainer) -> bool:
        """Whether this epoch's validation is plotted."""
        return bool(self.cases) and due(trainer, self.every_n_epochs)

    def plot(self, scan: WholeScan, reconstruction_hu_XYZ: Tensor, *, module: StageModule, psnr_db: float) -> Path:
        """Write the picture of a scan; called by the rank that has it."""
        center = labeled_center(scan.labels_XYZ)
        box = Box.centered(center, self.crop, within=scan.ct_hu_XYZ.shape)
        figure = reconstruction_planes(
            scan.ct_hu_XYZ[box.slices].cpu().numpy(),
            reconstruction_hu_XYZ[box.slices].cpu().numpy(),
            window_hu=(self.window.low_hu, self.window.high_hu),
            spacing_mm=self.spacing_mm,
            center=[place - start for place, start in zip(center, box.start, strict=True)],
            difference_hu=DIFFERENCE_HU,
            title=f"{scan.id[:40]}, step {module.steps_done}: PSNR of the whole scan {psnr_db:.1f} dB",
        )
        return self.folder.save(figure, scan.id, module=module)

    def show(self, module: StageModule) -> None:
        """Put the pictures of all ranks into TensorBoard; all ranks call it once they have plotted."""
        self.folder.show(module)


def labeled_center(labels_XYZ: Tensor) -> Voxel:
    """Return the voxel nearest to the center of mass of all that is labeled, or of the scan if nothing is."""
    labeled = labels_XYZ > 0
    total = labeled.sum()
    if not total:
        return triple([size // 2 for size in labels_XYZ.shape])
    center = []
    for axis, size in enumerate(labels_XYZ.shape):
        profile = labeled.sum(dim=[other for other in range(3) if other != axis])
        center.append(round(float((profile * torch.arange(size, device=profile.device)).sum() / total)))
    return triple(center)
