"""``difftumor export``: data sets and models for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from difftumor.datasets.cases import CaseList
    from difftumor.datasets.tumor_cases import SortedCases
    from difftumor.exchange.nnunet import Entry
    from difftumor.scans.organs import Organ
    from difftumor.synthesis.scan.setup import SynthesisOptions

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
    organ: Annotated[str, typer.Option(help="liver, pancreas or kidney.")] = "liver",
    convention: Annotated[
        str | None,
        typer.Option(
            help="What the numbers of the label maps mean: totalsegmentator, universal_model, msd_liver, msd_pancreas, "
            "lits, kits; by default as the list says.",
            show_default=False,
        ),
    ] = None,
    assume_healthy: Annotated[
        bool,
        typer.Option(
            "--assume-healthy",
            help="Take cases for free of tumors where neither the list says so nor the label maps could show any.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the folds and of the synthetic tumors.")] = 0,
    overwrite: OverwriteOption = False,
    synthetic: Annotated[
        int,
        typer.Option(metavar="N", help="Copies of healthy cases with synthetic tumors.", min=0, rich_help_panel=COPIES),
    ] = 0,
    tumors: Annotated[
        Path | None,
        typer.Option(
            help="YAML file that says which tumors, in place of the options below.",
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
    """Write cases as a raw data set of nnU-Net v2, with synthetic tumors where asked.

    OUT gets imagesTr, labelsTr (0 background, 1 organ, 2 tumor), dataset.json and splits_final.json: five folds by
    patient, or the one split that the list states. Synthetic copies never validate, and train only where no scan of
    their patient validates; their records and pictures are in OUT/synthetic.
    """
    from dataclasses import replace

    from difftumor.cli.options import read_case_list
    from difftumor.exchange.nnunet import DATASET_FOLDER, SPLITS_FILE, check_dataset_name, plan_entries
    from difftumor.exchange.nnunet import write_descriptions as describe
    from difftumor.files import folder_written_whole
    from difftumor.scans.organs import get_convention, get_organ

    number, chosen, listed = check_dataset_name(out), get_organ(organ), read_case_list(cases)
    short = {"generator": generator, "preset": preset, "size": size, "count": count}
    options = _options(synthetic, tumors, short, organ=chosen, seed=seed, model=model, device=device, jobs=jobs)
    if convention is not None:
        listed = replace(listed, label_names=get_convention(convention))
    given = [file for case in listed.cases for file in (case.image, case.labels) if file is not None]
    DATASET_FOLDER.check(out, option="OUT", inputs=(cases, *given), overwrite=overwrite)
    found = _sorted(listed, chosen, assume_healthy=assume_healthy)
    real, copies = plan_entries(listed, found, copies=synthetic, organ=chosen, seed=seed)
    with folder_written_whole(out) as staging:
        _write_cases(listed, chosen, staging)
        failed = _write_copies(options, copies, listed, chosen, staging, jobs=jobs)
        made = [copy for copy in copies if copy.case.id not in failed]
        describe(staging, out.name, [*real, *made], listed, chosen, seed=seed)
    typer.echo(f"{len(real)} cases, {len(made)} synthetic cop{'y' if len(made) == 1 else 'ies'}: {out}")
    typer.echo(
        f"Next: nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity; it copies {SPLITS_FILE} to "
        f"nnUNet_preprocessed/{out.name}, where an older one must be removed first."
    )
    if failed:
        _refuse_failed(failed, len(copies), out)


@export.command("bundle")
def bundle(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Segmenter artifact.", show_default=False)],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to make; must be new or empty.", show_default=False)
    ],
    authors: Annotated[str, typer.Option(help="Who made the model.")] = "not stated",
    copyright_: Annotated[str, typer.Option("--copyright", help="Whose the model is.")] = "not stated",
    overwrite: OverwriteOption = False,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Also use a model whose training has not finished.")
    ] = False,
) -> None:
    """Write a segmenter as a MONAI bundle, which runs without difftumor.

    OUT gets configs/metadata.json, configs/inference.json, models/model.pt, and docs/README.md, which says how to use
    it.
    """
    from difftumor.exchange.bundle import Rights, write_bundle
    from difftumor.models.artifact import load_artifact

    loaded = load_artifact(artifact, kind="segmenter", allow_incomplete=allow_incomplete)
    write_bundle(loaded, out, rights=Rights(authors, copyright_), overwrite=overwrite)
    typer.echo(f"The MONAI bundle is in {out}; {out / 'docs' / 'README.md'} says how to run it.")


def _refuse_failed(failed: list[str], copies: int, out: Path) -> None:
    from difftumor.errors import CaseListError, first_few

    raise CaseListError(
        f"{len(failed)} of {copies} synthetic copies could not be made ({first_few(failed)}): {out} holds the others; "
        "mend their scans, or leave them out of the list."
    )


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
    """Return what makes the synthetic tumors; None where none are wanted."""
    from difftumor.synthesis.scan.setup import SynthesisOptions, plan_tumors, refuse

    if not copies:
        others = {"tumors": tumors, "model": model, "device": device, "jobs": jobs if jobs > 1 else None}
        refuse({**short, **others}, beside="a data set without --synthetic")
        return None
    plan = plan_tumors(tumors, **short)
    return SynthesisOptions(organ=organ.name, tumors=plan.tumors, seed=seed, model=model, device=device or "auto")


def _sorted(listed: CaseList, organ: Organ, *, assume_healthy: bool) -> SortedCases:
    """Sort the cases by whether they have tumors, and refuse a list with cases that cannot be used."""
    from difftumor.cli.many import progress_bar
    from difftumor.datasets.tumor_cases import sort_cases
    from difftumor.errors import CaseListError

    with progress_bar("Reading labels", len(listed.cases)) as advance:
        found = sort_cases(listed, organ, assume_healthy=assume_healthy, done=advance)
    if found.left_out:
        first, more = found.left_out[0], len(found.left_out) - 1
        raise CaseListError(
            f"Case {first.case.id!r} of {listed.source} {first.reason}{f' (and {more} more such)' * (more > 0)}: "
            "remove it from the list, mend its labels, or see --convention and --assume-healthy."
        )
    return found


def _write_cases(listed: CaseList, organ: Organ, folder: Path) -> None:
    from difftumor.cli.many import progress_bar
    from difftumor.exchange.nnunet import write_case

    with progress_bar("Writing cases", len(listed.cases)) as advance:
        for case in listed.cases:
            write_case(case, listed, organ, folder)
            advance()


def _write_copies(
    options: SynthesisOptions | None,
    copies: tuple[Entry, ...],
    listed: CaseList,
    organ: Organ,
    folder: Path,
    *,
    jobs: int,
) -> list[str]:
    """Make the synthetic copies, say what became of those that failed, and return their ids."""
    from difftumor.cli.many import progress_bar
    from difftumor.exchange.nnunet import write_copies

    failed = []
    if options is not None:
        with progress_bar("Making tumors", len(copies)) as advance:
            for outcome in write_copies(options.load, copies, listed, organ, folder, jobs=jobs):
                if outcome.status == "failed":
                    failed.append(outcome.id)
                    typer.echo(f"Left out {outcome.id}: {outcome.error}", err=True)
                advance()
    return failed
