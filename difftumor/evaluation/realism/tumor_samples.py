"""Tumors of a list, cut from their scans and measured, ready to be compared with those of another list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from difftumor.datasets.cases import Case, CaseList
from difftumor.datasets.tumor_cases import read_organ
from difftumor.evaluation.realism.texture import Texture, measure_texture
from difftumor.scans.appearance import Appearance, measure_appearance, reach_voxels
from difftumor.scans.components import equivalent_radius_mm, find_components
from difftumor.scans.grid import Box, triple
from difftumor.scans.hounsfield import warn
from difftumor.scans.intensity import IntensityWindow
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import Volume, check_same_grid, read_ct, read_labels
from difftumor.scans.organs import ORGAN, TUMOR, OrganLabels
from difftumor.synthesis.scan.record import RECORD_FILE, read_record

LOW_HU, HIGH_HU = -1024, 3071
# Bins of one HU are too fine for the shape of a distribution: a small tumor has one voxel or none in each.
SHAPE_BIN_HU = 8


def hu_histogram(hu: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the share of voxels at each whole HU from ``LOW_HU`` to ``HIGH_HU``; values beyond count at the ends.

    Args:
        hu: HU in an array of any shape; not empty.
    """
    bins = np.clip(np.rint(hu).astype(np.int64).ravel(), LOW_HU, HIGH_HU) - LOW_HU
    counts = np.bincount(bins, minlength=HIGH_HU - LOW_HU + 1)
    return (counts / counts.sum()).astype(np.float32)


def hu_wasserstein(one_NH: NDArray[np.floating], other_MH: NDArray[np.floating]) -> float:
    """Return the Wasserstein-1 distance of the mean histograms of two sets, in HU."""
    difference = one_NH.mean(axis=0, dtype=np.float64) - other_MH.mean(axis=0, dtype=np.float64)
    return float(np.abs(np.cumsum(difference)).sum())


def hu_jensen_shannon(one_NH: NDArray[np.floating], other_MH: NDArray[np.floating]) -> float:
    """Return the Jensen–Shannon distance of two mean histograms, from 0 to 1, in bins of ``SHAPE_BIN_HU``."""
    one, other = (
        each.mean(axis=0, dtype=np.float64).reshape(-1, SHAPE_BIN_HU).sum(axis=1) for each in (one_NH, other_MH)
    )
    # For equal histograms, rounding may take the root of a negative number.
    return float(np.nan_to_num(scipy.spatial.distance.jensenshannon(one, other, base=2)))


# Files that `difftumor synthesize` writes beside the CT of a case.
SYNTHESIS_LABELS, SYNTHESIS_LESIONS = "labels.nii.gz", "lesions.nii.gz"


@dataclass(frozen=True, kw_only=True)
class CropSpec:
    """How tumors are cut out.

    Args:
        size: Side of the cube in voxels.
        spacing_mm: Voxel size along R, A and S.
        window: HU window.
        minimum_voxels: Components with fewer voxels, on the scan's own grid, are ignored.
    """

    size: int = 64
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    window: IntensityWindow = field(default_factory=IntensityWindow)
    minimum_voxels: int = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Tumor:
    """One tumor, measured in its scan on the scan's own grid.

    Attributes:
        case: Id of the case.
        patient: Who was scanned.
        number: Number of the tumor in its case.
        diameter_mm: Diameter of the ball of its volume.
        voxel_mm: Voxel size of the scan along R, A and S.
        histogram_H: Result of ``hu_histogram``.
        texture: Result of ``measure_texture``.
        appearance: Result of ``measure_appearance``.
    """

    case: str
    patient: str
    number: int
    diameter_mm: float
    voxel_mm: tuple[float, float, float]
    histogram_H: NDArray[np.float32]
    texture: Texture
    appearance: Appearance


