"""Everything once, small, on the CPU: ``python -m stages.demo`` (``make demo``).

Makes a phantom cohort, trains the three stages at demo size, makes tumors in a healthy scan, predicts, evaluates, and
writes ``runs/demo/report.html``. It runs the same commands that a user types, and shows them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from difftumor.datasets.cases import read_cases
from difftumor.errors import ArtifactError, ConfigError, TrainingError
from difftumor.files.processes import Terminated
from difftumor.models.artifact_config import read_config
from difftumor.scans.nifti import check_same_grid, read_ct, read_labels
from difftumor.scans.organs import get_convention, get_organ, resolve_labels
from difftumor.synthesis.scan.inputs import Scan
from stages.demo.folder import DemoFolder, StepCost
from stages.demo.report import write_report
from stages.exit_status import reported

ORGAN = "liver"
OWN_SCAN = "tumors in your scan"
_PYTHON = [sys.executable, "-m"]
# Of stages that take more than the demo's.
EXPERIMENTS = {"segmentation": "experiment=[recommended,demo]"}


@dataclass(frozen=True, kw_only=True)
class OwnScan:
    """The user's scan.

    Args:
        ct: CT in HU.
        organs: Organ mask or label map on the same grid.
        organ: Name of the organ.
        label: Its number in the label map; None for any voxel that is not 0.
        accept_hu: Take a CT that cannot be in HU, and a mask that cannot be of the organ.
    """

    ct: Path
    organs: Path
    organ: str
    label: int | None
    accept_hu: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the demo.

    Args:
        name: Its name in the report.
        command: Words after ``python -m``.
        is_done: Whether an earlier run has finished it.
    """

    name: str
    command: Sequence[str]
    is_done: Callable[[], bool]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stages.demo", description=__doc__.splitlines()[0].replace("`", ""))
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the demo (runs/demo)")
    parser.add_argument("--fresh", action="store_true", help="start over instead of resuming")
    parser.add_argument("--ct", type=Path, help="also make tumors in this CT (.nii.gz, HU)")
    parser.add_argument("--organs", type=Path, help="organ mask or label map of --ct")
    parser.add_argument("--organ", default=ORGAN, help="organ of --ct that gets the tumors (liver)")
    parser.add_argument("--organ-label", type=int, help="its number in --organs, if not TotalSegmentator's")
    parser.add_argument("--accept-hu", action="store_true", help="take a CT whose values cannot be HU")
    parser.add_argument("--override", action="append", default=[], help="Hydra override for every stage")
    options = parser.parse_args(arguments)

    def work() -> None:
        scan = own_scan(options.ct, options.organs, options.organ, options.organ_label, accept_hu=options.accept_hu)
        report = run_demo(DemoFolder(options.out), scan=scan, fresh=options.fresh, overrides=options.override)
        sys.stdout.write(f"The report is at {report.resolve()}\n")

    return reported(work)


def own_scan(
    ct: Path | None, organs: Path | None, organ: str, label: int | None, *, accept_hu: bool = False
) -> OwnScan | None:
    """Check the user's scan before anything is trained.

    A label map with several labels is taken for TotalSegmentator's where ``label`` is not given.

    Raises:
        DiffTumorError: A file is missing or unusable, the grids differ, the organ is not in the label map, or the CT
            cannot be in HU.
    """
    if ct is None and organs is None:
        return None
    if ct is None or organs is None:
        raise ConfigError("CT and ORGANS (--ct and --organs) belong together: give both.")
    get_organ(organ)
    masks = read_labels(organs, beside=[ct])
    scan = read_ct(ct, accept_hu=accept_hu)
    check_same_grid(scan, masks)
    present = sorted({int(value) for value in set(masks.data[masks.data > 0].tolist())})
    if label is None and len(present) > 1:
        known = resolve_labels(get_convention("totalsegmentator"), get_organ(organ)).organ
        label = next((value for value in known if value in present), None)
        if label is None:
            raise ConfigError(f"{organs} has the labels {present}: say which one is the {organ} with LABEL=N.")
    if not present or (label is not None and label not in present):
        raise ConfigError(f"{organs} has no voxel of the {organ} (labels: {present}): give another file or LABEL=N.")
    mask = masks.data > 0 if label is None else masks.data == label
    # The same checks as the command's, which comes after the training.
    Scan(scan, None, mask, organ=organ, accept_hu=accept_hu)
    return OwnScan(ct=ct, organs=organs, organ=organ, label=label, accept_hu=accept_hu)


def run_demo(folder: DemoFolder, *, scan: OwnScan | None, fresh: bool, overrides: Sequence[str]) -> Path:
    """Run all steps that are not done yet and write the report.

    Returns:
        Path of the report.

    Raises:
        DiffTumorError: A step has failed.
    """
    console = Console()
    if fresh:
        folder.remove()
    costs = folder.read_costs()
    steps = _training_steps(folder, overrides)
    for step in steps:
        costs[step.name] = _run(step, costs.get(step.name), console)
        folder.write_costs(costs)
    costs = {step.name: costs[step.name] for step in steps}
    failure = None
    for step in _using_steps(folder, scan):
        try:
            costs[step.name] = _run(step, None, console)
        except TrainingError as error:
            # The user's scan comes last: what worked before is worth its page.
            if step.name != OWN_SCAN:
                raise
            failure = error
    with console.status("Writing the report"):
        report = write_report(folder, costs, organ=ORGAN)
    if failure is not None:
        raise TrainingError(f"{failure} The report without it is at {report}.") from failure
    return report


def _training_steps(folder: DemoFolder, overrides: Sequence[str]) -> list[Step]:
    def cohort(out: Path, *options: str) -> Step:
        size = ["--shape", "108", "--tumor-radius", "6,16"]
        command = ["difftumor", "phantom", str(out), "--organs", ORGAN, *size, *options, "--overwrite"]
        name = f"phantom cohort for {out.name}"
        return Step(name=name, command=command, is_done=(out / "dataset.json").is_file)

    def stage(number: int, name: str, artifact: Path, *options: str) -> Step:
        command = [
            f"stages.{name}", EXPERIMENTS.get(name, "experiment=demo"), *options, f"data.root={folder.training}",
            f"runs_dir={folder.path}", f"checkpoints_dir={folder.checkpoints}", f"artifact={artifact}", "trainer=cpu",
            *overrides,
        ]  # fmt: skip
        return Step(name=f"stage {number}: {name}", command=command, is_done=lambda: _is_complete(artifact))

    return [
        cohort(folder.training, "--cases", "12", "--seed", "0"),
        cohort(folder.test, "--cases", "4", "--seed", "1"),
        stage(1, "autoencoder", folder.autoencoder),
        stage(2, "diffusion", folder.diffusion, f"organ={ORGAN}"),
        stage(3, "segmentation", folder.segmenter, f"organ={ORGAN}", "backbone=unet", "fold=0"),
    ]


def _using_steps(folder: DemoFolder, scan: OwnScan | None) -> list[Step]:
    """Quick, and run again each time, so that they show what the present models do."""
    shutil.rmtree(folder.own_scan, ignore_errors=True)  # of an earlier call; the report shows this call's
    cases = read_cases(folder.test)
    healthy = next(case for case in cases.cases if not case.tumor_organs)
    assert healthy.labels is not None

    def step(name: str, command: str, *words: str) -> Step:
        return Step(name=name, command=["difftumor", command, *words], is_done=lambda: False)

    def synthesize(name: str, out: Path, *words: str) -> Step:
        options = ["--size", "early", "--count", "2", "--seed", "0", "--model", str(folder.diffusion)]
        return step(name, "synthesize", *words, *options, "--out", str(out), "--overwrite", "--device", "cpu")

    label = str(cases.label_names[ORGAN])
    mask = ["--labels", str(healthy.labels), "--organ-label", label, "--organ", ORGAN]
    steps = [
        step(
            "test card of the autoencoder", "evaluate-autoencoder", str(folder.autoencoder), str(folder.test),
            "--out", str(folder.card), "--overwrite", "--device", "cpu",
        ),
        synthesize("tumors in a healthy scan", folder.synthesis, "--ct", str(healthy.image), *mask),
        step(
            "prediction", "predict", "--ct", str(folder.test), "--model", str(folder.segmenter), "--overlap", "0.5",
            "--out", str(folder.predictions), "--overwrite", "--device", "cpu",
        ),
        step(
            "evaluation", "evaluate", "--predictions", str(folder.predictions), "--labels", str(folder.test),
            "--organ", ORGAN, "--out", str(folder.evaluation), "--overwrite",
        ),
    ]  # fmt: skip
    if scan is not None:
        words = ["--ct", str(scan.ct), "--organ", scan.organ]
        words += ["--organ-mask", str(scan.organs)] if scan.label is None else ["--labels", str(scan.organs)]
        words += [] if scan.label is None else ["--organ-label", str(scan.label)]
        words += ["--accept-hu"] if scan.accept_hu else []
        steps.append(synthesize(OWN_SCAN, folder.own_scan, *words))
    return steps


def _is_complete(artifact: Path) -> bool:
    try:
        return read_config(artifact).complete
    except ArtifactError:
        return False


def _run(step: Step, earlier: StepCost | None, console: Console) -> StepCost:
    """Run a step as its own process and measure it; a step that is done is skipped and keeps its old figures."""
    console.rule(f"[bold]{step.name}", align="left")
    if earlier is not None and step.is_done():
        console.print(f"Done before, in {earlier.wall_s:.0f} s (FRESH=1 starts over).")
        return earlier
    words = step.command
    typed = shlex.join(words if words[0] == "difftumor" else ["python", "-m", *words])
    console.print(f"[dim]$ {typed}", soft_wrap=True, highlight=False)
    start = time.perf_counter()
    process = subprocess.Popen([*_PYTHON, *words])
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except (KeyboardInterrupt, Terminated) as stop:
        if isinstance(stop, Terminated):  # which, unlike Ctrl-C, only this process may have got
            process.terminate()
        process.wait()
        raise
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    if code:
        raise TrainingError(f"The step '{step.name}' failed (exit status {code}): see its message above, then rerun.")
    return StepCost(command=typed, wall_s=time.perf_counter() - start, peak_memory_gib=usage.ru_maxrss / 2**20)
