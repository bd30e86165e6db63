"""``difftumor robustness``: how well a segmenter finds tumors that vary in one property at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from difftumor.cli.options import (
    Rule,
    accept_hu_option,
    iou_option,
    parse_names,
    parse_organ_labels,
    read_matching,
    rule_option,
)

TUMORS, SCANS, MODEL, RESULTS = "Which tumors", "Scans and organ", "Segmenter", "Results"


def robustness(
    model: Annotated[
        list[Path],
        typer.Option(
            help="Segmenter artifact; give several, such as folds, to average their probabilities.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ],
    cases: Annotated[
        Path,
        typer.Option(
            help="Healthy scans with labels of the organ: a folder, a dataset.json, or a CSV or JSON list. Scans with "
            "tumors in the organ are left out.",
            show_default=False,
            rich_help_panel=SCANS,
        ),
    ],
    organ: Annotated[str, typer.Option(help="Name of the organ.", show_default=False, rich_help_panel=SCANS)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False, rich_help_panel=RESULTS)],
    organ_mask: Annotated[
        Path | None,
        typer.Option(
            help="Folder of organ masks named like the CTs, if the list has no labels.",
            show_default=False,
            rich_help_panel=SCANS,
        ),
    ] = None,
    organ_label: Annotated[
        str | None,
        typer.Option(metavar="N[,N]", help="Label numbers of the organ.", show_default=False, rich_help_panel=SCANS),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            help="Label convention, such as totalsegmentator; by default the list's own names.",
            show_default=False,
            rich_help_panel=SCANS,
        ),
    ] = None,
    accept_hu: Annotated[bool, accept_hu_option(SCANS)] = False,
    dimensions: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with other means, standard deviations and limits, such as 'size: {mean: 15, factor: 1.3}'.",
            show_default=False,
            rich_help_panel=TUMORS,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Vary only these: shape, size, texture, intensity, location (default: all).",
            show_default=False,
            rich_help_panel=TUMORS,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Tumors per scan, each varied in every way.", min=1, rich_help_panel=TUMORS)
    ] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same tumors.", rich_help_panel=TUMORS)] = 0,
    tolerance_mm: Annotated[
        float, typer.Option(help="Tolerance of the normalized surface distance.", min=0.0, rich_help_panel=RESULTS)
    ] = 2.0,
    matching: Annotated[Rule, rule_option(RESULTS)] = "overlap",
    minimum_iou: Annotated[float | None, iou_option(RESULTS)] = None,
    overlap: Annotated[
        float, typer.Option(help="Overlap of neighboring windows, 0 to below 1.", rich_help_panel=MODEL)
    ] = 0.75,
    organ_filter: Annotated[
        Literal["predicted", "none"],
        typer.Option(help="Drop tumor outside the predicted organ, or keep all.", rich_help_panel=MODEL),
    ] = "none",
    min_volume_mm3: Annotated[
        float, typer.Option(help="Drop smaller tumors from predictions.", min=0.0, rich_help_panel=MODEL)
    ] = 0.0,
    organ_only: Annotated[
        bool,
        typer.Option(
            "--organ-only",
            help="Predict only the organ and one window around it: faster, but with other window positions than in "
            "difftumor predict.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    memory_gib: Annotated[
        float,
        typer.Option(
            help="Memory to remember each window's prediction without a tumor, so that only windows with a tumor are "
            "computed again.",
            min=0.0,
            rich_help_panel=MODEL,
        ),
    ] = 4.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MODEL)] = "auto",
    windows_per_batch: Annotated[
        int, typer.Option(help="Windows predicted together.", min=1, rich_help_panel=MODEL)
    ] = 1,
    allow_incomplete: Annotated[
        bool,
        typer.Option(
            "--allow-incomplete", help="Also accept a model whose training has not finished.", rich_help_panel=MODEL
        ),
    ] = False,
    worst: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Write the scans of the N worst tumors to the folder worst, for stage 3 to train on, and show them.",
            min=0,
            rich_help_panel=RESULTS,
        ),
    ] = 6,
    values: Annotated[
        bool,
        typer.Option(
            "--values/--no-values",
            help="Show the value of each level (mm, HU, …) in heatmaps.",
            rich_help_panel=RESULTS,
        ),
    ] = True,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Rerun finished scans, and replace results of other settings.",
            rich_help_panel=RESULTS,
        ),
    ] = False,
) -> None:
    """Measure a segmenter on tumors that vary in one property at a time.

    Inserts hand-crafted tumors into healthy scans, with shape, size, texture, intensity and location at μ, μ ± σ,
    μ ± 2σ and μ ± 3σ while everything else stays the same (Hu et al. 2023, section 5.5). Writes
    [bold]report.html[/bold], heatmaps, cells.csv, tumors.csv, robustness.json and robustness.md; a record of every
    tumor, for [bold]difftumor synthesize --replay[/bold]; and scans with the worst tumors. Rerunning the command
    resumes it.
    """
    from difftumor.cli.many import check_outputs, progress_bar, summarized
    from difftumor.datasets.label_folders import listed_cases
    from difftumor.errors import CaseListError
    from difftumor.evaluation.robustness.dimensions import DEFAULTS, read_dimensions
    from difftumor.files.results import check_folder
    from difftumor.models.artifact import pick_device
    from difftumor.models.artifact_config import read_config
    from difftumor.scans.organs import get_organ
    from difftumor.segmentation.options import PredictionOptions
    from difftumor.synthesis.scan.options import ScanOptions

    host = get_organ(organ)
    found_by = read_matching(matching, minimum_iou)
    names = () if only is None else parse_names(only, option="--only", known=list(DEFAULTS))
    chosen = read_dimensions(dimensions, names)
    prediction = PredictionOptions(overlap=overlap, organ_filter=organ_filter, min_volume_mm3=min_volume_mm3)
    check_folder(out, option="--out")
    files = ScanOptions(organ_mask=organ_mask, organ_labels=parse_organ_labels(organ_label), convention=convention)
    listed = listed_cases(cases, files.mask, convention)
    for artifact in model:
        read_config(artifact)
    # Here, because it needs PyTorch: what is wrong above is reported at once.
    from difftumor.evaluation.robustness import run
    from difftumor.evaluation.robustness.scoring import SUMMARY_COLUMNS, ScanResult

    scans, unusable = run.usable_scans(
        listed, host, organ_labels=files.organ_labels, mask=organ_mask is not None, accept_hu=accept_hu
    )
    inputs = [cases, *model, *(path for scan in scans for paths in scan.inputs.files.values() for path in paths)]
    check_outputs(run.result_names(scans), inputs, out)
    on = pick_device(device)
    benchmark = run.load_benchmark(
        model, host, prediction, device=on, windows_per_batch=windows_per_batch,
        memory_bytes=int(memory_gib * 2**30), organ_only=organ_only, allow_incomplete=allow_incomplete,
        dimensions=chosen, seed=seed, repeats=repeats, tolerance_mm=tolerance_mm, matching=found_by,
    )  # fmt: skip
    settings = {"model": [str(m) for m in model], "cases": str(cases), "device": str(on)}
    order = [*(result.case for result in unusable), *(scan.case for scan in scans)]
    with (
        summarized(out, SUMMARY_COLUMNS, order, overwrite=overwrite) as rows,
        progress_bar("Scans", len(scans)) as advance,
    ):
        rows += [result.summary for result in unusable]

        def done(result: ScanResult) -> None:
            rows.append(result.summary)
            typer.echo(result.sentence, err=result.status == "failed")
            advance()

        results = run.run_benchmark(
            benchmark, scans, unusable, out, settings=settings, worst=worst, values=values, overwrite=overwrite,
            done=done,
        )  # fmt: skip
        if results.rows:
            typer.echo("\n".join([*results.sentences, f"Results are in {out}: open report.html."]))
    if not results.rows:
        raise CaseListError(f"No tumor was made in any scan: see {out / 'summary.csv'}.")
