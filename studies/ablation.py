"""What makes hand-crafted tumors teach: ``python -m studies.ablation --test TEST organ=liver data.root=HEALTHY``.

The ablation of Hu et al. (CVPR 2023), Table 4: trains segmenters on hand-crafted tumors of all sizes with elastic
deformation and blurred rims, and on such without some of these, each with several seeds and as many steps, and tests
all on the same scans. Running it again goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.command import run_command
from studies.results import Picture, Row, write_results
from studies.segmenters import (
    SMALL_RADIUS_MM,
    SegmenterScores,
    mean_and_spread,
    scores_figure,
    study_parser,
    train_and_test,
)

COMPONENTS = ("tiny size", "elastic deformation", "edge blurring")
# Ablations of configs/segmentation/ablation/ in the order of Table 4, and which of the components they have.
ABLATIONS: Mapping[str, tuple[bool, bool, bool]] = {
    "no_elastic_no_blur": (True, False, False),
    "no_elastic": (True, False, True),
    "no_blur": (True, True, False),
    "no_tiny": (False, True, True),
    "full": (True, True, True),
}


def command_line() -> argparse.ArgumentParser:
    """Return what parses the command line."""
    return study_parser("ablation", (__doc__ or "").splitlines()[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return run_command(command_line(), run_study, arguments)


def run_study(words: argparse.Namespace) -> Path:
    """Train what is not trained yet, test, and write the results.

    Returns:
        The page.

    Raises:
        DiffTumorError: An option is wrong, or a training has failed.
    """
    # What the user says comes after, so that another experiment takes the place of this one.
    kinds = {
        name.replace("_", " "): ["experiment=label_free", *words.options, f"ablation={name}"] for name in ABLATIONS
    }
    tested = train_and_test(kinds, words)
    small = f"sensitivity, radius below {SMALL_RADIUS_MM:g} mm"
    return write_results(
        words.out,
        "ablation",
        title="What makes hand-crafted tumors teach",
        introduction=[
            "The ablation of Hu et al. (CVPR 2023), Table 4. Segmenters were trained on hand-crafted tumors that have "
            f"what is ticked, with as many steps, without validation; seeds: {words.seeds}. All were tested "
            "on the same scans.",
            "DSC is the mean over the scans with tumors. Of the small tumors, those with a radius below "
            f"{SMALL_RADIUS_MM:g} mm, one voxel found is enough. ± is the standard deviation over the seeds.",
        ],
        rows=table_rows(tested.scores),
        pictures={
            "trainings": Picture(
                scores_figure(tested, {"tumor_dsc": "tumor DSC", "small_sensitivity": small}),
                "Every dot is a training; the bars are means.",
            )
        },
        details=tested.details,
    )


def table_rows(scores: Mapping[str, Sequence[SegmenterScores]]) -> list[Row]:
    """Return the rows of Table 4, with false positives, without which a sensitivity says little."""
    return [
        {
            **{name: "✓" if has else "–" for name, has in zip(COMPONENTS, components, strict=True)},
            "all tumors DSC (%)": mean_and_spread(runs, "tumor_dsc", factor=100, digits=1),
            "small tumors sensitivity (%)": mean_and_spread(runs, "small_sensitivity", factor=100, digits=1),
            "false positives per scan": mean_and_spread(runs, "false_positives"),
        }
        for components, runs in zip(ABLATIONS.values(), scores.values(), strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
