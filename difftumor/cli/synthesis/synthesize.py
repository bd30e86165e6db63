"""``difftumor synthesize``: tumors in a CT, or in many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftumor.cli.synthesis.options import Files, refuse, specs_of
from difftumor.errors import ConfigError

if TYPE_CHECKING:
    from difftumor.synthesis.scan.files import ScanReport
    from difftumor.synthesis.scan.setup import Setup

BY_MODEL = "by default as the model says."
WHICH, WHERE, MAKING, MANY = "Which tumors", "Scan and organ", "How they are made", "Results"


def synthesize(
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False, rich_help_panel=MANY)],
    ct: Annotated[
        Path | None, typer.Option(help="CT in HU (.nii.gz or .nii).", show_default=False, rich_help_panel=WHERE)
    ] = None,
    organ_mask: Annotated[
        Path | None, typer.Option(help="Mask of the organ on the CT's grid.", show_default=False, rich_help_panel=WHERE)
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a mask: a label map on the CT's grid, with --organ-label or --convention.",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    organ_label: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N]", help="The organ's numbers in the label map.", show_default=False, rich_help_panel=WHERE
        ),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            help="What the numbers of the label map mean: totalsegmentator, universal_model, msd_liver, msd_pancreas, "
            "lits, kits.",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    organ: Annotated[
        str | None, typer.Option(help="liver, pancreas or kidney.", show_default=False, rich_help_panel=WHERE)
    ] = None,
    segments: Annotated[
        Path | None,
        typer.Option(
            help="Label map of the organ's segments, for tumors with location: {segment: N}.",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --ct: many scans, as a folder, a dataset.json, or a CSV or JSON list. Where it names no "
            "labels, --organ-mask or --labels is a folder of files with the names of the CTs.",
            show_default=False,
            rich_help_panel=WHERE,
        ),
    ] = None,
    tumors: Annotated[
        Path | None,
        typer.Option(
            help="YAML file that says which tumors, in place of the options below.",
            show_default=False,
            rich_help_panel=WHICH,
        ),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(help="diffusion or handcrafted; by default diffusion.", show_default=False, rich_help_panel=WHICH),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="training: texture and shape alone; reader: away from vessels, with mass effect and capsule. "
            "By default training.",
            show_default=False,
            rich_help_panel=WHICH,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="tiny (4 mm radius), small (8), medium (16), large (32), early (tiny or small), late (medium or "
            "large), or mix (any); by default early.",
            show_default=False,
            rich_help_panel=WHICH,
        ),
    ] = None,
    radius_mm: Annotated[
        float | None,
        typer.Option(
            help="Instead of a size: radius of the ball of the tumor's volume.",
            show_default=False,
            rich_help_panel=WHICH,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(help="Number of tumors; by default 1.", min=1, show_default=False, rich_help_panel=WHICH),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed gives the same tumors; by default 0.", show_default=False, rich_help_panel=WHICH
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Diffusion artifact; by default checkpoints/diffusion_ORGAN_early for tumors below 2 cm, "
            "checkpoints/diffusion_ORGAN_late for others.",
            show_default=False,
            rich_help_panel=MAKING,
        ),
    ] = None,
    quality_gate: Annotated[
        bool,
        typer.Option("--quality-gate", help="Draw tumors anew that look wrong.", rich_help_panel=MAKING),
    ] = False,
    gate_attempts: Annotated[
        int | None,
        typer.Option(
            help="How often the gate has a tumor drawn before it gives it up; by default 10.",
            min=1,
            show_default=False,
            rich_help_panel=MAKING,
        ),
    ] = None,
    gate_segmenter: Annotated[
        Path | None,
        typer.Option(
            help="Segmenter artifact that must find a tumor for it to pass the gate.",
            show_default=False,
            rich_help_panel=MAKING,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Fail where not all that is asked can be had.", rich_help_panel=MAKING),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MAKING)] = "auto",
    precision: Annotated[
        str, typer.Option(help="What the networks compute in: fp32 or bf16.", rich_help_panel=MAKING)
    ] = "fp32",
    sampler: Annotated[
        str | None, typer.Option(help=f"ddpm or ddim; {BY_MODEL}", show_default=False, rich_help_panel=MAKING)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help=f"Steps of ddim; {BY_MODEL}", min=1, show_default=False, rich_help_panel=MAKING)
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(help=f"Noise that ddim adds, 0 to 1; {BY_MODEL}", show_default=False, rich_help_panel=MAKING),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            help=f"Steps ddim visits: leading, or trailing for few steps; {BY_MODEL}",
            show_default=False,
            rich_help_panel=MAKING,
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="record.json of an earlier run: make its tumors again, the same to the last bit.",
            show_default=False,
            rich_help_panel=MANY,
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes for --cases.", min=1, rich_help_panel=MANY)] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier result in the folder.", rich_help_panel=MANY)
    ] = False,
) -> None:
    """Make tumors in an organ of a CT.

    Writes ct.nii.gz, which equals the input outside the tumors bit by bit, labels.nii.gz (0 background, 1 organ,
    2 tumor), lesions.nii.gz (one number per tumor), record.json and preview.png.
    """
    from difftumor.synthesis.scan.setup import Gate, Setup

    sampling = {"kind": sampler, "steps": steps, "eta": eta, "spacing": spacing}
    short = {"generator": generator, "preset": preset, "size": size, "radius_mm": radius_mm, "count": count}
    gate = {"gate_attempts": gate_attempts, "gate_segmenter": gate_segmenter}
    files = Files(ct, organ_mask, labels, organ_label, convention, segments)
    if replay is not None:
        asked = {**short, "tumors": tumors, "seed": seed, "cases": cases, "organ": organ, **sampling}
        judged = {"quality_gate": quality_gate or None, "strict": strict or None, **gate}
        refuse({**asked, **judged, "precision": None if precision == "fp32" else precision}, beside="--replay")
        _replay(replay, files, model=model, device=device, out=out, overwrite=overwrite)
        return
    if organ is None:
        raise ConfigError("--organ is missing: give liver, pancreas or kidney.")
    specs, stated_seed = specs_of(tumors, short)
    if not quality_gate:
        refuse(gate, beside="a missing --quality-gate")
    if all(spec.generator == "handcrafted" for spec in specs):
        refuse({"model": model, **sampling}, beside="hand-crafted tumors alone")
    if cases is None and jobs > 1:
        refuse({"jobs": jobs}, beside="a single scan")
    set_up = Setup(
        organ=organ,
        tumors=specs,
        seed=next((value for value in (seed, stated_seed) if value is not None), 0),
        model=model,
        sampling=sampling,
        precision=precision,
        device=device,
        gate=Gate(gate_attempts or 10, gate_segmenter) if quality_gate else None,
        strict=strict,
    )
    if cases is not None:
        _many(set_up, cases, files, out=out, jobs=jobs, overwrite=overwrite)
    else:
        _one(set_up, files, out=out, overwrite=overwrite)


def _one(set_up: Setup, files: Files, *, out: Path, overwrite: bool) -> None:
    from difftumor.cli.synthesis.cases import UNTESTED
    from difftumor.scans.organs import get_organ
    from difftumor.synthesis.scan.files import check_output, synthesize_scan

    inputs = files.inputs(get_organ(set_up.organ).name)
    # Before the networks are loaded, which takes a while.
    check_output(out, inputs=inputs, overwrite=overwrite)
    for path in set_up.untested():
        typer.echo(f"Warning: {path} does not say how real tumors look: {UNTESTED}", err=True)
    workshop = set_up()
    report = synthesize_scan(
        workshop.synthesizer, inputs, workshop.request, out=out, models=workshop.models, overwrite=overwrite
    )
    _print(report)
    if workshop.request.gate is not None:
        typer.echo(f"The quality gate let {_tumors(len(report.tumors))} through and rejected {report.rejected}.")


def _many(set_up: Setup, source: Path, files: Files, *, out: Path, jobs: int, overwrite: bool) -> None:
    from difftumor.cli.synthesis.cases import synthesize_cases

    if files.ct or files.segments:
        raise ConfigError("--cases names the scans: do without --ct and --segments.")
    if files.organ_mask and files.labels:
        raise ConfigError("Give the organ as either --organ-mask or --labels.")
    synthesize_cases(
        set_up,
        source,
        masks=files.organ_mask,
        maps=files.labels,
        organ_labels=files.numbers(),
        convention=files.convention,
        out=out,
        jobs=jobs,
        overwrite=overwrite,
    )


def _replay(path: Path, files: Files, *, model: Path | None, device: str, out: Path, overwrite: bool) -> None:
    from difftumor.models.artifact import pick_device
    from difftumor.synthesis.scan.files import replay_scan
    from difftumor.synthesis.scan.loading import load_recorded
    from difftumor.synthesis.scan.record import read_record

    record = read_record(path)
    there = pick_device(device)
    if str(there) != record.content["device"]:
        then = record.content["device"]
        typer.echo(f"Warning: the record was made on {then}, this is {there}: last bits may differ.", err=True)
    inputs = files.replacing(record.inputs)
    synthesizer = load_recorded(record, model=model, device=there)
    _print(replay_scan(synthesizer, record, inputs, out=out, overwrite=overwrite))


def _print(report: ScanReport) -> None:
    from difftumor.cli.synthesis.tumor_table import print_tumors

    for warning in report.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    print_tumors(report.tumors)
    typer.echo(f"Results are in {report.folder}.")


def _tumors(count: int) -> str:
    return f"{count} tumor{'' if count == 1 else 's'}"
