"""``difftumor check``: which scans two data sets share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftumor.cli.options import option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from difftumor.datasets.integrity import SharedScan

_COLUMNS = ("likeness", "one", "other")


def check(
    one: Annotated[
        Path,
        typer.Argument(metavar="A", help="A CT, a folder of CTs, or a list such as dataset.json.", show_default=False),
    ],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="[B]", help="Another; by default A is searched for scans that it holds twice."),
    ] = None,
    out: Annotated[
        Path | None, option("Also write the pairs to this file (.csv or .json); replaced if it is there.")
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", help="Scans that are read at once.", min=1)] = 4,
) -> None:
    """Find the scans that two data sets share, whatever their names and headers say.

    [bold]identical[/bold]: all HU are the same, at the same place; name, compression and type may differ.
    [bold]other header[/bold]: all HU are the same, but spacing, orientation or position are not.
    [bold]flipped[/bold]: all HU are the same, mirrored or turned in the patient.
    [bold]suspected[/bold]: landmarks lie alike, as in a crop, another resampling or another window; look at both.

    Exit status: 1 if a scan is in both (or a CT cannot be read), 0 if not. A suspicion alone gives 0.

    Example: difftumor check /data/Task03_Liver /data/AbdomenAtlas --out shared.csv
    """
    from difftumor.cli.many import progress_bar
    from difftumor.datasets.cases import read_case_list
    from difftumor.datasets.integrity import fingerprints, shared_scans
    from difftumor.errors import CaseListError, ConfigError, DiffTumorError, counted, first_few
    from difftumor.files.results import check_results

    lists = [read_case_list(path) for path in (one, other) if path is not None]
    images = [[case.image for case in cases.cases] for cases in lists]
    files = [image for listed in images for image in listed]
    if out is not None:
        if out.suffix.lower() not in (".csv", ".json"):
            raise ConfigError(f"--out is {out}: give a file that ends in .csv or .json.")
        check_results(out.parent, [out.name], inputs=[*files, *(cases.source for cases in lists)], overwrite=True)
    failed: list[Path] = []

    def note(file: Path, error: DiffTumorError) -> None:
        failed.append(file)
        typer.echo(f"Left out: {error}", err=True)

    with progress_bar("Reading CTs", len(set(files))) as advance:
        found = fingerprints(files, workers=workers, accept_hu=True, done=advance, failed=note)
    ones, *others = ({str(image): found[image] for image in listed if image in found} for listed in images)
    pairs = shared_scans(ones, *others)
    if out is not None:
        _write(out, pairs)
    _print(pairs)
    certain = sum(pair.certain for pair in pairs)
    where = f"within {lists[0].source}" if other is None else f"shared by {lists[0].source} and {lists[1].source}"
    typer.echo(f"{counted(certain, 'pair')} of the same scan {where}; {len(pairs) - certain} suspected.")
    if failed:
        raise CaseListError(
            f"{len(failed)} of {len(set(files))} CTs cannot be read ({first_few([str(file) for file in failed])}): "
            "fix or remove them."
        )
    if certain:
        raise typer.Exit(1)


def _write(out: Path, pairs: Sequence[SharedScan]) -> None:
    from difftumor.reporting.tables import Table, write_csv, write_json

    records = [{name: str(getattr(pair, name)) for name in _COLUMNS} for pair in pairs]
    if out.suffix.lower() == ".csv":
        write_csv(out, Table.of_records(_COLUMNS, records))
    else:
        write_json(out, records)


def _print(pairs: Sequence[SharedScan]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not pairs:
        return
    table = Table(*_COLUMNS, box=SIMPLE_HEAD, pad_edge=False)
    for pair in pairs:
        table.add_row(pair.likeness, escape(pair.one), escape(pair.other))
    Console().print(table)
