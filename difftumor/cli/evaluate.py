"""``difftumor evaluate``: scores of predicted label maps."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    predictions: Annotated[
        Path, typer.Option(help="Folder of predicted label maps: 0 background, 1 organ, 2 tumor.", show_default=False)
    ],
    labels: Annotated[
        Path,
        typer.Option(help="Folder of true label maps of the same names, or a dataset.json.", show_default=False),
    ],
    organ: Annotated[str, typer.Option(help="Organ, such as liver.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    tolerance_mm: Annotated[float, typer.Option(help="Tolerance of the normalized surface distance.")] = 2.0,
    minimum_iou: Annotated[
        float, typer.Option(help="Least intersection over union of a found lesion; 0: one voxel is enough.")
    ] = 0.0,
    subset: Annotated[bool, typer.Option("--subset", help="Let cases without a prediction be.")] = False,
) -> None:
    """Compare predicted label maps with true ones.

    Writes cases.csv, lesions.csv, summary.json and summary.md. Scores are fractions; in cases without tumor, truth and
    prediction that are both empty score 1, and one that is empty scores 0.
    """
    from difftumor.cli.progress import progress_bar
    from difftumor.evaluation.detection import Matching
    from difftumor.evaluation.pairs import evaluate_pair, find_pairs
    from difftumor.evaluation.summary import RESULT_FILES, write_results
    from difftumor.files import check_results
    from difftumor.organs import get_organ

    check_results(out, RESULT_FILES, inputs=[labels], overwrite=True)
    cohort = find_pairs(predictions, labels, get_organ(organ), subset=subset)
    matching = Matching(rule="iou", minimum_iou=minimum_iou) if minimum_iou else Matching()
    results = []
    with progress_bar("Evaluating", len(cohort.pairs)) as advance:
        for pair in cohort.pairs:
            results.append(evaluate_pair(pair, cohort, tolerance_mm=tolerance_mm, matching=matching))
            advance()
    settings: dict[str, str | int | float | None] = {
        "organ": organ,
        "tolerance_mm": tolerance_mm,
        "minimum_iou": minimum_iou,
        "matching": str(matching),
    }
    typer.echo(write_results(out, results, title=f"Evaluation: {organ}", settings=settings))
    typer.echo(f"Results are in {out}.")
