"""``difftumor select-healthy``: the scans with a healthy organ, by predicted label maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftumor.cli.options import CONVENTIONS, accept_hu_option

if TYPE_CHECKING:
    from collections.abc import Mapping


def select_healthy(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="A folder of label maps, or of a folder per case with a file per structure; or a list of cases with "
            "labels, such as dataset.json.",
            show_default=False,
        ),
    ],
    organ: Annotated[str, typer.Option(help="Organ that must be healthy, such as liver.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(help="List to write (.json); a table of all scans goes beside it (.csv).", show_default=False),
    ],
    cts: Annotated[
        Path | None,
        typer.Option(
            help="The CTs, named like the label maps: a folder or a list; omit it if PREDICTIONS is a list with CTs.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="TABLE",
            help=f"What the numbers of the label maps mean: {CONVENTIONS}, or a JSON "
            "or YAML file of name: number; by default what a dataset.json in or beside the "
            "folder says, else 0 background, 1 organ, 2 tumor.",
            show_default=False,
        ),
    ] = None,
    min_volume_ml: Annotated[
        float | None, typer.Option(help="Smallest volume; by default half the mean of women.", show_default=False)
    ] = None,
    max_volume_ml: Annotated[
        float | None, typer.Option(help="Largest volume; by default twice the mean of men.", show_default=False)
    ] = None,
    pieces: Annotated[
        int | None,
        typer.Option(
            help="Number of pieces of the organ; by default 2 for kidneys, else 1.", min=1, show_default=False
        ),
    ] = None,
    min_share: Annotated[float, typer.Option(help="Smallest share of the organ in these pieces.")] = 0.9,
    allow_cut: Annotated[
        bool, typer.Option("--allow-cut", help="Also accept organs that reach an edge of the scan.")
    ] = False,
    max_tumor_mm3: Annotated[float, typer.Option(help="Largest volume of tumor that still counts as none.")] = 0.0,
    assume_healthy: Annotated[
        bool, typer.Option("--assume-healthy", help="Also accept scans whose label maps cannot show tumors.")
    ] = False,
    accept_hu: Annotated[bool, accept_hu_option()] = False,
    jobs: Annotated[int, typer.Option(help="Threads.", min=1)] = 1,
    fingerprints: Annotated[
        bool,
        typer.Option("--fingerprints", help="Also read the CTs that are listed, and state their fingerprints."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier list at --out.")] = False,
) -> None:
    """List the scans with a healthy organ, in which stage 3 makes tumors.

    A scan is accepted if its label map holds the whole organ (its main pieces reach no face of the scan and hold nearly
    all of it), if the organ has the volume of an adult's, and if it has no tumor. Cysts count as organ. The list also
    holds the rule, and why each other scan was left out.
    """
    from difftumor.cli.many import progress_bar
    from difftumor.datasets.healthy import select_healthy as select
    from difftumor.datasets.healthy import usual_rule
    from difftumor.datasets.healthy_list import check_list_file, counts, read_scans, write_healthy
    from difftumor.datasets.integrity import with_fingerprints
    from difftumor.datasets.label_folders import read_label_names
    from difftumor.errors import CaseListError, first_few
    from difftumor.scans.organs import get_organ, resolve_labels

    chosen = get_organ(organ)
    rule = usual_rule(
        chosen,
        min_volume_ml=min_volume_ml,
        max_volume_ml=max_volume_ml,
        pieces=pieces,
        min_share=min_share,
        allow_cut=allow_cut,
        max_tumor_mm3=max_tumor_mm3,
    )
    cases, without_ct = read_scans(predictions, cts, None if table is None else read_label_names(table), chosen)
    resolve_labels(cases.label_names, chosen, source=cases.source)
    inputs = [predictions, *([cts] if cts else []), *([Path(table)] if table else [])]
    check_list_file(out, cases, inputs=inputs, overwrite=overwrite)
    if not cases.label_names:
        typer.echo(f"The label maps come without names: 1 is taken for {chosen.name}, 2 for its tumors.")
    with progress_bar("Reading label maps", len(cases.cases)) as advance:
        judged = select(
            cases, chosen, rule, assume_healthy=assume_healthy, accept_hu=accept_hu, workers=jobs, done=advance
        )
    if fingerprints:
        healthy_cases = [verdict.case for verdict in judged if verdict.status == "healthy"]
        with progress_bar("Reading CTs", len(healthy_cases)) as advance:
            stated = {case.id: case for case in with_fingerprints(healthy_cases, workers=jobs, done=advance)}
        judged = tuple(replace(verdict, case=stated.get(verdict.case.id, verdict.case)) for verdict in judged)
    verdicts = (*judged, *without_ct)
    failed = [verdict for verdict in verdicts if verdict.status == "failed"]
    for verdict in failed[:5]:
        typer.echo(f"Left out: {verdict.case.id} {verdict.reasons[0]}", err=True)
    report = write_healthy(out, verdicts, cases, chosen, rule, assume_healthy=assume_healthy)
    found = counts(verdicts, chosen)
    _print_counts(found, len(verdicts))
    healthy = found["healthy"]
    if failed:
        raise CaseListError(
            f"{len(failed)} of {len(verdicts)} scans cannot be used ({first_few([each.case.id for each in failed])}): "
            f"see {report}, fix or remove them; {out} holds the others that are healthy ({healthy})."
        )
    typer.echo(f"{healthy} scan{'s' if healthy > 1 else ''} with a healthy {chosen.name}: {out} (all scans: {report})")


def _print_counts(found: Mapping[str, int], total: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("scan", footer="all")
    table.add_column("count", footer=str(total), justify="right")
    for name, count in found.items():
        table.add_row(name, str(count))
    Console().print(table)
