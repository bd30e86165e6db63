"""The demo's page: what was trained, what was made, what was found, what it took."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from difftumor.datasets.cases import Case, CaseList, read_cases
from difftumor.evaluation.autoencoder.card import CARD_FILE
from difftumor.evaluation.autoencoder.report import REPORT_FILE
from difftumor.evaluation.cohort.cases import FRACTIONS
from difftumor.evaluation.cohort.tables import detection_table, scores_table
from difftumor.models.artifact import describe_device, load_artifact
from difftumor.models.autoencoder import Autoencoder
from difftumor.models.latent_codec import LatentCodec
from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import mask_center, reconstruction_planes, three_planes
from difftumor.reporting.plots import curves
from difftumor.reporting.report import Report
from difftumor.reporting.tables import Table
from difftumor.scans.grid import Box
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import read_ct, read_labels
from difftumor.scans.organs import get_organ, resolve_labels
from stages.demo.folder import DemoFolder, StepCost
from stages.run.pictures import read_curves

_PACKAGES = ("difftumor", "torch", "monai", "pytorch-lightning", "numpy", "scipy", "nibabel", "hydra-core")
# Curves of each stage: picture title -> (tags, vertical axis, logarithmic).
_CURVES: Mapping[str, Mapping[str, tuple[tuple[str, ...], str, bool]]] = {
    "autoencoder": {
        "Reconstruction": (("training/l1", "validation/l1"), "L1, in [−1, 1]", True),
        "Peak signal-to-noise ratio": (("training/psnr", "validation/psnr"), "PSNR in dB", False),
        "Codes in use": (("training/perplexity",), "codebook perplexity", False),
    },
    "diffusion": {"Noise prediction": (("training/loss", "validation/loss"), "L1 of the noise", True)},
    "segmentation": {
        "Dice and cross-entropy": (("training/loss",), "loss", False),
        "Validation by sliding window": (("validation/tumor_dsc", "validation/organ_dsc"), "DSC", False),
    },
}
Loaded = tuple[NDArray[np.float32], NDArray[np.uint8]]


def write_report(folder: DemoFolder, costs: Mapping[str, StepCost], *, organ: str) -> Path:
    """Write the page from what the steps have left in the folder.

    Args:
        folder: The demo's folder.
        costs: What the steps took.
        organ: Organ of the phantom's tumors.

    Returns:
        Path of the page.
    """
    total_min = sum(cost.wall_s for cost in costs.values()) / 60
    machine = describe_device(torch.device("cpu"))
    report = Report(
        "difftumor demo",
        subtitle=f"{date.today():%B %d, %Y} · {machine} · all steps took {total_min:.1f} min",
    )
    report.paragraph(
        "All three stages, trained for minutes on a phantom cohort, then used on phantom scans that they never saw. "
        "The pictures show that all works together; they do not show what models trained on real data can do."
    )
    test = read_cases(folder.test)
    reader = _Reader(test, organ, spacing_mm=load_artifact(folder.segmenter).config.preprocessing["spacing_mm"])
    _phantom(report, folder, reader)
    _autoencoder(report, folder, reader)
    _stage(report, folder, "diffusion", "Stage 2: the diffusion model", folder.diffusion)
    _synthesis(report, "Tumors in a healthy phantom", folder.synthesis)
    _stage(report, folder, "segmentation", "Stage 3: the segmenter", folder.segmenter)
    _evaluation(report, folder, reader)
    if folder.own_scan.is_dir():
        _synthesis(report, "Tumors in your scan", folder.own_scan)
    _costs(report, costs)
    return report.write(folder.report)


class _Reader:
    """Loads cases into model space with standard labels."""

    def __init__(self, cases: CaseList, organ: str, *, spacing_mm: list[float]) -> None:
        self.cases = cases
        self.spacing_mm = spacing_mm
        self._labels = resolve_labels(cases.label_names, get_organ(organ))

    def load(self, case: Case, labels: Path | None = None) -> Loaded:
        """Return CT in HU and labels 0/1/2; ``labels`` is a standard label map to show instead of the case's own."""
        ct = read_ct(case.image)
        space = ModelSpace(ct.grid, self.spacing_mm)
        if labels is None:
            assert case.labels is not None
            standard = self._labels.to_standard(read_labels(case.labels).data, source=case.labels)
        else:
            standard = read_labels(labels).data
        return space.to_model(ct.data, kind="image"), space.to_model(standard, kind="labels").astype(np.uint8)

    def tumor_case(self) -> Case:
        """Return the case with the most tumor voxels."""
        with_tumor = [case for case in self.cases.cases if case.tumor_organs]
        return max(with_tumor, key=lambda case: int((self.load(case)[1] == 2).sum()))


def _phantom(report: Report, folder: DemoFolder, reader: _Reader) -> None:
    training = read_cases(folder.training).cases
    report.heading("The phantom cohort")
    report.paragraph(
        f"{len(training)} scans to train on, {sum(not case.tumor_organs for case in training)} of them healthy, and "
        f"{len(reader.cases.cases)} to test on. The cohort's tumors grow from thresholded random fields, unlike those "
        "that the synthesizer draws."
    )
    case = reader.tumor_case()
    ct, labels = reader.load(case)
    panels = [Panel(title="CT", image=ct), Panel(title="Labels", image=ct, labels=labels)]
    picture = three_planes(panels, spacing_mm=reader.spacing_mm, center=_center(labels))
    report.figure(picture, caption=f"Test scan {case.id} through its largest tumor.")


