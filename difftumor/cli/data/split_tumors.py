"""``difftumor split-tumors``: early and late tumors of label maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from difftumor.datasets.size_split import SplitCase


def split_tumors(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help="A label map (.nii.gz or .nii), a folder of them, or a list with CTs, such as dataset.json.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to make; must be new or empty.", show_default=False)
    ],
    organ: Annotated[
        str | None,
        typer.Option(
            help="Organ, such as liver; by default the only one whose tumors the labels name.", show_default=False
        ),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="CONVENTION",
            help="What the numbers of the label maps mean: msd_liver, msd_pancreas, lits, kits; by default what the "
            "dataset.json in or beside the folder says, else 0 background, 1 organ, 2 tumor.",
            show_default=False,
        ),
    ] = None,
    early_radius_mm: Annotated[
        float, typer.Option(help="Tumors of a smaller equivalent radius are early, all others late.")
    ] = 10.0,
    minimum_voxels: Annotated[int, typer.Option(help="Smaller components do not count as tumors.", min=1)] = 8,
    fingerprints: Annotated[
        bool,
        typer.Option("--fingerprints", help="Also read the CTs, and state their fingerprints in the lists."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in OUT.")] = False,
) -> None:
    """Split the tumors of label maps by size into early and late ones.

    A tumor is a connected component (26-neighborhood); its equivalent radius is that of a ball of its volume. For each
    case with tumors, OUT/early and OUT/late get a label map on its own grid: 0 background, 1 organ, 2 tumors of the
    group; tumors of the other group, and components that are too small, count as organ. OUT/lesions.csv lists every
    component. If LABELS is a list with CTs, both folders also get a dataset.json for stage 2.
    """
    from difftumor.cli.many import progress_bar
    from difftumor.datasets.integrity import with_fingerprints
    from difftumor.datasets.size_split import RESULT, only_organ, read_label_cases, split_by_size
    from difftumor.errors import CaseListError, ConfigError, counted
    from difftumor.scans.lesions import SIZE_GROUPS, SizeRule
    from difftumor.scans.organs import get_convention, get_organ, resolve_labels

    if not early_radius_mm > 0:
        raise ConfigError(f"--early-radius-mm is {early_radius_mm}: give a number above 0.")
    cases, with_ct = read_label_cases(labels, None if convention is None else get_convention(convention))
    chosen = only_organ(cases) if organ is None else get_organ(organ)
    resolve_labels(cases.label_names, chosen, source=cases.source)  # or every case would be refused
    inputs = [file for case in cases.cases for file in (case.image, case.labels) if file]
    RESULT.check(out, option="OUT", inputs=inputs, overwrite=overwrite)
    if fingerprints and not with_ct:
        raise ConfigError(f"--fingerprints needs CTs, which {labels} does not name: give a list that does.")
    if fingerprints:
        with progress_bar("Reading CTs", len(cases.cases)) as advance:
            cases = replace(cases, cases=with_fingerprints(cases.cases, done=advance))
    rule = SizeRule(early_radius_mm=early_radius_mm, minimum_voxels=minimum_voxels)
    with progress_bar("Splitting", len(cases.cases)) as advance:

        def done(found: SplitCase) -> None:
            typer.echo(_described(found), err=found.error is not None)
            advance()

        split = split_by_size(cases, chosen, out, rule, with_lists=with_ct, done=done)
    early, late = (sum(each.count(group) for each in split) for group in SIZE_GROUPS)
    count = sum(each.written for each in split)
    typer.echo(f"{early} early and {late} late {chosen.name} tumors in {counted(count, 'case')}: {out}")
    if failed := [each.case.id for each in split if each.error is not None]:
        raise CaseListError(
            f"{len(failed)} of {len(split)} cases could not be split ({', '.join(failed)}): "
            f"fix or remove them; {out} holds the others."
        )


def _described(found: SplitCase) -> str:
    if found.error is not None:
        return f"Left out {found.case.id}: {found.error}"
    if found.left_out is not None:
        return f"{found.case.id}: left out, it {found.left_out}"
    small = found.count("too_small")
    more = f", {small} too small" if small else ""
    return f"{found.case.id}: {found.count('early')} early, {found.count('late')} late{more}"
