"""The results of a study: numbers as CSV and Markdown, figures, and one page with everything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from matplotlib.figure import Figure

from difftumor.files.writing import written_whole
from difftumor.reporting.plots import to_png
from difftumor.reporting.report import Report
from difftumor.reporting.tables import Cell, Row, Table, write_csv


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with its caption.

    Args:
        figure: The figure.
        caption: A sentence below it.
    """

    figure: Figure
    caption: str


def write_results(
    folder: Path,
    name: str,
    *,
    title: str,
    introduction: Sequence[str],
    rows: Sequence[Row],
    pictures: Mapping[str, Picture],
    details: Mapping[str, Cell],
) -> Path:
    """Write ``<name>.csv``, ``<name>.md``, the pictures as PNG, and ``report.html``.

    Args:
        folder: Folder to write to; made if needed, other files in it stay.
        name: File name of the table, without suffix.
        title: Title of the page.
        introduction: Paragraphs above the table that say how to read it.
        rows: Rows of the table, all with the same columns.
        pictures: Figures by file name without suffix.
        details: What was run.

    Returns:
        The page.
    """
    plain = Table.of_records(list(rows[0]), rows)
    write_csv(folder / f"{name}.csv", plain)
    table = Table([spoken(column) for column in plain.header], plain.rows)
    with written_whole(folder / f"{name}.md") as temporary:
        temporary.write_text(table.markdown() + "\n")
    report = Report(title, subtitle=f"difftumor, {date.today().isoformat()}")
    for paragraph in introduction:
        report.paragraph(paragraph)
    report.heading("Numbers")
    report.table(table)
    report.heading("Pictures")
    for file, picture in pictures.items():
        png = to_png(picture.figure)
        with written_whole(folder / f"{file}.png") as temporary:
            temporary.write_bytes(png)
        report.figure(png, caption=picture.caption)
    report.heading("What was run")
    report.key_values(details)
    return report.write(folder / "report.html")


def spoken(column: str) -> str:
    """Return the heading of a column: "SD distance (HU)" for ``sd_distance_hu``."""
    words = column.split("_")
    unit = f" ({words.pop().upper()})" if words[-1] == "hu" else ""
    if words[0] == "seconds":
        words, unit = ["time", *words[1:]], " (s)"
    text = " ".join("SD" if word == "sd" else word for word in words)
    return text[0].upper() + text[1:] + unit
