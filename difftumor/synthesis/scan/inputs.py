"""A CT with an organ: from arrays, or from files, which are recorded so that a replay can be sure to read the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from difftumor.errors import ConfigError, GridMismatchError, OrganError, SynthesisError, VolumeError
from difftumor.files.checksums import provenance
from difftumor.scans.components import Components, find_components
from difftumor.scans.distances import distance_mm
from difftumor.scans.hounsfield import organ_doubts, settle
from difftumor.scans.label_maps import check_stated_names, label_values, mask_of, resampled
from difftumor.scans.nifti import Volume, check_same_grid, read_ct, read_labels, volume_of
from difftumor.scans.organs import ORGAN, TUMOR, Organ, get_organ
from difftumor.scans.stored.header import check_nifti

# Of a mask; less is lost by another grid.
_MOSTLY_INSIDE = 0.9


class Scan:
    """A CT and an organ in it, on the CT's own grid; nothing modifies it.

    Args:
        ct_hu: (X, Y, Z) CT in HU; or a volume as ``read_ct`` returns it, of which results keep type and header.
        affine: (4, 4) from voxels to RAS millimeters; None for a volume, which has its own.
        organ_mask: (X, Y, Z), nonzero in the organ.
        organ: Its name, such as liver, or an organ with rules of your own.
        tumor_mask: (X, Y, Z), nonzero in tumors that are there already; they keep their label and host no others.
        segments: (X, Y, Z) label map of the organ's segments.
        given_mask: (X, Y, Z), nonzero where tumors are to be made, each component one; None to draw shapes and places.
        inputs: Files that it was read from; None for arrays.
        accept_hu: Whether a CT that cannot be in HU, and a mask that cannot be of the organ, are only noted in
            ``doubts``.

    Attributes:
        ct: The CT as a volume.
        organ: Name of the organ.
        rules: The organ.
        organ_mask: Boolean, without ``tumor_mask``; not empty.
        tumor_mask: Boolean and not empty, or None.
        segments: Unsigned integers, or None.
        given_mask: Boolean and not empty, or None.
        inputs: As given.
        doubts: What speaks against the CT or the mask, in sentences.

    Raises:
        VolumeError: The CT, the affine or a mask cannot be used, or the CT cannot be in HU.
        GridMismatchError: A mask or the segments have another shape than the CT.
        OrganError: The organ is unknown, absent, or all of it is tumor.

    Example:
        >>> import difftumor as dt
        >>> import numpy as np
        >>> ct_hu = np.full((30, 30, 10), -1000, np.int16)
        >>> ct_hu[5:25, 5:25, 2:8] = 60
        >>> scan = dt.Scan(ct_hu, np.diag([1, 1, 3, 1]), ct_hu > 0, organ="liver")
        >>> int(scan.organ_mask.sum())
        2400
    """

    def __init__(
        self,
        ct_hu: ArrayLike | Volume,
        affine: ArrayLike | None,
        organ_mask: ArrayLike,
        *,
        organ: str | Organ,
        tumor_mask: ArrayLike | None = None,
        segments: ArrayLike | None = None,
        given_mask: ArrayLike | None = None,
        inputs: ScanInputs | None = None,
        accept_hu: bool = False,
    ) -> None:
        if isinstance(ct_hu, Volume):
            self.ct = ct_hu
        else:
            self.ct = volume_of(ct_hu, np.eye(3) if affine is None else affine, accept_hu=accept_hu)
        rules = get_organ(organ)
        self.rules = rules
        self.organ = rules.name
        self.inputs = inputs
        self.organ_mask = self._mask(organ_mask, "organ_mask")
        if not self.organ_mask.any():
            raise OrganError(f"{self.organ_source} holds no voxel of the {self.organ}: give a mask of it.")
        found = organ_doubts(self.ct.data, self.organ_mask, rules, ct=str(self.ct.path), mask=self.organ_source)
        self.doubts = self.ct.doubts + settle(found, accept=accept_hu)
        tumors = None if tumor_mask is None else self._mask(tumor_mask, "tumor_mask")
        self.tumor_mask = tumors if tumors is not None and tumors.any() else None
        if self.tumor_mask is not None:
            self.organ_mask = self.organ_mask & ~self.tumor_mask
            if not self.organ_mask.any():
                raise OrganError(
                    f"The {self.organ} of {self.organ_source} is all tumor: give a mask with more of the organ."
                )
        self.segments = None if segments is None else self._label_map(segments)
        self.given_mask = None if given_mask is None else self._mask(given_mask, "given_mask")
        if self.given_mask is not None and not self.given_mask.any():
            raise SynthesisError("The tumor mask holds no voxel of the scan: give another one (--tumor-mask).")

    @cached_property
    def given_components(self) -> Components:
        """The components of ``given_mask``."""
        assert self.given_mask is not None
        return find_components(self.given_mask)

    @cached_property
    def host_mask(self) -> NDArray[np.bool_]:
        """Where tumors may have their centers: the organ, or its wall (``Organ.wall_mm``)."""
        if self.rules.wall_mm == 0:
            return self.organ_mask
        # Of a mask of the wall itself all stays.
        return self.organ_mask & (distance_mm(self.organ_mask, self.ct.grid.spacing_mm) <= self.rules.wall_mm)

    @property
    def organ_source(self) -> str:
        """What errors call the organ mask: its file, or the name of the argument."""
        return "organ_mask" if self.inputs is None else str(self.inputs.organ_masks[0])

    def _mask(self, values: ArrayLike, name: str) -> NDArray[np.bool_]:
        mask = np.asarray(values)
        self._check_shape(mask, name)
        if mask.dtype.kind not in "bui" and not (mask.dtype.kind == "f" and (mask == np.rint(mask)).all()):
            raise VolumeError(f"{name} is not a mask of whole numbers: give 0 outside and another number inside.")
        return mask if mask.dtype == np.bool_ else mask != 0

    def _label_map(self, values: ArrayLike) -> NDArray[np.unsignedinteger]:
        labels = np.asarray(values)
        self._check_shape(labels, "segments")
        if labels.dtype.kind not in "iu" or labels.min() < 0:
            raise VolumeError(f"segments is {labels.dtype} or below 0: give whole numbers from 0 up.")
        return labels if labels.dtype.kind == "u" else labels.astype(np.min_scalar_type(int(labels.max())))

    def _check_shape(self, array: NDArray[Any], name: str) -> None:
        if array.shape != self.ct.grid.shape:
            raise GridMismatchError(
                f"{name} has the shape {array.shape}, the CT {self.ct.grid.shape}: give it on the CT's grid."
            )


@dataclass(frozen=True, kw_only=True)
class ScanInputs:
    """The files of one scan.

    Args:
        ct: CT in HU.
        organ_masks: Masks or label maps on the CT's grid; the organ is the union of what they mark.
        organ_labels: The organ's numbers in them; none for masks with a single nonzero value.
        tumor_labels: Numbers of tumors that are there already; they keep their label and host no others.
        tumor_masks: Masks of such tumors, if they have their own files.
        segments: Label map of the organ's segments; None for none.
        given_mask: Mask of the tumors to make, on any grid; None to draw shapes and places.
        assumed: Whether nothing says what the numbers mean and the usual ones are assumed; other numbers are refused.
        accept_hu: As for ``Scan``.
        tumors_unstated: Whether nobody says which numbers of a label map are tumors, so that 1 and 2 are refused, which
            may be an organ and its tumors.
    """

    ct: Path
    organ_masks: tuple[Path, ...]
    organ_labels: tuple[int, ...] = ()
    tumor_labels: tuple[int, ...] = ()
    tumor_masks: tuple[Path, ...] = ()
    segments: Path | None = None
    given_mask: Path | None = None
    assumed: bool = False
    accept_hu: bool = field(default=False, compare=False)
    tumors_unstated: bool = field(default=False, compare=False)

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """All files, by role."""
        segments = () if self.segments is None else (self.segments,)
        masks = {"organ_masks": self.organ_masks, "tumor_masks": self.tumor_masks}
        given = {} if self.given_mask is None else {"given_mask": (self.given_mask,)}
        return {"ct": (self.ct,), **masks, "segments": segments, **given}

    def check(self) -> None:
        """Refuse files that are missing, without reading any.

        Raises:
            VolumeError: A file does not exist, or is not NIfTI.
        """
        for paths in self.files.values():
            for path in paths:
                check_nifti(path)

    def to_record(self) -> dict[str, Any]:
        """Return plain values, with the SHA-256 of every file."""
        files = {role: [provenance(path) for path in paths] for role, paths in self.files.items()}
        return {**files, "organ_labels": list(self.organ_labels), "tumor_labels": list(self.tumor_labels)}

    @classmethod
    def from_record(cls, content: Mapping[str, Any]) -> ScanInputs:
        """Read what ``to_record`` returned; anything else raises a ValueError or the like."""
        (ct,) = _paths(content["ct"])
        segments, given = _paths(content["segments"]), _paths(content.get("given_mask", ()))
        return cls(
            ct=ct,
            organ_masks=_paths(content["organ_masks"]),
            organ_labels=tuple(int(value) for value in content["organ_labels"]),
            tumor_labels=tuple(int(value) for value in content["tumor_labels"]),
            tumor_masks=_paths(content["tumor_masks"]),
            segments=segments[0] if segments else None,
            given_mask=given[0] if given else None,
            accept_hu=True,  # as it was when the record was made
        )

    def check_same(self, content: Mapping[str, Any]) -> None:
        """Refuse files other than those of a record.

        Raises:
            SynthesisError: A file differs from the recorded one, or labels do.
        """
        own = self.to_record()
        for role, files in self.files.items():
            recorded = [file["sha256"] for file in content.get(role, ())]
            for path, now, then in zip(files, own[role], recorded, strict=False):
                if now["sha256"] != then:
                    raise SynthesisError(f"{path} is not the file that the record was made from: give that one.")
            if len(files) != len(recorded):
                raise SynthesisError(
                    f"The record was made from {len(recorded)} files for {role}, not {len(files)}: put them where "
                    "the record says, and give no others."
                )
        for name in ("organ_labels", "tumor_labels"):
            if own[name] != content[name]:
                raise SynthesisError(
                    f"The record was made with {name} {content[name]}, not {own[name]}: give the same."
                )

    def read(self, *, organ: str | Organ) -> Scan:
        """Read the scan.

        Args:
            organ: The organ, or the name of a known one.

        Raises:
            VolumeError: A file is missing, damaged, not 3-D, of the wrong kind, or not in HU.
            GridMismatchError: The grids differ.
            OrganError: The organ is absent, or all of it is tumor.
            ConfigError: A file is a label map of several structures and no number is given.
        """
        rules = get_organ(organ)
        name = rules.name
        beside = (*self.organ_masks, *self.tumor_masks, *([] if self.segments is None else [self.segments]))
        ct = read_ct(self.ct, beside=beside, accept_hu=self.accept_hu)
        maps = [_read_like(path, ct) for path in self.organ_masks]
        if not maps:
            raise OrganError(f"There is no mask of the {name} for {self.ct}: give one.")
        for labels in maps:
            self._check_numbers(labels, name)
            if len(self.organ_labels) == 1:
                check_stated_names(labels, {rules.name: self.organ_labels[0]}, others=self.tumor_labels)
        # A structure that the patient lacks may have an empty file.
        mask = mask_of(maps, self.organ_labels, organ=name)
        tumors = [np.isin(labels.data, self.tumor_labels) for labels in maps] if self.tumor_labels else []
        tumors += [_read_like(path, ct).data != 0 for path in self.tumor_masks]
        there = reduce(np.logical_or, tumors) if tumors else None
        segments = None if self.segments is None else _read_like(self.segments, ct).data
        given, cut = (None, ()) if self.given_mask is None else carried_to(self.given_mask, ct)
        scan = Scan(
            ct,
            None,
            mask,
            organ=organ,
            tumor_mask=there,
            segments=segments,
            given_mask=given,
            inputs=self,
            accept_hu=self.accept_hu,
        )
        scan.doubts += cut
        return scan

    def _check_numbers(self, labels: Volume, organ: str) -> None:
        if self.assumed and int(labels.data.max()) > TUMOR:
            listed = ", ".join(map(str, label_values(labels.data)))
            raise OrganError(
                f"{labels.path} holds labels {listed}, and nothing says which is the {organ}: give "
                "organ_labels (--organ-label) or a convention (--convention)."
            )
        if self.tumors_unstated and self.organ_labels == (ORGAN,) and label_values(labels.data) == [ORGAN, TUMOR]:
            raise OrganError(
                f"{labels.path} holds labels 1 and 2, and 2 would become background: if it marks tumors, give "
                "convention standard (--convention standard), which keeps them; else give the file as organ_mask "
                "(--organ-mask) with the same organ_labels (--organ-label)."
            )
        if not self.organ_labels and len(found := label_values(labels.data)) > 1:
            listed = ", ".join(map(str, found))
            raise ConfigError(
                f"{labels.path} holds several labels ({listed}): say which is the {organ} with organ_labels "
                "(--organ-label)."
            )


def _read_like(path: Path, ct: Volume) -> Volume:
    labels = read_labels(path)
    check_same_grid(ct, labels)
    return labels


def carried_to(path: Path, ct: Volume) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return a mask on the grid of a CT, by nearest neighbor where its own is another one, and what is cut of it.

    Args:
        path: The mask.
        ct: Its voxels do not matter.

    Returns:
        The mask, (X, Y, Z), and a sentence on what is cut, if much is.

    Raises:
        VolumeError: The mask cannot be used, or lies beside the CT.
    """
    labels = read_labels(path)
    try:
        inside: NDArray[np.bool_] = (labels if labels.grid.matches(ct.grid) else resampled(labels, ct)).data != 0
    except VolumeError as error:
        raise VolumeError(
            f"The tumor mask {path} and {ct.path} do not overlap in space: give one of this scan."
        ) from error
    whole_mm3 = np.count_nonzero(labels.data) * labels.grid.voxel_mm3
    share = np.count_nonzero(inside) * ct.grid.voxel_mm3 / (whole_mm3 or 1)
    if share < _MOSTLY_INSIDE:
        return inside, (f"{1 - share:.0%} of {path} lies outside {ct.path} and is left out.",)
    return inside, ()


def _paths(files: Sequence[Mapping[str, Any]]) -> tuple[Path, ...]:
    return tuple(Path(file["path"]) for file in files)
