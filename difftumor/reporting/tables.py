"""Tables and records as files: CSV, JSON, Markdown, LaTeX."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftumor.files import written_whole

Value = str | int | float | None
Row = Mapping[str, Value]

_LATEX = {
    **{letter: f"\\{letter}" for letter in "%&_#${}"},
    **{letter: f"{{{letter}}}" for letter in "[*"},  # else an option or a star of the command before
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "<": "$<$", ">": "$>$", "−": "$-$", "–": "--", "×": r"$\times$",
    "→": r"$\rightarrow$", "θ": r"$\theta$", "²": r"$^2$", "³": r"$^3$",
}  # fmt: skip


@dataclass(frozen=True)
class TextTable:
    """A table as it is to be read.

    Args:
        title: What it shows.
        header: Names of the columns.
        rows: Their cells.
        bold: Cells that stand out, as row and column from 0.
        note: What belongs below it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    note: str = ""

    def markdown(self) -> str:
        """Return it as Markdown, without its title."""
        return markdown_table(self.header, self._marked("**{}**"))

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

    def _marked(self, mark: str, text: Callable[[str], str] = str) -> list[list[str]]:
        return [
            [
                mark.format(text(cell)) if (number, column) in self.bold else text(cell)
                for column, cell in enumerate(row)
            ]
            for number, row in enumerate(self.rows)
        ]


def latex_text(text: str) -> str:
    """Return a text for LaTeX: its special characters as such, signs of the tables as commands of every font."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; bars inside cells are escaped, ends of lines become blanks."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines)


def _markdown_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").splitlines())


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> Path:
    """Write rows as CSV; None becomes an empty cell. The file is whole or absent."""
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write JSON that any parser reads: NaN and infinity are refused. The file is whole or absent."""
    with written_whole(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path
