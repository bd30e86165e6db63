"""``difftumor tables``: evaluations of several organs and methods in the tables of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from difftumor.cli.options import flag


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
    overwrite: Annotated[bool, flag("--overwrite", "Replace other files of these names than earlier tables.")] = False,
) -> None:
    """Combine evaluations into tables of methods by organs.

    DSC and NSD by organ as in Table 7 of DiffTumor, sensitivity to early tumors by organ as in its Tables 2 and 3; and
    for each organ the methods, their detection and, if there are any, the folds.
    """
    from difftumor.cli.options import named_folder
    from difftumor.evaluation.cohort.combined import TABLE_FILES, are_tables, read_summaries, write_tables
    from difftumor.files.results import check_results

    check_results(out, TABLE_FILES, inputs=[], overwrite=overwrite or are_tables(out))
    typer.echo(write_tables(out, read_summaries(map(named_folder, results))))
    typer.echo(f"\nThe tables are in {' and '.join(str(out / name) for name in TABLE_FILES)}.")
