"""How many timesteps does a tumor need? ``python -m studies.timesteps organ=liver fold=0 data.root=PATH``.

Trains stage 2 once for each number of timesteps T, makes tumors of the same masks in the same held-out healthy crops
with each, by DDPM as in Figure 6 of DiffTumor, times them, and measures how far they are from held-out real tumors.
Rerunning it resumes.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from difftumor.evaluation.realism.figures import appearance_figure
from difftumor.models.artifact import describe_device, pick_device
from difftumor.reporting.pictures import axial_rows
from difftumor.reporting.plots import CURVE_COLORS, finish_axes, new_axes
from studies.jobs.commands import run_command, train, whole_number
from studies.jobs.comparison import READING, REAL, Comparison, compare, judged_by, picture_rows, table_rows
from studies.jobs.results import Picture, write_results

TIMESTEPS = (1, 2, 4, 10, 50, 200)
DISTANCES = ("contrast", "sd", "edge")


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    description = (__doc__ or "").splitlines()[0].replace("`", "")
    parser = argparse.ArgumentParser(prog="python -m studies.timesteps", description=description)
    parser.add_argument("--out", type=Path, default=Path("runs/timesteps"), help="folder of the study (runs/timesteps)")
    parser.add_argument(
        "--timesteps", type=_numbers, default=TIMESTEPS, help="numbers of timesteps T (1,2,4,10,50,200)"
    )
    parser.add_argument("--pictured", type=whole_number, default=3, help="crops in the picture (3)")
    parser.add_argument("--device", default="auto", help="where tumors are made and timed: auto, cpu, cuda")
    parser.add_argument("options", nargs="+", help="options of stage 2, such as organ=liver fold=0 data.root=PATH")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    numbers = tuple(sorted(int(word) for word in words if word.isdecimal()))
    if len(numbers) < len(words) or numbers[0] < 1 or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers from 1 up, each once, such as 1,4,200")
    return numbers


def run_study(arguments: argparse.Namespace) -> Path:
    """Train what is not trained yet, compare, and write the results.

    Returns:
        The page.

    Raises:
        DiffTumorError: An option is wrong, nothing is held out to compare with, or a training has failed.
    """
    device = pick_device(arguments.device)
    counts = arguments.timesteps
    unseen = judged_by(arguments.options)
    artifacts = {f"T = {count}": arguments.out / "checkpoints" / f"T{count:03d}" for count in counts}
    for count, artifact in zip(counts, artifacts.values(), strict=True):
        train("diffusion", [*arguments.options, *_own_options(count, artifact, arguments.out)])
    comparison = compare(artifacts, unseen, device=device)
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


def _own_options(timesteps: int, artifact: Path, out: Path) -> list[str]:
    """Return the options that name the model and its artifact, which override those of the user."""
    return [
        f"name=T{timesteps:03d}", f"artifact={artifact}", f"runs_dir={out}/runs", f"diffusion.timesteps={timesteps}",
        "diffusion.sampler.kind=ddpm", "diffusion.sampler.steps=null", "diffusion.sampler.eta=0.0",
        "diffusion.sampler.spacing=leading",
    ]  # fmt: skip


main = partial(run_command, command_line, run_study)


if __name__ == "__main__":
    sys.exit(main())
