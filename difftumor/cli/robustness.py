"""``difftumor robustness``: how well a segmenter finds tumors that differ in one respect at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from difftumor.cli.matching import Rule, iou_option, read_matching, rule_option

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
    organ: Annotated[str, typer.Option(help="liver, pancreas or kidney.", show_default=False, rich_help_panel=SCANS)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False, rich_help_panel=RESULTS)],
    organ_mask: Annotated[
        Path | None,
        typer.Option(
            help="Folder of organ masks with the names of the CTs, where the list names no labels.",
            show_default=False,
            rich_help_panel=SCANS,
        ),
    ] = None,
    organ_label: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N]", help="The organ's numbers in the label maps.", show_default=False, rich_help_panel=SCANS
        ),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            help="What the numbers of the label maps mean, such as totalsegmentator; by default as the list says.",
            show_default=False,
            rich_help_panel=SCANS,
        ),
    ] = None,
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
            help="Vary these alone: shape, size, texture, intensity, location; by default all.",
            show_default=False,
            rich_help_panel=TUMORS,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Tumors of each scan that are varied, one at a time.", min=1, rich_help_panel=TUMORS)
    ] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same tumors.", rich_help_panel=TUMORS)] = 0,
    tolerance_mm: Annotated[
        float, typer.Option(help="Tolerance of the normalized surface distance.", min=0.0, rich_help_panel=RESULTS)
    ] = 2.0,
    matching: Annotated[Rule, rule_option(RESULTS)] = "overlap",
    minimum_iou: Annotated[float | None, iou_option(RESULTS)] = None,
    overlap: Annotated[
        float, typer.Option(help="Part of a window that its neighbor shares.", rich_help_panel=MODEL)
    ] = 0.75,
    organ_filter: Annotated[
        Literal["predicted", "none"],
        typer.Option(help="Drop tumor outside of the predicted organ, or nothing.", rich_help_panel=MODEL),
    ] = "none",
    min_volume_mm3: Annotated[
        float, typer.Option(help="Drop smaller tumors from predictions.", min=0.0, rich_help_panel=MODEL)
    ] = 0.0,
    organ_only: Annotated[
        bool,
        typer.Option(
            "--organ-only",
            help="Predict the organ and a window around it, not the whole scan: faster, but windows lie elsewhere than "
            "in difftumor predict.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    memory_gib: Annotated[
        float,
        typer.Option(
            help="Memory for what windows gave without a tumor: then only windows that see a tumor are computed.",
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
            "--allow-incomplete", help="Also use a model whose training has not finished.", rich_help_panel=MODEL
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
            help="Write into heatmaps what levels are in mm, HU or the like.",
            rich_help_panel=RESULTS,
        ),
    ] = True,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Do scans anew that are in the folder, and replace results of another request.",
            rich_help_panel=RESULTS,
        ),
    ] = False,
) -> None:
    """Measure a segmenter on tumors that differ in one respect at a time.

    Makes hand-crafted tumors in healthy scans, whose shape, size, texture, intensity and location are at μ, μ ± σ,
    μ ± 2σ and μ ± 3σ while everything else stays as it is (Hu et al. 2023, section 5.5). Writes
    [bold]report.html[/bold], heatmaps, cells.csv, tumors.csv, robustness.json and robustness.md; a record of every
    tumor, for [bold]difftumor synthesize --replay[/bold]; and scans with the worst tumors. The same command goes on
    where it stopped.
    """
    from difftumor.artifacts import load_artifact
    from difftumor.cli.robustness_run import check_inputs, check_organs, run_benchmark, scans_of
    from difftumor.cli.synthesis_options import Files
    from difftumor.devices import pick_device
    from difftumor.files import check_folder
    from difftumor.inference import PredictionOptions
    from difftumor.organs import get_organ
    from difftumor.prediction.labels import LabelPredictor, seen_around_mm
    from difftumor.robustness.dimensions import DEFAULTS, read_dimensions
    from difftumor.robustness.scan_run import Benchmark
    from difftumor.synthesis.loading import load_synthesizer

    host = get_organ(organ)
    found_by = read_matching(matching, minimum_iou)
    chosen = read_dimensions(dimensions, _names(only, list(DEFAULTS)))
    options = PredictionOptions(overlap=overlap, organ_filter=organ_filter, min_volume_mm3=min_volume_mm3)
    check_folder(out, option="--out")
    files = Files(None, organ_mask, None, organ_label, convention, None)
    ready, unusable = scans_of(cases, host.name, organ_mask, files.numbers(), convention)
    check_inputs(out, [cases, *model], ready)
    on = pick_device(device)
    artifacts = [load_artifact(m, kind="segmenter", device=on, allow_incomplete=allow_incomplete) for m in model]
    check_organs(model, [artifact.config.organ for artifact in artifacts], host.name)
    about = {
        "models": [artifact.config.identity for artifact in artifacts],
        "overlap": overlap,
        "organ_filter": organ_filter,
        "min_volume_mm3": min_volume_mm3,
    }
    benchmark = Benchmark(
        synthesizer=load_synthesizer(None, organ=host),
        predict=LabelPredictor(
            artifacts, options, windows_per_batch=windows_per_batch, memory_bytes=int(memory_gib * 2**30)
        ),
        dimensions=chosen,
        seed=seed,
        repeats=repeats,
        margin_mm=seen_around_mm(artifacts) if organ_only else None,
        tolerance_mm=tolerance_mm,
        matching=found_by,
        about=about,
    )
    settings = {
        "model": [str(m) for m in model],
        "cases": str(cases),
        "device": str(on),
        "repeats": repeats,
        "seed": seed,
    }
    settings |= {"tolerance_mm": tolerance_mm, "matching": str(found_by), **about, "margin_mm": benchmark.margin_mm}
    run_benchmark(benchmark, ready, unusable, out, settings, worst=worst, values=values, overwrite=overwrite)


def _names(text: str | None, known: Sequence[str]) -> tuple[str, ...]:
    from difftumor.cli.options import parse_names

    return () if text is None else parse_names(text, option="--only", known=known)
