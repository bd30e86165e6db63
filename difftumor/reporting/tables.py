"""Tables, written as CSV, Markdown or LaTeX (`difftumor.reporting.report` writes them as HTML), and records as JSON."""

import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from difftumor.files.writing import written_whole

Cell = str | int | float | np.number[Any] | None
Row = Mapping[str, Cell]

_LATEX = {
    **{letter: f"\\{letter}" for letter in "%&_#${}"},
    **{letter: f"{{{letter}}}" for letter in "[*"},  # else an option or a star of the command before
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "<": "$<$", ">": "$>$", "−": "$-$", "–": "--", "×": r"$\times$",
    "→": r"$\rightarrow$", "θ": r"$\theta$", "²": r"$^2$", "³": r"$^3$",
}  # fmt: skip


# What begins a tag of HTML, which Markdown may hold.
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
# What spreadsheet programs take for a formula; numbers with a sign are none.
_FORMULA = re.compile(r"[=@\t\r]|[+-](?![\d.,]*$)")


@dataclass(frozen=True)
class Table:
    """A table, whatever it is written as.

    Args:
        header: Names of the columns.
        rows: Their cells; a CSV file keeps numbers as they are, readers see four digits.
        title: What it shows.
        note: What belongs below it.
        bold: Cells that stand out, as row and column from 0.

    Raises:
        ValueError: A row does not have as many cells as the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = field(default="", kw_only=True)
    note: str = field(default="", kw_only=True)
    bold: Collection[tuple[int, int]] = field(default=frozenset(), kw_only=True)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row has {len(row)} cells, the header {len(self.header)}")

    @classmethod
    def of_records(cls, columns: Sequence[str], records: Iterable[Row]) -> "Table":
        """Return a table of one row per record; a record without a column has an empty cell there.

        Raises:
            ValueError: A record has a key that is not a column.
        """
        rows = []
        for record in records:
            if unknown := record.keys() - set(columns):
                raise ValueError(f"{unknown.pop()!r} is not one of the columns {', '.join(columns)}")
            rows.append([record.get(column) for column in columns])
        return cls(columns, rows)

    def markdown(self) -> str:
        """Return it as Markdown, without title and note; bars and tags are escaped, line ends become blanks."""
        lines = [self.header, ["---"] * len(self.header), *self._marked("**{}**", str)]
        return "\n".join("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines)

    def section(self) -> str:
        """Return it as a section of Markdown: title, table and note."""
        return "\n\n".join(part for part in (f"## {self.title}", self.markdown(), self.note) if part)

    def latex(self) -> str:
        """Return it as a LaTeX ``table``, for the package booktabs; title and note are its caption."""
        caption = f"{self.title}. {self.note}" if self.note else self.title
        lines = [
            r"\begin{table}",
            rf"  \caption{{{latex_text(caption)}}}",
            rf"  \begin{{tabular}}{{l{'c' * (len(self.header) - 1)}}}",
            r"    \toprule",
            f"    {_latex_row(latex_text(name) for name in self.header)}",
            r"    \midrule",
            *(f"    {_latex_row(row)}" for row in self._marked(r"\textbf{{{}}}", latex_text)),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def _marked(self, mark: str, text: Callable[[str], str]) -> list[list[str]]:
        rows = [[text(format_cell(cell)) for cell in row] for row in self.rows]
        for row, column in self.bold:
            rows[row][column] = mark.format(rows[row][column])
        return rows


def format_cell(value: Cell) -> str:
    """Return a value as text: floats with four significant digits, None and NaN as a dash."""
    # NumPy's numbers are registered as Real and Integral too.
    if value is None or (isinstance(value, Real) and value != value):
        return "–"
    if not isinstance(value, Real) or isinstance(value, Integral):
        text = str(value)
        return text.replace("-", "−") if isinstance(value, Integral) else text
    return f"{float(value):.4g}".replace("-", "−")


def latex_text(text: str) -> str:
    """Return a text for LaTeX: special characters escaped, mathematical signs as commands that every font has."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _markdown_cell(text: str) -> str:
    return " ".join(_TAG.sub("&lt;", text).replace("|", "\\|").splitlines())


def _csv_cell(cell: Cell) -> Cell:
    """Return a cell that spreadsheet programs show as text: a name that looks like a formula gets an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def write_csv(path: Path, table: Table) -> Path:
    """Write header and rows as CSV; None becomes an empty cell, no text a formula. The file is whole or absent."""
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(table.header)
        writer.writerows([_csv_cell(cell) for cell in row] for row in table.rows)
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write JSON that any parser reads: NaN and infinity are refused. The file is whole or absent."""
    with written_whole(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path
