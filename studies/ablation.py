"""What makes hand-crafted tumors teach: ``python -m studies.ablation run --test TEST organ=liver data.root=HEALTHY``.

The ablation of Hu et al. (CVPR 2023), Table 4: trains segmenters on hand-crafted tumors of all sizes with elastic
deformation and blurred rims, and on tumors without some of these, each with several seeds and the same number of steps,
and tests all on the same scans. Rerunning it resumes.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from difftumor.errors import ConfigError
from difftumor.reporting.tables import Row
from difftumor.synthesis.distributions import fixed
from difftumor.synthesis.sizes import SIZE_CHOICES
from stages.segmentation.options import SegmentationOptions
from studies.jobs.results import Picture, write_results
from studies.jobs.segmenters import (
    SMALL_RADIUS_MM,
    SegmenterGraph,
    SegmenterScores,
    mean_and_spread,
    options_of,
    scores_figure,
    segmenter_options,
)
from studies.jobs.study import Study

GROUP, TINY = "ablation", "tiny"
COMPONENTS = ("tiny size", "elastic deformation", "edge blurring")
# Ablations of configs/segmentation/ablation/ in the order of Table 4, and the components they have.
ABLATIONS: Mapping[str, tuple[bool, bool, bool]] = {
    "no_elastic_no_blur": (True, False, False),
    "no_elastic": (True, False, True),
    "no_blur": (True, True, False),
    "no_tiny": (False, True, True),
    "full": (True, True, True),
}


def declare(arguments: argparse.Namespace) -> SegmenterGraph:
    """Return the trainings of all ablations and their predictions.

    Raises:
        ConfigError: An option contradicts an ablation.
    """
    # The user's options come after the experiment, so that another experiment replaces it.
    kinds = {
        name.replace("_", " "): ["experiment=label_free", *arguments.options, f"{GROUP}={name}"] for name in ABLATIONS
    }
    _check_ticks(kinds, arguments.options)
    return SegmenterGraph(kinds, arguments)


def write_table(arguments: argparse.Namespace, graph: SegmenterGraph) -> Path:
    """Test, write the results, and return the page."""
    tested = graph.test()
    small = f"sensitivity, radius below {SMALL_RADIUS_MM:g} mm"
    return write_results(
        arguments.out,
        "ablation",
        title="What makes hand-crafted tumors teach",
        introduction=[
            "The ablation of Hu et al. (CVPR 2023), Table 4. Segmenters were trained on hand-crafted tumors with the "
            "components ticked, for the same number of steps and without validation, "
            f"{arguments.seeds} per row. All were tested on the same scans.",
            f"DSC is the mean over the scans with tumors. Small tumors have a radius below {SMALL_RADIUS_MM:g} mm; one "
            "common voxel finds a tumor. ± is the standard deviation over the seeds.",
        ],
        rows=table_rows(tested.scores),
        pictures={
            "trainings": Picture(
                scores_figure(tested, {"tumor_dsc": "tumor DSC", "small_sensitivity": small}),
                "Every dot is a training; bars are means.",
            )
        },
        details=tested.details,
    )


def _check_ticks(kinds: Mapping[str, Sequence[str]], given: Sequence[str]) -> None:
    """Refuse options that contradict the ablations, since the ticks of the table would be wrong.

    Raises:
        ConfigError: There is one; the message names it.
    """
    for option in given:
        if option.lstrip("+~").partition("=")[0].partition("@")[0] == GROUP:
            raise ConfigError(f"The study sets {GROUP} itself: leave out {option}, since it trains all {len(kinds)}.")
    for (kind, options), ticks in zip(kinds.items(), ABLATIONS.values(), strict=True):
        for option, value, needed in _contradictions(options_of(options), ticks):
            raise ConfigError(
                f"{option} is {value}, but the ablation '{kind}' needs {needed}: leave out the option, since the study "
                "sets it."
            )


def _contradictions(options: SegmentationOptions, ticks: tuple[bool, bool, bool]) -> Iterator[tuple[str, Any, str]]:
    """Yield options that contradict the ticks, with their values and what they must be."""
    tiny, elastic, blurred = ticks
    synthesis = options.synthesis
    if options.tumors != "handcrafted":
        yield "tumors", options.tumors, "handcrafted"
    if synthesis.offline is not None:  # tumors made before cannot be changed
        yield "synthesis.offline", synthesis.offline, "null"
    # Some size groups include tiny tumors.
    sizes = asdict(synthesis.sizes)
    with_tiny = {name: weight for name, weight in sizes.items() if weight and TINY in SIZE_CHOICES.get(name, ())}
    if tiny and not with_tiny:
        yield f"synthesis.sizes.{TINY}", 0, "more"
    if not tiny:
        yield from ((f"synthesis.sizes.{name}", weight, "0") for name, weight in with_tiny.items())
    for name, value, has in (
        ("irregularity", synthesis.irregularity, elastic),
        ("blur_mm", synthesis.blur_mm, blurred),
    ):
        if (value != fixed(0)) != has:
            given = None if value is None else value.to_plain()
            given = f"{given:g}" if isinstance(given, float) else given
            yield f"synthesis.{name}", given, "another value" if has else "0"


def table_rows(scores: Mapping[str, Sequence[SegmenterScores]]) -> list[Row]:
    """Return the rows of Table 4, plus false positives, without which a sensitivity means little."""
    return [
        {
            **{name: "✓" if has else "–" for name, has in zip(COMPONENTS, components, strict=True)},
            "all tumors DSC (%)": mean_and_spread(runs, "tumor_dsc", factor=100, digits=1),
            "small tumors sensitivity (%)": mean_and_spread(runs, "small_sensitivity", factor=100, digits=1),
            "false positives per scan": mean_and_spread(runs, "false_positives"),
        }
        for components, runs in zip(ABLATIONS.values(), scores.values(), strict=True)
    ]


STUDY = Study(
    "ablation",
    __doc__,
    declare,
    write_table,
    segmenter_options,
    check=SegmenterGraph.check,
    words="options of stage 3, such as organ=liver data.root=PATH",
)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
