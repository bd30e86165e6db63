"""``difftumor phantom``: a cohort of synthetic scans."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from difftumor.cli.options import parse_names, parse_numbers
from difftumor.errors import counted

T = TypeVar("T")


def phantom(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", show_default=False, help="Folder to make; must be new or empty.")
    ],
    cases: Annotated[int, typer.Option(metavar="N", help="Number of cases.")] = 8,
    organs: Annotated[
        str, typer.Option(metavar="NAMES", help="Organs that get tumors, with commas: liver, pancreas, kidney.")
    ] = "liver,pancreas,kidney",
    seed: Annotated[int, typer.Option(metavar="N", help="Case i depends on the seed and i alone.")] = 0,
    shape: Annotated[
        str, typer.Option(metavar="X,Y,Z", help="Voxels to the right, forward and up; one number for all three.")
    ] = "128,128,128",
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="MM", show_default="320 mm / shape", help="Voxel size in mm: one number, or three with commas."
        ),
    ] = None,
    healthy: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of cases without tumors, 0 to 1, spread evenly.")
    ] = 0.25,
    tumor_radius: Annotated[
        str,
        typer.Option(metavar="MM,MM", help="Smallest and largest tumor radius; small ones are more frequent."),
    ] = "4,20",
    late_tumors: Annotated[
        Literal["alike", "distinct"],
        typer.Option(help="Whether tumors of 2 cm and more look alike in all organs, as smaller ones do."),
    ] = "alike",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older phantom cohort at OUT.")] = False,
) -> None:
    """Write a cohort of synthetic abdominal CT scans with tumors.

    OUT gets [bold]imagesTr/[/bold], [bold]labelsTr/[/bold] and a [bold]dataset.json[/bold] as in the Medical
    Segmentation Decathlon, in which each case also states its patient, the organs that hold tumors, and the tumors.
    CT in HU, axes to the right, forward and up. Labels: 1 liver, 2 pancreas, 3 right and 4 left kidney, 5 spleen, and
    6, 7, 8 the tumors of liver, pancreas, kidney.

    Example: difftumor phantom data/phantom --cases 8 --organs liver,kidney --shape 96 --seed 1
    """
    from difftumor.cli.many import progress_bar
    from difftumor.datasets.phantom import TUMOR_ORGANS, PhantomConfig, write_cohort

    voxel = () if spacing is None else parse_numbers(spacing, float, option="--spacing", counts=(1, 3))
    config = PhantomConfig(
        shape=_three(parse_numbers(shape, int, option="--shape", counts=(1, 3))),
        spacing_mm=_three(voxel) if voxel else None,
        healthy=healthy,
        late_tumors=late_tumors,
        tumor_radius_mm=_two(parse_numbers(tumor_radius, float, option="--tumor-radius", counts=(1, 2))),
    )
    names = parse_names(organs, option="--organs", known=tuple(TUMOR_ORGANS))
    with progress_bar("Making phantoms", cases) as advance:
        path = write_cohort(
            out, cases=cases, organs=names, seed=seed, config=config, overwrite=overwrite, advance=advance
        )
    typer.echo(f"Wrote {counted(cases, 'case')}: {path}")


def _three(numbers: tuple[T, ...]) -> tuple[T, T, T]:
    x, y, z = numbers if len(numbers) == 3 else numbers * 3
    return x, y, z


def _two(numbers: tuple[float, ...]) -> tuple[float, float]:
    return numbers[0], numbers[-1]
