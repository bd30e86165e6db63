"""``difftumor predict``: organ and tumor in CT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from difftumor.datasets.cases import Case
    from difftumor.volume import Array, Volume


def predict(
    ct: Annotated[
        Path,
        typer.Option(
            help="A CT (.nii.gz or .nii), a folder of them, or a list such as dataset.json.", show_default=False
        ),
    ],
    model: Annotated[Path, typer.Option(help="Segmenter artifact.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the label maps.", show_default=False)],
    organ_mask: Annotated[
        Path | None,
        typer.Option(
            help="Organ mask on the CT's grid, or a folder of masks with the names of the CTs; "
            "tumor outside of the organ is dropped.",
            show_default=False,
        ),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Part of a window that its neighbor shares.")] = 0.75,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    windows_per_batch: Annotated[int, typer.Option(help="Windows predicted together.", min=1)] = 1,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Also use a model whose training has not finished.")
    ] = False,
) -> None:
    """Segment organ and tumor with a trained segmenter.

    Writes for every CT a label map on its own grid (0 background, 1 organ, 2 tumor) and a JSON file with the volume,
    equivalent diameter and center of each lesion.
    """
    from difftumor.artifacts import load_artifact
    from difftumor.cli.progress import progress_bar
    from difftumor.evaluation.tables import prediction_record, write_json
    from difftumor.inference import pick_device, predict_volume
    from difftumor.volume import read_ct, write_labels

    cases = _cases(ct)
    masks = _masks(organ_mask, cases)
    artifact = load_artifact(model, kind="segmenter", device=pick_device(device), allow_incomplete=allow_incomplete)
    with progress_bar("Predicting", len(cases)) as advance:
        for case in cases:
            volume = read_ct(case.image)
            mask = _read_mask(masks[case.id], volume) if case.id in masks else None
            labels = predict_volume(
                volume, artifact, organ_mask=mask, overlap=overlap, windows_per_batch=windows_per_batch
            )
            record = prediction_record(labels, volume.grid)
            origin = {"ct": str(case.image), "model": str(model), "model_identity": artifact.config.identity}
            write_labels(out / f"{case.id}.nii.gz", labels, volume)
            write_json(out / f"{case.id}.json", {"case": case.id, **origin, **record})
            lesions = len(record["lesions"])
            typer.echo(f"{case.id}: {lesions} lesion{'' if lesions == 1 else 's'}")
            advance()
    typer.echo(f"Label maps are in {out}.")


def _cases(ct: Path) -> tuple[Case, ...]:
    from difftumor.datasets.cases import Case, read_cases
    from difftumor.datasets.sources import case_id
    from difftumor.volume import is_nifti

    if is_nifti(ct) and not ct.is_dir():
        return (Case(case_id(ct), ct),)
    return read_cases(ct).cases


def _masks(organ_mask: Path | None, cases: tuple[Case, ...]) -> dict[str, Path]:
    """Find the organ mask of every case before anything is predicted."""
    from difftumor.errors import ConfigError

    if organ_mask is None:
        return {}
    if organ_mask.is_file():
        if len(cases) > 1:
            raise ConfigError(f"--organ-mask {organ_mask} is one file for {len(cases)} CTs; give a folder of masks.")
        return {cases[0].id: organ_mask}
    found = {}
    for case in cases:
        names = [organ_mask / f"{case.id}{suffix}" for suffix in (".nii.gz", ".nii")]
        path = next((name for name in names if name.is_file()), None)
        if path is None:
            raise ConfigError(f"--organ-mask {organ_mask} holds no {names[0].name}; name masks like their CTs.")
        found[case.id] = path
    return found


def _read_mask(path: Path, ct: Volume) -> Array:
    from difftumor.volume import check_same_grid, read_labels

    mask = read_labels(path)
    check_same_grid(mask, ct)
    return mask.data