@dataclass(frozen=True, eq=False)
class TumorCrop:
    """One tumor, cut from its scan.

    Attributes:
        tumor: Its measurements.
        ct_hu_XYZ: (size, size, size) float32 HU, RAS; air beyond the scan.
        mask_XYZ: Mask of the tumor.
        extent: Voxels along each axis of the crop's grid, at most the crop's size.
    """

    tumor: Tumor
    ct_hu_XYZ: NDArray[np.float32]
    mask_XYZ: NDArray[np.bool_]
    extent: tuple[int, int, int]


def with_synthesis_labels(cases: CaseList) -> CaseList:
    """Add the label maps beside the CTs to the cases of a folder that ``difftumor synthesize`` has written."""

    def labelled(case: Case) -> Case:
        labels = case.image.with_name(SYNTHESIS_LABELS)
        return replace(case, labels=labels) if case.labels is None and labels.is_file() else case

    return replace(cases, cases=tuple(map(labelled, cases.cases)))


def tumor_crops(
    case: Case, cases: CaseList, labels: OrganLabels, spec: CropSpec, *, accept_hu: bool = False
) -> Iterator[TumorCrop]:
    """Yield the tumors of a case, cut and measured.

    Tumors are connected components of the tumor label. For a case written by ``difftumor synthesize`` they are the
    synthetic ones, as numbered in ``lesions.nii.gz``: tumors that the scan had before do not count.

    Args:
        case: A case with labels.
        cases: Its list, which says what its labels mean.
        labels: The organ's label numbers in the list.
        spec: How tumors are cut out.
        accept_hu: Whether a CT that cannot be in HU is measured, with a warning.

    Raises:
        DiffTumorError: A file cannot be used.
    """
    standard = read_organ(case, cases, labels, beside=[case.image])
    lesions = _lesions_beside(case)
    if standard is None or (lesions is None and not (standard.data == TUMOR).any()):
        return
    ct = read_ct(case.image, accept_hu=accept_hu)
    warn(ct.doubts)
    check_same_grid(ct, standard)
    if lesions is not None:
        check_same_grid(ct, lesions)
    indices = find_components(standard.data == TUMOR).indices if lesions is None else lesions.data
    organ = standard.data == ORGAN
    space = ModelSpace(ct.grid, spec.spacing_mm)
    for number, found in enumerate(scipy.ndimage.find_objects(indices), start=1):
        if found is None:  # an unused number
            continue
        box = Box(triple([side.start for side in found]), triple([side.stop for side in found]))
        if np.count_nonzero(indices[box.slices] == number) >= spec.minimum_voxels:
            yield _measured(case, number, ct, indices, organ, box, space, spec)


def _lesions_beside(case: Case) -> Volume | None:
    """Read the map of synthetic tumors, if there is one."""
    if case.labels is None or case.labels.name != SYNTHESIS_LABELS:
        return None
    file = Path(case.labels).with_name(SYNTHESIS_LESIONS)
    return read_labels(file) if file.is_file() else None


def _measured(
    case: Case,
    number: int,
    ct: Volume,
    indices: NDArray[np.integer],
    organ: NDArray[np.bool_],
    box: Box,
    space: ModelSpace,
    spec: CropSpec,
) -> TumorCrop:
    """Measure a tumor in its box with the surroundings needed, not in the whole scan, which may hold many tumors."""
    inside, inside_hu = indices[box.slices] == number, ct.data[box.slices]
    near = box.padded(reach_voxels(ct.grid.spacing_mm)).clipped(ct.grid.shape).slices
    model = space.model_box(box)
    measured = Tumor(
        case=case.id,
        patient=case.patient,
        number=number,
        diameter_mm=2 * equivalent_radius_mm(np.count_nonzero(inside) * ct.grid.voxel_mm3),
        voxel_mm=space.turned_spacing_mm,
        histogram_H=hu_histogram(inside_hu[inside]),
        # Turned so that the first two axes span the axial plane; no margin, since pairs lie inside the tumor.
        texture=measure_texture(
            space.turned(inside_hu, box=box),
            space.turned(inside, box=box),
            spacing_mm=space.turned_spacing_mm,
            window=spec.window,
        ),
        appearance=measure_appearance(
            ct.data[near], indices[near] == number, organ[near], spacing_mm=ct.grid.spacing_mm, window=spec.window
        ),
    )
    crop_hu, mask = _cut(ct.data, indices, number, model, space, spec)
    return TumorCrop(measured, crop_hu, mask, triple([min(side, spec.size) for side in model.shape]))


