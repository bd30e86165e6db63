"""A self-contained HTML page of text, tables and figures that needs no network."""

from __future__ import annotations

import base64
import html
import re
import struct
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from difftumor.files.writing import written_whole
from difftumor.reporting.plots import to_png
from difftumor.reporting.tables import Cell, Table, format_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1c2329; font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid #dde3e8; }
h3 { font-size: 1.08rem; margin: 1.8rem 0 .4rem; }
p, ul, dl { margin: .6rem 0; max-width: 46rem; }
p, li, dd, figcaption, .subtitle { overflow-wrap: anywhere; }
.subtitle { color: #55616b; margin: 0 0 1rem; }
nav { margin: 1.4rem 0; padding: .8rem 1rem; background: #f4f6f8; border-radius: 6px; max-width: 46rem; }
nav ul { margin: 0; padding-left: 1.1rem; columns: 16rem; }
nav a { color: #155a8a; }
.scroll { overflow-x: auto; }
figure { margin: 1.2rem 0; }
figure img { display: block; height: auto; width: 100%; }
figcaption, caption { color: #4a555e; font-size: .9rem; text-align: left; }
figcaption { margin-top: .4rem; max-width: 46rem; }
caption { padding-bottom: .4rem; }
table { border-collapse: collapse; font-size: .92rem; margin: .8rem 0; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #e3e8ec; text-align: left; vertical-align: top; }
td:not(.number) { min-width: 7rem; max-width: 24rem; overflow-wrap: anywhere; }
th { border-bottom: 2px solid #b9c3cb; font-weight: 600; vertical-align: bottom; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { min-width: 5rem; white-space: normal; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .25rem 1.2rem; font-size: .95rem; }
dt { color: #55616b; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
pre { background: #f4f6f8; border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; font-size: .86rem; }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
@media (max-width: 600px) {
  main { padding: 1.2rem .9rem 3rem; }
  h1 { font-size: 1.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  th, td { padding: .3rem .55rem; }
}
@media print { .scroll { overflow: visible; } figure, table { break-inside: avoid; } }
"""

# 57.3±23.5, 15 / 18, −1.2 to +3.0, <0.001, or a dash for none.
_NUMBERS = re.compile(r"[+−<]?\d[\d.,]*(( to |±| / )[+−]?\d[\d.]*)?|–")

# Below this scale the text in a picture is too small to read: on a phone it scrolls sideways instead.
_LEAST_SCALE = 0.7


class Report:
    """Collects headings, text, tables and figures in reading order, and writes them as one HTML file.

    All text is escaped. Figures are embedded, styles are inline, and the page forbids itself any request.

    Args:
        title: Title of the page.
        subtitle: A line below it, such as what was run and when.
    """

    def __init__(self, title: str, *, subtitle: str | None = None) -> None:
        self._title = title
        self._subtitle = subtitle
        self._parts: list[str] = []
        self._sections: list[str] = []

    def heading(self, text: str, *, level: int = 2) -> None:
        """Begin a section (level 2, listed in the table of contents) or a subsection (level 3)."""
        if level not in (2, 3):
            raise ValueError(f"heading level {level} is not 2 or 3")
        identifier = ""
        if level == 2:
            self._sections.append(text)
            identifier = f' id="section-{len(self._sections)}"'
        self._parts.append(f"<h{level}{identifier}>{_escape(text)}</h{level}>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{_escape(text)}</p>")

    def code(self, text: str) -> None:
        """Add commands, logs or JSON in a fixed-width font."""
        self._parts.append(f"<pre><code>{_escape(text)}</code></pre>")

    def key_values(self, pairs: Mapping[str, Cell]) -> None:
        """Add a list of names with their values."""
        entries = (f"<dt>{_escape(name)}</dt><dd>{_escape(format_cell(value))}</dd>" for name, value in pairs.items())
        self._parts.append("<dl>" + "".join(entries) + "</dl>")

    def table(self, table: Table) -> None:
        """Add a table, with its title above and its note below; columns of numbers alone are aligned at the right."""
        columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.header)
        classes = [' class="number"' if _is_numeric(cells) else "" for cells in columns]
        heads = "".join(
            f'<th scope="col"{c}>{_escape(name)}</th>' for name, c in zip(table.header, classes, strict=True)
        )
        lines = [
            "".join(
                f"<td{kind}>{_cell(cell, bold=(number, column) in table.bold)}</td>"
                for column, (cell, kind) in enumerate(zip(row, classes, strict=True))
            )
            for number, row in enumerate(table.rows)
        ]
        top = f"<caption>{_escape(table.title)}</caption>" if table.title else ""
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        content = f"<table>{top}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
        self._parts.append(f'<div class="scroll" tabindex="0">{content}</div>')
        if table.note:
            self.paragraph(table.note)

    def figure(self, picture: Figure | bytes, *, caption: str, alt: str | None = None, dpi: int = 130) -> None:
        """Add a matplotlib figure or the bytes of a PNG file.

        Args:
            picture: The figure, or a PNG that was made at `dpi`.
            caption: Text below it.
            alt: Text for those who can't see it; the caption when None.
            dpi: Pixels per inch, which decide the size on the page.

        Raises:
            ValueError: The bytes are not a PNG.
        """
        png = picture if isinstance(picture, bytes) else to_png(picture, dpi=dpi)
        shown_px = round(_png_width(png) * 96 / dpi)
        style = f"max-width: {shown_px}px; min-width: {round(shown_px * _LEAST_SCALE)}px"
        data = base64.b64encode(png).decode("ascii")
        image = f'<img style="{style}" alt="{_escape(alt or caption)}" src="data:image/png;base64,{data}">'
        text = f"<figcaption>{_escape(caption)}</figcaption>"
        self._parts.append(f'<figure><div class="scroll" tabindex="0">{image}</div>{text}</figure>')

    def html(self) -> str:
        """Return the page."""
        subtitle = f'<p class="subtitle">{_escape(self._subtitle)}</p>' if self._subtitle else ""
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en"><head><meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{_escape(self._title)}</title><style>{_STYLE}</style></head><body><main>",
                f"<header><h1>{_escape(self._title)}</h1>{subtitle}</header>",
                self._contents(),
                *self._parts,
                "</main></body></html>\n",
            ]
        )

    def write(self, path: Path) -> Path:
        """Write the page; the file is whole or absent. Makes the folder if needed."""
        with written_whole(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return path

    def _contents(self) -> str:
        if len(self._sections) < 3:
            return ""
        links = (f'<li><a href="#section-{n}">{_escape(text)}</a></li>' for n, text in enumerate(self._sections, 1))
        return f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>'


def _is_numeric(cells: Sequence[Cell]) -> bool:
    numbers = [_is_number(cell) for cell in cells if cell is not None]
    return bool(numbers) and all(numbers)


def _is_number(cell: Cell) -> bool:
    if isinstance(cell, str):
        return bool(_NUMBERS.fullmatch(cell))
    return isinstance(cell, Real) and not isinstance(cell, bool)


def _cell(cell: Cell, *, bold: bool) -> str:
    text = _escape(format_cell(cell))
    return f"<b>{text}</b>" if bold else text


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _png_width(png: bytes) -> int:
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) < 24:
        raise ValueError("the picture is not a PNG")
    # The IHDR chunk comes first: width and height follow the 8-byte signature and the 8-byte chunk header.
    width, _ = struct.unpack(">II", png[16:24])
    return int(width)
