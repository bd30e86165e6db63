"""The quality of synthesis as a page and pictures: distances with their warnings, histograms, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from difftumor.errors import counted
from difftumor.evaluation.realism.distances import Sample
from difftumor.evaluation.realism.figures import appearance_figure
from difftumor.evaluation.realism.quality import Quality
from difftumor.evaluation.realism.record import EXPLANATION, HEADER, USUAL, table_row
from difftumor.evaluation.realism.tumor_samples import HIGH_HU, LOW_HU, SHAPE_BIN_HU, CropSpec, TumorCrop
from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import three_planes
from difftumor.reporting.plots import CURVE_COLORS, finish_axes, new_axes, to_png
from difftumor.reporting.report import Report
from difftumor.reporting.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE = "report.html"
HISTOGRAM_FILE, LOOKS_FILE = "histograms.png", "looks.png"
_DPI = 110
# A distance that is farther in this share of the splits points to a difference.
_DIFFERS = 0.95
_MEANINGS: Mapping[str, str] = {
    "HU inside": "Histograms of the voxels of each tumor, as stored; every tumor counts the same. Wasserstein: by how "
    "many HU voxels would have to move on average. Jensen–Shannon: from 0 (the same) to 1 (nothing in common).",
    "Contrast, deviation, edge": "Mean of a tumor less that of the organ 5 to 15 mm around it, standard deviation "
    "inside, and mean profile across the surface, within the HU window. Wasserstein distances over tumors; for the "
    "profile, the mean difference.",
    "Texture": "Gray levels of neighbors inside a tumor, in the axial plane, 1 mm or one voxel apart (GLCM, 32 levels "
    "over the HU window). Wasserstein distances over tumors.",
    "FID": "Fréchet distance of the features of slices (one per plane, and their mean) or crops. It is too high for "
    "few tumors, so only sets of equal size can be compared.",
    "Kernel distance": "Squared kernel distance (KID) of the same features. Few tumors make it uncertain, not too "
    "high; if nothing differs it is about 0, and may be negative.",
}
_NO_NETWORK = (
    "FID and kernel distance need a feature network: give one with --features, such as inception_v3=FILE, "
    "radimagenet_resnet50=FILE, medicalnet_resnet10=FILE or autoencoder=ARTIFACT. Nothing is downloaded: "
    "docs/image_quality.md says where to get the files."
)


def quality_report(quality: Quality, record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Report:
    """Compose the page.

    Args:
        quality: The distances.
        record: Result of ``quality_record``.
        pictures: Result of ``render_pictures``.
    """
    report = Report(
        "Image quality of synthesis",
        subtitle=f"{record['organ']}: {record['synthetic']['list']} against {record['real']['list']}",
    )
    _add_verdict(report, quality, record)
    report.heading("Distances")
    report.paragraph(EXPLANATION)
    for network in dict.fromkeys(measurement.name.network for measurement in quality.measurements):
        rows = [table_row(m) for m in quality.measurements if m.name.network == network]
        rows = [(label.replace(f", {network}", ""), *cells) for label, *cells in rows] if network else rows
        title = f"Features of {network}" if network else "Measured inside and around tumors"
        report.table(Table(HEADER, rows, title=title))
    if not record["networks"]:
        report.paragraph(_NO_NETWORK)
    report.heading("How the tumors look")
    report.figure(pictures[HISTOGRAM_FILE], caption="HU inside tumors; every tumor counts the same.", dpi=_DPI)
    looks = "Contrast, standard deviation and edge. The band is one standard deviation over real tumors."
    report.figure(pictures[LOOKS_FILE], caption=looks, dpi=_DPI)
    report.heading("Examples")
    for side in ("real", "synthetic"):
        caption = f"Some {side} tumors, chosen at random, in three planes through the middle of each."
        report.figure(pictures[f"{side}.png"], caption=caption, dpi=_DPI)
    report.heading("What was measured")
    report.key_values(_MEANINGS)
    report.heading("How it was run")
    report.key_values(_origin(record))
    return report


def render_pictures(
    sets: Mapping[str, Sequence[Sample]], examples: Mapping[str, Sequence[TumorCrop]], spec: CropSpec
) -> dict[str, bytes]:
    """Return all pictures as PNG, by file name.

    Args:
        sets: The tumors, "real" first.
        examples: Some crops of each set.
        spec: How the crops were cut.
    """
    looks = {name: [sample.tumor.appearance for sample in samples] for name, samples in sets.items()}
    figures = {HISTOGRAM_FILE: _histograms(sets), LOOKS_FILE: appearance_figure(looks)}
    figures |= {f"{name}.png": _crops(crops, spec) for name, crops in examples.items()}
    return {file: to_png(figure, dpi=_DPI) for file, figure in figures.items()}


def _add_verdict(report: Report, quality: Quality, record: Mapping[str, Any]) -> None:
    report.heading("Result")
    report.key_values({side.capitalize(): _counted(record[side]) for side in ("real", "synthetic")})
    report.paragraph(verdict(quality))
    for text in quality.all_warnings:
        report.paragraph(f"⚠ {text}")
    for side in ("real", "synthetic"):
        for case, reason in record[side]["failed"].items():
            report.paragraph(f"⚠ Left out of the {side} tumors: {case}. {reason}")


def verdict(quality: Quality) -> str:
    """Return how many distances point to a difference between synthetic and real tumors, and what chance explains."""
    known = [m for m in quality.measurements if m.scale is not None and not m.name.plane]
    if not known:
        return "No distance has a scale, so nothing can be said about how alike the tumors are."
    far = [m.name.label for m in known if m.scale is not None and m.scale.farther >= _DIFFERS]
    share = f"{100 * _DIFFERS:.0f} %"
    if not far:
        return (
            f"None of {len(known)} distances points to a difference between synthetic and real tumors: none is farther "
            f"in at least {share} of the splits. {USUAL} Small differences are not ruled out."
        )
    alone = " One alone may be chance." if len(far) == 1 else ""
    point = "points" if len(far) == 1 else "point"
    return (
        f"{len(far)} of {len(known)} distances {point} to a difference between synthetic and real tumors (farther in "
        f"at least {share} of the splits): {'; '.join(far)}. {USUAL}{alone}"
    )


def _counted(about: Mapping[str, Any]) -> str:
    tumors, patients = counted(about["tumors"], "tumor"), counted(about["patients"], "patient")
    return f"{tumors} of {patients}, in {counted(about['cases_with_tumors'], 'scan')}"


def _histograms(sets: Mapping[str, Sequence[Sample]]) -> Figure:
    """Plot the mean histogram of each set, in bins of ``SHAPE_BIN_HU``, over the HU that occur."""
    figure, (axes,) = new_axes(1, (8.0, 3.6), None)
    edges = np.arange(LOW_HU, HIGH_HU + 2, SHAPE_BIN_HU)
    shown = np.zeros(len(edges) - 1, bool)
    for color, (name, samples) in zip(("#1c2329", CURVE_COLORS[0]), sets.items(), strict=True):
        mean = np.mean([sample.tumor.histogram_H for sample in samples], axis=0, dtype=np.float64)
        share = mean.reshape(-1, SHAPE_BIN_HU).sum(axis=1)
        axes.stairs(100 * share, edges, color=color, linewidth=1.6, label=f"{name} ({len(samples)})")
        # Single outlying voxels, such as metal, would squeeze all others.
        shown |= share > 1e-3
    places = np.flatnonzero(shown)
    axes.set_xlim(edges[places[0]] - 2 * SHAPE_BIN_HU, edges[places[-1] + 1] + 2 * SHAPE_BIN_HU)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("HU", fontsize=9)
    axes.set_ylabel(f"voxels in {SHAPE_BIN_HU} HU (%)", fontsize=9)
    finish_axes(axes, legend=True)
    return figure


def _crops(crops: Sequence[TumorCrop], spec: CropSpec) -> Figure:
    panels = [
        Panel(title=f"{crop.tumor.case} · {crop.tumor.number}", image=crop.ct_hu_XYZ, labels=2 * crop.mask_XYZ)
        for crop in crops
    ]
    window = (spec.window.low_hu, spec.window.high_hu)
    return three_planes(panels, spacing_mm=spec.spacing_mm, window_hu=window, column_inches=1.7)


def _origin(record: Mapping[str, Any]) -> dict[str, Cell]:
    networks = {
        f"Features, {name}": f"{at['path']} (SHA-256 {at['sha256']})" for name, at in record["networks"].items()
    }
    settings = {name.replace("_", " ").capitalize(): _text(value) for name, value in record["settings"].items()}
    lists = {side.capitalize(): str(record[side]["list"]) for side in ("real", "synthetic")}
    return {**lists, **settings, **networks, "difftumor": record["difftumor_version"]}


def _text(value: Any) -> Cell:
    if isinstance(value, list | tuple):
        return ", ".join(f"{each:g}" for each in value).replace("-", "−")
    return value if value is None or isinstance(value, str | int | float) else str(value)
