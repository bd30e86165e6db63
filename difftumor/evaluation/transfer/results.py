"""What a study of transfer leaves behind: tables as Markdown, LaTeX and CSV, figures, and one page with all of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftumor.errors import ConfigError, counted
from difftumor.evaluation.cohort.statistics import LEVEL, check_level
from difftumor.evaluation.transfer.cells import TransferCell, TransferGrid, read_grid
from difftumor.evaluation.transfer.figures import annotations_figure, detection_figure, transfer_heatmap
from difftumor.evaluation.transfer.tables import (
    HU_NOTE,
    KINDS,
    annotations_table,
    backbone_name,
    fold_table,
    hu_table,
    numbers_table,
    organs_table,
    paired_tests,
    tested_table,
    transfer_table,
)
from difftumor.files.results import check_results, is_json_with
from difftumor.files.writing import folder_written_whole
from difftumor.reporting.plots import to_png
from difftumor.reporting.report import Report
from difftumor.reporting.tables import Table, write_csv, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRANSFER_FILES = (
    "tables.md", "tables.tex", "numbers.csv", "tests.csv", "missing.csv", "transfer.json", "early.png", "all.png",
    "detection.png", "annotations.png", "report.html",
)  # fmt: skip
# By this a later run knows an earlier state.
_MARK = "transfer.json"
_CAPTIONS = {
    "early": "Early-stage tumor-wise sensitivity by source and target: value, interval over patients, and "
    "tumors / patients / seeds.",
    "all": "Tumor-wise sensitivity at all stages, likewise.",
    "detection": "Tumor-wise sensitivity at all stages of segmenters of each organ, with intervals over patients "
    "(Figure 10 of DiffTumor).",
    "annotations": "Reduced annotations for the diffusion model, with intervals over patients (Figure 5 of DiffTumor).",
}
_MOST_MISSING = 200


def write_transfer_results(
    cells: Mapping[TransferCell, Path | None], out: Path, *, level: float = LEVEL, seed: int = 0, command: str = ""
) -> Path:
    """Write what a study of transfer has so far; an earlier state of it is replaced, as a whole.

    Args:
        cells: The folder that ``difftumor evaluate`` wrote for each training; None, or a folder without results, for
            one that is still to come, which tables show as missing.
        out: Folder for `TRANSFER_FILES`.
        level: Of the confidence intervals, by bootstrap over patients.
        seed: Of bootstrap and permutations.
        command: The command line, for the page; empty for none.

    Returns:
        The page, ``report.html``.

    Raises:
        ConfigError: The level is out of range, the folder cannot be written to, or it holds other files of these names.
        CaseListError: There is no evaluation, one cannot be used, or they do not go together.
    """
    check_level(level)
    inputs = [folder for folder in cells.values() if folder is not None]
    check_results(out, TRANSFER_FILES, inputs=inputs, overwrite=True)
    others = [name for name in TRANSFER_FILES if (out / name).exists()]
    if others and not is_json_with("settings")(out / _MARK):
        raise ConfigError(
            f"{out} holds {others[0]}, but no {_MARK} of an earlier state: move the file, or give another folder."
        )
    return write_grid(read_grid(cells), out, level=level, seed=seed, command=command)


def write_grid(grid: TransferGrid, out: Path, *, level: float = LEVEL, seed: int = 0, command: str = "") -> Path:
    """Write a grid as `write_transfer_results` does, and return the page.

    Args:
        grid: What was found.
        out: Folder for `TRANSFER_FILES`.
        level: Of the confidence intervals.
        seed: Of bootstrap and permutations.
        command: The command line, for the page; empty for none.
    """
    sections = transfer_tables(grid, level=level, seed=seed)
    tests = paired_tests(grid, level=level, seed=seed)
    if (tested := tested_table(tests, level=level)) is not None:
        sections["Paired tests"] = [tested]
    figures: dict[str, Figure | None] = {
        "early": transfer_heatmap(grid, "early", level=level, seed=seed),
        "all": transfer_heatmap(grid, "all", level=level, seed=seed),
        "detection": detection_figure(grid, level=level, seed=seed),
        "annotations": annotations_figure(grid, level=level, seed=seed),
    }
    pictures = {name: to_png(figure) for name, figure in figures.items() if figure is not None}
    tables = [table for some in sections.values() for table in some]
    parts = [f"# {_TITLE}", *_sentences(grid), *(table.section() for table in tables)]
    settings = {**grid.settings, "level": level, "seed": seed, "missing": len(grid.missing)}
    gone = [out / f"{name}.png" for name in figures if name not in pictures]
    with folder_written_whole(out, keep_others=True, last=_MARK, without=gone) as staging:
        (staging / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        (staging / "tables.tex").write_text("\n".join(table.latex() for table in tables), encoding="utf-8")
        write_csv(staging / "numbers.csv", numbers_table(grid, level=level, seed=seed))
        write_csv(staging / "tests.csv", _flat(tests))
        write_csv(staging / "missing.csv", _missing(grid))
        write_json(staging / _MARK, {"settings": settings, "tests": tests})
        for name, picture in pictures.items():
            (staging / f"{name}.png").write_bytes(picture)
        page = _page(grid, sections, pictures, settings, command).write(staging / "report.html")
    return out / page.name


_TITLE = "Transfer between organs"


def transfer_tables(grid: TransferGrid, *, level: float = LEVEL, seed: int = 0) -> dict[str, list[Table]]:
    """Return all tables but the tests, by the section that they belong to."""
    options: dict[str, Any] = {"level": level, "seed": seed}
    # In the papers U-Net has a table of its own.
    names = {backbone: "Table 2" if backbone == "unet" else "Table 3" for backbone in grid.backbones}
    kinds = {kind: KINDS.get(kind, kind) for kind in dict.fromkeys(key.tumors for key in grid.keys)}
    by_fold = [
        fold_table(
            grid, target, kinds, grid.backbones, title=f"DSC and NSD by fold: {target} (Tables 4 to 6)", **options
        )
        for target in grid.targets
    ]
    hu = [hu_table(grid, target, **options) for target in grid.targets]
    found: dict[str, list[Table | None]] = {
        "Early-stage detection": [
            transfer_table(grid, backbone, "early", title=names[backbone], **options) for backbone in grid.backbones
        ],
        "All-stage detection": [
            transfer_table(grid, backbone, "all", title="Figure 10", **options) for backbone in grid.backbones
        ],
        "Segmentation by fold": by_fold,
        "Segmentation by organ": [
            organs_table(grid, backbone, title="All-stage segmentation (Table 7)", **options)
            for backbone in grid.backbones
        ],
        "Real, synthetic and both": hu,
        "Reduced annotations": [annotations_table(grid, **options)],
    }
    kept = {title: [table for table in tables if table is not None] for title, tables in found.items()}
    return {title: tables for title, tables in kept.items() if tables}


def _page(
    grid: TransferGrid, sections: Mapping[str, list[Table]], pictures: Mapping[str, bytes], settings: Mapping[str, Any],
    command: str,
) -> Report:  # fmt: skip
    report = Report(_TITLE, subtitle=date.today().isoformat())
    for sentence in _sentences(grid):
        report.paragraph(sentence)
    shown = {"Early-stage detection": ["early"], "All-stage detection": ["all", "detection"]}
    shown["Reduced annotations"] = ["annotations"]
    for title, tables in sections.items():
        report.heading(title)
        for name in shown.get(title, ()):
            if name in pictures:
                report.figure(pictures[name], caption=_CAPTIONS[name])
        for table in tables:
            report.table(table)
    if grid.missing:
        report.heading("Missing")
        table = _missing(grid)
        if len(table.rows) > _MOST_MISSING:
            report.paragraph(f"The first {_MOST_MISSING} of {len(table.rows)}; all are in missing.csv.")
        report.table(Table(table.header, table.rows[:_MOST_MISSING]))
    report.heading("How it was evaluated")
    level = f"{100 * settings['level']:g} %"
    report.key_values(
        {
            "matching of lesions": str(settings["matching"]),
            "tolerance of the NSD": f"{settings['tolerance_mm']:g} mm",
            "folds and seeds": "seeds are averaged within scans, folds are pooled: every patient is tested in one fold",
            "intervals": f"{level}, percentiles of the bootstrap over patients, seed {settings['seed']}",
            "tests": "on patients' means: Wilcoxon's signed-rank test (Pratt), and permutation of the methods within "
            "patients; Holm's correction over all rows of the table",
            **({"command": command} if command else {}),
        }
    )
    return report


def _sentences(grid: TransferGrid) -> list[str]:
    total = sum(sum(group.seeds.values()) for group in grid.groups.values())
    names = ", ".join(map(backbone_name, grid.backbones))
    there = (
        f"{counted(total, 'training')} of {total + len(grid.missing)}: sources {', '.join(grid.sources)}; targets "
        f"{', '.join(grid.targets)}; backbones {names}."
    )
    return [there, HU_NOTE]


def _missing(grid: TransferGrid) -> Table:
    header = ("source", "target", "backbone", "tumors", "fold", "seed", "annotations")
    rows = [
        (c.source, c.target, c.backbone, c.tumors, c.fold, c.seed, "all" if c.annotations is None else c.annotations)
        for c in grid.missing
    ]
    return Table(header, rows)


def _flat(tests: list[dict[str, Any]]) -> Table:
    rows = []
    for row in tests:
        low, high = row["interval"] or (None, None)
        rows.append({**{name: value for name, value in row.items() if name != "interval"}, "low": low, "high": high})
    columns = (
        "source", "target", "backbone", "tumors", "against", "measure", "patients", "first", "second", "difference",
        "low", "high", "wilcoxon_p", "wilcoxon_holm", "permutation_p", "permutation_holm",
    )  # fmt: skip
    return Table.of_records(columns, rows)
