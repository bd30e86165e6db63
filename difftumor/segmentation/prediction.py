"""What is predicted of a scan: labels, lesions, a record, a picture, and the files of all these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from difftumor import __version__
from difftumor.datasets.sources import case_id
from difftumor.errors import ConfigError, counted
from difftumor.files.results import check_results, names_file
from difftumor.files.writing import folder_written_whole
from difftumor.reporting.picture_rows import Panel
from difftumor.reporting.pictures import mask_center, three_planes
from difftumor.reporting.plots import save_png
from difftumor.reporting.tables import write_json
from difftumor.scans.components import largest_component
from difftumor.scans.grid import Box
from difftumor.scans.lesions import Lesion, find_lesions
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import Volume, write_labels
from difftumor.scans.organs import BACKGROUND, TUMOR
from difftumor.scans.stored.header import is_nifti

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Side lengths in the picture: the body, a tumor's neighborhood (at least), and an organ.
_BODY_MM, _TUMOR_MM, _ORGAN_MM = 400.0, 120.0, 250.0
# This many voxels of an organ locate its middle well enough.
_ENOUGH = 200_000


@dataclass(frozen=True, kw_only=True)
class PredictedLesion(Lesion):
    """A predicted lesion.

    Attributes:
        mean_tumor_probability: Mean over its voxels.
    """

    mean_tumor_probability: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as records keep them."""
        return {
            "voxels": self.voxels,
            "volume_mm3": self.volume_mm3,
            "equivalent_diameter_mm": self.diameter_mm,
            "center_mm": list(self.center_mm),
            "mean_tumor_probability": self.mean_tumor_probability,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction:
    """What is predicted of a scan, on the scan's own grid.

    Args:
        ct: The scan.
        labels: (X, Y, Z) uint8: 0 background, 1 organ, 2 tumor.
        tumor_probability: (X, Y, Z) float16: the probability of tumor where tumor is the likeliest class, even if a
            filter dropped it; 0 elsewhere.
        organ: Name of the organ; None if the segmenters do not state it.
        trained_on: Organ that the segmenters were trained on; None if they do not state it.
        tumor_only: Whether that is another one, so that labels hold tumors alone.
        window_hu: HU that the segmenters see, which the picture shows.
        outside_voxels: Tumor voxels that the organ filter dropped.
        small_voxels: Tumor voxels that were dropped with tumors below the minimum volume.
        request: Files, models and options, for the record; plain values.
        warnings: What speaks against the scan, in sentences.

    Example:
        >>> import difftumor as dt
        >>> prediction = dt.predict("ct.nii.gz", "checkpoints/segmentation_liver_unet_mixed_fold0")
        >>> volumes_mm3 = [lesion.volume_mm3 for lesion in prediction.lesions]
        >>> print(prediction.save("predictions").name)
        ct.nii.gz
    """

    # What a notebook shows of a prediction leaves out whole arrays.
    ct: Volume = field(repr=False)
    labels: NDArray[np.uint8] = field(repr=False)
    tumor_probability: NDArray[np.float16] = field(repr=False)
    organ: str | None = None
    trained_on: str | None = None
    tumor_only: bool = False
    window_hu: tuple[float, float] = (-175.0, 250.0)
    outside_voxels: int = 0
    small_voxels: int = 0
    request: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    @cached_property
    def lesions(self) -> tuple[PredictedLesion, ...]:
        """The predicted lesions, largest first."""
        found = find_lesions(self.labels == TUMOR, self.ct.grid)
        inside = found.indices > 0
        indices = found.indices[inside]
        sums = np.bincount(indices, weights=self.tumor_probability[inside])
        means = (sums / np.maximum(np.bincount(indices), 1)).tolist()
        ordered = sorted(found.lesions, key=lambda lesion: -lesion.voxels)
        return tuple(PredictedLesion(**vars(it), mean_tumor_probability=means[it.index]) for it in ordered)

    def record(self, name: str) -> dict[str, Any]:
        """Return what the JSON file of a case says: the request, volumes in mm³, and the lesions.

        Args:
            name: Id of the case.
        """
        voxel_mm3 = self.ct.grid.voxel_mm3
        return {
            "case": name,
            "difftumor_version": __version__,
            **(self.request or {}),
            "organ": self.organ,
            "trained_on": self.trained_on,
            "tumor_only": self.tumor_only,
            "organ_mm3": None if self.tumor_only else int(np.count_nonzero(self.labels)) * voxel_mm3,
            "tumor_mm3": sum(lesion.volume_mm3 for lesion in self.lesions),
            "lesions": [lesion.to_dict() for lesion in self.lesions],
            "dropped_mm3": {"outside_organ": self.outside_voxels * voxel_mm3, "small": self.small_voxels * voxel_mm3},
            "warnings": list(self.warnings),
        }

    def save(self, out: Path | str, *, name: str | None = None, overwrite: bool = False) -> Path:
        """Write the label map ``NAME.nii.gz``, its record ``NAME.json`` and a picture ``NAME.png``; all or none.

        Args:
            out: Folder to write to; other files in it stay.
            name: Name of the files; by default that of the CT's file, or "prediction" for an array.
            overwrite: Replace files of these names.

        Returns:
            The label map's path.

        Raises:
            ConfigError: The name has slashes, the folder cannot be written to or holds such files, or the CT is one of
                them.
        """
        folder = Path(out)
        chosen = name or (case_id(self.ct.path) if is_nifti(self.ct.path) else "prediction")
        if not names_file(chosen):
            raise ConfigError(f"name is {chosen!r}, which cannot name files: give one without slashes, not '..'.")
        labels, picture, record = result_files(chosen)
        check_results(folder, (labels, picture, record), inputs=[self.ct.path], overwrite=overwrite)
        with folder_written_whole(folder, keep_others=True, last=record) as staging:
            self.write_files(staging, chosen)
        return folder / labels

    def write_files(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the files of ``save`` into a folder that is not in use yet, and return the record."""
        labels, picture, record = result_files(name)
        content = self.record(name)
        write_labels(folder / labels, self.labels, self.ct)
        save_png(self.picture(f"{name}: {describe_lesions(content)}"), folder / picture)
        write_json(folder / record, content)
        return content

    def picture(self, title: str) -> Figure:
        """Show three planes through the largest tumor, else through the organ, else through the middle of the scan.

        Args:
            title: Text above.
        """
        space = ModelSpace(self.ct.grid)
        spacing_mm = space.turned_spacing_mm
        image, labels = space.turned(self.ct.data), space.turned(self.labels)
        tumor = largest_component(labels == TUMOR)
        center: tuple[int, ...] | None = None
        zoom_mm = _ORGAN_MM
        if tumor.any():
            extent_mm = np.multiply(Box.around(tumor).shape, spacing_mm)
            center, zoom_mm = mask_center(tumor), max(_TUMOR_MM, 1.5 * float(extent_mm.max()))
        elif labels.any():
            center = _middle(labels != BACKGROUND)
        panels = [Panel(title="Scan", image=image, labels=labels, zoom_mm=_BODY_MM)]
        if center is not None:
            panels.append(Panel(title="Closer", image=image, zoom_mm=zoom_mm))
            panels.append(Panel(title="Prediction", image=image, labels=labels, zoom_mm=zoom_mm))
        return three_planes(
            panels,
            spacing_mm=spacing_mm,
            center=center,
            window_hu=self.window_hu,
            label_names={1: self.organ or "organ", 2: "tumor"},
            column_inches=2.6 if center is not None else 5.2,  # a single column needs room for the title
            title=title,
        )


def result_files(name: str) -> tuple[str, str, str]:
    """Return the files of a case: label map, picture, and the record, which is written last."""
    return f"{name}.nii.gz", f"{name}.png", f"{name}.json"


def describe_lesions(record: Mapping[str, Any]) -> str:
    """Say how many lesions a record lists, and how large the largest is."""
    lesions = record["lesions"]
    if not lesions:
        known = record.get("tumor_only", False) or record["organ_mm3"] > 0
        return "no lesion" if known else "no organ and no lesion"
    return f"{counted(len(lesions), 'lesion')}, largest {lesions[0]['equivalent_diameter_mm']:.0f} mm"


def _middle(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return a voxel of a mask near its center of mass; from a sample of its voxels if there are many."""
    step = int(np.ceil((np.count_nonzero(mask) / _ENOUGH) ** (1 / 3)))
    some: NDArray[Any] = mask[::step, ::step, ::step]
    return tuple(step * index for index in mask_center(some)) if some.any() else mask_center(mask)
