"""One scan: its tumors planned, inserted one at a time, predicted and scored, with a record of each on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import ConfigError, SynthesisError, lacks_room, sentence_of
from difftumor.evaluation.metrics.detection import Matching
from difftumor.evaluation.metrics.surfaces import check_tolerance
from difftumor.evaluation.robustness.dimensions import Dimension, plain_dimensions
from difftumor.evaluation.robustness.plan import Variant, distinct, file_name, plan_scan, tumor_spec
from difftumor.evaluation.robustness.scoring import ScanResult, TumorRow, TumorScore, score_tumor
from difftumor.files.results import ResultFolder
from difftumor.files.texts import read_json
from difftumor.files.writing import folder_written_whole
from difftumor.reporting.tables import write_json
from difftumor.scans.grid import Box, triple
from difftumor.scans.lesions import find_lesions
from difftumor.scans.nifti import Volume, as_stored
from difftumor.scans.organs import TUMOR
from difftumor.seeding import derive_seed
from difftumor.synthesis.host import Host
from difftumor.synthesis.scan.files import ScanSynthesizer
from difftumor.synthesis.scan.inputs import ScanInputs
from difftumor.synthesis.scan.insertion import ScanSynthesis, apply_to_scan
from difftumor.synthesis.scan.model_scan import ModelScan
from difftumor.synthesis.scan.record import record_content, write_record
from difftumor.synthesis.scan.report import TumorReport, report_tumors
from difftumor.synthesis.shapes import tumor_shape
from difftumor.synthesis.synthesizer import TumorSynthesizer

# A CT, whole or a part of it, to labels on its grid: 0 background, 1 organ, 2 tumor.
Predict = Callable[[Volume], NDArray[np.uint8]]
RECORDS, RESULT_FILE = "records", "result.json"
RESULT_FOLDER = ResultFolder(what="result", holds=(RESULT_FILE, f"{RECORDS}/**"), mark=RESULT_FILE)


class HealthyScan(NamedTuple):
    """A scan to insert tumors into.

    Attributes:
        case: Its id; with the seed, decides its tumors.
        patient: Who was scanned.
        inputs: Its files; only read.
    """

    case: str
    patient: str
    inputs: ScanInputs


@dataclass(frozen=True, eq=False, kw_only=True)
class Benchmark:
    """How every scan is run.

    Args:
        synthesizer: Makes hand-crafted tumors.
        predict: The segmenter.
        dimensions: As ``read_dimensions`` returns them.
        seed: Seed of all scans; each scan derives its own from this and its id.
        repeats: Tumors per scan that are varied.
        margin_mm: Margin around the organ that is predicted too; None predicts the whole scan.
        tolerance_mm: Tolerance of the normalized surface distance.
        matching: When a tumor counts as found.
        about: Whatever else decides the results, such as the segmenter; plain values.
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

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance_mm)

    def run_all(self, scans: Iterable[HealthyScan], out: Path, *, overwrite: bool = False) -> Iterator[ScanResult]:
        """Run scans; one that fails leaves no files and does not stop the others, but for a full disk.

        Args:
            scans: The scans.
            out: Every scan gets a folder in here.
            overwrite: Rerun scans that were done before.
        """
        for scan in scans:
            try:
                yield self.run(*scan, out, overwrite=overwrite)
            except Exception as error:
                if lacks_room(error):
                    raise
                # Whatever is wrong with one scan must not cost hours of work on the others.
                yield ScanResult(scan[0], "failed", notes=(sentence_of(error),))

    def run(self, case: str, patient: str, inputs: ScanInputs, out: Path, *, overwrite: bool = False) -> ScanResult:
        """Make, predict and score all tumors of a scan, or return the results of an earlier run.

        Args:
            case: Its id; with the seed, decides its tumors.
            patient: Who was scanned.
            inputs: Its files; only read.
            out: The scan gets a folder in here.
            overwrite: Rerun the scan even if it was done before.

        Raises:
            DiffTumorError: A file is unusable, the organ is too small, or the folder holds other files.
        """
        folder, request = out / case, self._request(inputs)
        RESULT_FOLDER.check(folder, remedy="give another --out")
        if (folder / RESULT_FILE).exists() and not overwrite:
            return _done_before(folder, case, request)
        scan = inputs.read(organ=self.synthesizer.organ.name)
        if scan.tumor_mask is not None:
            reason = f"It has {self.synthesizer.organ.name} tumors of its own: only healthy scans are used."
            return ScanResult(case, "skipped", notes=(reason,))
        model_scan = ModelScan(scan, self.synthesizer.spacing_mm)
        host = model_scan.host([tumor_spec(self.dimensions)], self.synthesizer.organ)
        seed = derive_seed(self.seed, "case", case)
        plan = plan_scan(host, self.dimensions, seed=seed, repeats=self.repeats)
        notes = [*scan.doubts, *plan.notes]
        test = ScanTest(self, model_scan, host)
        rows: dict[Variant, TumorRow] = {}
        with folder_written_whole(folder) as staging:
            for variants in distinct(plan.variants):
                first = variants[0]
                if not model_scan.shows(first.record, tumor_shape(first.record)):
                    notes += [
                        f"A tumor at {v.dimension} {v.level:+d}σ lies between the scan's voxels." for v in variants
                    ]
                    continue
                report, score = test.score(first)
                name = f"{RECORDS}/{file_name(first)}"
                write_record(staging / name, self._record(inputs, report, seed))
                rows |= {variant: _row(case, patient, variant, report, score, name) for variant in variants}
            made = tuple(rows[variant] for variant in plan.variants if variant in rows)
            result = ScanResult(case, "done", made, tuple(notes), test.healthy_lesions)
            write_json(staging / RESULT_FILE, {"request": request, **asdict(result)})
        return result

    def _request(self, inputs: ScanInputs) -> dict[str, Any]:
        return {
            "organ": self.synthesizer.organ.name, "dimensions": plain_dimensions(self.dimensions),
            "tumor": tumor_spec(self.dimensions).to_plain(),
            "seed": self.seed, "repeats": self.repeats,
            "margin_mm": self.margin_mm, "tolerance_mm": self.tolerance_mm, "matching": str(self.matching),
            "inputs": inputs.to_record(), **self.about,
        }  # fmt: skip

    def _record(self, inputs: ScanInputs, report: TumorReport, seed: int) -> dict[str, Any]:
        """Return what ``difftumor synthesize --replay`` reads."""
        asked = ScanSynthesizer(synthesizer=self.synthesizer, tumors=(tumor_spec(self.dimensions),), seed=seed)
        return record_content(
            request=asked.request,
            inputs=inputs.to_record(),
            models={},
            device=str(self.synthesizer.device),
            tumors=[report.to_dict()],
        )


