"""The test card of an autoencoder: its fidelity by scan and overall, and the verdict, as JSON and CSV."""

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import monai
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difftumor import __version__
from difftumor.datasets.cases import Case, CaseList, case_label_files, read_case_labels
from difftumor.evaluation.autoencoder.fidelity import Fidelity, StructureError, measure_fidelity
from difftumor.evaluation.autoencoder.reconstruction import OVERLAP, ScanReconstruction, reconstruct_scan
from difftumor.evaluation.autoencoder.verdict import UNNAMED, CardVerdict, Thresholds, judge
from difftumor.models.artifact import Artifact
from difftumor.reporting.tables import Cell, Row, Table, write_csv, write_json
from difftumor.scans.hounsfield import warn
from difftumor.scans.nifti import check_same_grid, read_ct
from difftumor.scans.organs import BACKGROUND

FORMAT_VERSION = 1
CARD_FILE, CASES_FILE = "card.json", "cases.csv"
# Columns of a scan.
MEASURES = ("psnr_db", "ssim", "mae_hu", "bias_hu", "edge_ratio", "noise_ratio", "codes_used")


@dataclass(frozen=True, eq=False, kw_only=True)
class ScanCard:
    """One scan.

    Attributes:
        case: Its id.
        image: The CT.
        shape: Voxels of the scan in model space.
        fidelity: Its fidelity.
        code_counts_K: How often each code was used.
    """

    case: str
    image: Path
    shape: tuple[int, ...]
    fidelity: Fidelity
    code_counts_K: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Card:
    """All scans and the verdict.

    Attributes:
        scans: In the order of the list; at least one.
        overall: Means over the scans; `codes_used` counts codes used by any scan, and the voxels of structures are
            sums over the scans.
        thresholds: What the overall fidelity must reach.
        verdict: Whether it does.
        failed: Reason by case, for scans that could not be measured.
    """

    scans: tuple[ScanCard, ...]
    overall: Fidelity
    thresholds: Thresholds
    verdict: CardVerdict
    failed: Mapping[str, str]

    @classmethod
    def of(cls, scans: Sequence[ScanCard], thresholds: Thresholds, failed: Mapping[str, str]) -> "Card":
        """Sum up scans and judge them."""
        overall = combined(scans)
        return cls(
            scans=tuple(scans),
            overall=overall,
            thresholds=thresholds,
            verdict=judge(overall, thresholds),
            failed=dict(failed),
        )


@dataclass(frozen=True, eq=False)
class Measured:
    """A measured scan with its volumes.

    Attributes:
        card: The numbers.
        volumes: CT and reconstruction in model space.
        structures: Masks in model space; empty for a scan without labels.
    """

    card: ScanCard
    volumes: ScanReconstruction
    structures: Mapping[str, Tensor]


class LabelMasks(Mapping[str, Tensor]):
    """The structures of a label map by name; masks are made on access.

    Args:
        labels_XYZ: Label map; 0 is background.
        names: Name to number; a number without a name becomes "label 5" and the like.
    """

    def __init__(self, labels_XYZ: NDArray[Any], names: Mapping[str, int]) -> None:
        by_number = {number: name for name, number in reversed(list(names.items()))}
        present = [int(number) for number in np.unique(labels_XYZ) if number != BACKGROUND]
        self._labels_XYZ = labels_XYZ
        self._numbers = {by_number.get(number, f"{UNNAMED}{number}"): number for number in present}

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._labels_XYZ == self._numbers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def measure_case(
    case: Case,
    artifact: Artifact,
    *,
    label_names: Mapping[str, int],
    overlap: float = OVERLAP,
    windows_per_batch: int | None = None,
    accept_hu: bool = False,
) -> Measured:
    """Read, reconstruct and measure one scan, in the model space of the autoencoder.

    Args:
        case: The scan, with or without labels.
        artifact: A loaded autoencoder.
        label_names: Name to number of the label maps.
        overlap: Overlap of neighboring windows, in [0, 1).
        windows_per_batch: Windows per batch; `windows_together` when None.
        accept_hu: Whether a CT that cannot be in HU is measured, with a warning.

    Raises:
        VolumeError: A file cannot be used.
        GridMismatchError: The labels lie on another grid.
        ArtifactError: The autoencoder returns NaN or infinity.
    """
    ct = read_ct(case.image, beside=case_label_files(case, label_names), accept_hu=accept_hu)
    warn(ct.doubts)
    labels = None if case.labels is None else read_case_labels(case, label_names)
    if labels is not None:
        check_same_grid(ct, labels)
    volumes = reconstruct_scan(ct, artifact, overlap=overlap, windows_per_batch=windows_per_batch)
    structures: Mapping[str, Tensor] = {}
    if labels is not None:
        structures = LabelMasks(volumes.space.to_model(labels.data, kind="labels"), label_names)
    fidelity = measure_fidelity(
        volumes.ct_hu_XYZ,
        volumes.reconstruction_hu_XYZ,
        window=volumes.window,
        structures=structures,
        code_counts_K=volumes.code_counts_K,
    )
    card = ScanCard(
        case=case.id,
        image=case.image,
        shape=tuple(volumes.ct_hu_XYZ.shape),
        fidelity=fidelity,
        code_counts_K=volumes.code_counts_K,
    )
    return Measured(card, volumes, structures)


