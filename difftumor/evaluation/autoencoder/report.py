"""The test card of an autoencoder as a page: verdict first, then numbers, figures and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from difftumor.errors import counted
from difftumor.evaluation.autoencoder.card import Card, Measured, ScanCard
from difftumor.evaluation.autoencoder.fidelity import Fidelity, StructureError, body_mask
from difftumor.evaluation.autoencoder.verdict import LIMITS, Limit, Thresholds, judged_structures, outcome, spoken
from difftumor.reporting.pictures import mask_center, reconstruction_planes
from difftumor.reporting.plots import CURVE_COLORS, new_figure, to_png
from difftumor.reporting.report import Report
from difftumor.reporting.tables import Cell, Table, format_cell
from difftumor.scans.grid import Box, triple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE = "report.html"
# One scale for all scans, to compare pictures; faint tumors differ from the organ by 20 HU.
DIFFERENCE_HU = 60.0
_TUMOR_WORDS = ("tumor", "tumour", "lesion", "cancer", "mass")
_MARKS = {True: "✓", False: "✗", None: "–"}
_MEASURES: Mapping[str, str] = {
    "psnr_db": "PSNR (dB)",
    "ssim": "SSIM",
    "mae_hu": "Error (HU)",
    "bias_hu": "Bias (HU)",
    "edge_ratio": "Edge ratio",
    "noise_ratio": "Noise ratio",
    "codes_used": "Codes used",
}
_MEANINGS: Mapping[str, str] = {
    "PSNR": "Peak signal-to-noise ratio; the peak is the width of the HU window.",
    "SSIM": "Structural similarity in 3-D; 1 is the same.",
    "Error": "Mean absolute error.",
    "Bias": "Mean error: above 0 the reconstruction is too bright.",
    "Edge ratio": "Gradient magnitude at the CT's edges, reconstruction over CT: below 1 is blur, above 1 ringing or "
    "noise.",
    "Noise ratio": "Power of the noise in homogeneous soft tissue, reconstruction over CT: below 1 is too smooth.",
    "Codes used": "Codes used at least once; not judged, since a few codes may be enough.",
    "Where": "In the body without its gas, clipped to the HU window; structures inside their masks.",
}


def card_report(card: Card, record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Report:
    """Compose the page.

    Args:
        card: The numbers.
        record: Result of `difftumor.evaluation.autoencoder.card.card_record`.
        pictures: PNG by case, of all scans or the first ones.
    """
    report = Report("Test card of an autoencoder", subtitle=f"{record['artifact']['path']} on {record['data']}")
    _add_verdict(report, card)
    _add_scans(report, card)
    _add_structures(report, card)
    if pictures:
        _add_pictures(report, card, pictures)
    report.heading("What was measured")
    report.key_values(_MEANINGS)
    report.heading("Thresholds and their reasons")
    reasons = [(f"{_named(limit)} {_bound(limit, card.thresholds)}", limit.reason) for limit in LIMITS]
    report.table(Table(("Threshold", "Why, by default"), reasons))
    report.heading("How it was run")
    report.key_values(_origin(record))
    return report


def render_case(measured: Measured) -> bytes:
    """Return a PNG of CT, reconstruction and difference in three planes, through the largest tumor if there is one."""
    volumes, window = measured.volumes, measured.volumes.window
    figure = reconstruction_planes(
        volumes.ct_hu_XYZ.numpy(),
        volumes.reconstruction_hu_XYZ.numpy(),
        window_hu=(window.low_hu, window.high_hu),
        spacing_mm=volumes.space.grid.spacing_mm,
        center=_center(measured),
        difference_hu=DIFFERENCE_HU,
        column_inches=3.0,
    )
    return to_png(figure, dpi=110)


def _center(measured: Measured) -> tuple[int, int, int]:
    """Return a voxel worth seeing: in the largest tumor, else the largest structure, else the middle of the body."""
    structures = measured.card.fidelity.structures
    tumors = [name for name in structures if any(word in name.lower() for word in _TUMOR_WORDS)]
    if structures:
        name = max(tumors or structures, key=lambda name: structures[name].voxels)
        return mask_center(measured.structures[name].numpy())
    body = Box.around(body_mask(measured.volumes.ct_hu_XYZ, measured.volumes.window).numpy())
    return triple([(start + stop) // 2 for start, stop in zip(body.start, body.stop, strict=True)])


def _add_verdict(report: Report, card: Card) -> None:
    verdict = card.verdict
    report.heading(f"Good enough for stage 2: {'yes' if verdict.good_enough else 'no'}")
    scans = counted(len(card.scans), "scan")
    if verdict.good_enough:
        report.paragraph(f"Everything measured over {scans} is within its threshold.")
    else:
        report.paragraph(f"Because {verdict.reasons}.")
    if verdict.unmeasured:
        report.paragraph(f"Not judged: {'; '.join(verdict.unmeasured)}.")
    for case, reason in card.failed.items():
        report.paragraph(f"Left out: {case}. {reason}")
    title = f"Means over {scans}; of structures, the one farthest from 0."
    rows = [_limit_row(limit, card) for limit in LIMITS]
    report.table(Table(("What", "Measured", "Threshold"), rows, title=title))


def _limit_row(limit: Limit, card: Card) -> tuple[Cell, ...]:
    checks = [check for check in card.verdict.checks if check.limit is limit]
    measured = "–"
    if checks:
        check = max(checks, key=lambda check: -1 if math.isnan(check.value) else abs(check.value))
        value = format_cell(_rounded(check.value))
        measured = value if check.structure is None else f"{value} ({_titled(check.structure)})"
    return f"{_MARKS[outcome(checks)]} {_named(limit)}", measured, _bound(limit, card.thresholds)


def _named(limit: Limit) -> str:
    return f"{limit.name} inside structures" if limit.structure else limit.name


def _bound(limit: Limit, thresholds: Thresholds) -> str:
    sign = "≥" if limit.least else "±" if limit.measure == "bias_hu" else "≤"
    return f"{sign} {getattr(thresholds, limit.threshold):g} {limit.unit}".strip()


def _add_scans(report: Report, card: Card) -> None:
    report.heading("Scans")
    rows: list[tuple[Cell, ...]] = [(scan.case, *_measures(scan.fidelity)) for scan in card.scans]
    if len(card.scans) > 1:
        rows.append(("all scans", *_measures(card.overall)))
    report.table(Table(("Scan", *_MEASURES.values()), rows))
    figure = _sharpness_figure(card)
    if figure is not None:
        caption = "Sharpness and noise, one dot per scan. The box is what the thresholds allow."
        report.figure(figure, caption=caption)


def _add_structures(report: Report, card: Card) -> None:
    report.heading("Structures")
    if not card.overall.structures:
        report.paragraph("The scans have no labels, so single organs and tumors were not measured.")
        return
    judged = judged_structures(card.overall, card.thresholds)
    header = ["Structure", "Voxels", "Error (HU)", "Bias (HU)"]
    several = len(card.scans) > 1
    header += ["Scans", "Worst scan", "Error there (HU)"] if several else []
    others = [name for name in card.overall.structures if name not in judged]
    rows = [_structure_row(name, card)[: len(header)] for name in (*judged, *others)]
    if judged:
        inside = {name: card.overall.structures[name] for name in judged}
        caption = "Mean absolute error and bias inside each structure judged; the dashed lines are the thresholds."
        report.figure(_structure_figure(inside, card.thresholds), caption=caption)
    report.paragraph(
        "Means over the scans that hold the structure. Not judged (–): structures without a name if others have one, "
        f"and those with fewer than {card.thresholds.structure_voxels:g} voxels over all scans."
    )
    report.table(Table(header, rows))


def _structure_row(name: str, card: Card) -> tuple[Cell, ...]:
    inside = card.overall.structures[name]
    holding = [scan for scan in card.scans if name in scan.fidelity.structures]
    worst = max(holding, key=lambda scan: scan.fidelity.structures[name].mae_hu)
    mark = _MARKS[outcome([check for check in card.verdict.checks if check.structure == name])]
    error, bias, there = map(_rounded, (inside.mae_hu, inside.bias_hu, worst.fidelity.structures[name].mae_hu))
    return f"{mark} {_titled(name)}", inside.voxels, error, bias, len(holding), worst.case, there


def _add_pictures(report: Report, card: Card, pictures: Mapping[str, bytes]) -> None:
    report.heading("Pictures")
    if len(pictures) < len(card.scans):
        report.paragraph(f"The first {len(pictures)} of {len(card.scans)} scans.")
    for scan in card.scans:
        if scan.case in pictures:
            report.heading(scan.case, level=3)
            if scan.fidelity.structures and len(card.scans) > 1:
                report.table(Table(("Structure", "Voxels", "Error (HU)", "Bias (HU)"), list(_inside_rows(scan))))
            caption = f"{scan.case}: CT, reconstruction, and reconstruction less CT."
            report.figure(pictures[scan.case], caption=caption, dpi=110)


def _inside_rows(scan: ScanCard) -> Iterable[tuple[Cell, ...]]:
    for name, inside in scan.fidelity.structures.items():
        yield _titled(name), inside.voxels, _rounded(inside.mae_hu), _rounded(inside.bias_hu)


def _measures(fidelity: Fidelity) -> tuple[Cell, ...]:
    return tuple(_rounded(getattr(fidelity, name)) for name in _MEASURES)


def _origin(record: Mapping[str, Any]) -> dict[str, Cell]:
    artifact, settings = record["artifact"], record["settings"]
    preprocessing = artifact["preprocessing"]
    return {
        "Autoencoder": artifact["path"],
        "Identity": artifact["identity"],
        "Training": "finished" if artifact["complete"] else "not finished",
        "Scans": record["data"],
        "Voxel size": " × ".join(f"{step:g}" for step in preprocessing["spacing_mm"]) + " mm",
        "HU window": "{:g} to {:g}".format(*preprocessing["window_hu"]).replace("-", "−"),
        "Window": " × ".join(str(size) for size in preprocessing["crop"]) + " voxels",
        **{name.replace("_", " ").capitalize(): value for name, value in settings.items()},
        "Versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }


def _structure_figure(structures: Mapping[str, StructureError], thresholds: Thresholds) -> Figure:
    """Plot bars of error and bias, one row per structure, the first on top."""
    names = [_titled(name) for name in structures]
    figure = new_figure((8.0, 1.2 + 0.34 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(names))
    left.barh(places, [inside.mae_hu for inside in structures.values()], color=CURVE_COLORS[0], height=0.62)
    right.barh(places, [inside.bias_hu for inside in structures.values()], color=CURVE_COLORS[1], height=0.62)
    left.axvline(thresholds.structure_mae_hu, color="#444444", linestyle="--", linewidth=1)
    for side in (-1, 1):
        right.axvline(side * thresholds.structure_bias_hu, color="#444444", linestyle="--", linewidth=1)
    right.axvline(0, color="#444444", linewidth=0.8)
    left.set_yticks(places, names)
    left.invert_yaxis()
    for axes, label in ((left, "mean absolute error (HU)"), (right, "bias (HU)")):
        axes.set_xlabel(label, fontsize=9)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9, left=False)
    return figure


def _sharpness_figure(card: Card) -> Figure | None:
    """Plot noise against edges; None if no scan has both."""
    points = np.array([(scan.fidelity.edge_ratio, scan.fidelity.noise_ratio) for scan in card.scans])
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return None
    allowed = card.thresholds
    figure = new_figure((6.0, 3.8), layout="constrained")
    axes = figure.add_subplot()
    corner = (allowed.edge_ratio_min, allowed.noise_ratio_min)
    width, height = allowed.edge_ratio_max - corner[0], allowed.noise_ratio_max - corner[1]
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(corner, width, height, facecolor="#2f8f5b", alpha=0.13, edgecolor="none"))
    axes.plot(1, 1, marker="+", color="#444444", markersize=10, linestyle="none")
    axes.annotate("the CT itself", (1, 1), xytext=(6, 4), textcoords="offset points", fontsize=8, color="#444444")
    axes.plot(*points.T, marker="o", color=CURVE_COLORS[0], markersize=5, linestyle="none", alpha=0.8)
    axes.set_xlim(0, max(allowed.edge_ratio_max, points[:, 0].max()) * 1.1)
    axes.set_ylim(0, max(allowed.noise_ratio_max, points[:, 1].max()) * 1.1)
    axes.set_xlabel("edge ratio (blurred ← 1 → ringing, noisy)", fontsize=9)
    axes.set_ylabel("noise ratio (smooth ← 1 → noisy)", fontsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure


def _titled(structure: str) -> str:
    return spoken(structure).removeprefix("the ")


def _rounded(value: float | None) -> Cell:
    """Round to three digits, which is more than two trainings agree in."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.3g}")
