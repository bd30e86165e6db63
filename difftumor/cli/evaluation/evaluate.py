"""``difftumor evaluate``: scores of predicted label maps, with intervals, tests and a page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from difftumor.cli.options import Rule, iou_option, named_folder, read_matching, rule_option
from difftumor.errors import ConfigError


def evaluate(
    predictions: Annotated[
        Path, typer.Option(help="Folder of predicted label maps: 0 background, 1 organ, 2 tumor.", show_default=False)
    ],
    labels: Annotated[
        Path,
        typer.Option(help="Folder of true label maps of the same names, or a list of cases.", show_default=False),
    ],
    organ: Annotated[str, typer.Option(help="Organ, such as liver.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(help="Name of the method in tables; the folder's by default.", show_default=False)
    ] = None,
    healthy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR",
            help="Folder of predictions on healthy scans, which need no labels: every tumor there is false. NAME=DIR "
            "for a method of --compare.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR",
            help="Folder of another method's predictions on the same labels, to compare with; may be repeated.",
            show_default=False,
        ),
    ] = None,
    folds: Annotated[
        Path | None,
        typer.Option(
            help="Fold of each case: nnU-Net's splits_final.json, or a CSV file (case, fold).",
            show_default=False,
        ),
    ] = None,
    froc: Annotated[
        bool,
        typer.Option(
            "--froc",
            help="Add the free-response curve, from PREDICTIONS/probabilities (predict --probabilities).",
        ),
    ] = False,
    ct: Annotated[
        Path | None,
        typer.Option(help="Folder of CTs for the pictures, if --labels names none.", show_default=False),
    ] = None,
    tolerance_mm: Annotated[float, typer.Option(help="Tolerance of the normalized surface distance.")] = 2.0,
    matching: Annotated[Rule, rule_option()] = "overlap",
    minimum_iou: Annotated[float | None, iou_option()] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Resample predictions on other grids to that of their labels.")
    ] = False,
    tumor_only: Annotated[
        bool,
        typer.Option(
            "--tumor-only",
            help="Score tumors alone, as of a segmenter of another organ. What predict --organ wrote without an organ "
            "is scored like this anyway.",
        ),
    ] = False,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Accept cases without a prediction.")] = False,
    worst: Annotated[int, typer.Option(min=0, help="Number of worst cases to picture.")] = 4,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of bootstrap and permutations.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of another evaluation, and files of their names.")
    ] = False,
) -> None:
    """Compare predicted label maps with true ones, and methods with each other.

    Writes cases.csv, lesions.csv, summary.json, summary.md, tables.tex, figures and report.html. If a case cannot be
    evaluated, it is named, the others are evaluated, and the exit status is 1.
    """
    from difftumor.cli.many import progress_bar
    from difftumor.evaluation.cohort.evaluate import evaluate as evaluate_files
    from difftumor.evaluation.cohort.results import RESULT_FILES, is_same_request
    from difftumor.files.recovery import recover
    from difftumor.files.results import check_results
    from difftumor.scans.organs import get_organ

    first = name or _folder_name(predictions)
    others = _named(compare or [], option="--compare", taken=first)
    scans = _named(healthy or [], option="--healthy", default=first)
    inputs = [predictions, labels, *others.values(), *scans.values()]
    rules = read_matching(matching, minimum_iou)
    asked = {
        "organ": get_organ(organ).name, "tolerance_mm": tolerance_mm, "matching": str(rules), "level": level,
        "seed": seed, "labels": str(labels), "resample": resample, "tumor_only": tumor_only,
        "predictions": str(predictions), "name": first, "healthy": _texts(scans), "compare": _texts(others),
        "folds": None if folds is None else str(folds), "froc": froc, "ct": None if ct is None else str(ct),
        "worst": worst,
    }  # fmt: skip
    recover(out)
    again = is_same_request(out, asked)
    check_results(out, RESULT_FILES, inputs=[labels, *([folds] if folds else [])], overwrite=overwrite or again)
    if out.resolve() in {folder.resolve() for folder in inputs}:
        raise ConfigError(f"--out {out} holds what is evaluated: give another folder.")
    if ct is not None and not ct.is_dir():
        raise ConfigError(f"There is no folder {ct}: give --ct a folder of CTs, or leave it out.")
    with progress_bar("Evaluating", None) as advance:
        evaluation = evaluate_files(
            predictions,
            labels,
            organ=organ,
            tolerance_mm=tolerance_mm,
            matching=rules,
            name=first,
            healthy=scans,
            compare=others,
            folds=folds,
            froc=froc,
            resample=resample,
            tumor_only=tumor_only,
            level=level,
            seed=seed,
            jobs=jobs,
            watch=advance,
        )
    command = shlex.join(["difftumor", *sys.argv[1:]])
    typer.echo(evaluation.save(out, worst=worst, cts=ct, command=command, request=asked))
    typer.echo(f"Results are in {out}; report.html has all of them.")
    evaluation.check_whole(allow_missing=allow_missing)


def _folder_name(folder: Path) -> str:
    return folder.resolve().name


def _texts(folders: Mapping[str, Path]) -> dict[str, str]:
    return {name: str(folder) for name, folder in folders.items()}


def _named(
    words: Sequence[str], *, option: str, taken: str | None = None, default: str | None = None
) -> dict[str, Path]:
    """Read ``[NAME=]DIR``; without a name it is the default, or else the folder's.

    Raises:
        ConfigError: A name is given twice, or cannot name a folder.
    """
    found: dict[str, Path] = {}
    for word in words:
        given, folder = named_folder(word)
        name = given or default or _folder_name(folder)
        if name == taken or name in found:
            raise ConfigError(f"{option} {word} has the name {name!r} of another method: give {option} NAME={folder}.")
        if Path(name).name != name or name in (".", ".."):
            raise ConfigError(f"{option} {word} has a name with slashes: give another.")
        found[name] = folder
    return found
