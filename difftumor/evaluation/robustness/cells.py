"""The cells of the benchmark: all tumors of one dimension at one level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from difftumor.evaluation.cohort.statistics import LEAST_PATIENTS, Interval, bootstrap_mean, wilson_interval
from difftumor.evaluation.robustness.dimensions import LEVELS, Dimension, varied
from difftumor.evaluation.robustness.scan_run import TumorRow
from difftumor.reporting.tables import Row

CELL_COLUMNS = (
    "dimension", "level", "value", "unit", "clamped", "scans", "tumors", "found", "detection", "detection_low",
    "detection_high", "dsc", "dsc_low", "dsc_high", "nsd", "nsd_low", "nsd_high", "diameter_mm", "contrast_hu",
    "depth_mm", "marked_before",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One dimension at one level.

    Attributes:
        dimension: Which.
        level: So many σ from the mean.
        value: Of the dimension.
        clamped: Whether a limit has held it back.
        rows: Its tumors; none where no scan had room.
        fewer: Whether they are fewer than in other cells, of other scans so that the two do not compare.
        detection: Share of tumors that were found; None without tumors, as for the next two.
        dsc: Mean DSC.
        nsd: Mean NSD.
        detection_interval: Wilson's, for independent tumors; 95 %, as the others.
        dsc_interval: By bootstrap over patients; None for fewer than four.
        nsd_interval: Likewise.
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
        """The value as a user thinks of it; empty where it is known of no tumor."""
        if self.dimension.name == "location":
            return f"{fmean(row.depth_mm for row in self.rows):.0f} mm deep" if self.rows else ""
        if self.dimension.name == "intensity":
            return f"{self.value:+.0f} HU".replace("-", "−")
        if self.dimension.name == "size":
            return rounded_mm(self.value)
        return f"{'σe/r' if self.dimension.name == 'shape' else 'η'} {self.value:.2f}"


def rounded_mm(value: float) -> str:
    """Return a length as text: tenths of a millimeter below 10 mm."""
    return f"{value:.1f} mm" if value < 10 else f"{value:.0f} mm"


def gather(rows: Sequence[TumorRow], dimensions: Mapping[str, Dimension], *, seed: int) -> list[Cell]:
    """Sort tumors into cells, dimension by dimension and level by level.

    Args:
        rows: Of all scans.
        dimensions: As ``read_dimensions`` returns them.
        seed: Of the bootstrap.
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


def _cell(dimension: Dimension, level: int, rows: Sequence[TumorRow], seed: int) -> Cell:
    value, clamped = dimension.at(level)
    empty = Cell(dimension=dimension, level=level, value=value, clamped=clamped, rows=tuple(rows))
    if not rows:
        return empty
    patients = [row.patient for row in rows]
    enough = len(set(patients)) >= LEAST_PATIENTS
    dsc, nsd = [row.dsc for row in rows], [row.nsd for row in rows]
    return Cell(
        dimension=dimension, level=level, value=value, clamped=clamped, rows=tuple(rows),
        detection=empty.found / len(rows), dsc=fmean(dsc), nsd=fmean(nsd),
        detection_interval=wilson_interval(empty.found, len(rows)),
        dsc_interval=bootstrap_mean(dsc, patients, seed=seed) if enough else None,
        nsd_interval=bootstrap_mean(nsd, patients, seed=seed) if enough else None,
    )  # fmt: skip


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return {f"{name}_low": low, f"{name}_high": high}
