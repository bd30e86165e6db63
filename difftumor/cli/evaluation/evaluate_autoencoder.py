"""``difftumor evaluate-autoencoder``: the test card of an autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from difftumor.cli.options import accept_hu_option


def evaluate_autoencoder(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Autoencoder artifact.", show_default=False)],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A CT (.nii.gz or .nii), a folder of them, or a list such as dataset.json; with labels, every organ "
            "and tumor is judged too.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the card.", show_default=False)],
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="CONVENTION",
            help="Label convention, such as totalsegmentator; by default the list's own names.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Change a threshold, such as psnr_db=30; repeatable."),
    ] = None,
    pictures: Annotated[int, typer.Option(metavar="N", help="Scans to show in the report.", min=0)] = 8,
    overlap: Annotated[float, typer.Option(help="Overlap of neighboring windows, 0 to below 1.")] = 0.25,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    windows_per_batch: Annotated[
        int | None,
        typer.Option(
            help="Windows per batch; by default as many as hold 96³ voxels, up to 8.",
            min=1,
            show_default=False,
        ),
    ] = None,
    accept_hu: Annotated[bool, accept_hu_option()] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 if the verdict is no.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier card.")] = False,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Also accept an autoencoder whose training has not finished.")
    ] = False,
) -> None:
    """Judge whether an autoencoder is good enough for stage 2.

    Reconstructs whole scans and measures errors in HU, similarity, sharpness and noise, overall and inside every organ
    and tumor. Writes card.json, cases.csv and report.html; docs/autoencoder.md explains them.
    """
    from difftumor.cli.many import for_each_case
    from difftumor.datasets.cases import read_case_list
    from difftumor.errors import CaseListError
    from difftumor.files.results import check_results
    from difftumor.models.artifact import load_artifact, pick_device
    from difftumor.models.artifact_config import read_config
    from difftumor.scans.organs import get_convention

    cases = read_case_list(data)
    label_names = cases.label_names if labels is None else get_convention(labels)
    read_config(artifact)
    # Here, because these need PyTorch: what is wrong above is said at once.
    from difftumor.evaluation.autoencoder.report import REPORT_FILE
    from difftumor.evaluation.autoencoder.run import RESULT_FILES, CardRun
    from difftumor.evaluation.autoencoder.verdict import Thresholds

    thresholds = Thresholds().changed(threshold or ())
    inputs = [data, *(file for case in cases.cases for file in (case.image, case.labels) if file is not None)]
    check_results(out, RESULT_FILES, inputs=inputs, overwrite=overwrite)
    on = pick_device(device)
    autoencoder = load_artifact(artifact, kind="autoencoder", device=on, allow_incomplete=allow_incomplete)
    run = CardRun(
        artifact=autoencoder, cases=cases, label_names=label_names, pictures=pictures, overlap=overlap,
        windows_per_batch=windows_per_batch, accept_hu=accept_hu,
    )  # fmt: skip
    failed = for_each_case("Reconstructing", cases.cases, run.add)
    card = run.write(out, thresholds, labels=labels, device=str(on), failed=failed)
    typer.echo(card.verdict.sentence)
    typer.echo(f"The card is in {out}: open {REPORT_FILE}.")
    if failed:
        raise CaseListError(
            f"{len(failed)} of {len(cases.cases)} scans could not be measured ({', '.join(failed)}): "
            f"fix or remove them; the card in {out} covers the others."
        )
    if strict and not card.verdict.good_enough:
        raise typer.Exit(1)
