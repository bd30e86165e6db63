"""From scans to predictions: `predict` for one scan in a file or an array, `CasePredictor` for folders of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from difftumor.errors import ConfigError, lacks_room, sentence_of
from difftumor.files.checksums import provenance
from difftumor.files.lock import locked
from difftumor.files.recovery import recover
from difftumor.files.texts import read_json
from difftumor.files.writing import folder_written_whole
from difftumor.models.artifact import Artifact, load_artifact, pick_device
from difftumor.scans.grid import Box
from difftumor.scans.hounsfield import organ_doubts, settle
from difftumor.scans.nifti import Volume, read_ct, volume_of
from difftumor.scans.organs import get_organ
from difftumor.scans.stored.header import check_nifti
from difftumor.segmentation.inference import check_together, predict_volume
from difftumor.segmentation.options import (
    CLOSING_MM,
    DILATION_MM,
    OVERLAP,
    OrganFilter,
    PredictionOptions,
    check_target,
    choose_organ_filter,
)
from difftumor.segmentation.organ_masks import OrganMask, checked_mask
from difftumor.segmentation.prediction import Prediction, describe_lesions, result_files
from difftumor.segmentation.probability_file import PROBABILITIES, probability_file

Segmenter = Artifact | Path | str


def predict(
    ct: Volume | Path | str | ArrayLike,
    model: Segmenter | Sequence[Segmenter],
    *,
    affine: ArrayLike | None = None,
    accept_hu: bool = False,
    organ: str | None = None,
    organ_mask: Path | str | ArrayLike | None = None,
    organ_filter: OrganFilter | None = None,
    closing_mm: float = CLOSING_MM,
    dilation_mm: float = DILATION_MM,
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
        accept_hu: Whether a CT that cannot be in HU, or a mask that cannot be of the organ, is used all the same.
        organ: Organ in which tumors are looked for, if not the one that the segmenters were trained on; then only
            tumors are predicted, see ``predict_volume``.
        organ_mask: File or array (X, Y, Z) on the CT's grid, nonzero in the organ, or 1 and 2 for organ and tumor.
        organ_filter: See `PredictionOptions`; by default "mask" if there is a mask, else "none".
        closing_mm: See `PredictionOptions`.
        dilation_mm: See `PredictionOptions`.
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
        VolumeError: A scan or mask cannot be read, or is not in HU.

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
        closing_mm=closing_mm,
        dilation_mm=dilation_mm,
        min_volume_mm3=min_volume_mm3,
    )
    artifacts = [
        one if isinstance(one, Artifact) else load_artifact(one, kind="segmenter", device=pick_device(device))
        for one in models
    ]
    target = None if organ is None else get_organ(organ).name
    check_together(artifacts)
    check_target(artifacts[0].config.organ, target, organ_filter, has_mask=organ_mask is not None)
    volume = _volume(ct, affine, accept_hu)
    mask: NDArray[Any] | None
    mask_file = OrganMask(Path(organ_mask)) if isinstance(organ_mask, (Path, str)) else None
    if mask_file is not None:
        mask = mask_file.read(volume)
    else:
        mask = None if organ_mask is None else checked_mask(np.asarray(organ_mask), volume, "organ_mask")
    warnings = _doubts(volume, mask, target or artifacts[0].config.organ, accept_hu, mask_file)
    found = predict_volume(
        volume, artifacts, options, organ=target, organ_mask=mask, windows_per_batch=windows_per_batch, watch=watch
    )
    ct_file = volume.path if volume.path.is_file() else None
    request = _request(ct_file, mask_file, artifacts, _recorded(options, target))
    return replace(found, request=request, warnings=warnings)


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case.

    Args:
        id: Names what is written.
        ct: CT in HU.
        organ_mask: Mask of the organ on its grid; None for none.
    """

    id: str
    ct: Path
    organ_mask: OrganMask | None = None


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
        organ: Organ in which tumors are looked for; None for the one that the segmenters were trained on.
        probabilities: Also write class probabilities.
        windows_per_batch: Number of windows that go through the network together.
        accept_hu: As for ``predict``.

    Raises:
        ConfigError: The segmenters do not fit together.
    """

    artifacts: Sequence[Artifact]
    options: PredictionOptions
    organ: str | None = None
    probabilities: bool = False
    windows_per_batch: int = 1
    accept_hu: bool = False

    def __post_init__(self) -> None:
        check_together(self.artifacts)

    def files_of(self, case_id: str) -> list[str]:
        """Return the names of all files of a case; the last one is written last and vouches for the others."""
        *others, record = result_files(case_id)
        return [*others, *([_probabilities(case_id)] if self.probabilities else []), record]

    def predict_all(self, cases: Sequence[CaseFiles], out: Path, *, overwrite: bool = False) -> Iterator[PredictedCase]:
        """Predict cases; one that fails does not stop the others, but for a full disk; none of its files are written.

        Args:
            cases: Their files, with different ids.
            out: Folder to write to.
            overwrite: Also predict cases that were predicted before.
        """
        for case in cases:
            try:
                yield self.predict(case, out, overwrite=overwrite)
            except Exception as error:
                if lacks_room(error):
                    raise
                # One scan must not take hours of others with it, whatever is wrong with it.
                yield PredictedCase(case.id, "failed", error=sentence_of(error))

    def predict(self, case: CaseFiles, out: Path, *, overwrite: bool = False) -> PredictedCase:
        """Predict a case and write its files, unless they were written before from the same inputs and options.

        Args:
            case: Its files; only read.
            out: Folder to write to.
            overwrite: Predict it even if it was predicted before.

        Raises:
            DiffTumorError: A file cannot be used, ``out`` holds other results of these names, another process predicts
                the case, or the network's output is not finite; nothing is written then.
        """
        with locked(out / case.id) as lock:
            recover(out, ended=lock.ended)
            return self._predict(case, out, overwrite=overwrite)

    def _predict(self, case: CaseFiles, out: Path, *, overwrite: bool) -> PredictedCase:
        check_nifti(case.ct)  # its bytes are summed up before it is read, and those of a pipe never end
        options = _recorded(self.options, self.organ, probabilities=self.probabilities)
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
        beside = () if case.organ_mask is None else case.organ_mask.files
        ct = read_ct(case.ct, beside=beside, accept_hu=self.accept_hu)
        ct = replace(ct, stored=None)  # half the bytes again, not needed
        mask = None if case.organ_mask is None else case.organ_mask.read(ct)
        organ = self.organ or self.artifacts[0].config.organ
        warnings = _doubts(ct, mask, organ, self.accept_hu, case.organ_mask)
        with folder_written_whole(out, keep_others=True, last=names[-1]) as staging:
            file = staging / _probabilities(case.id)
            with probability_file(file, ct) if self.probabilities else nullcontext(None) as watch:
                found = predict_volume(
                    ct,
                    self.artifacts,
                    self.options,
                    organ=self.organ,
                    organ_mask=mask,
                    windows_per_batch=self.windows_per_batch,
                    watch=watch,
                )
            record = replace(found, request=request, warnings=warnings).write_files(staging, case.id)
        if not self.probabilities:  # of an earlier prediction
            (out / _probabilities(case.id)).unlink(missing_ok=True)
        return PredictedCase(case.id, "predicted", record)


def _probabilities(case_id: str) -> str:
    return f"{PROBABILITIES}/{case_id}.nii.gz"


def _recorded(options: PredictionOptions, organ: str | None, *, probabilities: bool = False) -> dict[str, Any]:
    """Return the options as records name them; those of an earlier version, without an organ, stay the same."""
    return {**asdict(options), "probabilities": probabilities, **({} if organ is None else {"organ": organ})}


def _request(
    ct: Path | None, organ_mask: OrganMask | None, artifacts: Sequence[Artifact], options: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "ct": None if ct is None else provenance(ct),
        "organ_mask": None if organ_mask is None else organ_mask.provenance(),
        "models": [{"path": str(it.path.resolve()), "identity": it.config.identity} for it in artifacts],
        "options": dict(options),
    }


def _read_record(path: Path) -> dict[str, Any] | None:
    """Return the record of a case, or None if the file is not one."""
    try:
        record = read_json(path)
        _compared(record), describe_lesions(record), record["organ_mm3"], record["tumor_mm3"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None
    return dict(record)


def _compared(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what decides the result: files by their content, wherever they lie."""
    mask = record["organ_mask"]
    identities = [model["identity"] for model in record["models"]]
    organ = None if mask is None else (mask["sha256"], mask.get("labels"))
    return record["ct"]["sha256"], organ, identities, record["options"]


def _doubts(
    ct: Volume, mask: NDArray[Any] | None, organ: str | None, accept_hu: bool, file: OrganMask | None
) -> tuple[str, ...]:
    """Return what speaks against a CT, and against a mask if it is known of which organ."""
    if mask is None or organ is None:
        return ct.doubts
    name = "organ_mask" if file is None else str(file.path)
    return ct.doubts + settle(
        organ_doubts(ct.data, mask, get_organ(organ), ct=str(ct.path), mask=name), accept=accept_hu
    )


def _volume(ct: Volume | Path | str | ArrayLike, affine: ArrayLike | None, accept_hu: bool) -> Volume:
    if isinstance(ct, Volume):
        return ct
    if isinstance(ct, (Path, str)):
        return read_ct(Path(ct), accept_hu=accept_hu)
    if affine is None:
        raise ConfigError("affine is missing: give the 4 × 4 matrix from the array's voxels to RAS millimeters.")
    return volume_of(ct, affine, accept_hu=accept_hu)
