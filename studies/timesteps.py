"""How many timesteps does a tumor need? ``python -m studies.timesteps run organ=liver fold=0 data.root=PATH``.

Trains stage 2 once for each number of timesteps T, makes tumors of the same masks in the same held-out healthy crops
with each, by DDPM as in Figure 6 of DiffTumor, times them, and measures how far they are from held-out real tumors.
Rerunning it resumes.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from difftumor.evaluation.realism.figures import appearance_figure
from difftumor.models.artifact import describe_device, pick_device
from difftumor.reporting.pictures import axial_rows
from difftumor.reporting.plots import CURVE_COLORS, finish_axes, new_axes
from studies.jobs.comparison import READING, REAL, Comparison, JudgedGraph, compare, picture_rows, table_rows
from studies.jobs.graph import Value
from studies.jobs.results import Picture, write_results
from studies.jobs.study import Study, require_done, whole_number

TIMESTEPS = (1, 2, 4, 10, 50, 200)
DISTANCES = ("contrast", "sd", "edge")


class TimestepsGraph(JudgedGraph):
    """A diffusion model for each number of timesteps.

    Args:
        arguments: Of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments.out, arguments.cluster)
        self.device = arguments.device
        self.options = arguments.options
        self.models = {
            f"T = {count}": self.stage("diffusion", f"T{count:03d}", self.options, _own_options(count))
            for count in arguments.timesteps
        }


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timesteps", type=_numbers, default=TIMESTEPS, help="numbers of timesteps T (1,2,4,10,50,200)"
    )
    parser.add_argument("--pictured", type=whole_number, default=3, help="crops in the picture (3)")
    parser.add_argument("--device", default="auto", help="where tumors are made and timed: auto, cpu, cuda")


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    numbers = tuple(sorted(int(word) for word in words if word.isdecimal()))
    if len(numbers) < len(words) or numbers[0] < 1 or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers from 1 up, each once, such as 1,4,200")
    return numbers


def write_table(arguments: argparse.Namespace, graph: TimestepsGraph) -> Path:
    """Compare the models, write the results, and return the page.

    Raises:
        DiffTumorError: A model is missing or cannot be used.
    """
    device, counts = pick_device(arguments.device), arguments.timesteps
    require_done(graph)
    artifacts = {name: node.output for name, node in graph.models.items()}
    comparison = compare(artifacts, graph.unseen, device=device)
    rows, centers = picture_rows(comparison, hosts=arguments.pictured)
    window_hu = (comparison.window.low_hu, comparison.window.high_hu)
    tumors = axial_rows(rows, centers=centers, spacing_mm=comparison.spacing_mm, window_hu=window_hu)
    return write_results(
        arguments.out,
        "timesteps",
        title="How many timesteps a tumor needs",
        introduction=[
            "One diffusion model was trained for each number of timesteps T. All made tumors of the same masks in the "
            "same healthy crops of held-out scans, by DDPM.",
            READING,
        ],
        rows=table_rows(comparison),
        pictures={
            "tumors": Picture(tumors, "The same masks (outlined on the left) with each number of timesteps T."),
            "timesteps": Picture(
                timesteps_figure(comparison, counts),
                "Distances from held-out real tumors and time per tumor. Dotted: real tumors of the training cases.",
            ),
            "appearance": Picture(appearance_figure(comparison.sets), "How the tumors look."),
        },
        details={
            "command": arguments.command,
            "times measured on": describe_device(device),
            **comparison.counts,
        },
    )


def timesteps_figure(comparison: Comparison, timesteps: Sequence[int]) -> Figure:
    """Plot distances and times over the number of timesteps.

    Args:
        comparison: Models with these numbers of timesteps, in this order.
        timesteps: Increasing.
    """
    figure, (quality, speed) = new_axes(2, (9.0, 3.4), None)
    training_cases = next(each for each in comparison.references if each.name == REAL)
    for color, name in zip(CURVE_COLORS, DISTANCES, strict=False):
        values = [getattr(model.distance, f"{name}_hu") for model in comparison.models]
        quality.plot(timesteps, values, "o-", color=color, markersize=4, label=name.replace("sd", "standard deviation"))
        if math.isfinite(floor := getattr(training_cases.distance, f"{name}_hu")):
            quality.axhline(floor, color=color, linewidth=1.0, linestyle=":")
    quality.set_ylim(bottom=0)
    seconds = [model.seconds or math.nan for model in comparison.models]
    speed.plot(timesteps, seconds, "o-", color=CURVE_COLORS[0], markersize=4)
    for place in zip(timesteps, seconds, strict=True):
        speed.annotate(f"{place[1]:.2g} s", place, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
    speed.set(yscale="log", ylim=(min(seconds) / 3, max(seconds) * 3))
    _label(quality, timesteps, "distance from real tumors (HU)", legend=True)
    _label(speed, timesteps, "time per tumor (s)", legend=False)
    # The axis may span less than a decade.
    speed.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    speed.yaxis.set_major_formatter("{x:g}")
    return figure


def _label(axes: Axes, timesteps: Sequence[int], y_label: str, *, legend: bool) -> None:
    axes.set(xscale="log", xlabel="timesteps T", ylabel=y_label)
    axes.set_xticks(list(timesteps), [str(count) for count in timesteps])
    axes.minorticks_off()
    finish_axes(axes, legend=legend)


def _own_options(timesteps: int) -> dict[str, Value]:
    """Return the options that make the model, which override those of the user."""
    return {
        "diffusion.timesteps": timesteps, "diffusion.sampler.kind": "ddpm", "diffusion.sampler.steps": None,
        "diffusion.sampler.eta": 0.0, "diffusion.sampler.spacing": "leading",
    }  # fmt: skip


STUDY = Study(
    "timesteps",
    __doc__,
    TimestepsGraph,
    write_table,
    _add_options,
    check=TimestepsGraph.check,
    measures=True,
    words="options of stage 2, such as organ=liver fold=0 data.root=PATH",
)
main = STUDY.main


if __name__ == "__main__":
    sys.exit(main())
