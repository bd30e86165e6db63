"""Tumors in whole scans, from files to files, which `benchmarks/synthesis.py` measures."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import torch
from measuring import PeakMemory, forget_peak, summary

from difftumor.scans.organs import get_organ
from difftumor.synthesis.draw import draw_tumors
from difftumor.synthesis.scan.inputs import ScanInputs
from difftumor.synthesis.scan.insertion import apply_to_scan
from difftumor.synthesis.scan.model_scan import ModelScan
from difftumor.synthesis.scan.report import report_tumors
from difftumor.synthesis.spec import TumorSpec
from difftumor.synthesis.synthesizer import TumorSynthesizer

ORGAN = "liver"
SPACING_MM = (0.8, 0.8, 1.0)
# Between reading and writing, one after the other.
MAKING = ("host", "draw", "apply", "report")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """What is made in a scan.

    Args:
        preset: ``"training"`` or ``"reader"`` for hand-crafted tumors, or ``"diffusion"``.
        size: Size class or group.
        count: Tumors.
        shape: Voxels of the scan.
    """

    preset: str
    size: str
    count: int
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.preset}:{self.size}:{self.count}:{'x'.join(map(str, self.shape))}"

    @classmethod
    def of(cls, text: str) -> Run:
        """Read what ``str`` gave."""
        preset, size, count, shape = text.split(":")
        return cls(preset, size, int(count), tuple(map(int, shape.split("x"))))

    @property
    def spec(self) -> TumorSpec:
        """Return the tumors as the library is asked for them."""
        if self.preset == "diffusion":
            return TumorSpec(size=self.size, count=self.count)
        how = {"generator": "handcrafted", "preset": self.preset, "size": self.size, "count": self.count}
        return TumorSpec.from_dict(how, where="benchmark")


def make_scan(folder: Path, shape: tuple[int, ...]) -> None:
    """Write a scan, int16, and the mask of its organ, as large a part of every scan; a liver of 1.6 L in the largest.

    The voxels of smaller scans have the same size: they show less.
    """
    spacing = np.array(SPACING_MM)
    x, y, z = np.ix_(*[np.linspace(-1, 1, size) for size in shape])
    body = (x / 0.88) ** 2 + (y / 0.6) ** 2 <= 1
    organ = ((x + 0.3) / 0.42) ** 2 + (y / 0.32) ** 2 + ((z - 0.1) / 0.44) ** 2 <= 1
    values = np.where(organ, 110, np.where(body, 0, -1000)).astype(np.int16)
    generator = np.random.default_rng(0)
    for index in range(shape[2]):
        values[:, :, index] += np.rint(12 * generator.standard_normal(shape[:2])).astype(np.int16)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    nib.Nifti1Image(values, affine).to_filename(_path(folder, "ct", shape))
    nib.Nifti1Image(organ.astype(np.uint8), affine).to_filename(_path(folder, "organ", shape))


def measure_scan(run: Run, folder: Path, *, repeats: int) -> dict[str, Any]:
    """Make tumors in a scan in this process, which should be a fresh one.

    Returns:
        Wall times of the stages over ``repeats`` runs after the first, whose time is ``first_s``; times of reading and
        writing, and the memory that came on top of the scan.
    """
    # Here, so that plotting the preview is all that counts of it: `difftumor synthesize` has loaded it by then.
    from difftumor.reporting.plots import save_png
    from difftumor.synthesis.scan.files import write_volumes
    from difftumor.synthesis.scan.report import plot_preview

    clock = _Clock()
    synthesizer = _synthesizer(run, clock)
    spec, inputs = (
        run.spec,
        ScanInputs(ct=_path(folder, "ct", run.shape), organ_masks=(_path(folder, "organ", run.shape),)),
    )
    scan = clock.timed("read", lambda: inputs.read(organ=ORGAN))
    forget_peak()
    memory = PeakMemory(torch.device("cpu"))
    processor = []
    for seed in range(repeats + 1):
        start = time.process_time()
        model_scan = ModelScan(scan, synthesizer.spacing_mm)
        host = clock.timed("host", partial(model_scan.host, (spec,), synthesizer.organ))
        drawn = clock.timed("draw", partial(draw_tumors, host, (spec,), seed=seed))
        if not drawn.records:
            raise SystemExit(f"The organ has no room for a {run.size} tumor: give a larger --scan.")
        result = clock.timed("apply", partial(apply_to_scan, synthesizer, model_scan, drawn.records))
        clock.timed("report", partial(report_tumors, result, host, window=synthesizer.window))
        processor.append(time.process_time() - start)
    growth = memory.figures()["growth_gib"]
    forget_peak()
    memory = PeakMemory(torch.device("cpu"))
    clock.timed("preview", lambda: save_png(plot_preview(result, organ=ORGAN), folder / "preview.png"))
    clock.timed("write", lambda: write_volumes(result, folder))
    stages = {name: np.array(clock.seconds[name]) for name in MAKING}
    whole = np.sum([stages[name] for name in MAKING], axis=0)
    if "patch" in clock.seconds:
        stages["patch"] = np.array(clock.seconds["patch"])
        stages["on top"] = whole - stages["patch"]
    return {
        "preset": run.preset, "size": run.size, "tumors": run.count, "shape": list(run.shape),
        "stages": {name: summary(seconds[1:].tolist()) for name, seconds in stages.items()},
        "whole": {**summary(whole[1:].tolist()), "processor_s": float(np.median(processor[1:]))},
        "first_s": float(whole[0]),
        "growth_gib": growth,
        **{f"{name}_s": clock.seconds[name][0] for name in ("read", "preview", "write")},
        "writing_growth_gib": memory.figures()["growth_gib"],
    }  # fmt: skip


class _Clock:
    """Keeps the wall times of what it is given to do."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, do: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = do()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result


def _synthesizer(run: Run, clock: _Clock) -> TumorSynthesizer:
    if run.preset != "diffusion":
        return TumorSynthesizer(organ=get_organ(ORGAN))
    from diffusion_parts import DiffusionParts

    texture = DiffusionParts(Namespace(device="cpu", size=(96, 96, 96), batch=1, precision="fp32")).texture
    make = texture.make
    texture.make = lambda *given: clock.timed("patch", lambda: make(*given))  # type: ignore[method-assign]
    return TumorSynthesizer(organ=get_organ(ORGAN), diffusion=texture)


def _path(folder: Path, what: str, shape: tuple[int, ...]) -> Path:
    return folder / f"{what}_{'x'.join(map(str, shape))}.nii.gz"
