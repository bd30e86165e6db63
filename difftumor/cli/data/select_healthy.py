"""``difftumor select-healthy``: the scans with a healthy organ, by predicted label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from difftumor.datasets.cases import CaseList
    from difftumor.datasets.healthy import HealthyRule, Verdict
    from difftumor.scans.organs import Organ


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
    organ: Annotated[str, typer.Option(help="Organ that is to be healthy, such as liver.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(help="List to write (.json); a table of all scans goes beside it (.csv).", show_default=False),
    ],
    cts: Annotated[
        Path | None,
        typer.Option(
            help="The CTs, named like the label maps: a folder or a list; not where PREDICTIONS names them.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="TABLE",
            help="What the numbers of the label maps mean: totalsegmentator, universal_model, msd_liver, msd_pancreas, "
            "lits, kits, or a JSON or YAML file of name: number; by default as a dataset.json in or beside the folder "
            "says, else 0 background, 1 organ, 2 tumor.",
            show_default=False,
        ),
    ] = None,
    min_volume_ml: Annotated[
        float | None, typer.Option(help="Least volume; by default half the mean of women.", show_default=False)
    ] = None,
    max_volume_ml: Annotated[
        float | None, typer.Option(help="Largest volume; by default twice the mean of men.", show_default=False)
    ] = None,
    pieces: Annotated[
        int | None,
        typer.Option(help="Pieces that the organ has; by default 2 for kidneys, else 1.", min=1, show_default=False),
    ] = None,
    min_share: Annotated[float, typer.Option(help="Part of the organ that these pieces hold at least.")] = 0.9,
    allow_cut: Annotated[
        bool, typer.Option("--allow-cut", help="Also take organs that reach an edge of the scan.")
    ] = False,
    max_tumor_mm3: Annotated[float, typer.Option(help="Up to so much tumor counts as none.")] = 0.0,
    assume_healthy: Annotated[
        bool, typer.Option("--assume-healthy", help="Also take scans whose label maps could not show tumors.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Threads.", min=1)] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier list at --out.")] = False,
) -> None:
    """List the scans with a healthy organ, for stage 3 to make tumors in.

    A scan is taken where its label map holds the organ, whole (its main pieces reach no face of the scan and hold
    nearly all of it), of the volume of an adult, and no tumor of it. Cysts count as organ. The list also holds the rule
    and why each other scan was left out.
    """
    from difftumor.cli.many import progress_bar
    from difftumor.datasets.healthy import select_healthy as select
    from difftumor.datasets.healthy import usual_rule
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
    cases, without_ct = _read_scans(predictions, cts, table, chosen)
    resolve_labels(cases.label_names, chosen, source=cases.source)
    _check_out(out, cases, [path for path in (predictions, cts) if path] + ([Path(table)] if table else []), overwrite)
    if not cases.label_names:
        typer.echo(f"The label maps come without names: 1 is taken for {chosen.name}, 2 for its tumors.")
    with progress_bar("Reading label maps", len(cases.cases)) as advance:
        verdicts = select(cases, chosen, rule, assume_healthy=assume_healthy, workers=jobs, done=advance)
    _write(out, (*verdicts, *without_ct), cases, chosen, rule, assume_healthy)


def _write(
    out: Path, verdicts: Sequence[Verdict], cases: CaseList, organ: Organ, rule: HealthyRule, assume_healthy: bool
) -> None:
    """Write the table and the list, and say what is in them.

    Raises:
        CaseListError: No scan is healthy, so that there is no list; or some could not be used.
    """
    from difftumor.datasets.healthy_list import COLUMNS, counts, rows, write_healthy_list
    from difftumor.errors import CaseListError, first_few
    from difftumor.reporting.tables import Table, write_csv

    found, report = counts(verdicts, organ), out.with_suffix(".csv")
    failed = [verdict.case.id for verdict in verdicts if verdict.status == "failed"]
    healthy = found.get("healthy", 0)
    write_csv(report, Table.of_records(COLUMNS, rows(verdicts, rule)))
    for verdict in [verdict for verdict in verdicts if verdict.status == "failed"][:5]:
        typer.echo(f"Left out: {verdict.case.id} {verdict.reasons[0]}", err=True)
    if not healthy:
        why = ", ".join(f"{name}: {count}" for name, count in found.items())
        out.unlink(missing_ok=True)  # an earlier list, which the table contradicts
        raise CaseListError(
            f"None of the {len(verdicts)} scans of {cases.source} has a healthy {organ.name} ({why}): see {report}, "
            "and give other label maps or another rule."
        )
    write_healthy_list(out, verdicts, cases, organ, rule, assume_healthy=assume_healthy)
    _print_counts(found, len(verdicts))
    if failed:
        raise CaseListError(
            f"{len(failed)} of {len(verdicts)} scans cannot be used ({first_few(failed)}): see {report}, mend or "
            f"remove them; {out} holds the others that are healthy ({healthy})."
        )
    typer.echo(f"{healthy} scan{'s' if healthy > 1 else ''} with a healthy {organ.name}: {out} (all scans: {report})")


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


def _read_scans(predictions: Path, cts: Path | None, table: str | None, organ: Organ) -> tuple[CaseList, list[Verdict]]:
    """Return scans with CT and label map, or lacking the map, and verdicts on label maps that lack a CT."""
    from dataclasses import replace

    from difftumor.cli.options import read_case_list
    from difftumor.datasets.cases import Case, CaseList, read_cases
    from difftumor.datasets.healthy import Verdict
    from difftumor.datasets.label_folders import check_predicted_organ
    from difftumor.errors import CaseListError, ConfigError

    names = None if table is None else _read_table(table)
    if cts is None:
        with_cts = (predictions / "dataset.json").is_file() or any(predictions.glob("*/ct.nii*"))
        if predictions.is_dir() and not with_cts:
            raise ConfigError(f"{predictions} holds label maps alone: give their CTs with --cts, a folder or a list.")
        listed = read_cases(predictions)
        return (listed if names is None else replace(listed, label_names=names)), []
    maps, own_names = _read_maps(predictions)
    check_predicted_organ(maps, organ)
    scans = read_case_list(cts)
    known = {case.id for case in scans.cases}
    if known.isdisjoint(maps):
        raise CaseListError(
            f"No CT of {cts} is named like a label map of {predictions} ({min(known)} and {min(maps)} are the first): "
            "name the label maps like their CTs."
        )
    cases = tuple(replace(case, labels=maps.get(case.id)) for case in scans.cases)
    listed = CaseList(cases, own_names if names is None else names, predictions, scans.validation_ids)
    lacking = [Case(name, path, path) for name, path in maps.items() if name not in known]
    return listed, [Verdict(case=case, status="no_ct", reasons=(f"has no CT in {cts}",)) for case in lacking]


def _read_maps(folder: Path) -> tuple[Mapping[str, Path], Mapping[str, int]]:
    """Return the label maps of a folder by case, or folders of structures, and what their numbers mean."""
    from difftumor.datasets.cases import number_structures
    from difftumor.datasets.label_folders import label_maps, label_names_of
    from difftumor.datasets.sources import structure_folders, structures_of
    from difftumor.errors import ConfigError
    from difftumor.scans.nifti import is_nifti

    if folder.is_file():
        raise ConfigError(f"{folder} is a file: give --cts with a folder of label maps alone.")
    maps = folder.is_dir() and any(is_nifti(path) for path in folder.iterdir())
    if folder.is_dir() and not maps and (parts := structure_folders(folder)):
        return parts, number_structures(name for part in parts.values() for name in structures_of(part))
    return label_maps(folder), label_names_of(folder)


def _read_table(table: str) -> Mapping[str, int]:
    from difftumor.datasets.sources import read_label_table
    from difftumor.errors import ConfigError
    from difftumor.scans.organs import CONVENTIONS, get_convention

    if table in CONVENTIONS:
        return get_convention(table)
    if not Path(table).is_file():
        raise ConfigError(f"--labels {table} is no file and no convention: give a file or {', '.join(CONVENTIONS)}.")
    return read_label_table(Path(table))


def _check_out(out: Path, cases: CaseList, given: Sequence[Path], overwrite: bool) -> None:
    """Refuse a name that is none of a list, an earlier result, and places that hold an input."""
    from difftumor.datasets.healthy_list import is_table, labels_folder
    from difftumor.errors import ConfigError
    from difftumor.files import check_results

    if out.suffix != ".json":
        raise ConfigError(f"--out {out} does not end in .json: give a name such as {out.name or 'healthy'}.json.")
    files = [file for case in cases.cases for file in (case.image, case.labels) if file]
    names = [out.name, labels_folder(out).name]
    if not is_table(report := out.with_suffix(".csv")):  # without its list, one of a run that found none healthy
        names.append(report.name)
    check_results(out.parent, names, inputs=[*given, *files], overwrite=overwrite)
