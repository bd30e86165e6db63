"""Pictures of stage 2: healthy crops with the tumors that the model makes in them, the same crops every time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import mask_center, three_planes
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.organs import TUMOR
from stages.diffusion.hosts import HostedTumor
from stages.run.module import StageModule
from stages.run.pictures import PictureFolder

# One scale for all pictures, so that they can be compared.
DIFFERENCE_HU = 100.0


class HostPictures:
    """Plots hosts into the run's folder and TensorBoard.

    Args:
        hosts: Ids of those to plot.
        spacing_mm: Voxel size.
        window: HU that the network sees.
    """

    def __init__(self, hosts: Iterable[str], *, spacing_mm: Sequence[float], window: IntensityWindow) -> None:
        self.folder = PictureFolder(hosts, group="synthesis")
        self.spacing_mm = tuple(spacing_mm)
        self.window = window

    def plot(self, made: HostedTumor, module: StageModule) -> None:
        """Write the picture of a host if it is among those to plot; called by the rank that has it."""
        if made.host.id in self.folder.names:
            contrast_hu = made.appearance.contrast_hu
            contrast = f": contrast {contrast_hu:.0f} HU".replace("-", "−") if math.isfinite(contrast_hu) else ""
            title = f"{made.host.id[-40:]}, step {module.steps_done}{contrast}"
            figure = host_picture(made, spacing_mm=self.spacing_mm, window=self.window, title=title)
            self.folder.save(figure, made.host.id, module=module)

    def show(self, module: StageModule) -> None:
        """Put the pictures of all ranks into TensorBoard; all ranks call it once they have plotted."""
        self.folder.show(module)


def host_picture(
    made: HostedTumor, *, spacing_mm: Sequence[float], window: IntensityWindow, title: str | None = None
) -> Figure:
    """Show a host in the three planes through its tumor: healthy, with the tumor, its outline, and the change.

    Args:
        made: Host and tumor.
        spacing_mm: Voxel size.
        window: Gray values.
        title: Text above.
    """
    healthy, ct = made.host.ct_hu_XYZ.numpy(), made.ct_hu_XYZ.numpy()
    tumor = made.tumor_XYZ.numpy()
    panels = [
        Panel(title="Healthy", image=healthy),
        Panel(title="With tumor", image=ct),
        Panel(title="Outline", image=ct, labels=tumor * TUMOR),
        Panel(title="With tumor − healthy", image=ct - healthy, kind="difference"),
    ]
    return three_planes(
        panels,
        spacing_mm=spacing_mm,
        center=mask_center(tumor),
        window_hu=(window.low_hu, window.high_hu),
        difference_hu=DIFFERENCE_HU,
        title=title,
    )
