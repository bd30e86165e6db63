"""``difftumor predict``: organ and tumor in CT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from difftumor.cli.options import accept_hu_option, held
from difftumor.segmentation.options import CLOSING_MM, DILATION_MM

if TYPE_CHECKING:
    from difftumor.segmentation.cases import CaseFiles, CasePredictor, PredictedCase

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
    organ: Annotated[
        str | None,
        typer.Option(
            help="Organ in which tumors are looked for. If the models were trained on another one, only tumors are "
            "written, and those inside the organ mask count.",
            show_default=False,
        ),
    ] = None,
    organ_mask: Annotated[
        Path | None,
        typer.Option(
            help="Organ mask on the CT's grid, a folder of masks named like the CTs, or, with --organ, a list or "
            "folder of label maps, in which the organ includes its tumors; tumor outside the organ is dropped.",
            show_default=False,
        ),
    ] = None,
    organ_filter: Annotated[
        Literal["mask", "predicted", "none"] | None,
        typer.Option(
            help="Drop tumor outside the organ mask or the predicted organ (its largest piece and others at least a "
            "tenth as large), closed by --closing-mm and dilated by --dilation-mm; or drop nothing. By default mask if "
            "--organ-mask is given, else none.",
            show_default=False,
        ),
    ] = None,
    closing_mm: Annotated[
        float, typer.Option(help="Fill gaps of the organ, such as tumors left out; 0 for none.", min=0.0)
    ] = CLOSING_MM,
    dilation_mm: Annotated[
        float, typer.Option(help="How far a tumor may reach out of the organ; 0 as published.", min=0.0)
    ] = DILATION_MM,
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
    accept_hu: Annotated[bool, accept_hu_option()] = False,
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
    from difftumor.cli.many import check_outputs
    from difftumor.datasets.cases import read_case_list
    from difftumor.files.results import check_folder
    from difftumor.models.artifact import load_artifact, pick_device
    from difftumor.models.artifact_config import read_config
    from difftumor.scans.organs import get_organ
    from difftumor.segmentation.options import PredictionOptions, check_target, choose_organ_filter

    chosen = choose_organ_filter(organ_filter, has_mask=organ_mask is not None)
    options = PredictionOptions(
        overlap=overlap,
        flips=flips,
        organ_filter=chosen,
        closing_mm=closing_mm,
        dilation_mm=dilation_mm,
        min_volume_mm3=min_volume_mm3,
    )
    target = None if organ is None else get_organ(organ).name
    listed = read_case_list(ct)
    check_folder(out, option="--out")
    trained_on, *_ = [read_config(artifact).organ for artifact in model]
    check_target(trained_on, target, organ_filter, has_mask=organ_mask is not None)
    # Here, because it needs PyTorch: what is wrong above is reported at once.
    from difftumor.segmentation.cases import CaseFiles, CasePredictor
    from difftumor.segmentation.organ_masks import find_organ_masks

    masks = find_organ_masks(organ_mask, listed.cases, target, or_else=trained_on) if organ_mask else {}
    cases = [CaseFiles(case.id, case.image, masks.get(case.id)) for case in listed.cases]
    on = pick_device(device)
    artifacts = [load_artifact(m, kind="segmenter", device=on, allow_incomplete=allow_incomplete) for m in model]
    predictor = CasePredictor(
        artifacts,
        options,
        organ=target,
        probabilities=probabilities,
        windows_per_batch=windows_per_batch,
        accept_hu=accept_hu,
    )
    given = [listed.source, *(case.ct for case in cases), *(mask.path for mask in masks.values())]
    single = listed.source == cases[0].ct
    with held(None if single else out):  # each case is locked too, so that several may write to one folder
        check_outputs({case.id: predictor.files_of(case.id) for case in cases}, given, out)
        if single:
            _say(predictor.predict(cases[0], out, overwrite=overwrite))
        else:
            _predict_all(predictor, cases, out, overwrite=overwrite)
    typer.echo(f"Label maps are in {out}.")


def _predict_all(predictor: CasePredictor, cases: Sequence[CaseFiles], out: Path, *, overwrite: bool) -> None:
    from difftumor.cli.many import progress_bar, summarized

    order = [case.id for case in cases]
    with (
        summarized(out, _COLUMNS, order, overwrite=overwrite) as rows,
        progress_bar("Predicting", len(cases)) as advance,
    ):
        for predicted in predictor.predict_all(cases, out, overwrite=overwrite):
            rows.append(_row(predicted))
            _say(predicted)
            advance()


def _say(predicted: PredictedCase) -> None:
    from difftumor.segmentation.prediction import describe_lesions

    if predicted.record is None:
        typer.echo(f"{predicted.id}: failed, {predicted.error}", err=True)
    else:
        for warning in predicted.record.get("warnings", ()):
            typer.echo(f"Warning: {predicted.id}: {warning}", err=True)
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
