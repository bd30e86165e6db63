"""Tables of a study of transfer, in the layouts of the papers, and paired tests.

DiffTumor: sensitivity to early tumors, source by target (Tables 2 and 3), to all (Figure 10), DSC and NSD by fold
(Tables 4 to 6) and by organ (Table 7), reduced annotations (Figure 5). Hu et al.: real, synthetic and both (Table 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from difftumor.evaluation.cohort.statistics import LEVEL, holm, paired_test
from difftumor.evaluation.cohort.tables import NONE, best, mean_sd, p_value, percent
from difftumor.evaluation.transfer.cells import (
    MEASURES,
    Measure,
    PooledMeasure,
    TransferGrid,
    TransferGroup,
    TransferKey,
)
from difftumor.reporting.tables import Cell, Table

# Values of ``TransferCell.tumors``, and what tables call them; others keep their names.
KINDS: Mapping[str, str] = {
    "real": "real tumors",
    "handcrafted": "Hu et al.",
    "diffusion": "DiffTumor, made tumors alone",
    "mixed": "DiffTumor",
    "handcrafted_alone": "hand-crafted tumors alone",
}
# As Table 5 of Hu et al. calls them.
_HU_KINDS: Mapping[str, str] = {"real": "real", "handcrafted_alone": "synthetic", "handcrafted": "both"}
BACKBONES: Mapping[str, str] = {
    "unet": "U-Net",
    "nnunet": "nnU-Net",
    "swinunetr": "Swin UNETR",
    "swinunetr_tiny": "Swin UNETR-Tiny",
    "swinunetr_small": "Swin UNETR-Small",
    "swinunetr_base": "Swin UNETR-Base",
}
_SCORES: tuple[Measure, ...] = ("dsc", "nsd")
OURS = "DiffTumor"
ROWS = ("real", "handcrafted", OURS)
ROW_NAMES = {"real": "real tumors", "handcrafted": "Hu et al.", OURS: "DiffTumor"}
_OTHER = "†"
HU_NOTE = (
    "Hu et al.: hand-crafted tumors in the target's healthy scans; on the diagonal beside the real tumors of the organ."
)
ROWS_NOTE = (
    "Real tumors: those of the source alone; off the diagonal the segmenter of the source is judged in the target by "
    "its tumors inside the organ's label, where the others' count inside the organ that they predict. "
    f"{HU_NOTE} DiffTumor: on the diagonal real tumors beside those made by diffusion (mixed), elsewhere "
    f"made tumors alone (diffusion); {_OTHER}: the other of the two, as the first is missing."
)
ANNOTATIONS_NOTE = (
    "Annotated tumors are those of each diffusion model, early or late, and of each organ that it learns."
)
_COUNTS_NOTE = "In brackets the interval over patients, then tumors / patients / seeds. –: missing."


def backbone_name(backbone: str) -> str:
    """Return what tables call a backbone."""
    return BACKBONES.get(backbone, backbone)


def chosen(grid: TransferGrid, source: str, target: str, backbone: str, row: str) -> tuple[TransferGroup | None, bool]:
    """Return the group of a row of the papers, and whether it stands in for a missing one."""
    kinds: tuple[str, ...] = (row,)
    if row == OURS:
        kinds = ("mixed", "diffusion") if target in source.split("+") else ("diffusion", "mixed")
    for kind in kinds:
        if (group := grid.groups.get(TransferKey(source, target, backbone, kind))) is not None:
            return group, kind != kinds[0]
    return None, False


def transfer_table(
    grid: TransferGrid, backbone: str, measure: Measure, *, title: str, level: float = LEVEL, seed: int = 0
) -> Table:
    """Return a measure by source and target (Tables 2 and 3 of DiffTumor); the best of a target and source is bold."""
    rows: list[Sequence[str]] = []
    bold: set[tuple[int, int]] = set()
    for source in grid.sources:
        values: list[list[float | None]] = []
        counts: list[list[int]] = []
        first = len(rows)
        for row in ROWS:
            found = [chosen(grid, source, target, backbone, row) for target in grid.targets]
            measured = [None if g is None else g.measured(measure, level=level, seed=seed) for g, _ in found]
            marks = [_marks(group, other) for group, other in found]
            cells = [f"{shown(each)}{mark}" for each, mark in zip(measured, marks, strict=True)]
            rows.append((source, ROW_NAMES[row], *cells))
            values.append([None, *(None if each is None else each.value for each in measured)])
            counts.append([0, *(0 if each is None else each.tumors for each in measured)])
        bold |= {(first + row, column) for row, column in best(values, counts)}
    header = ("source", "tumors", *grid.targets)
    note = f"{ROWS_NOTE} {_COUNTS_NOTE} {folds_note(grid)}".strip()
    return Table(
        header, rows, title=f"{title}: {MEASURES[measure]} (%), {backbone_name(backbone)}", note=note, bold=bold
    )


def fold_table(
    grid: TransferGrid,
    target: str,
    kinds: Mapping[str, str],
    backbones: Sequence[str],
    *,
    title: str,
    level: float = LEVEL,
    seed: int = 0,
) -> Table | None:
    """Return DSC and NSD by fold of segmenters of one organ; None if there are none.

    Args:
        grid: The study.
        target: The organ, which is also the source.
        kinds: Tumors, by what the table calls them.
        backbones: Which.
        title: What it is.
        level: Of the intervals.
        seed: Of the intervals.
    """
    keys = [(b, kind, TransferKey(target, target, b, kind)) for b in backbones for kind in kinds]
    wanted = [each for each in keys if each[2] in grid.keys]
    folds = sorted({fold for _, _, key in wanted if key in grid.groups for fold in grid.groups[key].wanted})
    if not folds:
        return None
    rows = []
    for backbone, kind, key in wanted:
        group = grid.groups.get(key)
        for measure in _SCORES:
            name = f"{measure.upper()} (%)"
            start = (backbone_name(backbone), kinds[kind], name)
            if group is None:
                rows.append((*start, *[NONE] * (len(folds) + 3)))
                continue
            by_fold = group.by_fold(measure)
            pooled = group.measured(measure, level=level, seed=seed)
            average = percent(fmean(by_fold.values())) if by_fold else NONE
            means = [percent(by_fold.get(fold)) for fold in folds]
            mark = "" if group.whole else f" (of {len(by_fold)} folds)"
            rows.append((*start, *means, average + mark, _interval(pooled), counts_of(pooled)))
    header = (
        "backbone", "tumors", "metric", *(f"fold {fold}" for fold in folds), "average", "pooled mean, interval",
        "tumors / patients / seeds",
    )  # fmt: skip
    note = f"The average is that of the folds' means; the interval is that of the mean over all scans. {HU_NOTE}"
    return Table(header, rows, title=title, note=note)


def organs_table(grid: TransferGrid, backbone: str, *, title: str, level: float = LEVEL, seed: int = 0) -> Table:
    """Return DSC and NSD by organ of segmenters of that organ (Table 7 of DiffTumor); the best is bold."""
    rows, values, counts = [], [], []
    for row in ROWS:
        cells: list[str] = []
        numbers: list[float | None] = []
        sizes: list[int] = []
        for target in grid.targets:
            group, other = chosen(grid, target, target, backbone, row)
            for measure in _SCORES:
                found = None if group is None else group.measured(measure, level=level, seed=seed)
                sd = "" if found is None else f"{mean_sd(found.value, found.sd)} {_range(found)}; {counts_of(found)}"
                cells.append((sd or NONE) + _marks(group, other))
                numbers.append(None if found is None else found.value)
                sizes.append(0 if found is None else found.tumors)
        rows.append((ROW_NAMES[row], *cells))
        values.append(numbers)
        counts.append(sizes)
    header = ("tumors", *(f"{target} {name} (%)" for target in grid.targets for name in ("DSC", "NSD")))
    note = f"{HU_NOTE} Mean ± SD over scans, interval of the mean, tumors / patients / seeds. –: missing."
    return Table(header, rows, title=f"{title}, {backbone_name(backbone)}", note=note, bold=best(values, counts))


def annotations_table(grid: TransferGrid, *, level: float = LEVEL, seed: int = 0) -> Table | None:
    """Return measures by the number of annotated tumors (Figure 5 of DiffTumor); None without such trainings."""
    series = annotated_series(grid)
    if not series:
        return None
    rows = []
    for keys in series:
        for key in keys:
            group = grid.groups.get(key)
            start = (key.source, key.target, backbone_name(key.backbone), KINDS.get(key.tumors, key.tumors))
            measured = [None if group is None else group.measured(m, level=level, seed=seed) for m in MEASURES]
            rows.append((*start, annotations_name(key), *(shown(each) for each in measured)))
    header = (
        "source",
        "target",
        "backbone",
        "tumors",
        "annotated tumors",
        *(f"{name} (%)" for name in MEASURES.values()),
    )
    return Table(
        header,
        rows,
        title="Reduced annotations for the diffusion model (Figure 5)",
        note=f"{ANNOTATIONS_NOTE} {_COUNTS_NOTE}",
    )


def annotated_series(grid: TransferGrid) -> list[list[TransferKey]]:
    """Return trainings that differ in their annotated tumors alone, fewest first and all of them last."""
    found: dict[tuple[str, ...], list[TransferKey]] = {}
    for key in grid.keys:
        found.setdefault((key.source, key.target, key.backbone, key.tumors), []).append(key)
    return [
        sorted(keys, key=lambda key: (key.annotations is None, key.annotations or 0))
        for keys in found.values()
        if any(key.annotations is not None for key in keys)
    ]


def annotations_name(key: TransferKey) -> str:
    """Return the number of annotated tumors as text."""
    return "all" if key.annotations is None else str(key.annotations)


def hu_table(grid: TransferGrid, target: str, *, level: float = LEVEL, seed: int = 0) -> Table | None:
    """Return Table 5 of Hu et al.: real tumors, hand-crafted ones and both; None without hand-crafted ones alone."""
    if not any(key.tumors == "handcrafted_alone" and key.target == target for key in grid.keys):
        return None
    title = f"Real, synthetic and both by fold: {target} (Table 5 of Hu et al.)"
    return fold_table(grid, target, _HU_KINDS, grid.backbones, title=title, level=level, seed=seed)


def paired_tests(grid: TransferGrid, *, level: float = LEVEL, seed: int = 0) -> list[dict[str, Any]]:
    """Test DiffTumor against real and against hand-crafted tumors, on the scans that both have, patient by patient.

    Returns:
        A record per source, target, backbone, opponent and measure, with p values adjusted by Holm over all records.
    """
    rows: list[dict[str, Any]] = []
    for source in grid.sources:
        for target in grid.targets:
            for backbone in grid.backbones:
                ours, _ = chosen(grid, source, target, backbone, OURS)
                for opponent in ROWS[:2]:
                    other, _ = chosen(grid, source, target, backbone, opponent)
                    if ours is None or other is None:
                        continue
                    place = {"source": source, "target": target, "backbone": backbone, "against": opponent}
                    rows += [
                        {**place, "tumors": ours.key.tumors, "measure": measure, **tested}
                        for measure in MEASURES
                        if (tested := _tested(other, ours, measure, level=level, seed=seed)) is not None
                    ]
    for test in ("wilcoxon", "permutation"):
        adjusted = holm({number: row[f"{test}_p"] for number, row in enumerate(rows)})
        for number, value in adjusted.items():
            rows[number][f"{test}_holm"] = value
    return rows


def _tested(
    first: TransferGroup, second: TransferGroup, measure: Measure, *, level: float, seed: int
) -> dict[str, Any] | None:
    before, after = first.per_scan(measure), second.per_scan(measure)
    shared = [case for case in before if case in after]
    first_values, second_values = ([scores[case][0] for case in shared] for scores in (before, after))
    found = paired_test(first_values, second_values, [before[case][1] for case in shared], seed=seed, level=level)
    if found is None:
        return None
    interval = None if found.interval is None else [found.interval.low, found.interval.high]
    return {
        "patients": found.patients, "first": found.first, "second": found.second, "difference": found.difference,
        "interval": interval, "wilcoxon_p": found.wilcoxon_p, "permutation_p": found.permutation_p,
    }  # fmt: skip


def tested_table(tests: Sequence[Mapping[str, Any]], *, level: float) -> Table | None:
    """Return the paired tests as a table; None if there are none."""
    if not tests:
        return None
    rows = []
    for row in tests:
        low_high = row["interval"]
        ends = NONE if low_high is None else f"{percent(low_high[0])} to {percent(low_high[1])}"
        p_values = [p_value(row[f"{test}_{kind}"]) for test in ("wilcoxon", "permutation") for kind in ("p", "holm")]
        numbers = [percent(row[name]) for name in ("first", "second", "difference")]
        start = (row["source"], row["target"], backbone_name(row["backbone"]), ROW_NAMES[row["against"]])
        rows.append((*start, MEASURES[row["measure"]], *numbers, ends, str(row["patients"]), *p_values))
    header = (
        "source", "target", "backbone", "against", "measure (%)", "other", "DiffTumor", "difference",
        f"{100 * level:g} % interval", "patients", "Wilcoxon p", "Holm (Wilcoxon)", "permutation p",
        "Holm (permutation)",
    )  # fmt: skip
    note = "Means over the patients of the scans that both have, seeds averaged within scans; Holm over all rows."
    return Table(header, rows, title="Paired tests of DiffTumor", note=note)


def numbers_table(grid: TransferGrid, *, level: float = LEVEL, seed: int = 0) -> Table:
    """Return one row per training with every number, for CSV: shares and scores are fractions."""
    rows: list[dict[str, Cell]] = []
    for key in grid.keys:
        row: dict[str, Cell] = {
            "source": key.source, "target": key.target, "backbone": key.backbone, "tumors": key.tumors,
            "annotations": annotations_name(key),
        }  # fmt: skip
        if (group := grid.groups.get(key)) is None:
            rows.append({**row, "folds": 0, "folds_wanted": None})
            continue
        row |= {"folds": len(group.seeds), "folds_wanted": len(group.wanted)}
        row |= dict(zip(("seeds_least", "seeds_most"), group.measured("all").seeds, strict=True))
        for measure in MEASURES:
            found = group.measured(measure, level=level, seed=seed)
            ends = (None, None) if found.interval is None else (found.interval.low, found.interval.high)
            row |= {measure: found.value, f"{measure}_low": ends[0], f"{measure}_high": ends[1]}
            row |= {f"{measure}_tumors": found.tumors, f"{measure}_patients": found.patients}
            by_fold = group.by_fold(measure)
            row[f"{measure}_fold_average"] = fmean(by_fold.values()) if by_fold else None
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table.of_records(columns, rows)


def folds_note(grid: TransferGrid) -> str:
    """Say how many trainings are missing."""
    if not grid.missing:
        return ""
    return f"Of the study, {len(grid.missing)} trainings have no evaluation yet; numbers of fewer folds are marked °."


def shown(measured: PooledMeasure | None) -> str:
    """Return a number with its interval and counts."""
    if measured is None or measured.value is None:
        return NONE
    return f"{percent(measured.value)} {_range(measured)}; {counts_of(measured)}"


def _marks(group: TransferGroup | None, other: bool) -> str:
    return "" if group is None else (_OTHER if other else "") + ("" if group.whole else "°")


def _range(measured: PooledMeasure) -> str:
    if measured.interval is None:
        return f"({NONE})"
    return f"({percent(measured.interval.low)} to {percent(measured.interval.high)})"


def _interval(measured: PooledMeasure) -> str:
    return NONE if measured.value is None else f"{percent(measured.value)} {_range(measured)}"


def counts_of(measured: PooledMeasure) -> str:
    """Return tumors / patients / seeds."""
    least, most = measured.seeds
    return f"{measured.tumors} / {measured.patients} / {least if least == most else f'{least}–{most}'}"
