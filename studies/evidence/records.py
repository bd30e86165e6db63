"""The record of a cell: what was trained, by what, and what it found in each test scan; tables need nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from difftumor.errors import CaseListError
from difftumor.files.texts import read_json
from difftumor.files.writing import written_whole

# Also part of the key of the jobs that write records: another format makes all of them again.
FORMAT = 1
# When a tumor counts as found: IoU of at least 0.1, or any overlap.
FoundBy = Literal["iou", "overlap"]
RULES: tuple[FoundBy, ...] = ("iou", "overlap")
MINIMUM_IOU = 0.1


@dataclass(frozen=True, kw_only=True)
class FoundTumors:
    """What was found in a scan by one rule.

    Args:
        found: True tumors found in the predicted label map.
        early: Those of early stage among them.
        false: Predicted tumors without a match.
        froc_found: True tumors found at each threshold, (T,).
        froc_false: Predicted tumors without a match at each threshold, (T,).
    """

    found: int
    early: int
    false: int
    froc_found: tuple[int, ...]
    froc_false: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CellScan:
    """A test scan.

    Args:
        case: Its id.
        patient: Whose it is.
        tumors: True tumors.
        early: Those of early stage among them.
        tumor_dsc: None for a healthy scan.
        tumor_nsd: None for a healthy scan.
        organ_dsc: None where the organ is not scored.
        iou: What was found by the rule of the endpoints.
        overlap: What was found by any overlap.
    """

    case: str
    patient: str
    tumors: int
    early: int
    tumor_dsc: float | None
    tumor_nsd: float | None
    organ_dsc: float | None
    iou: FoundTumors
    overlap: FoundTumors

    def by(self, rule: FoundBy) -> FoundTumors:
        """Return what was found by a rule."""
        return self.iou if rule == "iou" else self.overlap


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """A cell: one training and its test.

    Args:
        entry: Of the queue.
        size: ``"small"``, ``"full"`` or ``"trial"``.
        cell: What tells it from the others of its entry, such as ``trained_on`` and ``seed``.
        key: Hash of all that decides its results.
        about: Options, models, seconds, machine and checkout.
        thresholds: Probabilities at which tumors were counted, falling, (T,).
        scans: The test.
    """

    entry: str
    size: str
    cell: Mapping[str, str | int]
    key: str
    about: Mapping[str, Any]
    thresholds: tuple[float, ...]
    scans: tuple[CellScan, ...]

    @property
    def dirty(self) -> bool:
        """Whether its code was not committed as a whole."""
        return bool(self.about["checkout"]["dirty"])

    def write(self, file: Path) -> None:
        """Write it, one scan a line.

        Raises:
            ConfigError: The folder cannot be written to.
        """
        head = {"format": FORMAT, **asdict(self)}
        scans = head.pop("scans")
        lines = ",\n".join("  " + json.dumps(scan, separators=(",", ":")) for scan in scans)
        text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
        with written_whole(file) as temporary:
            temporary.write_text(f'{text},\n "scans": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def read_record(file: Path) -> CellRecord:
    """Read a record.

    Raises:
        CaseListError: It is damaged, or of another format.
    """
    try:
        values = read_json(file)
        if values.pop("format") != FORMAT:
            raise ValueError("it has another format")
        scans = tuple(_scan(scan) for scan in values.pop("scans"))
        return CellRecord(**{**values, "thresholds": tuple(values["thresholds"])}, scans=scans)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaseListError(
            f"{file} is not a record of python -m studies.evidence ({error}): remove it, and run the queue again."
        ) from error


def key_of(file: Path) -> str:
    """Return the key of a record; empty if there is none that can be read."""
    try:
        return read_record(file).key if file.is_file() else ""
    except CaseListError:
        return ""


def cell_name(cell: Mapping[str, str | int]) -> str:
    """Return the name of a cell's file: ``few_real_fold0_seed1``."""
    return "_".join(value if isinstance(value, str) else f"{name}{value}" for name, value in cell.items())


def _scan(values: Mapping[str, Any]) -> CellScan:
    found: dict[str, FoundTumors] = {}
    for rule in RULES:
        counts: Mapping[str, Any] = values[rule]
        lists: dict[str, Sequence[int]] = {name: counts[name] for name in ("froc_found", "froc_false")}
        found[rule] = FoundTumors(**{**counts, **{name: tuple(each) for name, each in lists.items()}})
    return CellScan(**{**values, **found})
