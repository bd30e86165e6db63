"""From scans to predictions: `predict` for one scan in a file or an array, `CasePredictor` for folders of files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from difftumor.errors import ConfigError, sentence_of
from difftumor.files import folder_written_whole, provenance
from difftumor.models.artifact import Artifact, load_artifact, pick_device
from difftumor.scans.grid import Box
from difftumor.scans.label_maps import label_values
from difftumor.scans.nifti import Volume, check_same_grid, read_ct, read_labels, volume_of
from difftumor.scans.organs import ORGAN, TUMOR
from difftumor.segmentation.inference import (
    check_organ_mask,
    check_together,
    predict_volume,
)
from difftumor.segmentation.options import OVERLAP, OrganFilter, PredictionOptions, choose_organ_filter
from difftumor.segmentation.prediction import Prediction, describe_lesions, result_files
from difftumor.segmentation.probability_file import PROBABILITIES, probability_file

Segmenter = Artifact | Path | str


def predict(
    ct: Volume | Path | str | ArrayLike,
    model: Segmenter | Sequence[Segmenter],
    *,
    affine: ArrayLike | None = None,
    organ_mask: Path | str | ArrayLike | None = None,
    organ_filter: OrganFilter | None = None,
    min_volume_mm3: float = 0.0,
    flips: bool = False,
    overlap: float = OVERLAP,
    device: str = "auto",
    windows_per_batch: int = 1,
    watch: Callable[[Box, NDArray[np.float32]], None] | None = None,
) -> Prediction:
    """Predict organ and tumor in a CT.

    Args:
        ct: File, array (X, Y, Z) in HU, or volume that ``read_ct`` returned.
        model: Segmenter artifact, loaded or as a folder; several, such as folds, are averaged.
        affine: (4, 4) from voxels to RAS millimeters; needed for an array, ignored otherwise.
        organ_mask: File or array (X, Y, Z) on the CT's grid, nonzero in the organ, or 1 and 2 for organ and tumor.
        organ_filter: See `PredictionOptions`; by default "mask" if there is a mask, else "none".
        min_volume_mm3: See `PredictionOptions`.
        flips: See `PredictionOptions`.
        overlap: See `PredictionOptions`.
        device: Where to put segmenters that are given as folders: "auto", "cpu", "cuda" or "cuda:N".
        windows_per_batch: Number of windows that go through the network together.
        watch: Called with every slab of the CT's grid and its probabilities (classes, x, y, z).

    Returns:
        Labels on the CT's own grid, lesions, and probabilities of tumor; ``save`` writes them.

    Raises:
        ConfigError: An option is out of range, or the segmenters or the mask do not fit.
        ArtifactError: A model is not a usable segmenter.
        VolumeError: A scan or mask cannot be read.

    Example:
        >>> import difftumor as dt
        >>> model = "checkpoints/segmentation_liver_unet_mixed_fold0"
        >>> prediction = dt.predict("ct.nii.gz", model, organ_mask="liver.nii.gz")
        >>> prediction.labels.shape == prediction.ct.grid.shape
        True
    """
    models = [model] if isinstance(model, (Artifact, Path, str)) else list(model)
    options = PredictionOptions(
        overlap=overlap,
        flips=flips,
        organ_filter=choose_organ_filter(organ_filter, has_mask=organ_mask is not None),
        min_volume_mm3=min_volume_mm3,
    )
    artifacts = [
        one if isinstance(one, Artifact) else load_artifact(one, kind="segmenter", device=pick_device(device))
        for one in models
    ]
    check_together(artifacts)
    volume = _volume(ct, affine)
    mask: NDArray[Any] | None
    mask_file = Path(organ_mask) if isinstance(organ_mask, (Path, str)) else None
    if mask_file is not None:
        mask = _read_organ_mask(mask_file, volume)
    else:
        mask = None if organ_mask is None else _checked_mask(np.asarray(organ_mask), volume, "organ_mask")
    found = predict_volume(
        volume, artifacts, options, organ_mask=mask, windows_per_batch=windows_per_batch, watch=watch
    )  # fmt: skip
    ct_file = volume.path if volume.path.is_file() else None
    return replace(found, request=_request(ct_file, mask_file, artifacts, {**asdict(options), "probabilities": False}))


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case.

    Args:
        id: Names what is written.
        ct: CT in HU.
        organ_mask: Mask of the organ on its grid, or its label map with tumors as 2; None for none.
    """

    id: str
    ct: Path
    organ_mask: Path | None = None


@dataclass(frozen=True)
class PredictedCase:
    """What became of a case.

    Args:
        id: Of the case.
        status: ``"predicted"``, ``"done before"`` or ``"failed"``.
        record: Content of its JSON file; None if it failed.
        error: What went wrong, in a sentence.
    """

    id: str
    status: Literal["predicted", "done before", "failed"]
    record: Mapping[str, Any] | None = None
    error: str = ""


