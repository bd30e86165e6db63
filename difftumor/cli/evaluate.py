"""``difftumor evaluate``: scores of predicted label maps, with intervals, tests and a page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difftumor.cli.matching import MatchingRule, MinimumIou, read_matching

if TYPE_CHECKING:
    from difftumor.evaluation.methods import Method, Rules
    from difftumor.organs import Organ


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
            help="Folder of another method's predictions on the same labels, to be tested against; may be repeated.",
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
        typer.Option("--froc", help="Free-response curve, from PREDICTIONS/probabilities (predict --probabilities)."),
    ] = False,
    ct: Annotated[
        Path | None,
        typer.Option(help="Folder of CTs for the pictures, where --labels names none.", show_default=False),
    ] = None,
    tolerance_mm: Annotated[float, typer.Option(help="Tolerance of the normalized surface distance.")] = 2.0,
    matching: MatchingRule = "overlap",
    minimum_iou: MinimumIou = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Resample predictions on other grids to that of their labels.")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Cases without a prediction are no error.")
    ] = False,
    worst: Annotated[int, typer.Option(min=0, help="Worst cases to picture.")] = 4,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of bootstrap and permutations.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Compare predicted label maps with true ones, and methods with each other.

    Writes cases.csv, lesions.csv, summary.json, summary.md, tables.tex, figures and report.html. A case that cannot be
    evaluated is named, the others are done, and the exit status is 1.
    """
    from difftumor.errors import ConfigError
    from difftumor.evaluation.evaluation_page import evaluation_page
    from difftumor.evaluation.fold_file import read_folds
    from difftumor.evaluation.froc import THRESHOLDS
    from difftumor.evaluation.methods import Rules, check_whole
    from difftumor.evaluation.results import RESULT_FILES, Evaluation, find, write_results
    from difftumor.evaluation.statistics import check_level
    from difftumor.files import check_results
    from difftumor.organs import get_organ

    check_results(out, RESULT_FILES, inputs=[labels, *([folds] if folds else [])], overwrite=True)
    check_level(level)
    chosen = get_organ(organ)
    first = name or _folder_name(predictions)
    methods = {first: predictions, **_named(compare or [], option="--compare", taken=first)}
    healthy_of = {first: None, **_healthy(healthy or [], first)}
    if unknown := healthy_of.keys() - methods.keys():
        raise ConfigError(f"--healthy names {unknown.pop()}, which is none of {', '.join(methods)}: correct the name.")
    rules = Rules(
        tolerance_mm=tolerance_mm,
        matching=read_matching(matching, minimum_iou),
        resample=resample,
        thresholds=THRESHOLDS if froc else (),
    )
    by_case = read_folds(folds) if folds else {}
    evaluated = _evaluated(methods, healthy_of, labels, chosen, rules, jobs)
    evaluation = Evaluation(
        organ=organ, method=evaluated[0], others=tuple(evaluated[1:]), rules=rules, folds=by_case, seed=seed,
        level=level,
        settings={
            "predictions": str(predictions), "labels": str(labels), "resample": resample,
            "healthy": None if healthy_of[first] is None else str(healthy_of[first]),
        },
    )  # fmt: skip
    findings = find(evaluation, worst=worst, cts=ct)
    text = write_results(out, evaluation, findings)
    command = shlex.join(["difftumor", *sys.argv[1:]])
    evaluation_page(evaluation, findings, command=command).write(out / "report.html")
    typer.echo(text)
    typer.echo(f"Results are in {out}; report.html has all of them.")
    for each in evaluated:
        check_whole(each, allow_missing=allow_missing)


def _evaluated(
    methods: Mapping[str, Path],
    healthy: Mapping[str, Path | None],
    labels: Path,
    organ: Organ,
    rules: Rules,
    jobs: int,
) -> list[Method]:
    """Evaluate each method; of those but the first, only those that have probabilities get a free-response curve."""
    from difftumor.cli.progress import progress_bar
    from difftumor.evaluation.methods import evaluate_method
    from difftumor.prediction.probability_file import PROBABILITIES

    evaluated: list[Method] = []
    for name, folder in methods.items():
        own = rules if not evaluated or (folder / PROBABILITIES).is_dir() else replace(rules, thresholds=())
        with progress_bar(f"Evaluating {name}", None) as advance:
            scans = healthy.get(name)
            evaluated.append(
                evaluate_method(name, folder, labels, organ, rules=own, healthy=scans, jobs=jobs, watch=advance)
            )
    return evaluated


def _folder_name(folder: Path) -> str:
    return folder.resolve().name


def _named(words: Sequence[str], *, option: str, taken: str | None = None) -> dict[str, Path]:
    """Read ``[NAME=]DIR``; the name is the folder's where none is given.

    Raises:
        ConfigError: A name comes twice, or is no name of a folder.
    """
    from difftumor.errors import ConfigError

    found: dict[str, Path] = {}
    for word in words:
        given, _, folder = word.rpartition("=")
        name = given or _folder_name(Path(folder))
        if name == taken or name in found:
            raise ConfigError(f"{option} {word} has the name {name!r} of another method: give {option} NAME={folder}.")
        if Path(name).name != name or name in (".", ".."):
            raise ConfigError(f"{option} {word} has a name with slashes: give another one.")
        found[name] = Path(folder)
    return found


def _healthy(words: Sequence[str], first: str) -> dict[str, Path]:
    """Read ``[NAME=]DIR``; the name is the first method's where none is given."""
    return _named([word if "=" in word else f"{first}={word}" for word in words], option="--healthy")
