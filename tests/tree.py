"""The map of the code in docs/design.md: every file with the first line of its docstring.

``python -m tests.tree`` writes it anew after files have moved; a test compares the two.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "design.md"
BEGIN, END = "<!-- tree -->\n", "<!-- end of tree -->\n"


def tree() -> str:
    """Return the block of the page, with its markers."""
    lines = [line for package in ("difftumor", "stages") for line in _folder(REPOSITORY / package, 0)]
    return BEGIN + "```\n" + "\n".join(lines) + "\n```\n" + END


def _folder(folder: Path, depth: int) -> Iterator[str]:
    yield _line(depth, f"{folder.name}/", folder / "__init__.py")
    files = sorted(file for file in folder.glob("*.py") if not file.name.startswith("__"))
    yield from (_line(depth + 1, file.name, file) for file in files)
    for inner in sorted(path for path in folder.iterdir() if (path / "__init__.py").is_file()):
        yield from _folder(inner, depth + 1)


def _line(depth: int, name: str, file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return f"{'  ' * depth + name:<28} {text.splitlines()[0].replace('``', '').rstrip('.')}"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + tree() + rest.split(END)[1], encoding="utf-8")