class ScanTest:
    """Inserts tumors into one scan, one at a time, and runs the segmenter on each.

    Args:
        benchmark: How.
        model_scan: The scan, at the voxel size of the synthesizer; not modified.
        host: Its organ.

    Attributes:
        region: Part of the scan that is predicted.
        healthy_lesions: Number of lesions predicted without a tumor.
    """

    def __init__(self, benchmark: Benchmark, model_scan: ModelScan, host: Host) -> None:
        self._benchmark, self._model_scan, self._host = benchmark, model_scan, host
        self._scan = scan = model_scan.scan
        self.region = Box.around_organ(scan.organ_mask, scan.ct.grid.spacing_mm, benchmark.margin_mm)
        self._healthy = scan.ct.part(self.region)
        self._before = benchmark.predict(self._healthy)
        self.healthy_lesions = len(find_lesions(self._before == TUMOR, self._healthy.grid).lesions)

    def score(self, variant: Variant) -> tuple[TumorReport, TumorScore]:
        """Insert a tumor; return what it became in the scan, and how the segmenter does on it."""
        made = apply_to_scan(self._benchmark.synthesizer, self._model_scan, [variant.record])
        (report,) = report_tumors(made, self._host, window=self._benchmark.synthesizer.window)
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
        """Return CT and tumor mask of the region, as the files of ``difftumor synthesize`` would hold them."""
        start = np.maximum(made.box.start, self.region.start)
        stop = np.maximum(np.minimum(made.box.stop, self.region.stop), start)
        common = Box(triple(start), triple(stop))
        here, there = common.relative_to(self.region).slices, common.relative_to(made.box).slices
        ct_hu, truth = self._healthy.data.copy(order="F"), np.zeros(self.region.shape, bool, order="F")
        changed = made.change_hu[there] != 0
        ct_hu[here][changed] = as_stored(self._scan.ct, (ct_hu[here] + made.change_hu[there])[changed])
        truth[here] = made.lesions[there] > 0
        return ct_hu, truth


def _row(case: str, patient: str, variant: Variant, report: TumorReport, score: TumorScore, record: str) -> TumorRow:
    return TumorRow(
        case=case, patient=patient, repeat=variant.repeat, dimension=variant.dimension, level=variant.level,
        value=variant.value, clamped=variant.clamped, diameter_mm=report.diameter_mm, contrast_hu=report.contrast_hu,
        depth_mm=variant.depth_mm, record=record, **asdict(score),
    )  # fmt: skip


def _done_before(folder: Path, case: str, request: Mapping[str, Any]) -> ScanResult:
    """Return the results of an earlier run if it had the same request.

    Raises:
        ConfigError: It had another, or its file is damaged.
    """
    try:
        content = read_json(folder / RESULT_FILE)
        names = {field.name for field in fields(TumorRow)}
        rows = tuple(TumorRow(**{name: row[name] for name in names}) for row in content["rows"])
        found = ScanResult(case, "done before", rows, tuple(content["notes"]), content["healthy_lesions"])
        asked = content["request"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        asked = None
    if _by_content(asked) != _by_content(json.loads(json.dumps(request))):
        raise ConfigError(f"{folder} holds results of other settings: give another --out or --overwrite.")
    return found


def _by_content(request: Any) -> Any:
    """Return a request without the paths of its files, which may have moved."""
    if isinstance(request, Mapping):
        return {name: _by_content(value) for name, value in request.items() if name != "path"}
    return [_by_content(value) for value in request] if isinstance(request, list) else request
