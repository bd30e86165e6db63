"""``difftumor evaluate-autoencoder``: the test card of an autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from difftumor.datasets.cases import CaseList
    from difftumor.evaluation.autoencoder.card import ScanCard
    from difftumor.models.artifact import Artifact


def evaluate_autoencoder(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Autoencoder artifact.", show_default=False)],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A CT (.nii.gz or .nii), a folder of them, or a list such as dataset.json; organs and tumors are "
            "judged one by one where it names labels.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the card.", show_default=False)],
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="CONVENTION",
            help="What the numbers of the label maps mean, such as totalsegmentator; by default as the list says.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Change a threshold, such as psnr_db=30; repeatable."),
    ] = None,
    pictures: Annotated[int, typer.Option(metavar="N", help="Scans that the report shows.", min=0)] = 8,
    overlap: Annotated[float, typer.Option(help="Part of a window that its neighbor shares.")] = 0.25,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    windows_per_batch: Annotated[
        int | None,
        typer.Option(
            help="Windows reconstructed together; by default as many as hold 96³ voxels, up to 8.",
            min=1,
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where the verdict is no.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier card in the folder.")] = False,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Also judge an autoencoder whose training has not finished.")
    ] = False,
) -> None:
    """Judge whether an autoencoder is good enough for stage 2.

    Reconstructs whole scans and measures errors in HU, similarity, sharpness and noise, over all and inside every
    organ and tumor. Writes card.json, cases.csv and report.html; docs/autoencoder.md tells how to read them.
    """
    from difftumor.cli.options import read_case_list
    from difftumor.errors import CaseListError
    from difftumor.evaluation.autoencoder.card import CARD_FILE, CASES_FILE, Card, card_record, write_card
    from difftumor.evaluation.autoencoder.reconstruction import windows_together
    from difftumor.evaluation.autoencoder.report import REPORT_FILE, card_report
    from difftumor.evaluation.autoencoder.verdict import Thresholds
    from difftumor.files import check_results, folder_written_whole
    from difftumor.models.artifact import load_artifact, pick_device
    from difftumor.scans.organs import get_convention

    thresholds = Thresholds().changed(threshold or ())
    case_list = read_case_list(data)
    inputs = [data, *(file for case in case_list.cases for file in (case.image, case.labels) if file is not None)]
    check_results(out, (CARD_FILE, CASES_FILE, REPORT_FILE), inputs=inputs, overwrite=overwrite)
    label_names = case_list.label_names if labels is None else get_convention(labels)
    where = pick_device(device)
    autoencoder = load_artifact(artifact, kind="autoencoder", device=where, allow_incomplete=allow_incomplete)
    windows_per_batch = windows_per_batch or windows_together(autoencoder.config.preprocessing["crop"])
    settings = {"labels": labels, "overlap": overlap, "windows_per_batch": windows_per_batch}
    scans, drawn, failed = _measure(
        autoencoder, case_list, label_names, pictures, overlap=overlap, windows_per_batch=windows_per_batch
    )
    if not scans:
        raise CaseListError(f"None of the scans of {data} could be measured: mend or remove them.")
    card = Card.of(scans, thresholds, failed)
    record = card_record(card, autoencoder, case_list, {**settings, "device": str(where)})
    with folder_written_whole(out, keep_others=True) as staging:
        write_card(staging, card, record)
        card_report(card, record, drawn).write(staging / REPORT_FILE)
    typer.echo(card.verdict.sentence)
    typer.echo(f"The card is in {out}: open {REPORT_FILE}.")
    if failed:
        raise CaseListError(
            f"{len(failed)} of {len(case_list.cases)} scans could not be measured ({', '.join(failed)}): "
            f"mend or remove them; the card in {out} is of the others."
        )
    if strict and not card.verdict.good_enough:
        raise typer.Exit(1)


def _measure(
    artifact: Artifact,
    case_list: CaseList,
    label_names: Mapping[str, int],
    pictures: int,
    *,
    overlap: float,
    windows_per_batch: int,
) -> tuple[list[ScanCard], dict[str, bytes], dict[str, str]]:
    """Measure all scans that can be measured, draw the first, and name the others."""
    from difftumor.cli.many import progress_bar
    from difftumor.errors import ConfigError, DiffTumorError
    from difftumor.evaluation.autoencoder.card import measure_case
    from difftumor.evaluation.autoencoder.report import draw_case

    scans: list[ScanCard] = []
    drawn: dict[str, bytes] = {}
    failed: dict[str, str] = {}
    with progress_bar("Reconstructing", len(case_list.cases)) as advance:
        for case in case_list.cases:
            try:
                measured = measure_case(
                    case, artifact, label_names=label_names, overlap=overlap, windows_per_batch=windows_per_batch
                )
            except ConfigError:  # wrong for all scans
                raise
            except (DiffTumorError, OSError) as error:
                failed[case.id] = str(error)
                typer.echo(f"Left out {case.id}: {error}", err=True)
            else:
                scans.append(measured.card)
                if len(drawn) < pictures:
                    drawn[case.id] = draw_case(measured)
                found = measured.card.fidelity
                typer.echo(f"{case.id}: PSNR {found.psnr_db:.1f} dB, mean absolute error {found.mae_hu:.1f} HU")
            advance()
    return scans, drawn, failed
