"""What a benchmark has found, and how it is put."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from difftumor.evaluation.cohort.statistics import FEW_PATIENTS, LEAST_PATIENTS
from difftumor.evaluation.robustness.cells import Cell, gather
from difftumor.evaluation.robustness.detectability import Curve, contrast_curve, diameter_curve
from difftumor.evaluation.robustness.dimensions import Dimension, level_name, varied
from difftumor.evaluation.robustness.figures import Measure
from difftumor.evaluation.robustness.plan import is_mean
from difftumor.evaluation.robustness.scan_run import ScanResult, TumorRow
from difftumor.evaluation.robustness.worst import WorstCase


@dataclass(frozen=True, eq=False, kw_only=True)
class Results:
    """What a benchmark has found.

    Args:
        organ: Where the tumors are.
        dimensions: As ``read_dimensions`` returns them.
        scans: What became of each.
        settings: How it was done, in plain values.
        seed: Of the bootstraps.
    """

    organ: str
    dimensions: Mapping[str, Dimension]
    scans: Sequence[ScanResult]
    settings: Mapping[str, Any]
    seed: int

    @cached_property
    def rows(self) -> list[TumorRow]:
        """All tumors, cell by cell: one that is in several cells comes several times."""
        return [row for scan in self.scans for row in scan.rows]

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells."""
        return gather(self.rows, self.dimensions, seed=self.seed)

    @cached_property
    def curves(self) -> list[Curve]:
        """Detectability over diameter and contrast, where there are tumors enough."""
        found = (
            diameter_curve(self.rows, seed=self.seed),
            contrast_curve(self.rows, self.dimensions["intensity"], seed=self.seed),
        )
        return [curve for curve in found if curve is not None]

    @property
    def tumors(self) -> int:
        """How many tumors were made."""
        return len({(row.case, row.record) for row in self.rows})

    @property
    def introduction(self) -> str:
        """What was done, and what the mean tumor says."""
        done = [scan for scan in self.scans if scan.rows]
        lesions = [scan.healthy_lesions for scan in done if scan.healthy_lesions is not None]
        scans = f"{len(done)} scan{'s' * (len(done) != 1)}"
        text = f"{self.tumors} hand-crafted tumors in the {self.organ} of {scans}, one at a time."
        middle = next((cell for cell in self.cells if cell.level == 0 and cell.rows), None)
        if middle is not None:
            text += f" The mean tumor was found in {middle.found} of {len(middle.rows)} tries, with a DSC of "
            text += f"{middle.dsc:.2f}."
        found = {(row.case, row.record): row.marked_before for row in self.rows if row.found}
        if found:
            text += f" Of {len(found)} found tumors, {sum(found.values())} lie where tumor was predicted before."
        if lesions:
            text += f" Without a tumor, {sum(lesions) / len(lesions):.1f} lesions were predicted per scan."
        return text

    @property
    def warnings(self) -> list[str]:
        """What must be known before the numbers are trusted, in sentences."""
        patients = len({row.patient for row in self.rows})
        if patients < LEAST_PATIENTS:
            one = "1 patient" if patients == 1 else f"{patients} patients"
            return [f"Only {one}: there are no intervals of means and curves, and those of shares are too narrow."]
        return [f"Only {patients} patients: intervals are too narrow."] if patients < FEW_PATIENTS else []

    @property
    def cell_notes(self) -> list[str]:
        """What must be known before cells are compared, in sentences."""
        if not any(cell.fewer for cell in self.cells):
            return []
        return ["Cells with n have fewer tumors, as some scans had no room: they do not compare with the others."]

    def ranges(self) -> list[tuple[str, str, str, str]]:
        """Return by dimension: name, lowest and highest cell of the mean DSC, and their distance, widest first."""
        found = []
        for name in varied(self.dimensions):
            own = [cell for cell in self.cells if cell.dimension.name == name and cell.dsc is not None]
            if own:
                low, high = min(own, key=_dsc), max(own, key=_dsc)
                found.append((name, _described(low), _described(high), f"{_dsc(high) - _dsc(low):.2f}"))
        return sorted(found, key=lambda row: -float(row[3]))

    def table(self, measure: Measure) -> list[list[str]]:
        """Return a heatmap as text, a row for each dimension."""
        return [
            [name, *(_number(cell, measure) for cell in self.cells if cell.dimension.name == name)]
            for name in varied(self.dimensions)
        ]


WORST_HEADER = ("Folder", "Dimension", "Level", "Diameter (mm)", "Contrast (HU)", "DSC", "Found")


def worst_row(case: WorstCase) -> tuple[str, ...]:
    """Return the cells of `WORST_HEADER` for a tumor."""
    row = case.row
    contrast = "–" if row.contrast_hu is None else f"{row.contrast_hu:.0f}".replace("-", "−")
    level = level_name(row.level)
    found = "yes" if row.found else "no"
    dimension = "mean tumor" if is_mean(row.dimension, row.level) else row.dimension
    return (case.name, dimension, level, f"{row.diameter_mm:.0f}", contrast, f"{row.dsc:.2f}", found)


def _number(cell: Cell, measure: Measure) -> str:
    number = getattr(cell, measure)
    if number is None:
        return "no room"
    star = "*" if cell.clamped else ""
    count = f" (n = {len(cell.rows)})" if cell.fewer else ""
    return f"{number:.2f}{star}{count}" if measure == "dsc" else f"{cell.found} / {len(cell.rows)}{star}"


def _dsc(cell: Cell) -> float:
    assert cell.dsc is not None
    return cell.dsc


def _described(cell: Cell) -> str:
    interval = "" if cell.dsc_interval is None else f" [{cell.dsc_interval.low:.2f}, {cell.dsc_interval.high:.2f}]"
    return f"{cell.dsc:.2f}{interval} at {level_name(cell.level)} ({cell.physical})"
