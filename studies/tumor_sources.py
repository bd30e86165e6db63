"""Which tumors to train a segmenter on: ``python -m studies.tumor_sources run --test TEST organ=liver data.root=FEW``.

Trains segmenters on diffusion tumors alone, on hand-crafted ones alone, on copies of the annotated tumors of
``data.root`` in healthy scans, on the annotated tumors alone, and on these with healthy scans as they are or with
tumors of each kind, all with several seeds and the same number of steps, and tests all on the same scans. Copies and
scans as they are are the controls: a gain over the annotated tumors alone may come from the healthy scans, or from
tumors that are merely elsewhere. Healthy scans also come from ``data.healthy_root``. Rerunning it resumes.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from difftumor.reporting.tables import Row
from studies.jobs.results import Picture, write_results
from studies.jobs.segmenters import SegmenterGraph, SegmenterScores, mean_and_spread, scores_figure, segmenter_options
from studies.jobs.study import Study

_MIXED = ("tumors=mixed", "data.made_share=0.5")


def _instead(generator: str) -> tuple[str, ...]:
    """Return the options that take tumors of another generator in place of diffusion tumors."""
    return ("synthesis.generators.diffusion=0", f"synthesis.generators.{generator}=1")


# Sources by their name in ``--sources``: what the table calls them, and the options of stage 3 that they are.
SOURCES: Mapping[str, tuple[str, ...]] = {
    "diffusion": ("diffusion tumors", "tumors=diffusion"),
    "handcrafted": ("hand-crafted tumors", "tumors=handcrafted"),
    "copy_paste": ("copied tumors", "tumors=copy_paste"),
    "real": ("few real tumors", "tumors=real"),
    "none": ("few real and healthy scans", *_MIXED, "synthesis.probability=0"),
    "mixed": ("few real and diffusion", *_MIXED),
    "mixed_handcrafted": ("few real and hand-crafted", *_MIXED, *_instead("handcrafted")),
    "mixed_copy_paste": ("few real and copied", *_MIXED, *_instead("copy_paste")),
}


def add_sources(parser: argparse.ArgumentParser, *, chosen: Sequence[str]) -> None:
    """Add the option that chooses the sources of tumors; ``chosen`` are the default."""
    known, default = ",".join(SOURCES), ",".join(chosen)
    parser.add_argument(
        "--sources", type=_sources, default=tuple(chosen), metavar="NAMES", help=f"some of {known} ({default})"
    )


def _sources(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if len(set(names)) < len(names) or not set(names) <= set(SOURCES):
        raise argparse.ArgumentTypeError(f"{text!r}: give some of {','.join(SOURCES)}, each once")
    return names


def declare(arguments: argparse.Namespace) -> SegmenterGraph:
    """Return the trainings of the chosen sources and their predictions."""
    kinds = {
        name: [*arguments.options, *more] for source, (name, *more) in SOURCES.items() if source in arguments.sources
    }
    return SegmenterGraph(kinds, arguments)


def write_table(arguments: argparse.Namespace, graph: SegmenterGraph) -> Path:
    """Test, write the results, and return the page."""
    tested = graph.test()
    figure = scores_figure(tested, {"tumor_dsc": "tumor DSC", "sensitivity": "tumor-wise sensitivity"})
    return write_results(
        arguments.out,
        "tumor_sources",
        title="Which tumors to train a segmenter on",
        introduction=[
            f"Each source of tumors trained {arguments.seeds} segmenters of the same kind, for the same number of "
            "steps and with different seeds, without validation. All were tested on the same scans, which no model has "
            "seen.",
            "Copied tumors are the real tumors of the training patients, pasted into healthy scans; few real and "
            "healthy scans has no made tumor at all. A generator teaches something only where it beats both.",
            "Tumor DSC is the mean over the scans with tumors, sensitivity the share of tumors with at least one voxel "
            "found. ± is the standard deviation over the seeds.",
        ],
        rows=table_rows(tested.scores),
        pictures={"trainings": Picture(figure, "Every dot is a training; bars are means.")},
        details=tested.details,
    )


def table_rows(scores: Mapping[str, Sequence[SegmenterScores]]) -> list[Row]:
    """Return one row per source: means over the seeds, with standard deviations."""
    return [
        {
            "trained on": name,
            "trainings": len(runs),
            "tumor DSC": mean_and_spread(runs, "tumor_dsc"),
            "sensitivity": mean_and_spread(runs, "sensitivity"),
            "false positives per scan": mean_and_spread(runs, "false_positives"),
            "organ DSC": mean_and_spread(runs, "organ_dsc"),
        }
        for name, runs in scores.items()
    ]


STUDY = Study(
    "tumor_sources",
    __doc__,
    declare,
    write_table,
    partial(segmenter_options, more=partial(add_sources, chosen=tuple(SOURCES))),
    check=SegmenterGraph.check,
    words="options of stage 3, such as organ=liver data.root=PATH",
)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
