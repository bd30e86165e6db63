"""Segmenters that differ in their training data, each with several seeds, tested on the same scans.

Shared by the studies of stage 3: their options, training for the same number of steps, prediction, test, and summary.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from difftumor.cli.many import SUMMARY_FILE
from difftumor.datasets.cases import CaseList, read_cases
from difftumor.errors import CaseListError, first_few
from difftumor.evaluation.cohort.cases import CaseResult
from difftumor.evaluation.cohort.evaluate import evaluate
from difftumor.evaluation.cohort.summary import summarize
from difftumor.models.artifact import describe_device, pick_device
from difftumor.models.artifact_config import read_config
from difftumor.reporting.plots import CURVE_COLORS, new_axes
from difftumor.reporting.tables import Cell
from difftumor.scans.organs import Organ, resolve_labels
from difftumor.segmentation.unseen import seen_scans
from stages.config.compose import compose_options
from stages.segmentation.cases import choose_cases
from stages.segmentation.options import SegmentationOptions
from studies.jobs.graph import Graph, Node
from studies.jobs.study import require_done, whole_number

STAGE = "segmentation"
# Share of the training used for warm-up, as published: 100 of 2000 epochs.
WARM_UP = 0.05
# Small tumors of Hu et al. 2023, Table 4, have a radius below this.
SMALL_RADIUS_MM = 5.0


@dataclass(frozen=True)
class SegmenterScores:
    """The scores of one segmenter on the test scans; None if there is nothing to measure.

    Args:
        tumor_dsc: Mean over the scans with tumors.
        organ_dsc: Mean over all scans, tumors included.
        sensitivity: Share of tumors with at least one voxel found.
        small_sensitivity: The same for tumors with a radius below ``SMALL_RADIUS_MM``.
        false_positives: False positives per scan.
    """

    tumor_dsc: float | None
    organ_dsc: float | None
    sensitivity: float | None
    small_sensitivity: float | None
    false_positives: float | None

    @classmethod
    def of(cls, results: Sequence[CaseResult]) -> "SegmenterScores":
        """Sum up the test scans."""
        summary: dict[str, Any] = summarize(results)
        found = [match.prediction is not None for match in small_tumors(results)]
        return cls(
            tumor_dsc=summary["scores"]["cases_with_tumor"]["tumor_dsc"]["mean"],
            organ_dsc=summary["scores"]["all_cases"]["organ_dsc"]["mean"],
            sensitivity=summary["detection"]["sensitivity"]["value"],
            small_sensitivity=fmean(found) if found else None,
            false_positives=summary["detection"]["false_positives_per_scan"],
        )


@dataclass(frozen=True)
class StudyScores:
    """The segmenters of a study.

    Args:
        scores: Scores of each training, by training data.
        details: What was run, for the page.
    """

    scores: Mapping[str, Sequence[SegmenterScores]]
    details: Mapping[str, Cell]


def small_tumors(results: Sequence[CaseResult]) -> list[Any]:
    """Return the matches of all tumors with a radius below ``SMALL_RADIUS_MM``."""
    matches = (match for result in results for match in result.detection.matches)
    return [match for match in matches if match.truth.radius_mm < SMALL_RADIUS_MM]


def segmenter_options(
    parser: argparse.ArgumentParser,
    *,
    data: bool = True,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Add the options of a study of segmenters to its parser.

    Args:
        parser: Of the study.
        data: Whether the user chooses what to test on.
        more: Adds further options.
    """
    if data:
        parser.add_argument(
            "--test",
            type=Path,
            required=True,
            help="scans to test on, with labels: a list or the folder of a dataset.json",
        )
    parser.add_argument("--seeds", type=whole_number, default=3, help="trainings of each kind (3)")
    parser.add_argument("--steps", type=whole_number, default=2000, help="approximate steps of each training (2000)")
    parser.add_argument("--overlap", type=float, default=0.5, help="overlap of neighboring windows in prediction (0.5)")
    parser.add_argument("--device", default="auto", help="where tumors are predicted: auto, cpu, cuda")
    if more is not None:
        more(parser)


