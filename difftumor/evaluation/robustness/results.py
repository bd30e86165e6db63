"""The results of a benchmark: cells (all tumors of one dimension at one level), curves, and sentences about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from difftumor.errors import counted
from difftumor.evaluation.cohort.statistics import (
    FEW_PATIENTS,
    LEAST_PATIENTS,
    Interval,
    bootstrap_mean,
    wilson_interval,
)
from difftumor.evaluation.robustness.detectability import Curve, contrast_curve, diameter_curve
from difftumor.evaluation.robustness.dimensions import LEVELS, Dimension, level_name, varied
from difftumor.evaluation.robustness.scoring import ScanResult, TumorRow
from difftumor.reporting.tables import Row

Measure = Literal["dsc", "detection"]
CELL_COLUMNS = (
    "dimension", "level", "value", "unit", "clamped", "scans", "tumors", "found", "detection", "detection_low",
    "detection_high", "dsc", "dsc_low", "dsc_high", "nsd", "nsd_low", "nsd_high", "diameter_mm", "contrast_hu",
    "depth_mm", "marked_before",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One dimension at one level. All intervals are 95 %.

    Attributes:
        dimension: The dimension.
        level: Level in σ from the mean.
        value: Value of the dimension at this level.
        clamped: Whether the value is held at a limit.
        rows: Its tumors; none if no scan had room.
        fewer: Whether it has fewer tumors than other cells, so that the two cover different scans and do not compare.
        detection: Share of tumors found; like the next two, None without tumors.
        dsc: Mean DSC.
        nsd: Mean NSD.
        detection_interval: Wilson's interval, for independent tumors.
        dsc_interval: By bootstrap over patients; None for fewer than four.
        nsd_interval: By bootstrap over patients; None for fewer than four.
    """

    dimension: Dimension
    level: int
    value: float
    clamped: bool
    rows: tuple[TumorRow, ...]
    fewer: bool = False
    detection: float | None = None
    dsc: float | None = None
    nsd: float | None = None
    detection_interval: Interval | None = None
    dsc_interval: Interval | None = None
    nsd_interval: Interval | None = None

    @property
    def found(self) -> int:
        """How many of the tumors were found."""
        return sum(row.found for row in self.rows)

    @property
    def physical(self) -> str:
        """The value in a user's terms; empty for the location if there is no tumor to measure."""
        if self.dimension.name == "location":
            return f"{fmean(row.depth_mm for row in self.rows):.0f} mm deep" if self.rows else ""
        if self.dimension.name == "intensity":
            return f"{self.value:+.0f} HU".replace("-", "−")
        if self.dimension.name == "size":
            return f"{self.value:.1f} mm" if self.value < 10 else f"{self.value:.0f} mm"
        return f"{'σe/r' if self.dimension.name == 'shape' else 'η'} {self.value:.2f}"


def gather(rows: Sequence[TumorRow], dimensions: Mapping[str, Dimension], *, seed: int) -> list[Cell]:
    """Sort tumors into cells, dimension by dimension and level by level.

    Args:
        rows: Tumors of all scans.
        dimensions: As ``read_dimensions`` returns them.
        seed: Seed of the bootstrap.
    """
    by_cell: dict[tuple[str, int], list[TumorRow]] = {}
    for row in rows:
        by_cell.setdefault((row.dimension, row.level), []).append(row)
    most = max(map(len, by_cell.values()), default=0)
    cells = [
        _cell(dimensions[name], level, by_cell.get((name, level), []), seed)
        for name in varied(dimensions)
        for level in LEVELS
    ]
    return [replace(cell, fewer=0 < len(cell.rows) < most) for cell in cells]


def _cell(dimension: Dimension, level: int, rows: Sequence[TumorRow], seed: int) -> Cell:
    value, clamped = dimension.at(level)
    empty = Cell(dimension=dimension, level=level, value=value, clamped=clamped, rows=tuple(rows))
    if not rows:
        return empty
    patients = [row.patient for row in rows]
    enough = len(set(patients)) >= LEAST_PATIENTS
    dsc, nsd = [row.dsc for row in rows], [row.nsd for row in rows]
    return replace(
        empty,
        detection=empty.found / len(rows),
        dsc=fmean(dsc),
        nsd=fmean(nsd),
        detection_interval=wilson_interval(empty.found, len(rows)),
        dsc_interval=bootstrap_mean(dsc, patients, seed=seed) if enough else None,
        nsd_interval=bootstrap_mean(nsd, patients, seed=seed) if enough else None,
    )


