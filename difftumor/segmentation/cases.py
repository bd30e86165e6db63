"""Scans in, label maps out: what is written of a case, and whether it was written before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from difftumor import __version__
from difftumor.errors import ConfigError, sentence_of
from difftumor.files import folder_written_whole, provenance
from difftumor.models.artifact import Artifact
from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import mask_center, three_planes
from difftumor.reporting.plots import save_png
from difftumor.reporting.tables import write_json
from difftumor.scans.components import largest_component
from difftumor.scans.grid import Box, Grid
from difftumor.scans.label_maps import label_values
from difftumor.scans.lesions import LesionMap, find_lesions
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import Volume, check_same_grid, read_ct, read_labels, write_labels
from difftumor.scans.organs import BACKGROUND, ORGAN, TUMOR
from difftumor.segmentation.inference import Prediction, PredictionOptions, check_together, predict_volume
from difftumor.segmentation.probability_file import PROBABILITIES, probability_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def prediction_record(
    labels: NDArray[Any], grid: Grid, *, tumor_probability: NDArray[Any] | None = None
) -> dict[str, Any]:
    """Describe a predicted label map (0 background, 1 organ, 2 tumor), JSON-able.

    Args:
        labels: (X, Y, Z).
        grid: Where its voxels lie.
        tumor_probability: (X, Y, Z), at least where there is tumor.

    Returns:
        ``organ_mm3`` (tumors included), ``tumor_mm3``, and per lesion its voxels, ``volume_mm3``,
        ``equivalent_diameter_mm`` and ``center_mm`` (right, anterior, superior), the largest first; with probabilities
        also ``mean_tumor_probability``.
    """
    found = find_lesions(labels == TUMOR, grid)
    lesions = sorted(found.lesions, key=lambda lesion: -lesion.voxels)
    means = None if tumor_probability is None else _means(tumor_probability, found)
    return {
        "organ_mm3": int(np.count_nonzero(labels)) * grid.voxel_mm3,
        "tumor_mm3": sum(lesion.volume_mm3 for lesion in lesions),
        "lesions": [
            {
                "voxels": lesion.voxels,
                "volume_mm3": lesion.volume_mm3,
                "equivalent_diameter_mm": lesion.diameter_mm,
                "center_mm": list(lesion.center_mm),
                **({} if means is None else {"mean_tumor_probability": means[lesion.index]}),
            }
            for lesion in lesions
        ],
    }


def _means(values: NDArray[Any], lesions: LesionMap) -> list[float]:
    """Return the mean of values in each lesion, at the place of its index."""
    inside = lesions.indices > 0
    indices = lesions.indices[inside]
    sums = np.bincount(indices, weights=values[inside])
    return [float(mean) for mean in sums / np.maximum(np.bincount(indices), 1)]


# Sides of what is shown: the body, the neighborhood of a tumor at least, and an organ.
_BODY_MM, _TUMOR_MM, _ORGAN_MM = 400.0, 120.0, 250.0
# So many voxels of an organ say well enough where its middle is.
_ENOUGH = 200_000


def draw_prediction(
    ct: Volume, labels: NDArray[np.uint8], *, organ: str, window_hu: tuple[float, float], title: str
) -> Figure:
    """Draw three planes through the largest tumor, else through the organ, else through the middle of the scan.

    Args:
        ct: The scan.
        labels: (X, Y, Z) on its grid: 0 background, 1 organ, 2 tumor.
        organ: Name of the organ.
        window_hu: HU that are shown.
        title: Text above.
    """
    space = ModelSpace(ct.grid)
    spacing_mm = space.turned_spacing_mm
    image, outlined = space.turned(ct.data), space.turned(labels)
    tumor = largest_component(outlined == TUMOR)
    center: tuple[int, ...] | None = None
    zoom_mm = _ORGAN_MM
    if tumor.any():
        extent_mm = np.multiply(Box.around(tumor).shape, spacing_mm)
        center, zoom_mm = mask_center(tumor), max(_TUMOR_MM, 1.5 * float(extent_mm.max()))
    elif labels.any():
        center = _middle(outlined != BACKGROUND)
    panels = [Panel(title="Scan", image=image, labels=outlined, zoom_mm=_BODY_MM)]
    if center is not None:
        panels.append(Panel(title="Closer", image=image, zoom_mm=zoom_mm))
        panels.append(Panel(title="Prediction", image=image, labels=outlined, zoom_mm=zoom_mm))
    return three_planes(
        panels,
        spacing_mm=spacing_mm,
        center=center,
        window_hu=window_hu,
        label_names={1: organ, 2: "tumor"},
        column_inches=2.6 if center is not None else 5.2,  # a single column needs room for the title
        title=title,
    )


def _middle(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return a voxel of a mask near its center of mass, from some of its voxels where there are many."""
    step = int(np.ceil((np.count_nonzero(mask) / _ENOUGH) ** (1 / 3)))
    some: NDArray[Any] = mask[::step, ::step, ::step]
    return tuple(step * index for index in mask_center(some)) if some.any() else mask_center(mask)