def _autoencoder(report: Report, folder: DemoFolder, reader: _Reader) -> None:
    _stage(report, folder, "autoencoder", "Stage 1: the autoencoder", folder.autoencoder)
    card = json.loads((folder.card / CARD_FILE).read_text())
    report.paragraph(f"{card['verdict']['sentence']} Its test card on the test scans is {folder.card / REPORT_FILE}.")
    artifact = load_artifact(folder.autoencoder, kind="autoencoder")
    assert isinstance(artifact.network, Autoencoder)
    codec = LatentCodec(artifact.network)
    window = IntensityWindow(*artifact.config.preprocessing["window_hu"])
    case = reader.tumor_case()
    ct, labels = reader.load(case)
    crop = artifact.config.preprocessing["crop"]
    box = Box.centered(_center(labels), crop, within=ct.shape)
    ct, labels = ct[box.slices], labels[box.slices]
    signed = window.to_signed(torch.from_numpy(np.ascontiguousarray(ct))[None, None])
    with torch.no_grad():
        rebuilt = window.from_signed(codec.decode(codec.encode(signed)))[0, 0].numpy()
    window_hu = (window.low_hu, window.high_hu)
    picture = reconstruction_planes(
        ct, rebuilt, window_hu=window_hu, spacing_mm=reader.spacing_mm, center=_center(labels)
    )
    error = float(np.abs(rebuilt - ct.clip(*window_hu)).mean())
    report.figure(picture, caption=f"A crop of test scan {case.id}; mean absolute error {error:.1f} HU.")


def _stage(report: Report, folder: DemoFolder, stage: str, title: str, artifact: Path) -> None:
    config = load_artifact(artifact).config
    report.heading(title)
    parameters = sum(p.numel() for p in load_artifact(artifact).network.parameters())
    report.key_values(
        {
            "architecture": config.architecture["name"],
            "parameters": f"{parameters:,}",
            "optimization steps": config.training["steps"],
            **{name.removeprefix("validation/"): value for name, value in config.metrics.items()},
        }
    )
    for name, (tags, y_label, log) in _CURVES[stage].items():
        if series := read_curves(folder.logs(stage), tags):
            report.figure(curves(series, y_label=y_label, log=log, smoothing=0.8, title=name), caption=f"{name}.")


def _synthesis(report: Report, title: str, folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text())
    report.heading(title)
    report.paragraph(
        "Outside the tumors' halo the scan is bit-identical to the input. Files: ct.nii.gz, labels.nii.gz, "
        f"lesions.nii.gz, record.json and preview.png in {folder}."
    )
    report.figure((folder / "preview.png").read_bytes(), caption="Through the largest tumor.")
    rows = []
    for number, tumor in enumerate(record["tumors"], start=1):
        requested, achieved = tumor["requested"], tumor["achieved"]
        center = achieved["center_mm"]
        where = "–" if center is None else ", ".join(f"{value:.0f}" for value in center)
        rows.append(
            [
                number, requested["size"], requested["diameter_mm"], achieved["diameter_mm"], achieved["contrast_hu"],
                where,
            ]
        )  # fmt: skip
    header = ["tumor", "size", "diameter asked, mm", "diameter made, mm", "contrast, HU", "center (RAS), mm"]
    report.table(Table(header, rows))


def _evaluation(report: Report, folder: DemoFolder, reader: _Reader) -> None:
    report.heading("Prediction and evaluation")
    summary = json.loads((folder.evaluation / "summary.json").read_text())
    for table in (scores_table(summary), detection_table(summary)):
        report.table(table)
    with (folder.evaluation / "cases.csv").open(newline="") as file:
        rows = [(row["case"], *(float(row[score]) for score in FRACTIONS)) for row in csv.DictReader(file)]
    report.table(Table(["case", *FRACTIONS.values()], rows, title="Each test scan; scores are fractions."))
    case = reader.tumor_case()
    ct, truth = reader.load(case)
    _, predicted = reader.load(case, folder.predictions / f"{case.id}.nii.gz")
    panels = [
        Panel(title="Truth", image=ct, labels=truth),
        Panel(title="Prediction", image=ct, labels=predicted),
    ]
    picture = three_planes(panels, spacing_mm=reader.spacing_mm, center=_center(truth))
    report.figure(picture, caption=f"Test scan {case.id}.")


def _costs(report: Report, costs: Mapping[str, StepCost]) -> None:
    report.heading("What it took")
    rows: list[tuple[str, float, float]] = [(name, cost.wall_s, cost.peak_memory_gib) for name, cost in costs.items()]
    rows.append(("all", sum(wall for _, wall, _ in rows), max(memory for _, _, memory in rows)))
    report.table(Table(["step", "wall time, s", "peak memory, GiB"], rows))
    report.heading("Commands", level=3)
    report.code("\n".join(cost.command for cost in costs.values()))
    report.heading("Versions", level=3)
    report.key_values({"Python": platform.python_version(), **{name: version(name) for name in _PACKAGES}})


def _center(labels: NDArray[np.uint8]) -> tuple[int, int, int]:
    return mask_center(labels == 2) if (labels == 2).any() else mask_center(labels > 0)
