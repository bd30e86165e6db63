"""The tables of an entry, from its records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from difftumor.errors import CaseListError, counted
from difftumor.evaluation.cohort.statistics import LEVEL
from difftumor.files.writing import written_whole
from difftumor.reporting.tables import Cell, Table, write_csv
from studies.evidence.graph import QueueEntry
from studies.evidence.measures import BESIDE, PRIMARY, compared, measured
from studies.evidence.records import CellRecord, CellScan

READING = (
    f"Value [{100 * LEVEL:g} % interval over patients] ± standard deviation over seeds. A tumor counts as found at an "
    "IoU of at least 0.1, beside it at any overlap; a sensitivity is the highest at no more than so many false "
    "positives (FP) per scan, and nothing is interpolated."
)


@dataclass(frozen=True, eq=False)
class Group:
    """A row of a table: the cells that differ in seed and fold alone.

    Args:
        name: Values of the fields that it shares, joined.
        cell: These fields.
        runs: Its test scans by seed, the same for all seeds.
        folds: How many folds each seed has, at least and at most.
        incomplete: Seeds that are left out, because they have not been tested on all these scans.
    """

    name: str
    cell: Mapping[str, str]
    runs: Mapping[int, Sequence[CellScan]]
    folds: tuple[int, int]
    incomplete: tuple[int, ...]

    @property
    def counts(self) -> str:
        """On what it rests."""
        scans = next(iter(self.runs.values()))
        return f"{sum(s.tumors for s in scans)} / {len({s.patient for s in scans})} / {len(self.runs)}"


def groups_of(entry: QueueEntry, records: Sequence[CellRecord]) -> dict[str, Group]:
    """Group the records of an entry, in the order of its titles.

    Raises:
        CaseListError: A record cannot be used: it is of no kind of the entry, a model was trained on test scans, or a
            scan was tested twice.
    """
    cells: dict[tuple[str, ...], dict[int, list[CellRecord]]] = {}
    for record in records:
        _check(entry, record)
        name = tuple(str(record.cell[field]) for field in entry.groups)
        cells.setdefault(name, {}).setdefault(int(record.cell["seed"]), []).append(record)
    order = list(entry.titles)
    place = entry.groups.index("trained_on")
    found = {}
    for name in sorted(cells, key=lambda name: (*name[:place], order.index(name[place]))):
        runs = {seed: [scan for record in some for scan in record.scans] for seed, some in sorted(cells[name].items())}
        for scans in runs.values():
            if len({scan.case for scan in scans}) < len(scans):
                raise CaseListError(
                    f"A scan of {entry.name}, {' '.join(name)} was tested in two folds: check its records."
                )
        tested = {seed: {scan.case for scan in scans} for seed, scans in runs.items()}
        most = max(tested.values(), key=len)
        whole = {seed: scans for seed, scans in runs.items() if tested[seed] == most}
        sizes = [len(cells[name][seed]) for seed in whole]
        group = Group(
            name=" ".join(name), cell=dict(zip(entry.groups, name, strict=True)), runs=whole,
            folds=(min(sizes), max(sizes)), incomplete=tuple(seed for seed in runs if seed not in whole),
        )  # fmt: skip
        found[group.name] = group
    return found


def _check(entry: QueueEntry, record: CellRecord) -> None:
    if record.cell["trained_on"] not in entry.titles:
        raise CaseListError(
            f"A record of {record.entry} is of {dict(record.cell)}, which the entry does not have: remove the record."
        )
    for kind, count in record.about["trained_on_test"].items():
        if count and kind != "autoencoder":  # which learns no tumors
            raise CaseListError(
                f"A {kind} behind {record.entry}, {dict(record.cell)} was trained on {count} of its test scans: "
                "remove the record, and correct the data."
            )


def tables_of(entry: QueueEntry, records: Sequence[CellRecord]) -> list[Table]:
    """Return endpoints and tests of an entry; empty without records."""
    groups = groups_of(entry, records)
    if not groups:
        return []
    tables = [_endpoints(entry, groups, records)]
    if (tests := _tests(entry, groups)).rows:
        tables.append(tests)
    return tables


def _endpoints(entry: QueueEntry, groups: Mapping[str, Group], records: Sequence[CellRecord]) -> Table:
    header = [*(field.replace("_", " ") for field in entry.groups), *(each.title for each in (*PRIMARY, *BESIDE)),
              "FP per scan", "tumors / patients / seeds"]  # fmt: skip
    rows = []
    for group in groups.values():
        false = fmean(fmean(scan.iou.false for scan in scans) for scans in group.runs.values())
        shown = [entry.titles.get(value, value) for value in group.cell.values()]
        endpoints = [str(measured(group.runs, endpoint)) for endpoint in (*PRIMARY, *BESIDE)]
        rows.append([*shown, *endpoints, f"{false:.2f}", group.counts])
    left = [f"seed {seed} of {_shown(entry, group)}" for group in groups.values() for seed in group.incomplete]
    lacking = f" Left out, because test scans are missing so far: {', '.join(left)}." if left else ""
    return Table(header, rows, title=entry.question, note=f"{READING} {_remarks(records)}{lacking}")


def _remarks(records: Sequence[CellRecord]) -> str:
    """Say by what the records were made."""
    machines = ", ".join(sorted({str(record.about["machine"]) for record in records}))
    hours = sum(hours_of(record) for record in records)
    commits = sorted({str(record.about["checkout"]["commit"])[:12] for record in records})
    said = f"{counted(len(records), 'cell')}; trainings of segmenters took {hours:.1f} hours; {machines}; "
    said += f"commit {', '.join(commits)}."
    if dirty := sum(record.dirty for record in records):
        said += f" {dirty} of the cells {'was' if dirty == 1 else 'were'} made with changes that are not committed."
    return said


def hours_of(record: CellRecord) -> float:
    """Return how long the segmenter of a cell was trained, in hours."""
    return sum(model["seconds"] or 0 for model in record.about["models"] if model["role"] == "segmenter") / 3600


def _tests(entry: QueueEntry, groups: Mapping[str, Group]) -> Table:
    """Return the tests of an entry; with further fields, the two groups of a pair share these."""
    others = [field for field in entry.groups if field != "trained_on"]
    contexts = dict.fromkeys(tuple(group.cell[field] for field in others) for group in groups.values())
    named = {name: group.runs for name, group in groups.items()}

    def name(context: Sequence[str], trained_on: str) -> str:
        values = dict(zip(others, context, strict=True)) | {"trained_on": trained_on}
        return " ".join(values[field] for field in entry.groups)

    pairs = [(name(context, a), name(context, b)) for context in contexts for a, b in entry.comparisons]
    rows: list[list[Cell]] = []
    for each in compared(named, pairs):
        interval = each.interval
        ends = "" if interval is None else f" [{interval.low:+.2f}, {interval.high:+.2f}]"
        rows.append([
            _shown(entry, groups[each.first]), _shown(entry, groups[each.second]), each.endpoint.title,
            f"{each.difference:+.2f}{ends}", each.patients, f"{each.p:.4f}", f"{each.holm:.4f}",
        ])  # fmt: skip
    note = (
        "Differences of the values above, on the patients of both, with thresholds chosen anew in each resample; p of "
    )
    note += "a permutation within patients of their own shares of tumors found and DSC, averaged over seeds, at the "
    note += "thresholds of all patients; Holm's correction over all rows."
    header = ("of", "against", "endpoint", "difference", "patients", "p", "p (Holm)")
    return Table(header, rows, title="Paired tests", note=note)


def _shown(entry: QueueEntry, group: Group) -> str:
    return ", ".join(entry.titles.get(value, value) for value in group.cell.values())


def write_tables(entry: QueueEntry, records: Sequence[CellRecord], folder: Path) -> list[Table]:
    """Write the tables of an entry beside the folder of its records, and return them.

    Args:
        entry: The entry.
        records: Those that there are.
        folder: Of the records of all entries.
    """
    tables = tables_of(entry, records)
    if tables:
        with written_whole(folder / f"{entry.name}.md") as temporary:
            temporary.write_text("\n\n".join(table.section() for table in tables) + "\n", encoding="utf-8")
        write_csv(folder / f"{entry.name}.csv", _numbers(entry, groups_of(entry, records)))
    return tables


def _numbers(entry: QueueEntry, groups: Mapping[str, Group]) -> Table:
    """Return every endpoint as a number, one in a row."""
    rows = []
    for group in groups.values():
        for endpoint in (*PRIMARY, *BESIDE):
            value = measured(group.runs, endpoint)
            low, high = (None, None) if value.interval is None else (value.interval.low, value.interval.high)
            by_seed = " ".join(f"{each:.4f}" for each in value.by_seed)
            rows.append([*group.cell.values(), endpoint.name, value.value, low, high, by_seed, value.unreached,
                         value.tumors, value.patients, len(group.runs), *group.folds])  # fmt: skip
    header = (*entry.groups, "endpoint", "value", "low", "high", "by_seed", "unreached_seeds", "tumors", "patients",
              "seeds", "least_folds", "most_folds")  # fmt: skip
    return Table(header, rows)