class SegmenterGraph(Graph):
    """Segmenters of several kinds, each with several seeds, trained on all scans without validation, and tested.

    Args:
        kinds: Names of the training data, with all options of stage 3.
        arguments: With the options that ``segmenter_options`` adds, and the whole command line as ``command``.

    Raises:
        DiffTumorError: An option is wrong, or the test scans cannot be used.
    """

    def __init__(self, kinds: Mapping[str, Sequence[str]], arguments: argparse.Namespace) -> None:
        super().__init__(arguments.out, arguments.cluster)
        self.arguments = arguments
        options = {name: [*own, "fold=null"] for name, own in kinds.items()}
        # All options and the test scans are checked before anything is trained.
        typed = {name: options_of(own) for name, own in options.items()}
        self.organs = {name: each.organ for name, each in typed.items()}
        test = _check_test(arguments.test, self.organs.values())
        epochs = {name: _epochs(each, steps=arguments.steps) for name, each in typed.items()}
        self.trainings: dict[str, list[Node]] = {name: [] for name in kinds}
        self.predictions: dict[str, list[Node]] = {name: [] for name in kinds}
        for seed in range(arguments.seeds):
            for name, own in options.items():
                run = f"{name.replace(' ', '_')}_{seed}"
                length = {"training.epochs": epochs[name], "training.warmup_epochs": round(WARM_UP * epochs[name])}
                training = self.stage("segmentation", run, own, {"seed": seed, **length})
                words = [
                    "--ct", arguments.test, "--model", training, "--overlap", str(arguments.overlap),
                    "--organ-filter", "predicted",
                ]  # fmt: skip
                device = ["--device", arguments.device]
                files = [SUMMARY_FILE, *(f"{case.id}.nii.gz" for case in test.cases)]
                predicted = self.command(
                    "predict", f"predict_{run}", words,
                    results=files, neutral=device, replacing=["--overwrite"], gpu=True,
                )  # fmt: skip
                self.trainings[name].append(training)
                self.predictions[name].append(predicted)

    def check(self) -> None:
        """Refuse a device that is not there, before hours are spent."""
        pick_device(self.arguments.device)

    def test(self) -> StudyScores:
        """Test what is trained: all of it.

        Raises:
            DiffTumorError: A training or prediction is missing, or cannot be evaluated.
        """
        require_done(self)
        arguments = self.arguments
        details: dict[str, Cell] = {
            "command": arguments.command, "predicted on": describe_device(pick_device(arguments.device))
        }  # fmt: skip
        scores: dict[str, list[SegmenterScores]] = {}
        results: list[CaseResult] = []
        for name, predictions in self.predictions.items():
            tested = [_test(node.output, arguments.test, self.organs[name]) for node in predictions]
            scores[name], results = [SegmenterScores.of(each) for each in tested], tested[-1]
            details[f"steps, {name}"] = int(read_config(self.trainings[name][-1].output).training["steps"])
        ill = [result for result in results if not result.healthy]
        details["test scans"] = f"{len(results)}, {len(ill)} of them with tumors"
        details["test tumors"] = (
            f"{sum(len(result.detection.matches) for result in ill)}, {len(small_tumors(ill))} of them with a radius "
            f"below {SMALL_RADIUS_MM:g} mm"
        )
        artifacts = [node.output for trainings in self.trainings.values() for node in trainings]
        details["test scans seen in training"] = _seen(artifacts, arguments.test)
        return StudyScores(scores, details)


def mean_and_spread(runs: Sequence[SegmenterScores], field: str, *, factor: float = 1, digits: int = 2) -> str | None:
    """Return the mean over the trainings ± the standard deviation as text; None if there is nothing to measure."""
    values = [factor * value for run in runs if (value := getattr(run, field)) is not None]
    if not values:
        return None
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def scores_figure(tested: StudyScores, fields: Mapping[str, str]) -> Figure:
    """Plot scores from 0 to 1 of every training, one row per kind.

    Args:
        tested: The segmenters.
        fields: Fields of ``SegmenterScores`` with their labels.
    """
    figure, axes = new_axes(len(fields), (9.0, 0.6 + 0.6 * max(4, len(tested.scores))), None)
    figure.set_layout_engine("constrained", wspace=0.06)  # keeps the ends of the scales apart
    names = list(tested.scores)
    for place, (axis, (field, label)) in enumerate(zip(axes, fields.items(), strict=True)):
        for row, name in enumerate(names):
            values = [value for run in tested.scores[name] if (value := getattr(run, field)) is not None]
            if values:
                axis.barh(row, fmean(values), color=CURVE_COLORS[0], alpha=0.35, height=0.6)
                axis.plot(values, [row] * len(values), "o", color=CURVE_COLORS[0], markersize=5)
        axis.set(xlim=(0, 1), xlabel=label, ylim=(len(names) - 0.5, -0.5))
        axis.set_yticks(range(len(names)), names if place == 0 else [""] * len(names))
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def options_of(overrides: Sequence[str]) -> SegmentationOptions:
    """Compose the options of a training.

    Raises:
        ConfigError: An option is unknown.
    """
    return compose_options(STAGE, SegmentationOptions, overrides)


def _epochs(options: SegmentationOptions, *, steps: int) -> int:
    """Return how many epochs make this many steps, for the cases that the options choose."""
    return max(1, round(steps / math.ceil(len(choose_cases(options).train) / options.data.batch_size)))


def _check_test(source: Path, organs: Iterable[Organ]) -> CaseList:
    """Return the test scans; refuse those that cannot be used.

    Raises:
        CaseListError: There are none, a file is missing, or a scan has no labels.
        OrganError: An organ is not among the label names.
    """
    listed = read_cases(source)
    # The test would read a folder without a list as one of label maps.
    listless = source.is_dir() and not (source / "dataset.json").is_file()
    unlabeled = [case.id for case in listed.cases if case.labels is None or listless]
    if unlabeled:
        raise CaseListError(
            f"--test {source} names no label map of {first_few(unlabeled)}: give a list with labels, such as a "
            "dataset.json."
        )
    for organ in organs:
        resolve_labels(listed.label_names, organ, source=source)
    return listed


def _seen(artifacts: Sequence[Path], test: Path) -> str:
    """Say which models, from segmenters to autoencoders, were trained on test scans; segmenters only if they were."""
    found = seen_scans(artifacts, [case.image for case in read_cases(test).cases])
    said = [str(each) for each in found if each.kind != "segmenter" or each.seen != 0 or each.suspected or each.unread]
    unseen = ["The other segmenters were trained on no test scan."] if len(said) < len(found) else []
    return " ".join([*said, *unseen])


def _test(predictions: Path, labels: Path, organ: Organ) -> list[CaseResult]:
    evaluation = evaluate(predictions, labels, organ=organ)
    evaluation.check_whole()
    return evaluation.results