@dataclass(frozen=True)
class CasePredictor:
    """Segmenters, and how they predict cases.

    Args:
        artifacts: Loaded segmenters of one organ and spacing, whose probabilities are averaged.
        options: How scans are predicted.
        probabilities: Also write class probabilities.
        windows_per_batch: Number of windows that go through the network together.

    Raises:
        ConfigError: The segmenters do not fit together.
    """

    artifacts: Sequence[Artifact]
    options: PredictionOptions
    probabilities: bool = False
    windows_per_batch: int = 1

    def __post_init__(self) -> None:
        check_together(self.artifacts)

    def files_of(self, case_id: str) -> list[str]:
        """Return the names of all files of a case; the last one is written last and vouches for the others."""
        *others, record = result_files(case_id)
        return [*others, *([_probabilities(case_id)] if self.probabilities else []), record]

    def predict_all(self, cases: Sequence[CaseFiles], out: Path, *, overwrite: bool = False) -> Iterator[PredictedCase]:
        """Predict cases; one that fails does not stop the others, and none of its files are written.

        Args:
            cases: Their files, with different ids.
            out: Folder to write to.
            overwrite: Also predict cases that were predicted before.
        """
        for case in cases:
            try:
                yield self.predict(case, out, overwrite=overwrite)
            except Exception as error:
                # One scan must not take hours of others with it, whatever is wrong with it.
                yield PredictedCase(case.id, "failed", error=sentence_of(error))

    def predict(self, case: CaseFiles, out: Path, *, overwrite: bool = False) -> PredictedCase:
        """Predict a case and write its files, unless they were written before from the same inputs and options.

        Args:
            case: Its files; only read.
            out: Folder to write to.
            overwrite: Predict it even if it was predicted before.

        Raises:
            DiffTumorError: A file cannot be used, ``out`` holds other results of these names, or the network's output
                is not finite; nothing is written then.
        """
        options = {**asdict(self.options), "probabilities": self.probabilities}
        request = _request(case.ct, case.organ_mask, self.artifacts, options)
        names = self.files_of(case.id)
        present = [name for name in names if (out / name).exists()]
        if present and not overwrite:
            record = _read_record(out / names[-1])
            if present == names and record is not None and _compared(record) == _compared(request):
                return PredictedCase(case.id, "done before", record)
            raise ConfigError(
                f"out (--out) {out} already holds {present[0]} from other models, options or files: give another "
                "folder, or replace it with overwrite (--overwrite)."
            )
        ct = replace(read_ct(case.ct), stored=None)  # half as many bytes again, and not needed
        mask = None if case.organ_mask is None else _read_organ_mask(case.organ_mask, ct)
        with folder_written_whole(out, keep_others=True, last=names[-1]) as staging:
            file = staging / _probabilities(case.id)
            with probability_file(file, ct) if self.probabilities else nullcontext(None) as watch:
                found = predict_volume(
                    ct,
                    self.artifacts,
                    self.options,
                    organ_mask=mask,
                    windows_per_batch=self.windows_per_batch,
                    watch=watch,
                )
            record = replace(found, request=request).write_files(staging, case.id)
        if not self.probabilities:  # of an earlier prediction
            (out / _probabilities(case.id)).unlink(missing_ok=True)
        return PredictedCase(case.id, "predicted", record)


def _probabilities(case_id: str) -> str:
    return f"{PROBABILITIES}/{case_id}.nii.gz"


def _request(
    ct: Path | None, organ_mask: Path | None, artifacts: Sequence[Artifact], options: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "ct": None if ct is None else provenance(ct),
        "organ_mask": None if organ_mask is None else provenance(organ_mask),
        "models": [{"path": str(it.path.resolve()), "identity": it.config.identity} for it in artifacts],
        "options": dict(options),
    }


def _read_record(path: Path) -> dict[str, Any] | None:
    """Return the record of a case, or None if the file is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _compared(record), describe_lesions(record), record["organ_mm3"], record["tumor_mm3"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None
    return dict(record)


def _compared(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what decides the result: files by their content, wherever they lie."""
    mask = record["organ_mask"]
    identities = [model["identity"] for model in record["models"]]
    return record["ct"]["sha256"], None if mask is None else mask["sha256"], identities, record["options"]


def _volume(ct: Volume | Path | str | ArrayLike, affine: ArrayLike | None) -> Volume:
    if isinstance(ct, Volume):
        return ct
    if isinstance(ct, (Path, str)):
        return read_ct(Path(ct))
    if affine is None:
        raise ConfigError("affine is missing: give the 4 × 4 matrix from the array's voxels to RAS millimeters.")
    return volume_of(ct, affine)


def _read_organ_mask(path: Path, ct: Volume) -> NDArray[Any]:
    mask = read_labels(path)
    check_same_grid(mask, ct)
    return _checked_mask(mask.data, ct, f"organ_mask (--organ-mask) {path}")


def _checked_mask(mask: NDArray[Any], ct: Volume, name: str) -> NDArray[Any]:
    """Refuse masks of several structures; one number may stand for the organ, or 1 and 2 for an organ and its tumors.

    With others, tumors in other organs would stay.
    """
    if mask.dtype.kind not in "bui":
        raise ConfigError(f"{name} holds values of type {mask.dtype}: give booleans or whole numbers.")
    check_organ_mask(mask, ct)
    found = label_values(mask)
    if len(found) > 1 and not set(found) <= {ORGAN, TUMOR}:
        listed = ", ".join(map(str, found))
        raise ConfigError(f"{name} holds several labels ({listed}): give a mask of the organ alone.")
    return mask
