"""The quality of synthesis as JSON, CSV and Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from difftumor import __version__
from difftumor.errors import counted
from difftumor.evaluation.realism.distances import Sample
from difftumor.evaluation.realism.quality import DistanceScale, Measurement, Quality, Spread
from difftumor.files.writing import written_whole
from difftumor.reporting.tables import Cell, Row, Table, write_csv, write_json

RECORD_FILE, TABLE_FILE, SUMMARY_FILE, TUMORS_FILE = "quality.json", "quality.csv", "quality.md", "tumors.csv"
HEADER = ("Distance", "All", "95 % interval", "Real to real", "Real to synthetic", "Farther")
# The effect of chance, measured in docs/image_quality.md.
USUAL = (
    "If nothing differs, 10 to 90 % is usual, and 1 to 3 of 100 distances reach 95 % by chance (with 20 splits; with "
    "fewer splits more do)."
)
# Stands beside every table.
EXPLANATION = (
    "All: between all real and all synthetic tumors. 95 % interval: over resampled patients, corrected for what chance "
    "adds to a distance, so it may lie below the value. Real to real: between two random halves of the real patients. "
    "Real to synthetic: between such a half and as many synthetic tumors. Both are medians, with the range of 95 % of "
    "the splits. Farther: share of the splits in which the synthetic tumors are farther from the half than the other "
    "half is; about 50 % on average if they look alike. " + USUAL
)
_FROM_NAME = ("distance", "label", "unit")
_SPREADS = ("real_real", "real_synthetic")
_COLUMNS = (
    *_FROM_NAME, "value", "low", "high", "split_tumors",
    *(f"{spread}_{part}" for spread in _SPREADS for part in ("median", "low", "high")), "farther", "warnings",
)  # fmt: skip


def quality_record(quality: Quality, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``quality.json``; unknown numbers are null.

    Args:
        quality: The distances.
        about: Lists, settings, networks.
    """
    return {
        "difftumor_version": __version__,
        **about,
        "warnings": list(quality.all_warnings),
        "distances": [_entry(measurement) for measurement in quality.measurements],
    }


def list_record(source: Path, samples: Sequence[Sample], cases: int, failed: Mapping[str, str]) -> dict[str, Any]:
    """Describe one of the two lists."""
    return {
        "list": str(source),
        "cases": cases,
        "cases_with_tumors": len({sample.tumor.case for sample in samples}),
        "patients": len({sample.tumor.patient for sample in samples}),
        "tumors": len(samples),
        "failed": dict(failed),
    }


def write_quality(
    folder: Path, quality: Quality, record: Mapping[str, Any], sets: Mapping[str, Sequence[Sample]]
) -> None:
    """Write ``quality.json``, ``quality.csv``, ``quality.md`` and ``tumors.csv``.

    Args:
        folder: Folder to write to.
        quality: The distances.
        record: Result of ``quality_record``.
        sets: The tumors, by the name of their set.
    """
    write_json(folder / RECORD_FILE, record)
    write_csv(folder / TABLE_FILE, Table.of_records(_COLUMNS, map(_row, quality.measurements)))
    tumors = [_tumor_row(name, sample) for name, samples in sets.items() for sample in samples]
    write_csv(folder / TUMORS_FILE, Table.of_records(list(tumors[0]), tumors))
    with written_whole(folder / SUMMARY_FILE) as temporary:
        temporary.write_text(quality_markdown(quality, record), encoding="utf-8")


def quality_markdown(quality: Quality, record: Mapping[str, Any]) -> str:
    """Return the content of ``quality.md``: counts, warnings, all distances."""
    counts = [
        f"{side.capitalize()}: {counted(record[side]['tumors'], 'tumor')} of "
        f"{counted(record[side]['patients'], 'patient')} in `{record[side]['list']}`."
        for side in ("real", "synthetic")
    ]
    warnings = "\n".join(f"- ⚠ {text}" for text in quality.all_warnings)
    table = Table(HEADER, list(map(table_row, quality.measurements))).markdown()
    parts = [f"# Image quality of synthesis: {record['organ']}", " ".join(counts), warnings, table, EXPLANATION]
    return "\n\n".join(part for part in parts if part) + "\n"


def table_row(measurement: Measurement) -> tuple[str, ...]:
    """Return the cells of a distance under ``HEADER``."""
    scale, interval, name = measurement.scale, measurement.interval, measurement.name
    mark = "⚠ " if measurement.warnings else ""
    unit = f" ({name.unit})" if name.unit else ""
    return (
        f"{mark}{name.label}{unit}",
        shown(measurement.value),
        "–" if interval is None else _range(*interval),
        "–" if scale is None else _shown_spread(scale.real_real),
        "–" if scale is None else _shown_spread(scale.real_synthetic),
        "–" if scale is None else f"{100 * scale.farther:.0f} %",
    )


def shown(value: float) -> str:
    """Return a number with three digits and a true minus sign."""
    if not math.isfinite(value):
        return "–"
    digits = f"{value:.3g}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.2e}"
    text = f"{value:.0f}" if 1000 <= abs(value) < 1e6 else digits
    return text.replace("-", "−")


def _shown_spread(spread: Spread) -> str:
    return f"{shown(spread.median)}\N{NO-BREAK SPACE}({_range(spread.low, spread.high)})"


def _range(low: float, high: float) -> str:
    return f"{shown(low)} to {shown(high)}".replace(" ", "\N{NO-BREAK SPACE}")


def _entry(measurement: Measurement) -> dict[str, Any]:
    interval, scale = measurement.interval, measurement.scale
    return {
        "distance": measurement.name.key,
        "label": measurement.name.label,
        "unit": measurement.name.unit,
        "value": _known(measurement.value),
        "interval": None if interval is None else list(interval),
        "scale": None if scale is None else asdict(scale),
        "warnings": list(measurement.warnings),
    }


def _row(measurement: Measurement) -> Row:
    name, scale = measurement.name, measurement.scale
    low, high = measurement.interval or (None, None)
    return {
        **dict(zip(_FROM_NAME, (name.key, name.label, name.unit), strict=True)),
        "value": _known(measurement.value),
        "low": low,
        "high": high,
        "split_tumors": scale.tumors if scale else None,
        **(_spread_cells(scale) if scale else {}),
        "farther": scale.farther if scale else None,
        "warnings": " ".join(measurement.warnings),
    }


def _spread_cells(scale: DistanceScale) -> dict[str, Cell]:
    return {f"{name}_{part}": value for name in _SPREADS for part, value in asdict(getattr(scale, name)).items()}


def _tumor_row(name: str, sample: Sample) -> Row:
    tumor = sample.tumor
    looks = {key: getattr(tumor.appearance, key) for key in ("contrast_hu", "sd_hu", "edge_step_hu")}
    texture = {f"texture_{key}": value for key, value in asdict(tumor.texture).items()}
    numbers = {"diameter_mm": tumor.diameter_mm, **looks, **texture}
    where: dict[str, Cell] = {"set": name, "case": tumor.case, "patient": tumor.patient, "number": tumor.number}
    return {**where, **{key: _known(value) for key, value in numbers.items()}}


def _known(value: float) -> float | None:
    """Return a number, or None for NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None
