"""The worst tumors: which they are, their scans as files to train on, and pictures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from difftumor.evaluation.robustness.dimensions import level_name
from difftumor.evaluation.robustness.plan import is_mean
from difftumor.evaluation.robustness.scan_run import Benchmark, TumorRow
from difftumor.files import folder_written_whole
from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import mask_center, three_planes
from difftumor.reporting.plots import to_png
from difftumor.scans.components import largest_component
from difftumor.scans.grid import Box
from difftumor.scans.label_maps import box_around, part_of
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import Volume, read_ct, read_labels
from difftumor.scans.organs import TUMOR
from difftumor.synthesis.scan.files import CT_FILE, LABELS_FILE, replay_scan
from difftumor.synthesis.scan.inputs import ScanInputs
from difftumor.synthesis.scan.record import read_record

# Side of what a picture shows: a tumor of usual size and what is around it.
_ZOOM_MM = 100.0


@dataclass(frozen=True, eq=False)
class WorstCase:
    """A tumor that was found badly, with its scan as a case to train on.

    Args:
        row: The tumor.
        name: Its folder.
        picture: PNG.
    """

    row: TumorRow
    name: str
    picture: bytes


def choose_worst(rows: Sequence[TumorRow], count: int) -> list[TumorRow]:
    """Return the worst tumors, the worst first.

    The lowest DSC is the worst; of equals, as of those that were missed, the one nearest to the mean, then the largest,
    for a usual tumor is the worse to miss. No scan has more than one tumor of a dimension among them, and none but
    those that differ in location share a place, so that one bad place does not fill the list.
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
    """Write scans with the worst tumors as ``difftumor synthesize --cases`` does, and draw them.

    Args:
        benchmark: How they were made and predicted.
        rows: The tumors.
        inputs: Files of their scans, by case.
        scans: Where ``Benchmark.run`` wrote.
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
    ct, labels = read_ct(folder / CT_FILE), read_labels(folder / LABELS_FILE)
    box = box_around(labels.data > 0, ct.grid.spacing_mm, benchmark.margin_mm)
    part = part_of(ct, box)
    kind = "mean tumor" if is_mean(row.dimension, row.level) else f"{row.dimension} at {level_name(row.level)}"
    title = f"{row.case}: {kind}, {row.diameter_mm:.0f} mm, DSC {row.dsc:.2f}"
    return _drawn(
        part, labels.data[box.slices], benchmark.predict(part), organ=benchmark.synthesizer.organ.name,
        title=title,
    )  # fmt: skip


def _drawn(ct: Volume, truth: NDArray[np.integer], prediction: NDArray[np.uint8], *, organ: str, title: str) -> bytes:
    space = ModelSpace(ct.grid)
    image, true, predicted = (space.turned(data) for data in (ct.data, truth, prediction))
    tumor = largest_component(true == TUMOR)
    extent_mm = float(np.multiply(Box.around(tumor).shape, space.turned_spacing_mm).max())
    zoom_mm = max(_ZOOM_MM, 2 * extent_mm)
    panels = [
        Panel(title="CT", image=image, zoom_mm=zoom_mm),
        Panel(title="Truth", image=image, labels=true, zoom_mm=zoom_mm),
        Panel(title="Prediction", image=image, labels=predicted, zoom_mm=zoom_mm),
    ]
    figure = three_planes(
        panels,
        spacing_mm=space.turned_spacing_mm,
        center=mask_center(tumor),
        label_names={1: organ, 2: "tumor"},
        column_inches=2.0,
        title=title,
    )
    return to_png(figure)
