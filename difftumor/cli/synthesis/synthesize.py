"""``difftumor synthesize``: tumors in one CT, or in many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difftumor.cli.options import CONVENTIONS, accept_hu_option, flag, option, parse_organ_labels
from difftumor.errors import ConfigError, counted

if TYPE_CHECKING:
    from difftumor.synthesis.scan.files import ScanReport
    from difftumor.synthesis.scan.report import TumorReport

SCAN, TUMORS, MAKING, RESULTS = "Scan and organ", "Which tumors", "How they are made", "Results"
BY_MODEL = "by default as the model says."
SIZES = (
    "tiny (4 mm radius), small (8), medium (16), large (32), early (tiny or small), late (medium or large), or mix "
    "(any); by default early."
)
MANY = (
    "Instead of --ct: many scans, as a folder, a dataset.json, or a CSV or JSON list. If it names no labels, "
    "--organ-mask or --labels is a folder of files named like the CTs."
)
MODEL = (
    "by default checkpoints/diffusion_ORGAN_early for tumors below 2 cm, checkpoints/diffusion_ORGAN_late for others."
)
GENERATORS = (
    "diffusion; handcrafted: after Hu et al., without a model; or copy_paste: real tumors of --source, pasted as they "
    "are. By default diffusion."
)
SOURCE = (
    "With copy_paste: the cases whose tumors are copied, as a folder, a dataset.json, or a CSV or JSON list, with "
    "labels. With --replay: where they are now."
)
GIVEN = (
    "Mask of the tumors to make, on any grid: each component is a tumor of exactly that shape and place, diffusion or "
    "handcrafted, instead of --size, --radius-mm and --count."
)
ORGAN = (
    "Name of the organ, or of a part of one, such as kidney_left. There are rules for liver, pancreas, kidney, spleen, "
    "adrenal_gland, stomach_wall, bladder_wall, prostate, uterus, muscle, lung, bone and body."
)
RULES = "YAML or JSON file with other rules for the organ: fields of Organ, as in configs/organ/."
PRESETS = (
    "training: texture and shape only; reader: away from vessels, with mass effect and capsule. By default training."
)


def synthesize(
    out: Annotated[Path, option("Folder for the results.", RESULTS)],
    ct: Annotated[Path | None, option("CT in HU (.nii.gz or .nii).", SCAN)] = None,
    organ_mask: Annotated[Path | None, option("Mask of the organ on the CT's grid.", SCAN)] = None,
    labels: Annotated[
        Path | None, option("Instead of a mask: a label map, with --organ-label or --convention.", SCAN)
    ] = None,
    organ_label: Annotated[str | None, option("The organ's numbers in the label map.", SCAN, metavar="N[,N]")] = None,
    convention: Annotated[str | None, option(f"What the numbers of the label map mean: {CONVENTIONS}.", SCAN)] = None,
    organ: Annotated[str | None, option(ORGAN, SCAN)] = None,
    organ_rules: Annotated[Path | None, option(RULES, SCAN)] = None,
    segments: Annotated[
        Path | None, option("Label map of the organ's segments, for tumors with location: {segment: N}.", SCAN)
    ] = None,
    accept_hu: Annotated[bool, accept_hu_option(SCAN)] = False,
    cases: Annotated[Path | None, option(MANY, SCAN)] = None,
    tumor_mask: Annotated[Path | None, option(GIVEN, TUMORS)] = None,
    tumors: Annotated[Path | None, option("YAML file of the tumors, instead of the options below.", TUMORS)] = None,
    generator: Annotated[str | None, option(GENERATORS, TUMORS)] = None,
    preset: Annotated[str | None, option(PRESETS, TUMORS)] = None,
    size: Annotated[str | None, option(SIZES, TUMORS)] = None,
    radius_mm: Annotated[
        float | None, option("Instead of a size: radius of a ball of the tumor's volume.", TUMORS)
    ] = None,
    count: Annotated[int | None, option("Number of tumors; by default 1.", TUMORS, min=1)] = None,
    blur_share: Annotated[
        float | None, option("Softness of the rim: sigma as a share of the tumor's radius, 0 to 1.", TUMORS)
    ] = None,
    host_noise_mm: Annotated[
        float | None, option("Keep the CT's noise, what a Gaussian with this sigma takes away (handcrafted).", TUMORS)
    ] = None,
    seed: Annotated[int | None, option("The same seed gives the same tumors; by default 0.", TUMORS)] = None,
    model: Annotated[Path | None, option(f"Diffusion artifact; {MODEL}", MAKING)] = None,
    source: Annotated[Path | None, option(SOURCE, MAKING)] = None,
    quality_gate: Annotated[bool, flag("--quality-gate", "Redraw implausible tumors.", MAKING)] = False,
    gate_attempts: Annotated[
        int | None, option("Tumors to try before the gate gives one up; by default 10.", MAKING, min=1)
    ] = None,
    gate_segmenter: Annotated[
        Path | None, option("Segmenter artifact that must find a tumor for it to pass the gate.", MAKING)
    ] = None,
    gate_change_hu: Annotated[
        float | None, option("How much a tumor must change the mean HU inside its label to pass the gate.", MAKING)
    ] = None,
    strict: Annotated[bool, flag("--strict", "Fail if any request cannot be met.", MAKING)] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MAKING)] = "auto",
    precision: Annotated[
        str, typer.Option(help="Precision of the networks: fp32 or bf16.", rich_help_panel=MAKING)
    ] = "fp32",
    sampler: Annotated[str | None, option(f"ddpm or ddim; {BY_MODEL}", MAKING)] = None,
    steps: Annotated[int | None, option(f"Steps of ddim; {BY_MODEL}", MAKING, min=1)] = None,
    eta: Annotated[float | None, option(f"Noise that ddim adds, 0 to 1; {BY_MODEL}", MAKING)] = None,
    spacing: Annotated[
        str | None, option(f"Steps that ddim visits: leading, or trailing for few steps; {BY_MODEL}", MAKING)
    ] = None,
    replay: Annotated[
        Path | None, option("record.json of an earlier run: make its tumors again, bit for bit.", RESULTS)
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes for --cases.", min=1, rich_help_panel=RESULTS)] = 1,
    overwrite: Annotated[bool, flag("--overwrite", "Replace an earlier result in the folder.", RESULTS)] = False,
) -> None:
    """Make tumors in an organ of a CT.

    Writes ct.nii.gz, which equals the input bit for bit outside the tumors, labels.nii.gz (0 background, 1 organ,
    2 tumor), lesions.nii.gz (one number per tumor), record.json and preview.png.
    """
    from difftumor.synthesis.scan import options as requests
    from difftumor.synthesis.scan.synthesize import replay_files, synthesize_files

    sampling = {"kind": sampler, "steps": steps, "eta": eta, "spacing": spacing}
    short: dict[str, Any] = {
        "generator": generator,
        "preset": preset,
        "size": size,
        "radius_mm": radius_mm,
        "count": count,
        "blur_share": blur_share,
        "host_noise_mm": host_noise_mm,
    }
    gate = {"gate_attempts": gate_attempts, "gate_segmenter": gate_segmenter, "gate_change_hu": gate_change_hu}
    files = requests.ScanOptions(
        ct=ct,
        organ_mask=organ_mask,
        labels=labels,
        organ_labels=parse_organ_labels(organ_label),
        convention=convention,
        segments=segments,
        given_mask=tumor_mask,
        accept_hu=accept_hu,
    )
    if replay is not None:
        asked = {**short, "tumors": tumors, "seed": seed, "cases": cases, "organ": organ, "organ_rules": organ_rules}
        asked |= sampling
        judged = {"quality_gate": quality_gate or None, "strict": strict or None, **gate}
        requests.refuse({**asked, **judged, "precision": None if precision == "fp32" else precision}, beside="--replay")
        _say(replay_files(replay, files, model=model, source=source, device=device, out=out, overwrite=overwrite))
        return
    if organ is None:
        raise ConfigError("--organ is missing: give the organ's name, such as liver.")
    host = requests.host_organ(organ, organ_rules)
    if not quality_gate:
        requests.refuse(gate, beside="tumors without --quality-gate")
    if tumor_mask is not None:
        requests.refuse({"size": size, "radius_mm": radius_mm, "count": count, "cases": cases}, beside="--tumor-mask")
        requests.refuse({"quality_gate": quality_gate or None}, beside="--tumor-mask")
        if tumors is None and ct is not None:
            short["size"] = requests.size_of_given(tumor_mask, ct)
    plan = requests.plan_tumors(tumors, **short)
    options = requests.SynthesisOptions(
        organ=host,
        tumors=plan.tumors,
        seed=next((value for value in (seed, plan.seed) if value is not None), 0),
        model=model,
        source=source,
        sampler=sampling,
        precision=precision,  # type: ignore[arg-type]
        device=device,
        gate=requests.GateOptions(gate_attempts or 10, gate_segmenter, gate_change_hu or 0.0) if quality_gate else None,
        strict=strict,
        accept_hu=accept_hu,
    )
    if cases is not None:
        from difftumor.cli.synthesis.cases import synthesize_cases

        synthesize_cases(options, cases, files, out=out, jobs=jobs, overwrite=overwrite)
        return
    requests.refuse({"jobs": jobs if jobs > 1 else None}, beside="a single scan")
    report = synthesize_files(options, files.inputs(host), out=out, overwrite=overwrite)
    _say(report)
    if quality_gate:
        passed = counted(len(report.tumors), "tumor")
        typer.echo(f"The quality gate passed {passed} and rejected {report.rejected}.")


def _say(report: ScanReport) -> None:
    for warning in (*report.notes, *report.warnings):
        typer.echo(f"Warning: {warning}", err=True)
    _print_tumors(report.tumors)
    typer.echo(f"Results are in {report.folder}.")


# Name, and whether the column holds numbers, which are never broken into lines.
_COLUMNS = (
    ("#", True), ("tumor", False), ("diameter\n(mm)", True), ("contrast\n(HU)", True), ("vessels\n(mm)", True),
    ("center\n(mm)", True), ("tries", True),
)  # fmt: skip
# Width of the table in a file or pipe.
_WIDTH = 110


def _print_tumors(tumors: Sequence[TumorReport]) -> None:
    """Print one row for each tumor; an arrow leads from what was asked to what was achieved."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, numbers in _COLUMNS:
        table.add_column(name, justify="right" if numbers else "left", no_wrap=numbers)
    for number, tumor in enumerate(tumors, start=1):
        table.add_row(str(number), *_cells(tumor))
    Console(width=None if Console().is_terminal else _WIDTH).print(table)


def _cells(tumor: TumorReport) -> list[str]:
    record = tumor.record
    around = "" if record.location == "anywhere" else f", {record.location}"
    center = "none" if tumor.center_mm is None else "({:.0f}, {:.0f}, {:.0f})".format(*tumor.center_mm)
    return [
        f"{record.generator} {record.size}{around}",
        _arrow(tumor.requested_diameter_mm, tumor.diameter_mm, ".1f"),
        _arrow(record.contrast_hu, tumor.contrast_hu, "+.0f"),
        _arrow(record.vessel_clearance_mm, tumor.vessel_clearance_mm, ".1f"),
        center,
        str(record.attempts),
    ]


def _arrow(requested: float | None, achieved: float | None, style: str) -> str:
    if requested is None and achieved is None:
        return "–"
    asked = "any" if requested is None else format(requested, style)
    return f"{asked} → {'–' if achieved is None else format(achieved, style)}".replace("-", "−")