@dataclass(frozen=True)
class ScanFiles:
    """The files of one scan.

    Args:
        id: Names what is written.
        ct: CT in HU.
        organ_mask: Mask of the organ on its grid, or its label map with tumors as 2; None for none.
    """

    id: str
    ct: Path
    organ_mask: Path | None = None


@dataclass(frozen=True)
class PredictedScan:
    """What became of a scan.

    Args:
        id: Of the case.
        status: ``"predicted"``, ``"done before"`` or ``"failed"``.
        record: What its JSON file says; None where it failed.
        error: What went wrong, in a sentence.
    """

    id: str
    status: Literal["predicted", "done before", "failed"]
    record: Mapping[str, Any] | None = None
    error: str = ""


@dataclass(frozen=True)
class ScanPredictor:
    """Segmenters, and what is asked of them.

    Args:
        artifacts: Loaded segmenters of one organ and spacing, whose probabilities are averaged.
        options: How scans are predicted.
        probabilities: Write class probabilities too.
        windows_per_batch: Windows that go through the network together.

    Raises:
        ConfigError: The segmenters don't fit together.
    """

    artifacts: Sequence[Artifact]
    options: PredictionOptions
    probabilities: bool = False
    windows_per_batch: int = 1

    def __post_init__(self) -> None:
        check_together(self.artifacts)

    def files_of(self, case_id: str) -> list[str]:
        """Return the names of all that is written of a case; the last one vouches for the others."""
        more = [f"{PROBABILITIES}/{case_id}.nii.gz"] if self.probabilities else []
        return [f"{case_id}.nii.gz", f"{case_id}.png", *more, f"{case_id}.json"]

    def predict_all(self, scans: Sequence[ScanFiles], out: Path, *, overwrite: bool = False) -> Iterator[PredictedScan]:
        """Predict scans; one that fails does not stop the others, and nothing is written of it.

        Args:
            scans: Their files, with different ids.
            out: Folder to write to.
            overwrite: Predict scans anew, whatever is there.
        """
        for scan in scans:
            try:
                yield self.predict(scan, out, overwrite=overwrite)
            except Exception as error:
                # One scan must not take hours of others with it, whatever is wrong with it.
                yield PredictedScan(scan.id, "failed", error=sentence_of(error))

    def predict(self, scan: ScanFiles, out: Path, *, overwrite: bool = False) -> PredictedScan:
        """Predict a scan and write label map, picture and record, or leave what was written before alike.

        Args:
            scan: Its files; only read.
            out: Folder to write to.
            overwrite: Predict it anew, whatever is there.

        Raises:
            DiffTumorError: A file cannot be used, ``out`` holds something else under these names, or the network gives
                no numbers; nothing is written then.
        """
        request = self._request(scan)
        *others, last = self.files_of(scan.id)
        present = [name for name in (*others, last) if (out / name).exists()]
        if present and not overwrite:
            record = _read(out / last)
            if len(present) == len(others) + 1 and record is not None and _asked(record) == _asked(request):
                return PredictedScan(scan.id, "done before", record)
            raise ConfigError(
                f"--out {out} already holds {present[0]}, not of these models, options and files: give another folder "
                "or --overwrite."
            )
        ct = replace(read_ct(scan.ct), stored=None)  # half as many bytes again, for nothing
        mask = None if scan.organ_mask is None else _read_organ_mask(scan.organ_mask, ct)
        with folder_written_whole(out, keep_others=True, last=last) as staging:
            watching = probability_file(staging / others[-1], ct) if self.probabilities else nullcontext(None)
            with watching as watch:
                prediction = predict_volume(
                    ct,
                    self.artifacts,
                    self.options,
                    organ_mask=mask,
                    windows_per_batch=self.windows_per_batch,
                    watch=watch,
                )
            record = {"case": scan.id, "difftumor_version": __version__, **request, **self._found(prediction, ct)}
            write_labels(staging / others[0], prediction.labels, ct)
            save_png(self._picture(scan, ct, prediction.labels, record), staging / others[1])
            write_json(staging / last, record)
        if not self.probabilities:  # of an earlier prediction
            (out / PROBABILITIES / f"{scan.id}.nii.gz").unlink(missing_ok=True)
        return PredictedScan(scan.id, "predicted", record)

    def _request(self, scan: ScanFiles) -> dict[str, Any]:
        models = [{"path": str(a.path.resolve()), "identity": a.config.identity} for a in self.artifacts]
        return {
            "ct": provenance(scan.ct),
            "organ_mask": None if scan.organ_mask is None else provenance(scan.organ_mask),
            "models": models,
            "options": {**asdict(self.options), "probabilities": self.probabilities},
        }

    def _found(self, prediction: Prediction, ct: Volume) -> dict[str, Any]:
        voxel_mm3 = ct.grid.voxel_mm3
        return {
            "organ": self.artifacts[0].config.organ,
            **prediction_record(prediction.labels, ct.grid, tumor_probability=prediction.tumor_probability),
            "dropped_mm3": {
                "outside_organ": prediction.outside_voxels * voxel_mm3,
                "small": prediction.small_voxels * voxel_mm3,
            },
        }

    def _picture(self, scan: ScanFiles, ct: Volume, labels: NDArray[np.uint8], record: Mapping[str, Any]) -> Any:
        low_hu, high_hu = self.artifacts[0].config.preprocessing["window_hu"]
        found = describe_lesions(record)
        organ = self.artifacts[0].config.organ or "organ"
        return draw_prediction(ct, labels, organ=organ, window_hu=(low_hu, high_hu), title=f"{scan.id}: {found}")


