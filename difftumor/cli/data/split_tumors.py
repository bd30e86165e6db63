"""``difftumor split-tumors``: early and late tumors of label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from difftumor.datasets.cases import CaseList
    from difftumor.datasets.tumor_cases import SplitCase
    from difftumor.scans.organs import Organ

LESIONS_FILE = "lesions.csv"


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
        typer.Option(help="Organ, such as liver; by default the only one whose tumors are named.", show_default=False),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="CONVENTION",
            help="What the numbers of the label maps mean: msd_liver, msd_pancreas, lits, kits; by default as the "
            "dataset.json in or beside the folder says, else 0 background, 1 organ, 2 tumor.",
            show_default=False,
        ),
    ] = None,
    early_radius_mm: Annotated[float, typer.Option(help="Largest equivalent radius of an early tumor.")] = 10.0,
    minimum_voxels: Annotated[int, typer.Option(help="Smaller components are no tumors.", min=1)] = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result at OUT.")] = False,
) -> None:
    """Split the tumors of label maps into early and late ones, by their size.

    A tumor is a connected component (26-neighborhood); its equivalent radius is that of a ball of its volume. For every
    case with tumors, OUT/early and OUT/late get a label map on its own grid: 0 background, 1 organ, 2 tumors of the
    stage; tumors of the other stage, and components that are too small, count as organ. OUT/lesions.csv lists every
    component. Where LABELS is a list with CTs, both folders also get a dataset.json for stage 2.
    """
    from dataclasses import asdict, fields

    from difftumor.datasets.tumor_cases import DATASET_FILE, StagedTumor, write_stage_lists
    from difftumor.datasets.tumor_stages import TUMOR_STAGES
    from difftumor.errors import CaseListError, ConfigError
    from difftumor.files import ResultFolder, folder_written_whole
    from difftumor.reporting.tables import Table, write_csv

    if not early_radius_mm > 0:
        raise ConfigError(f"--early-radius-mm is {early_radius_mm}: give a number above 0.")
    cases, with_ct = _read_cases(labels, convention)
    chosen = _choose_organ(organ, cases)
    inputs = [file for case in cases.cases for file in (case.image, case.labels) if file]
    kept = [f"{stage}/{file}" for stage in TUMOR_STAGES for file in ("*.nii", "*.nii.gz", DATASET_FILE)]
    earlier = ResultFolder(what="result", holds=(LESIONS_FILE, *kept), mark=LESIONS_FILE)
    earlier.check(out, option="OUT", inputs=inputs, overwrite=overwrite)
    with folder_written_whole(out) as staging:
        split, failed = _split(cases, chosen, staging, early_radius_mm=early_radius_mm, minimum_voxels=minimum_voxels)
        written = [each for each in split if each.left_out is None]
        if not written:
            what = f"{len(failed)} of {len(cases.cases)} could not be read" if failed else "all could be read"
            raise CaseListError(
                f"No case of {labels} has {chosen.name} tumors ({what}): give label maps that mark them, another "
                "--organ, or say with --labels what the numbers mean."
            )
        columns = [field.name for field in fields(StagedTumor)]
        rows = [asdict(tumor) for each in written for tumor in each.tumors]
        write_csv(staging / LESIONS_FILE, Table.of_records(columns, rows))
        if with_ct:
            validation_ids = cases.validation_ids
            write_stage_lists(staging, [each.case for each in written], chosen, validation_ids=validation_ids)
    total = {stage: sum(each.count(stage) for each in written) for stage in ("early", "late")}
    typer.echo(f"{total['early']} early and {total['late']} late {chosen.name} tumors in {len(written)} cases: {out}")
    if failed:
        raise CaseListError(
            f"{len(failed)} of {len(cases.cases)} cases could not be split ({', '.join(failed)}): "
            f"mend or remove them; {out} holds the others."
        )


def _split(
    cases: CaseList, organ: Organ, folder: Path, *, early_radius_mm: float, minimum_voxels: int
) -> tuple[list[SplitCase], Sequence[str]]:
    """Split what can be split, say what was found, and name the cases that could not be read."""
    from difftumor.cli.many import progress_bar
    from difftumor.datasets.tumor_cases import split_case
    from difftumor.errors import ConfigError, DiffTumorError

    split: list[SplitCase] = []
    failed: list[str] = []
    with progress_bar("Splitting", len(cases.cases)) as advance:
        for case in cases.cases:
            try:
                found = split_case(
                    case, cases, organ, folder, early_radius_mm=early_radius_mm, minimum_voxels=minimum_voxels
                )
            except ConfigError:  # wrong for all cases
                raise
            except DiffTumorError as error:
                failed.append(case.id)
                typer.echo(f"Left out {case.id}: {error}", err=True)
            else:
                split.append(found)
                typer.echo(_described(found))
            advance()
    return split, failed


def _described(found: SplitCase) -> str:
    if found.left_out is not None:
        return f"{found.case.id}: left out, it {found.left_out}"
    small = found.count("too_small")
    more = f", {small} too small" if small else ""
    return f"{found.case.id}: {found.count('early')} early, {found.count('late')} late{more}"


def _read_cases(labels: Path, convention: str | None) -> tuple[CaseList, bool]:
    """Read LABELS; the second value says whether CTs come with it."""
    from dataclasses import replace

    from difftumor.datasets.cases import Case, CaseList, read_cases
    from difftumor.datasets.sources import case_id
    from difftumor.evaluation.cohort.folders import label_maps, label_names_of
    from difftumor.scans.nifti import is_nifti
    from difftumor.scans.organs import get_convention

    names = None if convention is None else get_convention(convention)
    if labels.is_file() and is_nifti(labels):
        maps, folder = {case_id(labels): labels}, labels.parent
    elif labels.is_dir() and not (labels / "dataset.json").is_file() and not any(labels.glob("*/ct.nii*")):
        maps, folder = label_maps(labels), labels
    else:
        cases = read_cases(labels)
        return (cases if names is None else replace(cases, label_names=names)), True
    if names is None:
        names = label_names_of(folder)
    return CaseList(tuple(Case(name, path, path) for name, path in maps.items()), names, labels), False


def _choose_organ(name: str | None, cases: CaseList) -> Organ:
    """Return the organ that was named, or else the only one whose tumors the label names hold."""
    from difftumor.errors import ConfigError
    from difftumor.scans.organs import ORGANS, get_organ, resolve_labels

    if name is not None:
        organ = get_organ(name)
        resolve_labels(cases.label_names, organ, source=cases.source)  # else every case would be refused for it
        return organ
    found = [organ for organ in ORGANS.values() if _has_tumor_label(cases.label_names, organ)]
    if len(found) != 1:
        open_ = " or ".join(organ.name for organ in found) if found else "none that is known"
        raise ConfigError(
            f"--organ is not given, and the label names of {cases.source} leave it open ({open_}): "
            f"give one of --organ {', '.join(ORGANS)}."
        )
    return found[0]


def _has_tumor_label(names: Mapping[str, int], organ: Organ) -> bool:
    from difftumor.errors import OrganError
    from difftumor.scans.organs import resolve_labels

    try:
        return bool(resolve_labels(names, organ).tumor)
    except OrganError:
        return False