def combined(scans: Sequence[ScanCard]) -> Fidelity:
    """Return the means over scans, unweighted; a scan without a value does not count for it."""
    each = [scan.fidelity for scan in scans]
    names = dict.fromkeys(name for fidelity in each for name in fidelity.structures)
    structures = {
        name: _combined_structure([fidelity.structures[name] for fidelity in each if name in fidelity.structures])
        for name in names
    }
    used = torch.stack([scan.code_counts_K for scan in scans]).sum(0)
    means = {name: _mean([getattr(fidelity, name) for fidelity in each]) for name in MEASURES if name != "codes_used"}
    return Fidelity(**means, codes_used=int(torch.count_nonzero(used)), structures=structures)


def case_rows(card: Card) -> list[Row]:
    """Return one row per scan: `MEASURES`, and voxels, error and bias inside every structure of any scan."""
    columns = case_columns(card)
    rows: list[Row] = []
    for scan in card.scans:
        row: dict[str, Cell] = dict.fromkeys(columns)
        row["case"] = scan.case
        row |= {name: _plain(getattr(scan.fidelity, name)) for name in MEASURES}
        for structure, inside in scan.fidelity.structures.items():
            row |= {f"{structure} {name}": _plain(value) for name, value in asdict(inside).items()}
        rows.append(row)
    return rows


def case_columns(card: Card) -> list[str]:
    """Return the columns of `case_rows`."""
    measures = [field.name for field in fields(StructureError)]
    return ["case", *MEASURES, *(f"{structure} {name}" for structure in card.overall.structures for name in measures)]


def card_record(card: Card, artifact: Artifact, case_list: CaseList, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card as plain values; None for values that are infinite or could not be measured."""
    config = artifact.config
    return {
        "format_version": FORMAT_VERSION,
        "versions": {
            "difftumor": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "monai": str(monai.__version__),
        },
        "verdict": {
            "good_enough": card.verdict.good_enough,
            "sentence": card.verdict.sentence,
            "failures": list(card.verdict.failures),
            "unmeasured": list(card.verdict.unmeasured),
        },
        "thresholds": asdict(card.thresholds),
        "overall": _fidelity_record(card.overall),
        "scans": [
            {
                "case": scan.case,
                "image": str(scan.image),
                "shape": list(scan.shape),
                **_fidelity_record(scan.fidelity),
            }
            for scan in card.scans
        ],
        "failed": dict(card.failed),
        "artifact": {
            "path": str(artifact.path),
            "identity": config.identity,
            "complete": config.complete,
            "architecture": dict(config.architecture),
            "preprocessing": dict(config.preprocessing),
            "written_by": config.difftumor_version,
        },
        "data": str(case_list.source),
        "settings": dict(settings),
    }


def write_card(folder: Path, card: Card, record: Mapping[str, Any]) -> None:
    """Write ``card.json`` and ``cases.csv``."""
    write_json(folder / CARD_FILE, record)
    write_csv(folder / CASES_FILE, Table.of_records(case_columns(card), case_rows(card)))


def _combined_structure(inside: Sequence[StructureError]) -> StructureError:
    return StructureError(
        voxels=sum(one.voxels for one in inside),
        mae_hu=_mean([one.mae_hu for one in inside]),
        bias_hu=_mean([one.bias_hu for one in inside]),
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else float("nan")


def _fidelity_record(fidelity: Fidelity) -> dict[str, Any]:
    record = {name: _plain(getattr(fidelity, name)) for name in MEASURES}
    structures = {
        name: {key: _plain(value) for key, value in asdict(inside).items()}
        for name, inside in fidelity.structures.items()
    }
    return {**record, "structures": structures}


def _plain(value: float | None) -> float | None:
    """Return a value, or None for NaN and infinity, which JSON lacks."""
    return value if value is None or math.isfinite(value) else None
