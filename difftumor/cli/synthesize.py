"""``difftumor synthesize``: tumors in a CT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from difftumor.synthesis.scan_report import TumorReport

BY_MODEL = "by default as the model says."


def synthesize(
    ct: Annotated[Path, typer.Option(help="CT in HU (.nii.gz or .nii).", show_default=False)],
    organ: Annotated[str, typer.Option(help="liver, pancreas or kidney.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    organ_mask: Annotated[
        Path | None, typer.Option(help="Mask of the organ on the CT's grid.", show_default=False)
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Instead of a mask: a label map on the CT's grid, with --organ-label.", show_default=False),
    ] = None,
    organ_label: Annotated[int | None, typer.Option(help="The organ's number in the label map.", min=1)] = None,
    size: Annotated[
        str, typer.Option(help="tiny, small, medium, large, early (tiny or small), or late (medium or large).")
    ] = "early",
    count: Annotated[int, typer.Option(help="Number of tumors.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same tumors.")] = 0,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Diffusion artifact; by default checkpoints/diffusion_ORGAN_early for tiny, small and early tumors, "
            "else checkpoints/diffusion_ORGAN_late.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="What the networks compute in: fp32 or bf16.")] = "fp32",
    sampler: Annotated[str | None, typer.Option(help=f"ddpm or ddim; {BY_MODEL}", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help=f"Steps of ddim; {BY_MODEL}", min=1, show_default=False)] = None,
    eta: Annotated[
        float | None, typer.Option(help=f"Noise that ddim adds, 0 to 1; {BY_MODEL}", show_default=False)
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help=f"Steps ddim visits: leading, or trailing for few steps; {BY_MODEL}", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in the folder.")] = False,
) -> None:
    """Make tumors in the organ of a CT with a diffusion model.

    Writes ct.nii.gz, which equals the input outside the tumors bit by bit, labels.nii.gz (0 background, 1 organ,
    2 tumor), lesions.nii.gz (one number per tumor), record.json and preview.png.
    """
    from difftumor.devices import pick_device
    from difftumor.synthesis.loading import artifact_identities, find_artifact, load_synthesizer
    from difftumor.synthesis.scan_files import check_output, synthesize_scan

    mask = _choose_mask(organ_mask, labels, organ_label)
    # Before the networks are loaded, which takes a while.
    check_output(out, inputs=(ct, mask), overwrite=overwrite)
    artifact = find_artifact(model, organ=organ, size=size)
    synthesizer = load_synthesizer(
        artifact,
        organ=organ,
        device=pick_device(device),
        sampler={"kind": sampler, "steps": steps, "eta": eta, "spacing": spacing},
        precision=precision,  # type: ignore[arg-type]
    )
    report = synthesize_scan(
        synthesizer,
        ct=ct,
        organ_mask=mask,
        organ_label=organ_label,
        size=size,
        count=count,
        seed=seed,
        out=out,
        models=artifact_identities(artifact),
        overwrite=overwrite,
    )
    for warning in report.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    for number, tumor in enumerate(report.tumors, start=1):
        typer.echo(f"Tumor {number}: {_described(tumor)}")
    typer.echo(f"Results are in {report.folder}.")


def _choose_mask(organ_mask: Path | None, labels: Path | None, organ_label: int | None) -> Path:
    from difftumor.errors import ConfigError

    if organ_mask is not None and labels is None:
        return organ_mask
    if organ_mask is None and labels is not None:
        if organ_label is None:
            raise ConfigError(f"--labels {labels} needs --organ-label: give the organ's number in the label map.")
        return labels
    raise ConfigError("Give the organ as either --organ-mask or --labels with --organ-label.")


def _described(tumor: TumorReport) -> str:
    center = "no voxels" if tumor.center_mm is None else "at ({:.0f}, {:.0f}, {:.0f}) mm".format(*tumor.center_mm)
    contrast = "" if tumor.contrast_hu is None else f", {tumor.contrast_hu:+.0f} HU against the organ"
    return f"{tumor.record.size}, diameter {tumor.diameter_mm:.1f} mm, {center}{contrast}"
