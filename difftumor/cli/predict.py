"""``difftumor predict``: organ and tumor in CT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from difftumor.datasets.cases import Case
    from difftumor.grids import Array
    from difftumor.volume import Volume


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
    from difftumor.cli.options import read_case_list
    from difftumor.cli.progress import progress_bar
    from difftumor.devices import pick_device
    from difftumor.evaluation.tables import prediction_record, write_json
    from difftumor.inference import predict_volume
    from difftumor.volume import read_ct, write_labels

    cases = read_case_list(ct).cases
    masks = _masks(organ_mask, cases)
    _check_grids(cases, masks)
    _check_output(out, cases, masks)
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


def _masks(organ_mask: Path | None, cases: tuple[Case, ...]) -> dict[str, Path]:
    """Find the organ mask of every case before anything is predicted."""
    from difftumor.errors import ConfigError
    from difftumor.evaluation.cohort import label_maps

    if organ_mask is None:
        return {}
    if not organ_mask.exists():
        raise ConfigError(f"--organ-mask {organ_mask} does not exist: give a mask, or a folder of masks.")
    if organ_mask.is_file():
        if len(cases) > 1:
            raise ConfigError(f"--organ-mask {organ_mask} is one file for {len(cases)} CTs; give a folder of masks.")
        return {cases[0].id: organ_mask}
    found = label_maps(organ_mask)
    missing = [case.id for case in cases if case.id not in found]
    if missing:
        raise ConfigError(f"--organ-mask {organ_mask} holds no {missing[0]}.nii.gz; name masks like their CTs.")
    return {case.id: found[case.id] for case in cases}


def _check_grids(cases: tuple[Case, ...], masks: dict[str, Path]) -> None:
    """Refuse unreadable headers and masks on other grids before hours are spent on the other scans."""
    from difftumor.grids import compare_grids
    from difftumor.volume import read_grid

    for case in cases:
        grid = read_grid(case.image)
        if case.id in masks:
            compare_grids(read_grid(masks[case.id]), grid, masks[case.id], case.image)


def _check_output(out: Path, cases: tuple[Case, ...], masks: dict[str, Path]) -> None:
    """Refuse a file in place of the folder, and a folder where results would replace CTs or masks."""
    from difftumor.errors import ConfigError
    from difftumor.files import check_folder

    check_folder(out, option="--out")
    inputs = {path.resolve() for path in (*(case.image for case in cases), *masks.values())}
    for case in cases:
        if (out / f"{case.id}.nii.gz").resolve() in inputs:
            raise ConfigError(f"--out {out} would replace the input {case.id}.nii.gz: give another folder.")


def _read_mask(path: Path, ct: Volume) -> Array:
    import numpy as np

    from difftumor.errors import ConfigError
    from difftumor.organs import ORGAN, TUMOR
    from difftumor.volume import check_same_grid, read_labels

    mask = read_labels(path)
    check_same_grid(mask, ct)
    found = {int(value) for value in np.unique(mask.data)} - {0}
    # One organ under any number, or an organ and its tumors; all else would let tumors stay in other organs.
    if len(found) > 1 and not found <= {ORGAN, TUMOR}:
        listed = ", ".join(map(str, sorted(found)))
        raise ConfigError(f"--organ-mask {path} holds several labels ({listed}): give a mask of the organ alone.")
    return mask.data
