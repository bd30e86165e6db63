"""Two lists of tumors compared: read the lists, measure their tumors, and write the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from difftumor.datasets.cases import Case, CaseList, read_cases
from difftumor.errors import CaseListError, ConfigError, counted, first_few
from difftumor.evaluation.realism.distances import Sample, take_features
from difftumor.evaluation.realism.features import NETWORKS, FeatureNetwork, load_features
from difftumor.evaluation.realism.quality import Quality, QualitySettings, measure_quality
from difftumor.evaluation.realism.record import (
    RECORD_FILE,
    SUMMARY_FILE,
    TABLE_FILE,
    TUMORS_FILE,
    list_record,
    quality_record,
    write_quality,
)
from difftumor.evaluation.realism.report import (
    HISTOGRAM_FILE,
    LOOKS_FILE,
    REPORT_FILE,
    quality_report,
    render_pictures,
)
from difftumor.evaluation.realism.tumor_samples import CropSpec, TumorCrop, tumor_crops, with_synthesis_labels
from difftumor.files.writing import folder_written_whole
from difftumor.scans.organs import Organ, get_convention, resolve_labels
from difftumor.seeding import derive_seed

RESULT_FILES = (
    RECORD_FILE, TABLE_FILE, SUMMARY_FILE, TUMORS_FILE, HISTOGRAM_FILE, LOOKS_FILE, REPORT_FILE, "real.png",
    "synthetic.png",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RealismSettings:
    """How two lists of tumors are compared.

    Args:
        crops: How tumors are cut out.
        quality: How distances are put on a scale.
        slices: Slices per tumor and plane that networks see.
        pictures: Tumors per list that are shown.

    Raises:
        ConfigError: A crop has fewer slices than asked for.
    """

    crops: CropSpec
    quality: QualitySettings
    slices: int
    pictures: int

    def __post_init__(self) -> None:
        if self.slices > self.crops.size:
            raise ConfigError(
                f"--slices {self.slices} is more than --crop {self.crops.size} has: give fewer slices or larger crops."
            )

    def to_record(self) -> dict[str, Any]:
        """Return all that decides the numbers, as plain values."""
        window = self.crops.window
        return {
            "crop": self.crops.size, "spacing_mm": list(self.crops.spacing_mm),
            "window_hu": [window.low_hu, window.high_hu], "slices": self.slices,
            "minimum_voxels": self.crops.minimum_voxels, **asdict(self.quality),
        }  # fmt: skip


def read_tumor_list(source: Path, organ: Organ, *, convention: str | None) -> CaseList:
    """Read a list of scans whose labels mark tumors of an organ.

    Args:
        source: The list, or a folder that ``difftumor synthesize --cases`` has written.
        organ: The organ.
        convention: Label convention; None takes the names of the list.

    Raises:
        CaseListError: A case has no labels, or none of the labels is a tumor of the organ.
    """
    cases = with_synthesis_labels(read_cases(source))
    if convention is not None:
        cases = replace(cases, label_names=get_convention(convention))
    unlabeled = [case.id for case in cases.cases if case.labels is None]
    if unlabeled:
        raise CaseListError(f"{source} names no label map for {first_few(unlabeled)}: give a list with labels.")
    if not resolve_labels(cases.label_names, organ, source=source).tumor:
        raise CaseListError(f"{source} names no {organ.name} tumors: name their label, such as '{organ.name}_tumor'.")
    return cases


def load_networks(words: Sequence[str], crops: CropSpec, device: torch.device) -> list[FeatureNetwork]:
    """Load the feature networks that ``--features NETWORK=PATH`` names.

    Raises:
        ConfigError: A word is not of this form, or names a network twice.
    """
    networks: list[FeatureNetwork] = []
    for word in words:
        name, sign, path = word.partition("=")
        if not sign or not path:
            raise ConfigError(f"--features {word} is not NETWORK=PATH: give for instance {next(iter(NETWORKS))}=FILE.")
        if any(network.name == name for network in networks):
            raise ConfigError(f"--features names {name} twice: compare its weights in separate runs.")
        network = load_features(
            name, Path(path), window=crops.window, spacing_mm=crops.spacing_mm, crop=crops.size, device=device
        )
        networks.append(network)
    return networks


@dataclass(eq=False)
class TumorSet:
    """The tumors of one list, measured case by case.

    Args:
        side: ``"real"`` or ``"synthetic"``.
        cases: The list.
        organ: The organ.
        networks: Feature networks.
        settings: How tumors are measured.
        accept_hu: Whether CTs that cannot be in HU are measured, with a warning.

    Attributes:
        samples: The tumors measured so far.
        failed: Reason by case, for cases that could not be read.
    """

    side: str
    cases: CaseList
    organ: Organ
    networks: Sequence[FeatureNetwork]
    settings: RealismSettings
    accept_hu: bool = False
    samples: list[Sample] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    _examples: list[tuple[int, TumorCrop]] = field(default_factory=list)

    def add(self, case: Case) -> str:
        """Measure the tumors of a case, and return a line about it.

        Raises:
            DiffTumorError: A file cannot be used.
        """
        labels = resolve_labels(self.cases.label_names, self.organ, source=self.cases.source)
        samples: list[Sample] = []
        examples = self._examples
        for crop in tumor_crops(case, self.cases, labels, self.settings.crops, accept_hu=self.accept_hu):
            samples.append(take_features(crop, self.networks, slices=self.settings.slices))
            order = derive_seed(self.settings.quality.seed, self.side, case.id, crop.tumor.number)
            # Only as many crops as are shown stay in memory.
            examples = sorted([*examples, (order, crop)], key=lambda each: each[0])[: self.settings.pictures]
        self.samples += samples
        self._examples = examples
        return f"{self.side} {case.id}: {counted(len(samples), 'tumor')}"

    def check(self) -> None:
        """Raise a CaseListError if there is no tumor."""
        if not self.samples:
            what = f"{len(self.failed)} of {len(self.cases.cases)} scans could not be read"
            raise CaseListError(
                f"{self.cases.source} holds no {self.organ.name} tumors ({what}): give scans whose labels mark some."
            )

    @property
    def examples(self) -> list[TumorCrop]:
        """Crops of some tumors, chosen at random."""
        return [crop for _, crop in self._examples]


def compare_sets(sets: Mapping[str, TumorSet], out: Path) -> Quality:
    """Compute the distances between two sets of tumors and write `RESULT_FILES`.

    Args:
        sets: ``"real"`` and ``"synthetic"``, of the same settings.
        out: Folder to write to; other files in it stay.
    """
    settings, networks, organ = sets["real"].settings, sets["real"].networks, sets["real"].organ
    samples = {side: tumors.samples for side, tumors in sets.items()}
    quality = measure_quality(samples["real"], samples["synthetic"], networks, settings.quality)
    lists = {
        side: list_record(tumors.cases.source, tumors.samples, len(tumors.cases.cases), tumors.failed)
        for side, tumors in sets.items()
    }
    origins = {network.name: {**network.origin, "dimensions": network.dimensions} for network in networks}
    about = {"organ": organ.name, **lists, "networks": origins, "settings": settings.to_record()}
    record = quality_record(quality, about)
    pictures = render_pictures(samples, {side: tumors.examples for side, tumors in sets.items()}, settings.crops)
    with folder_written_whole(out, keep_others=True) as staging:
        write_quality(staging, quality, record, samples)
        for file, png in pictures.items():
            (staging / file).write_bytes(png)
        quality_report(quality, record, pictures).write(staging / REPORT_FILE)
    return quality
