"""What makes hand-crafted tumors teach: ``python -m studies.ablation --test TEST organ=liver data.root=HEALTHY``.

The ablation of Hu et al. (CVPR 2023), Table 4: trains segmenters on hand-crafted tumors of all sizes with elastic
deformation and blurred rims, and on such without some of these, each with several seeds and as many steps, and tests
all on the same scans. Running it again goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from difftumor.errors import ConfigError
from difftumor.reporting.tables import Row
from difftumor.synthesis.sizes import SIZE_CHOICES
from stages.run.settings import Settings
from studies.jobs.command import run_command
from studies.jobs.results import Picture, write_results
from studies.jobs.segmenters import (
    SMALL_RADIUS_MM,
    SegmenterScores,
    mean_and_spread,
    scores_figure,
    settings_of,
    study_parser,
    train_and_test,
)

GROUP, TINY = "ablation", "tiny"
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
    kinds = {name.replace("_", " "): ["experiment=label_free", *words.options, f"{GROUP}={name}"] for name in ABLATIONS}
    _check_ticks(kinds, words.options)
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


def _check_ticks(kinds: Mapping[str, Sequence[str]], given: Sequence[str]) -> None:
    """Refuse the user's options that outdo those of the ablations, as the table would tick what is not so.

    Raises:
        ConfigError: There is one; the message names it.
    """
    for option in given:
        if option.lstrip("+~").partition("=")[0].partition("@")[0] == GROUP:
            raise ConfigError(f"The study sets {GROUP} itself: leave {option} out, as all of {len(kinds)} are trained.")
    for (kind, options), ticks in zip(kinds.items(), ABLATIONS.values(), strict=True):
        for option, value, needed in _outdone(settings_of(options), ticks):
            raise ConfigError(
                f"{option} is {value} where the ablation '{kind}' needs {needed}: leave the option out, as it is what "
                "the study compares."
            )


def _outdone(settings: Settings, ticks: tuple[bool, bool, bool]) -> Iterator[tuple[str, Any, str]]:
    """Yield options behind the ticks that are not as these say, with their values and what they must be."""
    tiny, elastic, blurred = ticks
    synthesis = settings.synthesis
    if settings.tumors != "handcrafted":
        yield "tumors", settings.tumors, "handcrafted"
    if synthesis.offline is not None:  # tumors made before are what they are
        yield "synthesis.offline", synthesis.offline, "null"
    # Of the groups, some have tiny tumors among others.
    with_tiny = {
        name: weight for name, weight in synthesis.sizes.items() if weight and TINY in SIZE_CHOICES.get(name, ())
    }
    if tiny and not with_tiny:
        yield f"synthesis.sizes.{TINY}", 0, "more"
    if not tiny:
        yield from ((f"synthesis.sizes.{name}", weight, "0") for name, weight in with_tiny.items())
    for name, has in (("irregularity", elastic), ("blur_mm", blurred)):
        if (synthesis[name] != 0) != has:
            yield f"synthesis.{name}", synthesis[name], "another value" if has else "0"


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
