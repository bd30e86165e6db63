"""One scan: its tumors planned, each made alone, predicted and scored; and what is kept of it on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from difftumor import __version__
from difftumor.errors import ConfigError, SynthesisError, sentence_of
from difftumor.evaluation.metrics.detection import Matching, match_lesions
from difftumor.evaluation.metrics.overlap import TOLERANCE_MM, overlap_scores
from difftumor.evaluation.robustness.dimensions import Dimension, plain_dimensions
from difftumor.evaluation.robustness.plan import Variant, distinct, file_name, plan_scan, tumor_spec
from difftumor.files import folder_written_whole
from difftumor.reporting.tables import write_json
from difftumor.scans.grid import Box, Grid, triple
from difftumor.scans.label_maps import box_around, part_of
from difftumor.scans.lesions import find_lesions
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import Volume, as_stored
from difftumor.scans.organs import TUMOR
from difftumor.seeding import derive_seed
from difftumor.synthesis.scan.files import ScanRequest, describe_request
from difftumor.synthesis.scan.inputs import Scan, ScanInputs
from difftumor.synthesis.scan.insertion import ScanSynthesis, apply_to_scan
from difftumor.synthesis.scan.record import FORMAT_VERSION
from difftumor.synthesis.scan.report import TumorReport, report_tumors
from difftumor.synthesis.scan.scan import ScanSite, has_native_voxels, site_of
from difftumor.synthesis.synthesizer import TumorSynthesizer


@dataclass(frozen=True, kw_only=True)
class TumorScore:
    """What a segmenter says of one tumor.

    Attributes:
        found: Whether a predicted lesion matches it.
        dsc: Dice similarity coefficient of the predicted lesions that touch it.
        nsd: Their normalized surface distance.
        false_positives: Predicted lesions that do not touch it.
        marked_before: Whether tumor was predicted in its place before it was there.
    """

    found: bool
    dsc: float
    nsd: float
    false_positives: int
    marked_before: bool


def score_tumor(
    prediction: NDArray[Any],
    truth: NDArray[np.bool_],
    before: NDArray[Any],
    grid: Grid,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    matching: Matching = Matching(),  # noqa: B008 (frozen)
) -> TumorScore:
    """Score the only tumor of a scan.

    What is predicted elsewhere has nothing to do with this tumor: it is counted, and does not lower its DSC.

    Args:
        prediction: (X, Y, Z) labels: 0 background, 1 organ, 2 tumor.
        truth: The tumor; not empty.
        before: Prediction of the same scan without it.
        grid: Where the voxels lie.
        tolerance_mm: Tolerance of the normalized surface distance.
        matching: When a predicted lesion finds the tumor.
    """
    predicted, true = find_lesions(prediction == TUMOR, grid), find_lesions(truth, grid)
    matches = match_lesions("", true, predicted, matching=matching).matches
    touching = np.unique(predicted.indices[truth])
    touching = touching[touching > 0]
    overlap = overlap_scores(
        np.isin(predicted.indices, touching), truth, spacing_mm=grid.spacing_mm, tolerance_mm=tolerance_mm
    )
    return TumorScore(
        found=any(match.prediction is not None for match in matches),
        dsc=overlap.dsc,
        nsd=overlap.nsd,
        false_positives=len(predicted.lesions) - len(touching),
        marked_before=bool((before[truth] == TUMOR).any()),
    )


# A CT, whole or a part of it, to labels on its grid: 0 background, 1 organ, 2 tumor.
Predict = Callable[[Volume], NDArray[np.uint8]]
RECORDS, RESULT_FILE = "records", "result.json"
Status = Literal["done", "done before", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class TumorRow:
    """One tumor in one cell of the benchmark; what could not be measured is None.

    Attributes:
        case: The scan.
        patient: Who was scanned.
        repeat: Which tumor of the scan, from 0.
        dimension: In which it is varied.
        level: So many σ from the mean.
        value: Of the dimension, as asked.
        clamped: Whether a limit has held it back.
        diameter_mm: Of the ball of its volume on the scan's grid.
        contrast_hu: Its mean less that of the organ around it.
        depth_mm: Distance of its center from the organ's surface.
        found: See `TumorScore`, as for the four that follow.
        dsc: See there.
        nsd: See there.
        false_positives: See there.
        marked_before: See there.
        record: The file that makes it again, in the scan's folder.
    """

    case: str
    patient: str
    repeat: int
    dimension: str
    level: int
    value: float
    clamped: bool
    diameter_mm: float
    contrast_hu: float | None
    depth_mm: float
    found: bool
    dsc: float
    nsd: float
    false_positives: int
    marked_before: bool
    record: str


@dataclass(frozen=True)
class ScanResult:
    """What became of a scan.

    Args:
        case: Its id.
        status: Whether it was done, now or before, left out, or failed.
        rows: Its tumors.
        notes: What could not be had, or why it was left out or failed, in sentences.
        healthy_lesions: Lesions that are predicted in it without a tumor; None where nothing was.
    """

    case: str
    status: Status
    rows: tuple[TumorRow, ...] = ()
    notes: tuple[str, ...] = ()
    healthy_lesions: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Benchmark:
    """What is done with every scan.

    Args:
        synthesizer: Makes hand-crafted tumors.
        predict: The segmenter.
        dimensions: As ``read_dimensions`` returns them.
        seed: Of all scans; each has its own, which its id decides.
        repeats: Tumors of a scan that are varied.
        margin_mm: How much around the organ is predicted; None for the whole scan.
        tolerance_mm: Tolerance of the normalized surface distance.
        matching: When a tumor is found.
        about: What else decides the results, such as the segmenter; plain values.
    """

    synthesizer: TumorSynthesizer
    predict: Predict
    dimensions: Mapping[str, Dimension]
    seed: int
    repeats: int
    margin_mm: float | None
    tolerance_mm: float
    matching: Matching
    about: Mapping[str, Any]

    def run_all(
        self, cases: Iterable[tuple[str, str, ScanInputs]], out: Path, *, overwrite: bool = False
    ) -> Iterator[ScanResult]:
        """Run scans; one that fails does not stop the others, and nothing is written of it.

        Args:
            cases: Ids, patients and files.
            out: Every scan gets a folder in here.
            overwrite: Run scans anew that were done before.
        """
        for case_id, patient, inputs in cases:
            try:
                yield self.run(case_id, patient, inputs, out, overwrite=overwrite)
            except Exception as error:
                # One scan must not take hours of others with it, whatever is wrong with it.
                yield ScanResult(case_id, "failed", notes=(sentence_of(error),))

    def run(self, case_id: str, patient: str, inputs: ScanInputs, out: Path, *, overwrite: bool = False) -> ScanResult:
        """Make, predict and score all tumors of a scan, or return what was found before.

        Args:
            case_id: Its id; with the seed, decides its tumors.
            patient: Who was scanned.
            inputs: Its files; only read.
            out: The scan gets a folder in here.
            overwrite: Do it anew, whatever is there.

        Raises:
            DiffTumorError: A file cannot be used, the organ has no room, or the folder holds anything else.
        """
        folder, request = out / case_id, self._request(inputs)
        _check_own(folder)
        if (folder / RESULT_FILE).exists() and not overwrite:
            return _done_before(folder, case_id, request)
        scan = inputs.read(organ=self.synthesizer.organ.name)
        if scan.tumor_mask is not None:
            reason = f"It has {self.synthesizer.organ.name} tumors of its own: only healthy scans are used."
            return ScanResult(case_id, "skipped", notes=(reason,))
        there = site_of(
            scan, [tumor_spec(self.dimensions)], organ=self.synthesizer.organ, spacing_mm=self.synthesizer.spacing_mm
        )
        seed = derive_seed(self.seed, "case", case_id)
        plan = plan_scan(there, self.dimensions, seed=seed, repeats=self.repeats)
        notes = list(plan.notes)
        space = ModelSpace(scan.ct.grid, self.synthesizer.spacing_mm)
        studio = Studio(self, scan, there)
        rows: dict[Variant, TumorRow] = {}
        with folder_written_whole(folder) as staging:
            for variants in distinct(plan.variants):
                first = variants[0]
                if not has_native_voxels(first.record, scan, space):
                    notes += [
                        f"A tumor at {v.dimension} {v.level:+d}σ lies between the scan's voxels." for v in variants
                    ]
                    continue
                report, score = studio.score(first)
                name = f"{RECORDS}/{file_name(first)}"
                write_json(staging / name, self._record(inputs, report, seed))
                rows |= {variant: _row(case_id, patient, variant, report, score, name) for variant in variants}
            made = tuple(rows[variant] for variant in plan.variants if variant in rows)
            result = ScanResult(case_id, "done", made, tuple(notes), studio.healthy_lesions)
            write_json(staging / RESULT_FILE, {"request": request, **asdict(result)})
        return result

    def _request(self, inputs: ScanInputs) -> dict[str, Any]:
        return {
            "organ": self.synthesizer.organ.name, "dimensions": plain_dimensions(self.dimensions),
            "seed": self.seed, "repeats": self.repeats,
            "margin_mm": self.margin_mm, "tolerance_mm": self.tolerance_mm, "matching": str(self.matching),
            "inputs": inputs.to_record(), **self.about,
        }  # fmt: skip

    def _record(self, inputs: ScanInputs, report: TumorReport, seed: int) -> dict[str, Any]:
        """Return what ``difftumor synthesize --replay`` reads."""
        request = ScanRequest(tumors=(tumor_spec(self.dimensions),), seed=seed)
        return {
            "format_version": FORMAT_VERSION, "difftumor_version": __version__,
            "request": describe_request(request, self.synthesizer.organ), "inputs": inputs.to_record(), "models": {},
            "device": str(self.synthesizer.device), "shortfalls": [], "rejected": [], "warnings": [],
            "tumors": [report.to_dict()],
        }  # fmt: skip


class Studio:
    """Makes tumors in one scan, and asks the segmenter about them.

    Args:
        benchmark: How.
        scan: Not modified.
        there: Its organ.

    Attributes:
        region: Part of the scan that is predicted.
        healthy_lesions: Lesions that are predicted without a tumor.
    """

    def __init__(self, benchmark: Benchmark, scan: Scan, there: ScanSite) -> None:
        self._benchmark, self._scan, self._there = benchmark, scan, there
        self.region = box_around(scan.organ_mask, scan.ct.grid.spacing_mm, benchmark.margin_mm)
        self._healthy = part_of(scan.ct, self.region)
        self._before = benchmark.predict(self._healthy)
        self.healthy_lesions = len(find_lesions(self._before == TUMOR, self._healthy.grid).lesions)

    def score(self, variant: Variant) -> tuple[TumorReport, TumorScore]:
        """Make a tumor, and say what it became and what is predicted of it."""
        made = apply_to_scan(self._benchmark.synthesizer, self._scan, [variant.record])
        (report,) = report_tumors(made, self._there, window=self._benchmark.synthesizer.window)
        if report.voxels == 0:
            raise SynthesisError(f"The tumor of {file_name(variant)} has no voxel of {self._scan.ct.path}.")
        ct_hu, truth = self.with_tumor(made)
        return report, score_tumor(
            self._benchmark.predict(replace(self._healthy, data=ct_hu)),
            truth,
            self._before,
            self._healthy.grid,
            tolerance_mm=self._benchmark.tolerance_mm,
            matching=self._benchmark.matching,
        )

    def with_tumor(self, made: ScanSynthesis) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return CT and tumor in the region, as they are read from the files of ``difftumor synthesize``."""
        start = np.maximum(made.box.start, self.region.start)
        stop = np.maximum(np.minimum(made.box.stop, self.region.stop), start)
        common = Box(triple(start), triple(stop))
        here, there = common.relative_to(self.region).slices, common.relative_to(made.box).slices
        ct_hu, truth = self._healthy.data.copy(order="F"), np.zeros(self.region.shape, bool, order="F")
        changed = made.change_hu[there] != 0
        ct_hu[here][changed] = as_stored(self._scan.ct, (ct_hu[here] + made.change_hu[there])[changed])
        truth[here] = made.lesions[there] > 0
        return ct_hu, truth


