"""``difftumor evaluate-synthesis``: how alike synthetic and real tumors are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftumor.cli.options import accept_hu_option

if TYPE_CHECKING:
    from difftumor.scans.intensity import IntensityWindow

_CONVENTION = "Label convention, such as msd_liver; by default the list's own names."


def evaluate_synthesis(
    real: Annotated[
        Path, typer.Option(metavar="LIST", help="Scans with real tumors: a list with labels.", show_default=False)
    ],
    synthetic: Annotated[
        Path,
        typer.Option(
            metavar="LIST",
            help="Scans with synthetic tumors: a list with labels, or the --out of difftumor synthesize --cases.",
            show_default=False,
        ),
    ],
    organ: Annotated[str, typer.Option(help="Organ, such as liver.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK=PATH",
            help="Network for FID and kernel distance, with its weights: inception_v3, radimagenet_resnet50, "
            "medicalnet_resnet10, 18, 34 or 50, or autoencoder; repeatable. Nothing is downloaded.",
            show_default=False,
        ),
    ] = None,
    real_labels: Annotated[str | None, typer.Option(metavar="CONVENTION", help=_CONVENTION, show_default=False)] = None,
    synthetic_labels: Annotated[
        str | None, typer.Option(metavar="CONVENTION", help=_CONVENTION, show_default=False)
    ] = None,
    crop: Annotated[int, typer.Option(help="Side of the cube around a tumor, in voxels.", min=8)] = 64,
    spacing_mm: Annotated[str, typer.Option(help="Voxel size of the cubes: one number, or X,Y,Z.")] = "1",
    window_hu: Annotated[str, typer.Option(metavar="LOW,HIGH", help="HU window to clip to.")] = "-175,250",
    slices: Annotated[int, typer.Option(help="Slices per tumor and plane.", min=1)] = 5,
    minimum_voxels: Annotated[int, typer.Option(help="Ignore smaller components.", min=1)] = 8,
    repeats: Annotated[int, typer.Option(help="Random splits of the real patients into halves.", min=1)] = 20,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of the patients, for intervals.", min=20)] = 500,
    pictures: Annotated[int, typer.Option(metavar="N", help="Tumors per list to show.", min=1)] = 6,
    seed: Annotated[int, typer.Option(help="Seed of splits, resamples and pictures.")] = 0,
    accept_hu: Annotated[bool, accept_hu_option()] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
) -> None:
    """Measure how alike synthetic and real tumors are.

    Compares HU, contrast, edge, texture and size of the tumors of two lists and, with --features, what networks see of
    them (FID and kernel distance). Every distance comes with a scale: its value between halves of the real patients.
    Writes quality.json, quality.csv, quality.md, tumors.csv, pictures and report.html; docs/image_quality.md explains
    them.
    """
    from difftumor.cli.many import for_each_case
    from difftumor.datasets.cases import read_cases
    from difftumor.errors import CaseListError
    from difftumor.evaluation.realism.tumor_samples import CropSpec, with_real_patients
    from difftumor.files.results import check_results
    from difftumor.models.artifact import pick_device
    from difftumor.scans.organs import get_organ

    host = get_organ(organ)
    for source in (real, synthetic):
        read_cases(source)
    # Here, because it needs PyTorch: what is wrong above is reported at once.
    from difftumor.evaluation.realism.quality import QualitySettings
    from difftumor.evaluation.realism.report import REPORT_FILE, verdict
    from difftumor.evaluation.realism.run import (
        RESULT_FILES,
        RealismSettings,
        TumorSet,
        compare_sets,
        load_networks,
        read_tumor_list,
    )

    crops = CropSpec(
        size=crop, spacing_mm=_spacing(spacing_mm), window=_window(window_hu), minimum_voxels=minimum_voxels
    )
    quality_settings = QualitySettings(seed=seed, repeats=repeats, resamples=resamples)
    settings = RealismSettings(crops=crops, quality=quality_settings, slices=slices, pictures=pictures)
    check_results(out, RESULT_FILES, inputs=(real, synthetic), overwrite=overwrite)
    lists = {"real": read_tumor_list(real, host, convention=real_labels)}
    made = read_tumor_list(synthetic, host, convention=synthetic_labels)
    lists["synthetic"] = with_real_patients(made, lists["real"])
    networks = load_networks(features or (), crops, pick_device(device))
    sets = {side: TumorSet(side, cases, host, networks, settings, accept_hu) for side, cases in lists.items()}
    for side, tumors in sets.items():
        tumors.failed = for_each_case(f"Measuring {side} tumors", tumors.cases.cases, tumors.add)
        tumors.check()
    quality = compare_sets(sets, out)
    for text in quality.all_warnings:
        typer.echo(f"Warning: {text}", err=True)
    typer.echo(verdict(quality))
    typer.echo(f"Results are in {out}: open {REPORT_FILE}.")
    failed = [case for tumors in sets.values() for case in tumors.failed]
    if failed:
        raise CaseListError(
            f"{len(failed)} of the scans could not be measured ({', '.join(failed)}): fix or remove them; "
            f"the results in {out} cover the others."
        )


def _spacing(text: str) -> tuple[float, float, float]:
    from difftumor.cli.options import parse_numbers
    from difftumor.errors import ConfigError

    numbers = parse_numbers(text, float, option="--spacing-mm", counts=(1, 3))
    if not all(0 < number < 100 for number in numbers):
        raise ConfigError(f"--spacing-mm {text} is not a voxel size: give lengths above 0, in mm.")
    x, y, z = numbers * 3 if len(numbers) == 1 else numbers
    return x, y, z


def _window(text: str) -> IntensityWindow:
    from difftumor.cli.options import parse_numbers
    from difftumor.errors import ConfigError
    from difftumor.scans.intensity import IntensityWindow

    low, high = parse_numbers(text, float, option="--window-hu", counts=(2,))
    if not low < high:
        raise ConfigError(f"--window-hu {text} is empty: give the lower number first, such as -175,250.")
    return IntensityWindow(low, high)