def _cut(
    ct_hu: NDArray[np.floating],
    indices: NDArray[np.integer],
    number: int,
    model: Box,
    space: ModelSpace,
    spec: CropSpec,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cut the cube around the middle of a tumor's box in model space, with air beyond the scan."""
    start = [(a + b) // 2 - spec.size // 2 for a, b in zip(model.start, model.stop, strict=True)]
    cube = Box(triple(start), triple([a + spec.size for a in start]))
    held = cube.clipped(space.grid.shape)
    place = held.relative_to(cube).slices
    crop_hu = np.full((spec.size,) * 3, min(-1000.0, spec.window.low_hu), np.float32)
    mask = np.zeros((spec.size,) * 3, bool)
    crop_hu[place] = space.to_model(ct_hu, kind="image", box=held)
    mask[place] = space.to_model(indices, kind="labels", box=held) == number
    return crop_hu, mask


def slices_of(crop_XYZ: NDArray[np.float32], extent: Sequence[int], count: int) -> NDArray[np.float32]:
    """Return slices in the three planes, evenly spread over a tumor's extent, in radiological orientation.

    If the tumor is thinner than that many slices, they are adjacent, and the outer ones miss it.

    Args:
        crop_XYZ: A cube with the tumor in its middle.
        extent: Voxels of the tumor along X, Y, Z.
        count: Slices per plane.

    Returns:
        (3, count, size, size): axial, coronal, sagittal.

    Raises:
        ValueError: The cube has fewer slices.
    """
    size = crop_XYZ.shape[0]
    if count > size:
        raise ValueError(f"a crop of {size} voxels does not have {count} slices")
    planes = []
    for axis in (2, 1, 0):
        reach = (max(extent[axis], count) - 1) / 2
        places = np.floor(size / 2 + np.linspace(-reach, reach, count)).astype(int)
        along = np.moveaxis(crop_XYZ, axis, 0)[places]
        planes.append(along.transpose(0, 2, 1)[:, ::-1, ::-1])
    return np.ascontiguousarray(np.stack(planes))


def with_real_patients(made: CaseList, real: CaseList) -> CaseList:
    """Give synthetic cases the patients of the real list, if they are known to be the same.

    They are if a case's CT, or the CT of its ``record.json`` that hosts its tumors, is in the real list, or if the
    synthetic list names patients and the names agree. A case id that stands for an unnamed patient means nothing in
    another data set: such cases never share a patient with the real list, and share one with each other only if they
    have the same CT.

    Args:
        made: Synthetic cases.
        real: Cases with real tumors.

    Raises:
        SynthesisError: A record beside a CT cannot be read.
    """
    known = {case.image.resolve(): case.patient for case in real.cases}
    hosts = {case: _host(case) for case in made.cases}
    if any(case.patient != case.id for case in made.cases):
        others = {case: case.patient for case in made.cases}
    else:
        others = _new_patients(hosts, taken=set(known.values()))
    return replace(made, cases=tuple(replace(case, patient=known.get(hosts[case], others[case])) for case in hosts))


def _host(case: Case) -> Path:
    """Return the CT that hosts the tumors: that of the record, or else the case's own."""
    if case.labels is not None and case.labels.name == SYNTHESIS_LABELS:
        record = case.labels.with_name(RECORD_FILE)
        if record.is_file():
            return read_record(record).host
    return case.image.resolve()


def _new_patients(hosts: Mapping[Case, Path], *, taken: set[str]) -> dict[Case, str]:
    """Name patients after one case of each CT, independent of the order, avoiding names of the real list."""
    first: dict[Path, str] = {}
    for case, host in sorted(hosts.items(), key=lambda item: item[0].id):
        first.setdefault(host, f"{case.id} (synthetic)" if case.id in taken else case.id)
    return {case: first[host] for case, host in hosts.items()}
