"""Which tumors to train a segmenter on: ``python -m studies.tumor_sources --test TEST organ=liver data.root=FEW``.

Trains segmenters on diffusion tumors alone, on hand-crafted ones alone, on the annotated tumors of ``data.root`` alone,
and on these with diffusion tumors, each with several seeds and as many steps, and tests all on the same scans. Healthy
scans come from ``data.healthy_root`` too. Running it again goes on where it stopped.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from difftumor.artifact_config import read_config
from difftumor.devices import describe_device, pick_device
from difftumor.evaluation.methods import Rules, evaluate_method
from difftumor.evaluation.summary import summarize
from difftumor.organs import Organ
from difftumor.plots import CURVE_COLORS, new_axes
from stages.entry import compose_config
from stages.segmentation_cases import choose_cases
from stages.settings import Settings, construct, to_plain
from studies.command import run_command, whole_number
from studies.results import Picture, Row, write_results
from studies.training import command, train

STAGE = "segmentation"
# Share of a training that its warm-up takes, as published: 100 of 2000 epochs.
WARM_UP = 0.05
# What is trained on, and the options of stage 3 that say so.
SOURCES: Mapping[str, tuple[str, ...]] = {
    "diffusion tumors": ("tumors=diffusion",),
    "hand-crafted tumors": ("tumors=handcrafted",),
    "few real tumors": ("tumors=real",),
    "few real and diffusion": ("tumors=mixed", "data.made_share=0.5"),
}


@dataclass(frozen=True)
class SegmenterScores:
    """What one segmenter reaches on the test scans.

    Args:
        tumor_dsc: Mean over the scans with tumors.
        organ_dsc: Mean over all scans, tumors included.
        sensitivity: Share of the tumors that were found, one voxel being enough.
        false_positives: Per scan.
    """

    tumor_dsc: float
    organ_dsc: float
    sensitivity: float
    false_positives: float


def command_line() -> argparse.ArgumentParser:
    """Return what parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.tumor_sources", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--test", type=Path, required=True, help="list or folder of the scans to test on, with labels")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/tumor_sources"), help="folder of the study (runs/tumor_sources)"
    )
    parser.add_argument("--seeds", type=whole_number, default=3, help="trainings for each source (3)")
    parser.add_argument("--steps", type=whole_number, default=2000, help="steps of each training, about (2000)")
    parser.add_argument("--overlap", type=float, default=0.5, help="of the windows in prediction (0.5)")
    parser.add_argument("--device", default="auto", help="where tumors are predicted: auto, cpu, cuda")
    parser.add_argument("options", nargs="+", help="options of stage 3, such as organ=liver data.root=PATH")
    return parser


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
    device = pick_device(words.device)
    options = {name: [*words.options, "fold=null", *more] for name, more in SOURCES.items()}
    # All options are checked before anything is trained.
    epochs = {name: _epochs(own, steps=words.steps) for name, own in options.items()}
    tested: dict[str, list[SegmenterScores]] = {}
    for seed in range(words.seeds):
        for name, own in options.items():
            run = _run(name, seed)
            artifact = words.out / "checkpoints" / run
            train(
                STAGE,
                [
                    *own, f"seed={seed}", f"name={run}", f"artifact={artifact}", f"runs_dir={words.out}/runs",
                    f"training.epochs={epochs[name]}", f"training.warmup_epochs={round(WARM_UP * epochs[name])}",
                ],
            )  # fmt: skip
            predictions = words.out / "predictions" / run
            _predict(artifact, predictions, words)
            tested.setdefault(name, []).append(_test(predictions, words.test, _organ(own)))
    return write_results(
        words.out,
        "tumor_sources",
        title="Which tumors to train a segmenter on",
        introduction=[
            f"Each source of tumors trained {words.seeds} segmenters of the same kind, with as many steps and other "
            "seeds, without validation. All were tested on the same scans, which no model has seen.",
            "Tumor DSC is the mean over the scans with tumors, sensitivity the share of all tumors of which a voxel "
            "was found. ± is the standard deviation over the seeds.",
        ],
        rows=table_rows(tested),
        pictures={"trainings": Picture(sources_figure(tested), "Every dot is a training; the bars are means.")},
        details={
            "command": words.command,
            "predicted on": describe_device(device),
            **{f"steps, {name}": _steps(words.out / "checkpoints" / _run(name, 0)) for name in tested},
        },
    )


def _run(source: str, seed: int) -> str:
    return f"{source.replace(' ', '_')}_{seed}"


def _steps(artifact: Path) -> int:
    return int(read_config(artifact).training["steps"])


def _settings(options: Sequence[str]) -> Settings:
    return Settings(to_plain(compose_config(STAGE, options)))


def _organ(options: Sequence[str]) -> Organ:
    return construct(Organ, _settings(options).organ)


def _epochs(options: Sequence[str], *, steps: int) -> int:
    """Return how many epochs make so many steps, on the cases that the options choose."""
    settings = _settings(options)
    chosen = choose_cases(settings, construct(Organ, settings.organ))
    return max(1, round(steps / math.ceil(len(chosen.train) / settings.data.batch_size)))


def _predict(artifact: Path, out: Path, words: argparse.Namespace) -> None:
    command(
        "predict",
        [
            "--ct", str(words.test), "--model", str(artifact), "--out", str(out), "--overlap", str(words.overlap),
            "--device", words.device, "--organ-filter", "predicted",
        ],
    )  # fmt: skip


def _test(predictions: Path, labels: Path, organ: Organ) -> SegmenterScores:
    method = evaluate_method(predictions.name, predictions, labels, organ, rules=Rules())
    summary: dict[str, Any] = summarize([case.result for case in method.cases])
    return SegmenterScores(
        tumor_dsc=summary["scores"]["cases_with_tumor"]["tumor_dsc"]["mean"],
        organ_dsc=summary["scores"]["all_cases"]["organ_dsc"]["mean"],
        sensitivity=summary["detection"]["sensitivity"]["value"],
        false_positives=summary["detection"]["false_positives_per_scan"],
    )


def table_rows(tested: Mapping[str, Sequence[SegmenterScores]]) -> list[Row]:
    """Return one row per source: means over the seeds, with standard deviations."""
    return [
        {
            "trained on": name,
            "trainings": len(runs),
            "tumor DSC": _spread([run.tumor_dsc for run in runs]),
            "sensitivity": _spread([run.sensitivity for run in runs]),
            "false positives per scan": _spread([run.false_positives for run in runs]),
            "organ DSC": _spread([run.organ_dsc for run in runs]),
        }
        for name, runs in tested.items()
    ]


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def sources_figure(tested: Mapping[str, Sequence[SegmenterScores]]) -> Figure:
    """Draw tumor DSC and sensitivity of every training, source beside source."""
    figure, axes = new_axes(2, (9.0, 3.0), None)
    figure.set_layout_engine("constrained", wspace=0.06)  # or the ends of both scales would touch
    names = list(tested)
    for place, (axis, field, label) in enumerate(
        zip(axes, ("tumor_dsc", "sensitivity"), ("tumor DSC", "tumor-wise sensitivity"), strict=True)
    ):
        for row, name in enumerate(names):
            values = [getattr(run, field) for run in tested[name]]
            axis.barh(row, fmean(values), color=CURVE_COLORS[0], alpha=0.35, height=0.6)
            axis.plot(values, [row] * len(values), "o", color=CURVE_COLORS[0], markersize=5)
        axis.set(xlim=(0, 1), xlabel=label, ylim=(len(names) - 0.5, -0.5))
        axis.set_yticks(range(len(names)), names if place == 0 else [""] * len(names))
        axis.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
