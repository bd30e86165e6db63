"""``difftumor check``: whether all cases of a data set can be used, and which scans two data sets share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftumor.cli.options import CONVENTIONS, accept_hu_option, flag, option

if TYPE_CHECKING:
    from difftumor.datasets.validation.lists import CheckedList, Validation


def check(
    one: Annotated[
        Path,
        typer.Argument(metavar="A", help="A CT, a folder of CTs, or a list such as dataset.json.", show_default=False),
    ],
    other: Annotated[
        Path | None, typer.Argument(metavar="[B]", help="Another, of which A must hold no scan.", show_default=False)
    ] = None,
    labels: Annotated[
        list[Path] | None,
        option("Folder of label maps named like the CTs of A; given twice, also of B. By default the lists name them."),
    ] = None,
    convention: Annotated[
        str | None, option(f"What the numbers of the label maps mean: {CONVENTIONS}; by default as the lists say.")
    ] = None,
    organ: Annotated[
        str | None, option("Organ that every case must have, such as liver; by default all that the labels name.")
    ] = None,
    accept_hu: Annotated[bool, accept_hu_option()] = False,
    out: Annotated[Path | None, option("Write all findings to this file (.csv or .json).")] = None,
    fix_list: Annotated[
        Path | None, option("Write the cases of A that can be used to this list (.json), with reasons for the others.")
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", help="Number of processes.", min=1)] = 1,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, hidden=True)] = None,
    overwrite: Annotated[bool, flag("--overwrite", "Replace other files than earlier results.")] = False,
) -> None:
    """Check every case of a data set before it is used, and find the scans that two data sets share.

    Files are read to their end, headers first, and judged as everywhere: geometry, type, size, checksum, finite values
    in Hounsfield units, whole labels that the list names, one grid for CT and labels, an organ that lies in tissue,
    what the list states of tumors. An [bold]error[/bold] means that a case cannot be used, a [bold]warning[/bold] that
    it may be wrong.

    Scans are compared whatever their names and headers say: [bold]identical[/bold] (all HU at the same place),
    [bold]other header[/bold], [bold]flipped[/bold] (mirrored or turned), or [bold]suspected[/bold] (landmarks lie
    alike, as in a crop or another resampling). A scan or patient on both sides of a split, or in A and B, is an error;
    a suspicion is a warning.

    Exit status: 1 if a case has an error, 0 if not.

    Example: difftumor check /data/Task03_Liver --organ liver --fix-list good.json
    """
    from difftumor.cli.many import progress_bar
    from difftumor.datasets.validation.lists import check_lists, list_to_check
    from difftumor.datasets.validation.report import check_places, write_findings, write_fix_list
    from difftumor.errors import ConfigError, counted
    from difftumor.scans.organs import get_organ

    sources, maps = [source for source in (one, other) if source is not None], list(labels or ())
    if len(maps) > len(sources):
        raise ConfigError(f"--labels is given {len(maps)} times: give one for A, and one for B if there is a B.")
    wanted = None if organ is None else get_organ(organ)
    lists = [
        list_to_check(source, labels=folder, convention=convention, organ=wanted, accept_hu=accept_hu)
        for source, folder in zip(sources, [*maps, *[None] * len(sources)], strict=False)
    ]
    files = [file for each in lists for case in each.cases.cases for file in (case.image, case.labels) if file]
    check_places(out, fix_list, inputs=[*(each.cases.source for each in lists), *files], overwrite=overwrite)
    with progress_bar("Checking", sum(len(each.cases.cases) for each in lists)) as advance:
        found = check_lists(lists, jobs=workers or jobs, done=advance)
    for each in found.lists:
        _print(each)
    for line in _totals(found):
        typer.echo(line)
    if out is not None:
        write_findings(out, found)
    if fix_list is not None:
        write_fix_list(fix_list, found.lists[0])
        usable = counted(len(found.lists[0].good), "case")
        typer.echo(f"{fix_list} lists what can be used of A: {usable}.")
    if not found.sound:
        raise typer.Exit(1)


def _print(listed: CheckedList) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from difftumor.datasets.validation.report import findings_table
    from difftumor.errors import printable

    for note in listed.notes:
        typer.echo(printable(note), err=True)
    rows = findings_table(listed)
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=False)
    table.add_column("case", overflow="fold", max_width=24)
    table.add_column("", no_wrap=True)
    table.add_column("what was found", overflow="fold", ratio=1)
    colors = {"error": "red", "warning": "yellow"}
    for name, status, said in rows:
        table.add_row(escape(name), f"[{colors[status]}]{status}[/]", escape(said))
    Console().print(table)


def _totals(found: Validation) -> list[str]:
    from difftumor.errors import counted, printable

    lines = []
    for each in found.lists:
        counts, total = each.counts, counted(len(each.checked), "case")
        usable = f"{len(each.good)} of {total} of {each.cases.source} can be used"
        lines.append(f"{usable} ({counts['warning']} with warnings); {counts['error']} with errors cannot.")
    for comparison in found.comparisons:
        suspected = len(comparison.pairs) - comparison.certain
        same = counted(comparison.certain, "pair")
        lines.append(f"{same} of the same scan {comparison.where}; {suspected} suspected.")
    return [printable(line) for line in lines]
