"""``difftumor tables``: evaluations of several organs and methods in the tables of the papers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

FILES = ("tables.md", "tables.tex")


def tables(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]DIR...",
            help="Folders that evaluate has written; NAME= renames the first method of one.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for tables.md and tables.tex.", show_default=False)],
) -> None:
    """Combine evaluations into tables of methods by organs.

    DSC and NSD by organ as in Table 7 of DiffTumor, sensitivity to early tumors by organ as in its Tables 2 and 3; and
    for each organ the methods, their detection and, if there are any, the folds.
    """
    from difftumor.evaluation.cohort.tables import folds_table, methods_table, organ_tables, sensitivity_table
    from difftumor.files import check_results, written_whole

    check_results(out, FILES, inputs=[], overwrite=True)
    summaries: dict[tuple[str, str], Mapping[str, Any]] = {}
    for word in results:
        for method, summary in _summaries(word).items():
            _add(summaries, method, summary, word)
    by_organ: dict[str, dict[str, Mapping[str, Any]]] = {}
    for (method, organ), summary in summaries.items():
        by_organ.setdefault(organ, {})[method] = summary
    sections = [("All organs", list(organ_tables(summaries)))]
    for organ, methods in by_organ.items():
        found = [methods_table(methods), sensitivity_table(methods), folds_table(methods)]
        sections.append((organ, [table for table in found if table is not None]))
    markdown = [line for title, some in sections for line in (f"# {title}", *_markdown(some))]
    latex = "\n".join(table.latex() for _, some in sections for table in some)
    for name, text in zip(FILES, ("\n\n".join(markdown) + "\n", latex), strict=True):
        with written_whole(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    typer.echo("\n\n".join(markdown))
    typer.echo(f"\nThe tables are in {out / FILES[0]} and {out / FILES[1]}.")


def _markdown(found: list[Any]) -> list[str]:
    return [
        line
        for table in found
        for line in (f"## {table.title}", table.markdown(), *([table.note] if table.note else []))
    ]


def _summaries(word: str) -> dict[str, Mapping[str, Any]]:
    """Return the summaries in a folder by method.

    Raises:
        CaseListError: It holds none.
    """
    from difftumor.cli.options import named_folder
    from difftumor.errors import CaseListError

    name, folder = named_folder(word)
    file = folder / "summary.json"
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        found = {name or str(summary["method"]): summary, **summary.get("compared", {})}
        for each in found.values():
            each["settings"]["organ"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CaseListError(f"{file} is not a summary of evaluate: give a folder that it has written.") from error
    return found


def _add(
    summaries: dict[tuple[str, str], Mapping[str, Any]], method: str, summary: Mapping[str, Any], word: str
) -> None:
    """Add a summary.

    Raises:
        CaseListError: This method and organ are there already, or it was made by other rules than the others.
    """
    from difftumor.errors import CaseListError

    key = (method, str(summary["settings"]["organ"]))
    if key in summaries:
        raise CaseListError(f"{word} has another evaluation of {method} in the {key[1]}: name it, as NAME={word}.")
    for rule in ("tolerance_mm", "matching", "level"):
        values = {each["settings"].get(rule) for each in (*summaries.values(), summary)}
        if len(values) > 1:
            raise CaseListError(f"{word} was evaluated with another {rule} than the others: evaluate all alike.")
    summaries[key] = summary
