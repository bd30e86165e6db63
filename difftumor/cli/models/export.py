"""``difftumor export``: data sets and models for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftumor.cli.options import CONVENTIONS, accept_hu_option

if TYPE_CHECKING:
    from difftumor.scans.organs import Organ
    from difftumor.synthesis.scan.options import SynthesisOptions

COPIES = "Synthetic copies"
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export at OUT.")]

export = typer.Typer(no_args_is_help=True, help="Write data sets and models for nnU-Net and MONAI.")


@export.command("nnunet")
def nnunet(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Folder of the data set, such as nnUNet_raw/Dataset501_LiverTumor.",
            show_default=False,
        ),
    ],
    cases: Annotated[
        Path,
        typer.Option(
            metavar="LIST",
            help="Cases with labels: a dataset.json, a CSV, JSON or text list, or a folder.",
            show_default=False,
        ),
    ],
    organ: Annotated[str, typer.Option(help="Name of the organ.")] = "liver",
    convention: Annotated[
        str | None,
        typer.Option(
            help=f"What the numbers of the label maps mean: {CONVENTIONS}; by default as the list says.",
            show_default=False,
        ),
    ] = None,
    assume_healthy: Annotated[
        bool,
        typer.Option(
            "--assume-healthy",
            help="Treat cases as free of tumors if neither the list nor the label maps can show any.",
        ),
    ] = False,
    accept_hu: Annotated[bool, accept_hu_option()] = False,
    seed: Annotated[int, typer.Option(help="Seed of the folds and the synthetic tumors.")] = 0,
    overwrite: OverwriteOption = False,
    synthetic: Annotated[
        int,
        typer.Option(metavar="N", help="Copies of healthy cases with synthetic tumors.", min=0, rich_help_panel=COPIES),
    ] = 0,
    tumors: Annotated[
        Path | None,
        typer.Option(
            help="YAML file that describes the tumors, instead of the options below.",
            show_default=False,
            rich_help_panel=COPIES,
        ),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            help="diffusion or handcrafted; by default diffusion.", show_default=False, rich_help_panel=COPIES
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="training or reader; by default training.", show_default=False, rich_help_panel=COPIES),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="tiny, small, medium, large, early, late or mix; by default early.",
            show_default=False,
            rich_help_panel=COPIES,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(help="Tumors in each copy; by default 1.", min=1, show_default=False, rich_help_panel=COPIES),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Diffusion artifact; by default checkpoints/diffusion_ORGAN_early and _late.",
            show_default=False,
            rich_help_panel=COPIES,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda or cuda:N; by default auto.", show_default=False, rich_help_panel=COPIES),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes that make copies.", min=1, rich_help_panel=COPIES)] = 1,
) -> None:
    """Write cases as a raw data set of nnU-Net v2, with synthetic copies on request.

    OUT gets imagesTr, labelsTr (0 background, 1 organ, 2 tumor), dataset.json and splits_final.json: five folds by
    patient, or the one split that the list states. Synthetic copies are never used for validation, and for training
    only in folds that validate no scan of their patient; their records and pictures are in OUT/synthetic.
    """
    from dataclasses import replace

    from difftumor.cli.many import progress_bar
    from difftumor.datasets.cases import read_case_list
    from difftumor.errors import CaseListError, counted, first_few
    from difftumor.scans.organs import get_convention, get_organ

    chosen, listed = get_organ(organ), read_case_list(cases)
    short = {"generator": generator, "preset": preset, "size": size, "count": count}
    options = _options(synthetic, tumors, short, organ=chosen, seed=seed, model=model, device=device, jobs=jobs)
    if convention is not None:
        listed = replace(listed, label_names=get_convention(convention))
    # Here, because it needs PyTorch: what is wrong above is reported at once.
    from difftumor.exchange.nnunet import SPLITS_FILE, check_dataset_name, export_dataset

    number = check_dataset_name(out)
    written = export_dataset(
        out, listed, chosen, synthesis=options, copies=synthetic, assume_healthy=assume_healthy, accept_hu=accept_hu,
        seed=seed, jobs=jobs, overwrite=overwrite, progress=progress_bar,
    )  # fmt: skip
    for warning in written.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    for copy, error in written.failed.items():
        typer.echo(f"Left out {copy}: {error}", err=True)
    typer.echo(f"{counted(written.cases, 'case')}, {counted(written.copies, 'synthetic copy')}: {out}")
    typer.echo(
        f"Next: nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity; it copies {SPLITS_FILE} to "
        f"nnUNet_preprocessed/{out.name}. Remove an older one there first."
    )
    if written.failed:
        names = first_few(list(written.failed))
        raise CaseListError(
            f"{len(written.failed)} of {synthetic} synthetic copies could not be made ({names}): "
            f"{out} holds the others; fix their scans, or remove them from the list."
        )


@export.command("bundle")
def bundle(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Segmenter artifact.", show_default=False)],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to make; must be new or empty.", show_default=False)
    ],
    authors: Annotated[str, typer.Option(help="Who made the model.")] = "not stated",
    copyright_: Annotated[str, typer.Option("--copyright", help="Who owns the model.")] = "not stated",
    overwrite: OverwriteOption = False,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Accept a model whose training has not finished.")
    ] = False,
) -> None:
    """Write a segmenter as a MONAI bundle, which runs without difftumor.

    OUT gets configs/metadata.json, configs/inference.json, models/model.pt, and docs/README.md, which says how to use
    it.
    """
    from difftumor.models.artifact import load_artifact
    from difftumor.models.artifact_config import read_config

    read_config(artifact)
    # Here, because it needs PyTorch: what is wrong above is reported at once.
    from difftumor.exchange.bundle import Rights, write_bundle

    loaded = load_artifact(artifact, kind="segmenter", allow_incomplete=allow_incomplete)
    write_bundle(loaded, out, rights=Rights(authors, copyright_), overwrite=overwrite)
    typer.echo(f"The MONAI bundle is in {out}; {out / 'docs' / 'README.md'} says how to run it.")


def _options(
    copies: int,
    tumors: Path | None,
    short: dict[str, Any],
    *,
    organ: Organ,
    seed: int,
    model: Path | None,
    device: str | None,
    jobs: int,
) -> SynthesisOptions | None:
    """Return how synthetic tumors are made; None without ``--synthetic``."""
    from difftumor.errors import ConfigError
    from difftumor.synthesis.scan.options import SynthesisOptions, plan_tumors, refuse

    if not copies:
        others = {"tumors": tumors, "model": model, "device": device, "jobs": jobs if jobs > 1 else None}
        refuse({**short, **others}, beside="a data set without --synthetic")
        return None
    plan = plan_tumors(tumors, **short)
    if any(spec.generator == "copy_paste" for spec in plan.tumors):
        # Copies of a patient's tumors would be in folds that validate the patient.
        raise ConfigError("Copies with generator copy_paste would mix patients of all folds: give another generator.")
    return SynthesisOptions(organ=organ.name, tumors=plan.tumors, seed=seed, model=model, device=device or "auto")
