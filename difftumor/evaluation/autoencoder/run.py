"""A test card made scan by scan: measure, render the first pictures, write the card and its page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from difftumor.datasets.cases import Case, CaseList
from difftumor.errors import CaseListError
from difftumor.evaluation.autoencoder.card import (
    CARD_FILE,
    CASES_FILE,
    Card,
    ScanCard,
    card_record,
    measure_case,
    write_card,
)
from difftumor.evaluation.autoencoder.reconstruction import OVERLAP, windows_together
from difftumor.evaluation.autoencoder.report import REPORT_FILE, card_report, render_case
from difftumor.evaluation.autoencoder.verdict import Thresholds
from difftumor.files.writing import folder_written_whole
from difftumor.models.artifact import Artifact

RESULT_FILES = (CARD_FILE, CASES_FILE, REPORT_FILE)


@dataclass(eq=False, kw_only=True)
class CardRun:
    """The scans of a list, measured one after the other.

    Args:
        artifact: A loaded autoencoder.
        cases: The list.
        label_names: Name to number of the label maps.
        pictures: Scans that the page shows.
        overlap: Overlap of neighboring windows, in [0, 1).
        windows_per_batch: Windows per batch; `windows_together` when None.
        accept_hu: Whether CTs that cannot be in HU are measured, with a warning.

    Attributes:
        scans: What was measured so far.
    """

    artifact: Artifact
    cases: CaseList
    label_names: Mapping[str, int]
    pictures: int
    overlap: float = OVERLAP
    windows_per_batch: int | None = None
    accept_hu: bool = False
    scans: list[ScanCard] = field(default_factory=list)
    _rendered: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.windows_per_batch = self.windows_per_batch or windows_together(self.artifact.config.preprocessing["crop"])

    def add(self, case: Case) -> str:
        """Measure a scan, and return a line about it.

        Raises:
            DiffTumorError: A file cannot be used, or the autoencoder returns NaN or infinity.
        """
        measured = measure_case(
            case,
            self.artifact,
            label_names=self.label_names,
            overlap=self.overlap,
            windows_per_batch=self.windows_per_batch,
            accept_hu=self.accept_hu,
        )
        self.scans.append(measured.card)
        if len(self._rendered) < self.pictures:
            self._rendered[case.id] = render_case(measured)
        found = measured.card.fidelity
        return f"{case.id}: PSNR {found.psnr_db:.1f} dB, mean absolute error {found.mae_hu:.1f} HU"

    def write(
        self, out: Path, thresholds: Thresholds, *, labels: str | None, device: str, failed: Mapping[str, str]
    ) -> Card:
        """Judge the scans and write `RESULT_FILES`.

        Args:
            out: Folder to write to; other files in it stay.
            thresholds: What the means must reach.
            labels: Label convention, for the record.
            device: Where the autoencoder ran, for the record.
            failed: Reason by case, for scans that could not be measured.

        Raises:
            CaseListError: No scan was measured.
        """
        if not self.scans:
            raise CaseListError(f"None of the scans of {self.cases.source} could be measured: fix or remove them.")
        card = Card.of(self.scans, thresholds, failed)
        settings = {
            "labels": labels, "overlap": self.overlap, "windows_per_batch": self.windows_per_batch, "device": device,
        }  # fmt: skip
        record = card_record(card, self.artifact, self.cases, settings)
        with folder_written_whole(out, keep_others=True) as staging:
            write_card(staging, card, record)
            card_report(card, record, self._rendered).write(staging / REPORT_FILE)
        return card
