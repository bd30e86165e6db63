"""What tumors on the fly need to teach: ``python -m studies.on_the_fly run --test TEST data.healthy_root=PATH``.

Trains segmenters on diffusion tumors made during training, by all combinations of the smoothing of the Dice, the share
of the crops with tumors, and crops around the organ or around tumors; and, to compare with, on hand-crafted tumors and
on tumors of the same diffusion model made before. All have several seeds and the same number of steps, and are tested
on the same scans. Rerunning it resumes.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from difftumor.reporting.tables import Row
from studies.jobs.results import Picture, write_results
from studies.jobs.segmenters import SegmenterGraph, SegmenterScores, mean_and_spread, scores_figure, segmenter_options
from studies.jobs.study import Study

SMOOTHING, PROBABILITY, CROPS = "smoothing", "crops with tumors", "crops around"
# Factors with their levels: what the table calls each, and its options of stage 3.
FACTORS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    SMOOTHING: {
        "1e-5": ("loss.smooth_nr=1e-5", "loss.smooth_dr=1e-5"),
        "published": ("loss.smooth_nr=0", "loss.smooth_dr=1e-6"),
    },
    PROBABILITY: {"half": ("synthesis.probability=0.5",), "all": ("synthesis.probability=1",)},
    CROPS: {"organ": ("synthesis.center=0",), "tumors": ("synthesis.center=0.5",)},
}
# Levels of the trainings to compare with: today's way to train on hand-crafted tumors, and that with most tumor.
HANDCRAFTED = (("published", "half", "organ"), ("published", "all", "tumors"))


def declare(arguments: argparse.Namespace) -> SegmenterGraph:
    """Return the trainings of all combinations and those to compare with, and their predictions."""
    kinds = {
        f"{tumors} {' '.join(levels)}".replace(",", ""): [*arguments.options, *options]
        for (tumors, levels), options in _rows(arguments).items()
    }
    return SegmenterGraph(kinds, arguments)


def _rows(arguments: argparse.Namespace) -> dict[tuple[str, tuple[str, ...]], list[str]]:
    """Return the rows of the table, tumors and levels, with the options that they are."""
    combinations = list(product(*FACTORS.values()))
    rows = {("diffusion, on the fly", levels): ["tumors=diffusion", *_options(levels)] for levels in combinations}
    rows |= {("hand-crafted, on the fly", levels): ["tumors=handcrafted", *_options(levels)] for levels in HANDCRAFTED}
    if arguments.made_before is not None:
        before = ["tumors=diffusion", f"synthesis.offline={arguments.made_before}", *_options(("published", "all"))]
        rows["diffusion, made before", ("published", "all", "tumors")] = before
    return rows


def write_table(arguments: argparse.Namespace, graph: SegmenterGraph) -> Path:
    """Test, write the results, and return the page."""
    tested = graph.test()
    return write_results(
        arguments.out,
        "on_the_fly",
        title="What tumors on the fly need to teach",
        introduction=[
            f"Each row trained {arguments.seeds} segmenters of the same kind, for the same number of steps and with "
            "different seeds, without validation. All were tested on the same scans, which no model has seen.",
            "Crops around tumors: half of the healthy crops are cut around a tumor once it is made; scans with tumors "
            "made before are cropped as annotated ones. Tumor DSC is the mean over the scans with tumors, sensitivity "
            "the share of tumors with at least one voxel found. ± is the standard deviation over the seeds.",
        ],
        rows=table_rows(list(_rows(arguments)), list(tested.scores.values())),
        pictures={
            "trainings": Picture(
                scores_figure(tested, {"tumor_dsc": "tumor DSC", "sensitivity": "tumor-wise sensitivity"}),
                "Every dot is a training; bars are means.",
            )
        },
        details=tested.details,
    )


def table_rows(kinds: Sequence[tuple[str, Sequence[str]]], scores: Sequence[Sequence[SegmenterScores]]) -> list[Row]:
    """Return one row per kind of training: its levels, and means over the seeds with standard deviations."""
    return [
        {
            "trained on": tumors,
            **dict(zip(FACTORS, levels, strict=True)),
            "trainings": len(runs),
            "tumor DSC": mean_and_spread(runs, "tumor_dsc"),
            "sensitivity": mean_and_spread(runs, "sensitivity"),
            "false positives per scan": mean_and_spread(runs, "false_positives"),
            "organ DSC": mean_and_spread(runs, "organ_dsc"),
        }
        for (tumors, levels), runs in zip(kinds, scores, strict=True)
    ]


def _options(levels: Sequence[str]) -> list[str]:
    chosen = zip(FACTORS.values(), levels, strict=False)  # tumors made before have no last factor
    return [option for factor, level in chosen for option in factor[level]]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--made-before", type=Path, metavar="DIR", help="scans with tumors of the same model, from synthesize --cases"
    )


STUDY = Study(
    "on_the_fly",
    __doc__,
    declare,
    write_table,
    partial(segmenter_options, more=_add_options),
    check=SegmenterGraph.check,
    words="options of stage 3, such as organ=liver data.healthy_root=PATH",
)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
