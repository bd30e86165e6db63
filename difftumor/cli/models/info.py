"""``difftumor info``: what an artifact is, or an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from difftumor.models.artifact_config import ArtifactConfig
    from difftumor.scans.appearance import AppearanceRanges


def info(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            show_default=False,
            help="Artifact folder, such as checkpoints/diffusion, or a CT or label map (.nii.gz or .nii).",
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Describe an artifact: what it is, where it comes from, how it was trained.

    Reads its [bold]config.json[/bold] only; the weights are neither loaded nor checked. Of a CT or label map it tells
    shape, voxel size and orientation, and whether tumors in it were made, and which; it reads the header only.

    Example: difftumor info out/ct.nii.gz
    """
    from difftumor.models.artifact_config import read_config
    from difftumor.scans.stored.header import is_nifti

    if is_nifti(path):
        _describe_image(path, as_json=json)
        return
    config = read_config(path)
    if json:
        typer.echo(config.to_json(), nl=False)
    else:
        _print_table(path, _rows(path, config))


def _describe_image(path: Path, *, as_json: bool) -> None:
    import json

    from nibabel.orientations import aff2axcodes

    from difftumor.scans.stored.header import read_header
    from difftumor.scans.stored.mark import is_described, read_marks

    image, grid = read_header(path)
    made, described = read_marks(image.header), is_described(image.header)
    facts = {
        "shape": list(grid.shape),
        "spacing_mm": [round(step, 4) for step in grid.spacing_mm],
        "axes": "".join(aff2axcodes(grid.affine)),
        "type": str(image.get_data_dtype()),
        "synthetic": described or bool(made),
        "synthetic_tumors": made,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    rows = [(name.replace("_", " "), str(value)) for name, value in facts.items() if "synthetic" not in name]
    rows.append(("synthetic", _tumors_made(made) or ("tumors; which is lost" if described else "nothing says so")))
    _print_table(path, iter(rows))


def _tumors_made(marks: list[dict[str, Any]]) -> str:
    """Return one line for each tumor that marks tell of, after their number; empty for none."""
    from difftumor.errors import counted

    lines = [
        f"{tumor.get('generator')} in the {mark.get('organ')}, {tumor.get('diameter_mm')} mm, "
        f"centered at {tumor.get('center_mm')} mm"
        for mark in marks
        if isinstance(mark.get("tumors"), list)
        for tumor in mark["tumors"]
        if isinstance(tumor, dict)
    ]
    return "\n".join([counted(len(lines), "tumor"), *lines]) if lines else ""


def _print_table(path: Path, rows: Iterator[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(str(path)), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        # Text, so that brackets in paths and lists are not read as markup.
        table.add_row(name, Text(value))
    Console().print(table)


def _rows(path: Path, config: ArtifactConfig) -> Iterator[tuple[str, str]]:
    architecture = dict(config.architecture)
    yield "kind", config.kind
    yield "complete", "yes" if config.complete else "no, its training has not finished"
    yield "organ", config.organ or "any"
    yield "architecture", str(architecture.pop("name"))
    yield "parameters", _lines(architecture)
    yield "preprocessing", _lines(config.preprocessing)
    yield "settings", _lines(config.settings)
    yield "parents", _lines({role: f"{it.path} ({it.identity[:12]})" for role, it in config.parents.items()})
    yield "training", _lines({name: value for name, value in config.training.items() if name != "fingerprints"})
    yield "fingerprints", _fingerprints(config)
    yield "metrics", _lines(config.metrics)
    if (ranges := config.appearance_ranges(path)) is not None:
        yield "real tumors", _looks(ranges)
    yield "identity", config.identity
    yield "written by", f"difftumor {config.difftumor_version}, format {config.format_version}"


def _fingerprints(config: ArtifactConfig) -> str:
    """Say of how many scans fingerprints are there; --json shows them."""
    from difftumor.errors import counted

    trained_on = config.trained_on
    if trained_on is None:
        return "none, so which scans it was trained on is unknown"
    return f"of {counted(len(trained_on), 'scan')} that it was trained on"


def _looks(ranges: AppearanceRanges) -> str:
    """Return how many tumors were measured, and the medians of what some of them have."""
    from difftumor.scans.appearance import PERCENTILES

    middle = PERCENTILES.index(50)
    percentiles = {"contrast": ranges.contrast_hu, "SD": ranges.sd_hu, "edge step": ranges.edge_step_hu}
    medians = [f"median {name} {found[middle]:.4g} HU" for name, found in percentiles.items() if found is not None]
    return ", ".join([f"{ranges.tumors} measured", *medians])


def _lines(values: Mapping[str, Any], prefix: str = "") -> str:
    """Return one ``name: value`` per line; nested names are joined by dots."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            lines.append(_lines(value, f"{prefix}{name}."))
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"{prefix}{name}: {shown}")
    return "\n".join(lines) or "none"
