"""Where tumors count: organ masks, and label maps from which the organ and its tumors are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from difftumor.datasets.cases import Case, CaseList, case_label_files, read_cases, structure_files
from difftumor.datasets.label_folders import label_maps, label_names_of
from difftumor.datasets.tumor_cases import read_organ
from difftumor.errors import ConfigError
from difftumor.files.checksums import provenance, sha256_of
from difftumor.scans.label_maps import label_values
from difftumor.scans.nifti import Volume, check_same_grid, read_labels
from difftumor.scans.organs import ORGAN, TUMOR, OrganLabels, get_organ, resolve_labels
from difftumor.scans.stored.header import is_nifti
from difftumor.segmentation.inference import check_organ_mask


@dataclass(frozen=True)
class OrganMask:
    """The mask of an organ on disk.

    Args:
        path: A mask; or a label map, or a folder with one file per structure.
        labels: Which numbers of the label map are the organ and its tumors; None for a mask.
        label_names: Label names of the data set, which number the files of a folder.
    """

    path: Path
    labels: OrganLabels | None = None
    label_names: Mapping[str, int] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        if self.labels is None:
            return (self.path,)
        return case_label_files(self._case, self.label_names, only=(*self.labels.organ, *self.labels.tumor))

    def read(self, ct: Volume) -> NDArray[Any]:
        """Return the mask (X, Y, Z), nonzero in the organ and its tumors.

        Raises:
            DiffTumorError: It cannot be read, is empty, or does not fit the CT.
        """
        if self.labels is None:
            mask = read_labels(self.path)
            check_same_grid(mask, ct)
            return checked_mask(mask.data, ct, f"organ_mask (--organ-mask) {self.path}")
        found = read_organ(self._case, CaseList((), self.label_names, self.path), self.labels)
        if found is None:
            raise ConfigError(f"organ_mask (--organ-mask) {self.path} holds no {self.labels.name}: leave the case out.")
        check_same_grid(found, ct)
        return found.data

    def provenance(self) -> dict[str, Any]:
        """Return path and SHA-256, and which numbers were taken from a label map."""
        if self.labels is None:
            return dict(provenance(self.path))
        numbers = (*self.labels.organ, *self.labels.tumor)
        if not self.path.is_dir():
            return {**provenance(self.path), "labels": sorted(numbers)}
        files = structure_files(self._case, self.label_names, numbers)
        joined = "\n".join(f"{file.name} {sha256_of(file)}" for file in files)
        content = {"path": str(self.path.resolve()), "sha256": hashlib.sha256(joined.encode()).hexdigest()}
        return {**content, "labels": sorted(numbers)}

    @property
    def _case(self) -> Case:
        return Case(self.path.name, self.path, self.path)


def find_organ_masks(
    source: Path, cases: Sequence[Case], organ: str | None, *, or_else: str | None = None
) -> dict[str, OrganMask]:
    """Find the organ mask of every case, before anything is predicted.

    Args:
        source: A mask or a folder of masks named like the CTs; label maps of these, if ``organ`` is given and a
            ``dataset.json`` in or beside the folder names their numbers; or a list of cases with labels.
        cases: The CTs.
        organ: Which organ of label maps counts; None takes files as masks.
        or_else: Which one of a list, if ``organ`` is None: the one that segmenters were trained on.

    Returns:
        By the id of the case.

    Raises:
        ConfigError: There is no such file, or a case has no mask.
        CaseListError: The list or folder cannot be used.
        OrganError: The organ is not among the label names.
    """
    if not source.exists():
        raise ConfigError(f"--organ-mask {source} does not exist: give a mask, a folder of masks, or a list.")
    if source.is_file() and is_nifti(source):
        if len(cases) > 1:
            raise ConfigError(f"--organ-mask {source} is one file for {len(cases)} CTs; give a folder of masks.")
        return {cases[0].id: _mask(source, label_names_of(source.parent) if organ else {}, organ)}
    if source.is_dir() and (any(map(is_nifti, source.iterdir())) or not any(source.iterdir())):
        found = label_maps(source)
        names = label_names_of(source) if organ else {}
        return {case.id: _mask(_of(found, case, source), names, organ) for case in cases}
    listed = read_cases(source)
    if (wanted := organ or or_else) is None:
        raise ConfigError(f"--organ-mask {source} is a list of label maps: say of which organ, with --organ.")
    labels = resolve_labels(listed.label_names, get_organ(wanted), source=source)
    files = {case.id: case.labels for case in listed.cases if case.labels is not None}
    return {case.id: OrganMask(_of(files, case, source), labels, listed.label_names) for case in cases}


def _mask(file: Path, names: Mapping[str, int], organ: str | None) -> OrganMask:
    if organ is None or not names:
        return OrganMask(file)
    return OrganMask(file, resolve_labels(names, get_organ(organ), source=file.parent), names)


def _of(found: Mapping[str, Path], case: Case, source: Path) -> Path:
    if case.id not in found:
        raise ConfigError(f"--organ-mask {source} holds no {case.id}.nii.gz; name masks like their CTs.")
    return found[case.id]


def checked_mask(mask: NDArray[Any], ct: Volume, name: str) -> NDArray[Any]:
    """Refuse masks of several structures; one number may stand for the organ, or 1 and 2 for an organ and its tumors.

    With others, tumors in other organs would stay.

    Raises:
        ConfigError: The mask does not fit the CT or the rule; ``name`` is named.
    """
    if mask.dtype.kind not in "bui":
        raise ConfigError(f"{name} holds values of type {mask.dtype}: give booleans or whole numbers.")
    check_organ_mask(mask, ct)
    found = label_values(mask)
    if len(found) > 1 and not set(found) <= {ORGAN, TUMOR}:
        listed = ", ".join(map(str, found))
        raise ConfigError(
            f"{name} holds several labels ({listed}): give a mask of the organ alone, or a list of cases, which names "
            "its labels, and the organ (--organ)."
        )
    return mask