def _row(case_id: str, patient: str, variant: Variant, report: TumorReport, score: TumorScore, record: str) -> TumorRow:
    return TumorRow(
        case=case_id, patient=patient, repeat=variant.repeat, dimension=variant.dimension, level=variant.level,
        value=variant.value, clamped=variant.clamped, diameter_mm=report.diameter_mm, contrast_hu=report.contrast_hu,
        depth_mm=variant.depth_mm, record=record, **asdict(score),
    )  # fmt: skip


def _check_own(folder: Path) -> None:
    """Refuse to replace a folder that `Benchmark.run` has not written, for it may hold what exists nowhere else."""
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if held and (RESULT_FILE not in held or held - {RESULT_FILE, RECORDS}):
        raise ConfigError(f"{folder} holds files that are no results, and would be replaced: give another --out.")


def _done_before(folder: Path, case_id: str, request: Mapping[str, Any]) -> ScanResult:
    """Return what was found before, if it was asked in the same way."""
    try:
        content = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        names = {field.name for field in fields(TumorRow)}
        rows = tuple(TumorRow(**{name: row[name] for name in names}) for row in content["rows"])
        found = ScanResult(case_id, "done before", rows, tuple(content["notes"]), content["healthy_lesions"])
        asked = content["request"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        asked = None
    if _by_content(asked) != _by_content(json.loads(json.dumps(request))):
        raise ConfigError(
            f"{folder} holds results that were asked for in another way: give another --out or --overwrite."
        )
    return found


def _by_content(request: Any) -> Any:
    """Return a request without the paths of its files, which may have moved."""
    if isinstance(request, Mapping):
        return {name: _by_content(value) for name, value in request.items() if name != "path"}
    return [_by_content(value) for value in request] if isinstance(request, list) else request
