"""Tumors as a table: what was asked of each, and what it became."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difftumor.synthesis.scan.report import TumorReport

# Name, and whether it holds numbers, which are never broken into lines.
_COLUMNS = (
    ("#", True), ("tumor", False), ("diameter\n(mm)", True), ("contrast\n(HU)", True), ("vessels\n(mm)", True),
    ("center\n(mm)", True), ("tries", True),
)  # fmt: skip
# Where there is no terminal, lines may be longer than one.
_WIDTH = 110


def print_tumors(tumors: Sequence[TumorReport]) -> None:
    """Print one row for each tumor; an arrow leads from what was asked to what was achieved."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, numbers in _COLUMNS:
        table.add_column(name, justify="right" if numbers else "left", no_wrap=numbers)
    for number, tumor in enumerate(tumors, start=1):
        table.add_row(str(number), *_cells(tumor))
    console = Console()
    Console(width=None if console.is_terminal else _WIDTH).print(table)


def _cells(tumor: TumorReport) -> list[str]:
    record = tumor.record
    around = "" if record.location == "anywhere" else f", {record.location}"
    center = "none" if tumor.center_mm is None else "({:.0f}, {:.0f}, {:.0f})".format(*tumor.center_mm)
    return [
        f"{record.generator} {record.size}{around}",
        _arrow(tumor.requested_diameter_mm, tumor.diameter_mm, ".1f"),
        _arrow(record.contrast_hu, tumor.contrast_hu, "+.0f"),
        _arrow(record.vessel_clearance_mm, tumor.vessel_clearance_mm, ".1f"),
        center,
        str(record.attempts),
    ]


def _arrow(requested: float | None, achieved: float | None, style: str) -> str:
    if requested is None and achieved is None:
        return "–"
    asked, got = ("any" if requested is None else format(requested, style)), "–"
    if achieved is not None:
        got = format(achieved, style)
    return f"{asked} → {got}".replace("-", "−")
