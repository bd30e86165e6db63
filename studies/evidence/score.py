"""Score the predictions of a cell and write its record: a job of ``python -m studies.evidence``."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from difftumor.datasets.cases import read_cases
from difftumor.errors import CaseListError, DiffTumorError
from difftumor.evaluation.cohort.cases import ScoredCase
from difftumor.evaluation.cohort.evaluate import Evaluation, evaluate
from difftumor.evaluation.metrics.detection import CaseDetection, Matching
from difftumor.evaluation.metrics.froc import THRESHOLDS
from difftumor.models.artifact import describe_device, pick_device
from difftumor.models.artifact_config import ArtifactConfig, read_config
from difftumor.scans.lesions import size_group
from difftumor.scans.organs import Organ, get_organ
from difftumor.segmentation.unseen import seen_scans
from stages.cluster.checkout import Checkout
from stages.config.comparing import NEUTRAL, flatten
from stages.config.reading import read_options
from studies.evidence.queue import seconds_of
from studies.evidence.records import MINIMUM_IOU, RULES, CellRecord, CellScan, FoundBy, FoundTumors
from studies.jobs.keys import PICTURES, READ
from studies.jobs.measurement import first_line

MATCHINGS: dict[FoundBy, Matching] = {
    "iou": Matching(rule="iou", minimum_iou=MINIMUM_IOU),
    "overlap": Matching(rule="overlap"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; errors are one sentence."""
    parser = argparse.ArgumentParser(prog="python -m studies.evidence.score", description=first_line(__doc__))
    parser.add_argument("--entry", required=True, help="entry of the queue")
    parser.add_argument("--size", required=True, help="size of the entry")
    parser.add_argument("--cell", required=True, type=json.loads, help="what tells it from others, as JSON")
    parser.add_argument("--key", required=True, help="hash of what decides its results")
    parser.add_argument("--model", required=True, type=Path, help="artifact of the segmenter")
    parser.add_argument("--predictions", required=True, type=Path, help="its predictions, with probabilities")
    parser.add_argument("--labels", required=True, type=Path, help="list of the test scans")
    parser.add_argument("--organ", help="organ in which tumors are looked for, if it is not the segmenter's")
    parser.add_argument("--device", default="auto", help="where the jobs ran")
    parser.add_argument("--queue", type=Path, help="folder whose queue knows how long the jobs took")
    parser.add_argument("--jobs", nargs="*", default=[], help="ids of the jobs behind the predictions")
    parser.add_argument("--out", required=True, type=Path, help="the record")
    try:
        arguments = parser.parse_args(words)
        _record(arguments).write(arguments.out)
    except DiffTumorError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


def _record(arguments: argparse.Namespace) -> CellRecord:
    start = time.monotonic()
    config = read_config(arguments.model)
    options: dict[str, Any] = config.training["config"]
    trained = read_options(Organ, options["organ"], "organ")
    organ = trained if arguments.organ is None else get_organ(arguments.organ)
    evaluations = {
        rule: evaluate(
            arguments.predictions,
            arguments.labels,
            organ=organ,
            matching=MATCHINGS[rule],
            froc=True,
            tumor_only=organ.name != trained.name,
        )
        for rule in RULES
    }
    for evaluation in evaluations.values():
        evaluation.check_whole()
    decisive = {name: value for name, value in flatten(options).items() if name not in {*NEUTRAL, *PICTURES, *READ}}
    about = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkout": Checkout.now().record(),
        "machine": _machine(arguments.device),
        "models": [_model(role, each) for role, each in _models(arguments.model, config)],
        "seconds": {job: seconds_of(arguments.queue, job) for job in arguments.jobs}
        | {"scoring": round(time.monotonic() - start)},
        "trained_on_test": _trained_on_test(arguments.model, arguments.labels),
        "options": decisive,
    }
    return CellRecord(
        entry=arguments.entry,
        size=arguments.size,
        cell=arguments.cell,
        key=arguments.key,
        about=about,
        thresholds=THRESHOLDS,
        scans=_scans(evaluations),
    )


def _machine(device: str) -> str:
    """Return the GPU, or processor and threads."""
    on = pick_device(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else []
    return ", ".join([*names[:1], describe_device(on)]) if on.type == "cpu" else describe_device(on)


def _scans(evaluations: dict[FoundBy, Evaluation]) -> tuple[CellScan, ...]:
    by_rule = [{case.case: case for case in evaluations[rule].method.cases} for rule in RULES]
    return tuple(_scan(*(cases[name] for cases in by_rule)) for name in sorted(by_rule[0]))


def _scan(iou: ScoredCase, overlap: ScoredCase) -> CellScan:
    truth = iou.result.detection.matches
    return CellScan(
        case=iou.case,
        patient=iou.pair.patient,
        tumors=len(truth),
        early=sum(size_group(match.truth.diameter_mm) == "early" for match in truth),
        tumor_dsc=_rounded(iou.score("tumor_dsc")),
        tumor_nsd=_rounded(iou.score("tumor_nsd")),
        organ_dsc=_rounded(iou.score("organ_dsc")),
        iou=_found(iou),
        overlap=_found(overlap),
    )


def _found(case: ScoredCase) -> FoundTumors:
    if case.froc is None:
        raise CaseListError(f"{case.case} has no free-response counts ({case.froc_problem}): predict it again.")
    detection: CaseDetection = case.result.detection
    found = [match for match in detection.matches if match.prediction is not None]
    return FoundTumors(
        found=len(found),
        early=sum(size_group(match.truth.diameter_mm) == "early" for match in found),
        false=len(detection.false_positives),
        froc_found=tuple(case.froc.found.tolist()),
        froc_false=tuple(case.froc.false_positives.tolist()),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _models(path: Path, config: ArtifactConfig, role: str = "segmenter") -> Iterator[tuple[str, ArtifactConfig]]:
    """Yield a model and those behind it, down to the autoencoder."""
    yield role, config
    for name, parent in config.parents.items():
        behind = path / parent.path
        yield from _models(behind, read_config(behind), name)


def _model(role: str, config: ArtifactConfig) -> dict[str, Any]:
    training = config.training
    return {
        "role": role,
        "identity": config.identity,
        "run": training.get("run"),
        "steps": training.get("steps"),
        "seconds": training.get("seconds"),
        "metrics": {name: _rounded(value) for name, value in config.metrics.items()},
    }


def _trained_on_test(model: Path, labels: Path) -> dict[str, int | None]:
    """Return how many of the test scans each kind of model was trained on; None if that is unknown."""
    found = seen_scans([model], [case.image for case in read_cases(labels).cases])
    return {each.kind: each.seen for each in found}


if __name__ == "__main__":
    sys.exit(main())
