"""The worst tumors: which ones, their scans as files to train on, and pictures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difftumor.evaluation.robustness.dimensions import level_name
from difftumor.evaluation.robustness.plan import is_mean
from difftumor.evaluation.robustness.scan_run import Benchmark
from difftumor.evaluation.robustness.scoring import TumorRow
from difftumor.files.writing import folder_written_whole
from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import mask_center, three_planes
from difftumor.reporting.plots import to_png
from difftumor.scans.components import largest_component
from difftumor.scans.grid import Box
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import read_ct, read_labels
from difftumor.scans.organs import TUMOR
from difftumor.synthesis.scan.files import replay_scan
from difftumor.synthesis.scan.inputs import ScanInputs
from difftumor.synthesis.scan.record import CT_FILE, LABELS_FILE, read_record

# Side of a picture: a tumor of usual size and its surroundings.
_ZOOM_MM = 100.0
WORST_HEADER = ("Folder", "Dimension", "Level", "Diameter (mm)", "Contrast (HU)", "DSC", "Found")


@dataclass(frozen=True, eq=False)
class WorstCase:
    """A tumor with a low score, with its scan as a case to train on.

    Args:
        row: The tumor.
        name: Its folder.
        picture: PNG.
    """

    row: TumorRow
    name: str
    picture: bytes

    @property
    def cells(self) -> tuple[str, ...]:
        """Its cells below `WORST_HEADER`."""
        row = self.row
        contrast = "–" if row.contrast_hu is None else f"{row.contrast_hu:.0f}".replace("-", "−")
        dimension = "mean tumor" if is_mean(row.dimension, row.level) else row.dimension
        numbers = f"{row.diameter_mm:.0f}", contrast, f"{row.dsc:.2f}", "yes" if row.found else "no"
        return (self.name, dimension, level_name(row.level), *numbers)


def choose_worst(rows: Sequence[TumorRow], count: int) -> list[TumorRow]:
    """Return the worst tumors, the worst first.

    The lowest DSC is the worst. Ties, such as between missed tumors, go to the one nearest to the mean and then to the
    largest, since a usual tumor is worse to miss. So that one bad place does not fill the list, no scan contributes two
    tumors of one dimension, nor two at one place (except those that vary in location).
    """
    order = sorted(rows, key=lambda row: (row.dsc, abs(row.level), -row.diameter_mm, row.case, row.repeat))
    chosen: list[TumorRow] = []
    seen: set[tuple[str, ...]] = set()
    for row in order:
        own: set[tuple[str, ...]] = {(row.case, row.dimension)}
        if row.dimension != "location":
            own.add((row.case, "place", str(row.repeat)))
        if len(chosen) < count and not own & seen:
            chosen.append(row)
            seen |= own
    return chosen


def write_worst(
    benchmark: Benchmark,
    rows: Sequence[TumorRow],
    inputs: Mapping[str, ScanInputs],
    *,
    scans: Path,
    out: Path,
) -> list[WorstCase]:
    """Write scans with the worst tumors as ``difftumor synthesize --cases`` does, and render a picture of each.

    Args:
        benchmark: How they were made and predicted.
        rows: The tumors.
        inputs: Files of their scans, by case.
        scans: The ``out`` of ``Benchmark.run``.
        out: Gets a folder for each tumor; replaced as a whole.
    """
    cases = []
    with folder_written_whole(out) as staging:
        for row in rows:
            name = f"{row.case}_{Path(row.record).stem}"
            record = read_record(scans / row.case / row.record)
            replay_scan(benchmark.synthesizer, record, inputs[row.case], out=staging / name)
            cases.append(WorstCase(row, name, _picture(benchmark, row, staging / name)))
    return cases


def _picture(benchmark: Benchmark, row: TumorRow, folder: Path) -> bytes:
    ct, labels = read_ct(folder / CT_FILE, accept_hu=True), read_labels(folder / LABELS_FILE)
    box = Box.around_organ(labels.data > 0, ct.grid.spacing_mm, benchmark.margin_mm)
    part = ct.part(box)
    space = ModelSpace(part.grid)
    image, true, predicted = map(space.turned, (part.data, labels.data[box.slices], benchmark.predict(part)))
    tumor = largest_component(true == TUMOR)
    extent_mm = float(np.multiply(Box.around(tumor).shape, space.turned_spacing_mm).max())
    zoom_mm = max(_ZOOM_MM, 2 * extent_mm)
    panels = [
        Panel(title="CT", image=image, zoom_mm=zoom_mm),
        Panel(title="Truth", image=image, labels=true, zoom_mm=zoom_mm),
        Panel(title="Prediction", image=image, labels=predicted, zoom_mm=zoom_mm),
    ]
    varied = "mean tumor" if is_mean(row.dimension, row.level) else f"{row.dimension} at {level_name(row.level)}"
    figure = three_planes(
        panels,
        spacing_mm=space.turned_spacing_mm,
        center=mask_center(tumor),
        label_names={1: benchmark.synthesizer.organ.name, 2: "tumor"},
        column_inches=2.0,
        title=f"{row.case}: {varied}, {row.diameter_mm:.0f} mm, DSC {row.dsc:.2f}",
    )
    return to_png(figure)