def cell_row(cell: Cell) -> Row:
    """Return the columns `CELL_COLUMNS` of a cell."""
    rows = cell.rows
    contrasts = [row.contrast_hu for row in rows if row.contrast_hu is not None]
    return {
        "dimension": cell.dimension.name,
        "level": cell.level,
        "value": cell.value,
        "unit": cell.dimension.unit,
        "clamped": int(cell.clamped),
        "scans": len({row.case for row in rows}),
        "tumors": len(rows),
        "found": cell.found,
        "detection": cell.detection,
        **_ends("detection", cell.detection_interval),
        "dsc": cell.dsc,
        **_ends("dsc", cell.dsc_interval),
        "nsd": cell.nsd,
        **_ends("nsd", cell.nsd_interval),
        "diameter_mm": fmean(row.diameter_mm for row in rows) if rows else None,
        "contrast_hu": fmean(contrasts) if contrasts else None,
        "depth_mm": fmean(row.depth_mm for row in rows) if rows else None,
        "marked_before": sum(row.marked_before for row in rows),
    }


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return {f"{name}_low": low, f"{name}_high": high}


@dataclass(frozen=True, eq=False, kw_only=True)
class Results:
    """The results of a benchmark.

    Args:
        organ: Where the tumors are.
        dimensions: As ``read_dimensions`` returns them.
        scans: What became of each scan.
        settings: All settings, as plain values.
        seed: Seed of the bootstraps.
    """

    organ: str
    dimensions: Mapping[str, Dimension]
    scans: Sequence[ScanResult]
    settings: Mapping[str, Any]
    seed: int

    @cached_property
    def rows(self) -> list[TumorRow]:
        """All tumors, cell by cell; a tumor in several cells comes up several times."""
        return [row for scan in self.scans for row in scan.rows]

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells."""
        return gather(self.rows, self.dimensions, seed=self.seed)

    @cached_property
    def curves(self) -> list[Curve]:
        """Detectability over diameter and over contrast, each if there are enough tumors."""
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
        """What was done, and how the mean tumor fared."""
        done = [scan for scan in self.scans if scan.rows]
        lesions = [scan.healthy_lesions for scan in done if scan.healthy_lesions is not None]
        scans = counted(len(done), "scan")
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
        """What to know before trusting the numbers, in sentences."""
        patients, found = len({row.patient for row in self.rows}), [row for row in self.rows if row.found]
        marked = sum(row.marked_before for row in found)
        already = (
            [f"Where {marked} of {len(found)} found tumors lie, tumor was marked before they were inserted."]
            if marked
            else []
        )
        if patients < LEAST_PATIENTS:
            few = counted(patients, "patient")
            return [*already, f"Only {few}: means and curves have no intervals, and those of shares are too narrow."]
        return [*already, *([f"Only {patients} patients: intervals are too narrow."] * (patients < FEW_PATIENTS))]

    @property
    def cell_notes(self) -> list[str]:
        """What to know before comparing cells, in sentences."""
        if not any(cell.fewer for cell in self.cells):
            return []
        return ["Cells with n have fewer tumors because some scans had no room: they do not compare with the others."]

    @property
    def sentences(self) -> list[str]:
        """What was done, warnings, and where half of the tumors are found."""
        return [self.introduction, *self.warnings, *(curve.sentence for curve in self.curves)]

    def ranges(self) -> list[tuple[str, str, str, str]]:
        """Return a row per dimension: name, lowest and highest mean DSC of a cell, and their span, widest first."""
        found = []
        for name in varied(self.dimensions):
            own = [cell for cell in self.cells if cell.dimension.name == name and cell.dsc is not None]
            if own:
                low, high = min(own, key=_dsc), max(own, key=_dsc)
                found.append((name, _described(low), _described(high), f"{_dsc(high) - _dsc(low):.2f}"))
        return sorted(found, key=lambda row: -float(row[3]))

    def table(self, measure: Measure) -> list[list[str]]:
        """Return a heatmap as text, one row per dimension."""
        return [
            [name, *(_number(cell, measure) for cell in self.cells if cell.dimension.name == name)]
            for name in varied(self.dimensions)
        ]


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