def describe_lesions(record: Mapping[str, Any]) -> str:
    """Say how many lesions a scan's record has, and how large the largest is."""
    lesions = record["lesions"]
    if not lesions:
        return "no lesion" if record["organ_mm3"] > 0 else "no organ and no lesion"
    return f"{len(lesions)} lesion{'s' * (len(lesions) > 1)}, largest {lesions[0]['equivalent_diameter_mm']:.0f} mm"


def _read(path: Path) -> dict[str, Any] | None:
    """Return a scan's record, or None where the file is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _asked(record), describe_lesions(record), record["organ_mm3"], record["tumor_mm3"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None
    return dict(record)


def _asked(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what decides the result: files by their content, wherever they lie."""
    mask = record["organ_mask"]
    identities = [model["identity"] for model in record["models"]]
    return record["ct"]["sha256"], None if mask is None else mask["sha256"], identities, record["options"]


def _read_organ_mask(path: Path, ct: Volume) -> NDArray[Any]:
    mask = read_labels(path)
    check_same_grid(mask, ct)
    found = label_values(mask.data)
    # One organ under any number, or an organ and its tumors; all else would let tumors stay in other organs.
    if len(found) > 1 and not set(found) <= {ORGAN, TUMOR}:
        listed = ", ".join(map(str, found))
        raise ConfigError(f"--organ-mask {path} holds several labels ({listed}): give a mask of the organ alone.")
    return mask.data
