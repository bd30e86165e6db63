"""``difftumor predict``: organ and tumor in CT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from difftumor.datasets.cases import Case
    from difftumor.segmentation.cases import PredictedScan, ScanFiles, ScanPredictor

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
            help="Organ mask on the CT's grid, or a folder of masks with the names of the CTs; "
            "tumor outside of the organ is dropped.",
            show_default=False,
        ),
    ] = None,
    organ_filter: Annotated[
        Literal["mask", "predicted", "none"] | None,
        typer.Option(
            help="Drop tumor outside of the organ mask, or of the predicted organ (its largest piece, and others at "
            "least a tenth as large), closed by 10 mm and dilated by 5 mm; or nothing. By default mask where "
            "--organ-mask is given, else none.",
            show_default=False,
        ),
    ] = None,
    min_volume_mm3: Annotated[
        float,
        typer.Option(
            help="Drop smaller tumors: they become organ where most voxels around them are, else background.", min=0.0
        ),
    ] = 0.0,
    flips: Annotated[
        bool,
        typer.Option(
            "--flips",
            help="Average over mirror images of each window, in 8 times the time. Stage 3 trains without mirroring, as "
            "the paper does: in a mirror image left and right are swapped.",
        ),
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write probabilities/CASE.nii.gz, 4-D: one volume per class.")
    ] = False,
    overlap: Annotated[float, typer.Option(help="Part of a window that its neighbor shares.")] = 0.75,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    windows_per_batch: Annotated[int, typer.Option(help="Windows predicted together.", min=1)] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict anew what is in the folder.")] = False,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Also use a model whose training has not finished.")
    ] = False,
) -> None:
    """Segment organ and tumor with trained segmenters.

    Writes for every CT [bold]CASE.nii.gz[/bold], a label map on its own grid (0 background, 1 organ, 2 tumor);
    [bold]CASE.json[/bold] with volume, equivalent diameter, center and mean probability of each lesion; and a picture,
    [bold]CASE.png[/bold]. For a folder or list also summary.csv; a CT that fails does not stop the others, and the same
    command goes on where it stopped.
    """
    from difftumor.cli.many import check_outputs
    from difftumor.cli.options import read_case_list
    from difftumor.files import check_folder
    from difftumor.models.artifact import load_artifact, pick_device
    from difftumor.segmentation.cases import ScanPredictor
    from difftumor.segmentation.inference import PredictionOptions

    chosen = _organ_filter(organ_filter, organ_mask)
    options = PredictionOptions(overlap=overlap, flips=flips, organ_filter=chosen, min_volume_mm3=min_volume_mm3)
    listed = read_case_list(ct)
    scans = _with_masks(organ_mask, listed.cases)
    check_folder(out, option="--out")
    on = pick_device(device)
    artifacts = [load_artifact(m, kind="segmenter", device=on, allow_incomplete=allow_incomplete) for m in model]
    predictor = ScanPredictor(artifacts, options, probabilities=probabilities, windows_per_batch=windows_per_batch)
    given = [path for scan in scans for path in (listed.source, scan.ct, scan.organ_mask) if path is not None]
    check_outputs({scan.id: predictor.files_of(scan.id) for scan in scans}, given, out)
    if listed.source == scans[0].ct:
        _say(predictor.predict(scans[0], out, overwrite=overwrite))
    else:
        _predict_all(predictor, scans, out, overwrite=overwrite)
    typer.echo(f"Label maps are in {out}.")


def _predict_all(predictor: ScanPredictor, scans: Sequence[ScanFiles], out: Path, *, overwrite: bool) -> None:
    from difftumor.cli.many import progress_bar, summarized

    with (
        summarized(out, _COLUMNS, [scan.id for scan in scans]) as rows,
        progress_bar("Predicting", len(scans)) as advance,
    ):
        for predicted in predictor.predict_all(scans, out, overwrite=overwrite):
            rows.append(_row(predicted))
            _say(predicted)
            advance()


def _say(predicted: PredictedScan) -> None:
    from difftumor.segmentation.cases import describe_lesions

    if predicted.record is None:
        typer.echo(f"{predicted.id}: failed, {predicted.error}", err=True)
    else:
        before = ", done before" if predicted.status == "done before" else ""
        typer.echo(f"{predicted.id}: {describe_lesions(predicted.record)}{before}")


def _row(predicted: PredictedScan) -> dict[str, Any]:
    record = predicted.record
    return {
        "case": predicted.id,
        "status": predicted.status,
        "lesions": None if record is None else len(record["lesions"]),
        "organ_mm3": None if record is None else record["organ_mm3"],
        "tumor_mm3": None if record is None else record["tumor_mm3"],
        "error": predicted.error,
    }


def _organ_filter(
    chosen: Literal["mask", "predicted", "none"] | None, organ_mask: Path | None
) -> Literal["mask", "predicted", "none"]:
    from difftumor.errors import ConfigError

    if organ_mask is None and chosen == "mask":
        raise ConfigError("--organ-filter mask needs a mask: give --organ-mask, or another filter.")
    if organ_mask is not None and chosen not in ("mask", None):
        raise ConfigError(f"--organ-filter {chosen} has no use for --organ-mask: give one of the two.")
    return "none" if organ_mask is None and chosen is None else chosen or "mask"


def _with_masks(organ_mask: Path | None, cases: Sequence[Case]) -> list[ScanFiles]:
    """Find the organ mask of every case before anything is predicted."""
    from difftumor.datasets.label_folders import label_maps
    from difftumor.errors import ConfigError
    from difftumor.segmentation.cases import ScanFiles

    if organ_mask is None:
        return [ScanFiles(case.id, case.image) for case in cases]
    if not organ_mask.exists():
        raise ConfigError(f"--organ-mask {organ_mask} does not exist: give a mask, or a folder of masks.")
    if organ_mask.is_file():
        if len(cases) > 1:
            raise ConfigError(f"--organ-mask {organ_mask} is one file for {len(cases)} CTs; give a folder of masks.")
        return [ScanFiles(cases[0].id, cases[0].image, organ_mask)]
    found = label_maps(organ_mask)
    missing = [case.id for case in cases if case.id not in found]
    if missing:
        raise ConfigError(f"--organ-mask {organ_mask} holds no {missing[0]}.nii.gz; name masks like their CTs.")
    return [ScanFiles(case.id, case.image, found[case.id]) for case in cases]
