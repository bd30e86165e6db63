"""``difftumor predict``: organ and tumor in CT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from difftumor.datasets.cases import Case
    from difftumor.segmentation.cases import CaseFiles, PredictedCase

_COLUMNS = ("case", "status", "lesions", "organ_mm3", "tumor_mm3", "error")


def predict(
    ct: Annotated[
        Path,
        typer.Option(
            help="A CT (.nii.gz or .nii), a folder of them, or a list: dataset.json, CSV, JSON or text.",
            show_default=False,
        ),
    ],
    model: Annotated[
        list[Path],
        typer.Option(
            help="Segmenter artifact; give several, such as folds, to average their probabilities.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the label maps.", show_default=False)],
    organ_mask: Annotated[
        Path | None,
        typer.Option(
            help="Organ mask on the CT's grid, or a folder of masks named like the CTs; "
            "tumor outside the organ is dropped.",
            show_default=False,
        ),
    ] = None,
    organ_filter: Annotated[
        Literal["mask", "predicted", "none"] | None,
        typer.Option(
            help="Drop tumor outside the organ mask or the predicted organ (its largest piece and others at least a "
            "tenth as large), closed by 10 mm and dilated by 5 mm; or drop nothing. By default mask if --organ-mask is "
            "given, else none.",
            show_default=False,
        ),
    ] = None,
    min_volume_mm3: Annotated[
        float,
        typer.Option(
            help="Drop smaller tumors; they become organ if most voxels around them are, else background.", min=0.0
        ),
    ] = 0.0,
    flips: Annotated[
        bool,
        typer.Option(
            "--flips",
            help="Average over the mirror images of each window, in 8 times the time. Stage 3 trains without them, as "
            "the paper does, because mirroring swaps left and right.",
        ),
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write probabilities/CASE.nii.gz, 4-D: one volume per class.")
    ] = False,
    overlap: Annotated[float, typer.Option(help="Share of a window that overlaps its neighbor.")] = 0.75,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    windows_per_batch: Annotated[int, typer.Option(help="Number of windows predicted together.", min=1)] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier predictions in the folder.")] = False,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Accept a model whose training has not finished.")
    ] = False,
) -> None:
    """Segment organ and tumor with trained segmenters.

    Writes for every CT [bold]CASE.nii.gz[/bold], a label map on its own grid (0 background, 1 organ, 2 tumor);
    [bold]CASE.json[/bold] with the volume, equivalent diameter, center and mean probability of each lesion; and
    [bold]CASE.png[/bold], a picture. A folder or list also gets summary.csv; a CT that fails does not stop the others,
    and the same command resumes after an interruption.
    """
    from difftumor.cli.many import check_outputs, progress_bar, summarized
    from difftumor.datasets.cases import read_case_list
    from difftumor.files import check_folder
    from difftumor.models.artifact import load_artifact, pick_device
    from difftumor.models.artifact_config import read_config
    from difftumor.segmentation.options import PredictionOptions, choose_organ_filter

    chosen = choose_organ_filter(organ_filter, has_mask=organ_mask is not None)
    options = PredictionOptions(overlap=overlap, flips=flips, organ_filter=chosen, min_volume_mm3=min_volume_mm3)
    listed = read_case_list(ct)
    check_folder(out, option="--out")
    for artifact in model:
        read_config(artifact)
    # Here, because it needs PyTorch: what is wrong above is reported at once.
    from difftumor.segmentation.cases import CasePredictor

    cases = _with_masks(organ_mask, listed.cases)
    on = pick_device(device)
    artifacts = [load_artifact(m, kind="segmenter", device=on, allow_incomplete=allow_incomplete) for m in model]
    predictor = CasePredictor(artifacts, options, probabilities=probabilities, windows_per_batch=windows_per_batch)
    given = [path for case in cases for path in (listed.source, case.ct, case.organ_mask) if path is not None]
    check_outputs({case.id: predictor.files_of(case.id) for case in cases}, given, out)
    if listed.source == cases[0].ct:
        _say(predictor.predict(cases[0], out, overwrite=overwrite))
    else:
        with (
            summarized(out, _COLUMNS, [case.id for case in cases]) as rows,
            progress_bar("Predicting", len(cases)) as advance,
        ):
            for predicted in predictor.predict_all(cases, out, overwrite=overwrite):
                rows.append(_row(predicted))
                _say(predicted)
                advance()
    typer.echo(f"Label maps are in {out}.")


def _say(predicted: PredictedCase) -> None:
    from difftumor.segmentation.prediction import describe_lesions

    if predicted.record is None:
        typer.echo(f"{predicted.id}: failed, {predicted.error}", err=True)
    else:
        before = ", done before" if predicted.status == "done before" else ""
        typer.echo(f"{predicted.id}: {describe_lesions(predicted.record)}{before}")


def _row(predicted: PredictedCase) -> dict[str, Any]:
    record = predicted.record
    return {
        "case": predicted.id,
        "status": predicted.status,
        "lesions": None if record is None else len(record["lesions"]),
        "organ_mm3": None if record is None else record["organ_mm3"],
        "tumor_mm3": None if record is None else record["tumor_mm3"],
        "error": predicted.error,
    }


def _with_masks(organ_mask: Path | None, cases: Sequence[Case]) -> list[CaseFiles]:
    """Find the organ mask of every case before anything is predicted."""
    from difftumor.datasets.label_folders import label_maps
    from difftumor.errors import ConfigError
    from difftumor.segmentation.cases import CaseFiles

    if organ_mask is None:
        return [CaseFiles(case.id, case.image) for case in cases]
    if not organ_mask.exists():
        raise ConfigError(f"--organ-mask {organ_mask} does not exist: give a mask, or a folder of masks.")
    if organ_mask.is_file():
        if len(cases) > 1:
            raise ConfigError(f"--organ-mask {organ_mask} is one file for {len(cases)} CTs; give a folder of masks.")
        return [CaseFiles(cases[0].id, cases[0].image, organ_mask)]
    found = label_maps(organ_mask)
    missing = [case.id for case in cases if case.id not in found]
    if missing:
        raise ConfigError(f"--organ-mask {organ_mask} holds no {missing[0]}.nii.gz; name masks like their CTs.")
    return [CaseFiles(case.id, case.image, found[case.id]) for case in cases]
