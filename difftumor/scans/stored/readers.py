"""Which reader of nnU-Net sees NIfTI files as they are: it takes one for a data set, which dataset.json may name.

``SimpleITKIO``, its default, reads by ITK, which knows no shear: it takes whichever of sform and qform its rules say,
refuses one whose axes are not square to each other, and takes the spacing from pixdim. ``NibabelIO`` keeps the affine,
but takes the spacing from pixdim without its unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from difftumor.errors import CaseListError
from difftumor.scans.grid import Grid, Vector, millimeters, triple
from difftumor.scans.hounsfield import warn
from difftumor.scans.stored.header import UNITS_MM, open_bytes, read_header

# In the order in which they are chosen: the default first.
READERS = ("SimpleITKIO", "NibabelIO")
# ITK accepts axes that are square up to this and a little more.
_SQUARE = 1e-4
# By as large a share spacings may differ: 0.5 mm along half a meter.
_SAME_SPACING = 1e-3
# Of pixdim that a converter has rounded: far less than plans of nnU-Net, which resamples to a median, change.
_ROUNDED_SPACING = 1e-2


def choose_reader(files: Iterable[Path]) -> str:
    """Return the reader of nnU-Net that sees all files as they are, its default if that one does.

    Args:
        files: Of which only headers are read.

    ``NibabelIO`` may see a spacing that was rounded, with a warning: what it predicts lies where the scan lies.

    Raises:
        CaseListError: A file has more than three axes, or each of the readers would see one otherwise, or refuse it.
        VolumeError: A file cannot be used.
    """
    against: dict[str, str] = {}
    rounded: list[str] = []
    for file in files:
        image, grid = read_header(file)
        if image.ndim != 3:
            raise CaseListError(f"{file} has {image.ndim} axes, and nnU-Net needs 3: save it as 3-D.")
        nibabel = _nibabel(image, grid)
        if nibabel and same_spacing(_zooms(image), grid.spacing_mm, within=_ROUNDED_SPACING):
            rounded.append(f"NibabelIO {nibabel} in {file}")
            nibabel = ""
        for reader, objection in (("SimpleITKIO", _itk(file, grid)), ("NibabelIO", nibabel)):
            if objection:
                against.setdefault(reader, f"{reader} {objection} in {file}")
    for reader in READERS:
        if reader not in against:
            if reader == "NibabelIO" and rounded:
                more = f" and {len(rounded) - 1} more" if len(rounded) > 1 else ""
                warn([f"{rounded[0]}{more}: pixdim is rounded, and nnU-Net takes it for the spacing."])
            return reader
    raise CaseListError(
        f"No reader of nnU-Net sees all scans as they are ({'; '.join(against.values())}): save these scans again, "
        "with square axes, and their spacing in millimeters also in pixdim."
    )


def stated_spacing_mm(path: Path) -> Vector:
    """Return the spacing in pixdim with its sign, which other programs take, whatever the affine says; 0 counts as 1.

    Raises:
        VolumeError: The file cannot be used.
    """
    header = _unchanged(path, read_header(path)[0].header)
    x, y, z = (float(step) or 1.0 for step in header["pixdim"][1:4])
    unit_mm = UNITS_MM[int(header["xyzt_units"]) % 8]
    return x * unit_mm, y * unit_mm, z * unit_mm


def _unchanged(path: Path, header: Any) -> Any:
    """Return a header as it is in the file: nibabel takes signs of pixdim and unknown codes away."""
    with open_bytes(path) as stream:
        return type(header)(stream.read(header.template_dtype.itemsize), header.endianness, check=False)


def same_spacing(one: Vector, other: Vector, *, within: float = _SAME_SPACING) -> bool:
    """Whether spacings are the same but for a share of them; those with another sign are not."""
    return bool(np.allclose(one, other, rtol=within))


def itk_grid(path: Path) -> Grid | None:
    """Return the grid that ITK (5.4, in SimpleITK 2.5) reads of a NIfTI file's header; None if it refuses the file.

    The sform counts where its code says "scanner" or there is no qform, and its axes are square; else the qform. An
    axis with a negative pixdim is mirrored.

    Raises:
        VolumeError: The file cannot be used.
    """
    image = read_header(path)[0]
    header, spacing_mm = image.header, stated_spacing_mm(path)
    if isinstance(header, nib.Nifti2Header) or not np.isfinite(spacing_mm).all():
        return None
    codes = _unchanged(path, header)
    sform_code, qform_code = int(codes["sform_code"]), int(codes["qform_code"])
    sform = header.get_sform()
    if sform_code > 0 and (sform_code == 1 or qform_code == 0) and _skew(sform) <= _SQUARE:
        affine = sform
    elif qform_code > 0:
        affine = header.get_qform()
    else:
        return None
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    seen = np.eye(4)
    seen[:3, :3] = directions * spacing_mm
    seen[:3, 3] = affine[:3, 3] * UNITS_MM[int(header["xyzt_units"]) % 8]
    return Grid(triple(image.shape[:3]), seen)


def _itk(path: Path, grid: Grid) -> str:
    """Say what speaks against reading a file by ITK; nothing if it sees the grid as it is."""
    seen = itk_grid(path)
    if seen is None:
        return "refuses NIfTI-2, or axes that are not square to each other,"
    if not same_spacing(stated_mm := stated_spacing_mm(path), grid.spacing_mm):
        return _other_spacing(stated_mm, grid)
    return "" if seen.matches(grid) else f"sees voxels up to {seen.displacement_mm(grid):.3g} mm apart (qform)"


def _nibabel(image: Any, grid: Grid) -> str:
    seen_mm = _zooms(image)
    return "" if same_spacing(seen_mm, grid.spacing_mm) else _other_spacing(seen_mm, grid)


def _zooms(image: Any) -> Vector:
    """Return pixdim, whatever its unit."""
    x, y, z = (float(zoom) for zoom in image.header.get_zooms()[:3])
    return x, y, z


def _other_spacing(seen_mm: Vector, grid: Grid) -> str:
    return f"sees voxels of {millimeters(seen_mm)} mm, not {millimeters(grid.spacing_mm)},"


def _skew(affine: NDArray[np.float64]) -> float:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return float("inf") if not lengths.all() else Grid((1, 1, 1), affine).skew
