"""The header of a NIfTI file: each field that decides geometry or values is honored, or refused by its name.

Nothing but the bytes before the voxels is read, and of these only as many as a header and its extensions may have.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from difftumor.errors import VolumeError
from difftumor.scans.grid import Grid, compare_grids, millimeters, triple
from difftumor.scans.hounsfield import warn

# What one file may hold, decompressed: 1024 x 1024 x 8192 voxels of 16 bits, or a quarter of that of 64 bits.
MOST_BYTES = 16 * 2**30
SUFFIXES = (".nii", ".nii.gz")
# Of reading a file.
DAMAGED = (EOFError, OSError, zlib.error)
# Bytes that a compressed byte can stand for, at most.
_MOST_DEFLATED = 1100
# Bytes before the voxels: header and extensions, such as label names.
_MOST_PREAMBLE = 16 * 2**20
# Nowhere near are voxels farther from the origin of the scanner, and float32 is too coarse for them.
_FARTHEST_MM = 1e5
# Millimeters of the units of space that a header can name (xyzt_units); without one, millimeters are usual.
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# Voxels of CT: from those of a micro-CT to the thickest slices.
_SPACING_MM = (0.01, 50.0)
# With more than this, distances along the axes are wrong by more than 1 %.
_MOST_SKEW = 0.02
# How space is aligned, from "unknown" to "another template" (sform_code, qform_code).
_ALIGNMENTS = range(6)


def is_nifti(path: Path) -> bool:
    """Whether the name ends in ``.nii`` or ``.nii.gz``."""
    return path.name.lower().endswith(SUFFIXES)


def check_nifti(path: Path) -> None:
    """Refuse a path at which there is no NIfTI file, without reading it.

    Raises:
        VolumeError: It does not exist, is a folder, or has another name than NIfTI files have.
    """
    if not path.is_file():
        exists = os.path.lexists(path) and not path.is_symlink()  # a link may lead nowhere
        what = "is a folder" if path.is_dir() else "is no regular file" if exists else "does not exist"
        raise VolumeError(f"{path} {what}; give a NIfTI file (.nii or .nii.gz).")
    if not is_nifti(path):
        raise VolumeError(f"{path} is not a NIfTI file; convert it to .nii or .nii.gz.")


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading its bytes, decompressed where its name says that they are compressed."""
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def read_header(path: Path, *, channels: bool = False) -> tuple[Any, Grid]:
    """Read what is before the voxels, and refuse what cannot be used.

    Args:
        path: The file.
        channels: Whether a fourth axis may be longer than 1.

    Returns:
        The image as nibabel has it, without voxels, and the grid of its first three axes.

    Raises:
        VolumeError: The file is missing, not NIfTI, damaged, shorter than it claims or larger than `MOST_BYTES`, not
            3-D or empty, holds no numbers, or its header states what cannot be: see `stored_grid`.
    """
    image = _image(path)
    shape = image.shape[:3] if image.ndim == 4 and (channels or image.shape[3] == 1) else image.shape
    if len(shape) != 3:
        raise VolumeError(f"{path} is not 3-D (shape {image.shape}); give one 3-D volume per file.")
    if min(image.shape) < 1:
        raise VolumeError(f"{path} holds no voxels (shape {image.shape}); copy or convert it again.")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise VolumeError(f"{path} stores {dtype} values (datatype); convert it to integers or floats.")
    # Before any memory is taken for what a header claims.
    claimed = int(image.dataobj.offset) + math.prod(map(int, image.shape)) * dtype.itemsize
    if claimed > path.stat().st_size * (_MOST_DEFLATED if path.name.lower().endswith(".gz") else 1):
        raise VolumeError(f"{path} is truncated (its header claims {claimed} bytes); copy it again.")
    if claimed > MOST_BYTES:
        raise VolumeError(
            f"{path} claims {claimed / 2**30:.0f} GiB of voxels (dim, datatype), more than the {MOST_BYTES >> 30} GiB "
            "that a file may hold; crop it, or store it as 16-bit integers."
        )
    return image, stored_grid(image, path)


def compare_headers(path: Path, grid: Grid, beside: Iterable[Path]) -> None:
    """Check by headers alone that files lie on the grid of a file.

    Raises:
        VolumeError: As for `read_header`.
        GridMismatchError: One does not; the message names both.
    """
    for other in beside:
        compare_grids(grid, read_header(other)[1], path, other)


def stored_grid(image: Any, path: Path) -> Grid:
    """Return the grid of the first three axes of a NIfTI image that nibabel has opened, in millimeters.

    Args:
        image: Its header may state meters or micrometers; no unit stands for millimeters.
        path: Its file.

    Raises:
        VolumeError: The header states a spacing or a place that no scan of a patient has, no unit of length, a
            singular affine, or axes that are not square to each other, along which distances would be wrong.
    """
    code = int(image.header["xyzt_units"]) % 8
    if code not in UNITS_MM:
        raise VolumeError(f"{path} states its spacing in no unit of length (xyzt_units {code}); convert it again.")
    try:
        grid = Grid(triple(image.shape[:3]), np.diag([UNITS_MM[code]] * 3 + [1.0]) @ image.affine)
    except ValueError as error:
        form = "sform" if image.header["sform_code"] else "qform, pixdim"
        raise VolumeError(
            f"{path} has a singular affine ({form}); convert it again, with its voxel spacing set."
        ) from error
    smallest, largest = _SPACING_MM
    if min(grid.spacing_mm) < smallest or max(grid.spacing_mm) > largest:
        raise VolumeError(
            f"{path} has a voxel spacing of {millimeters(grid.spacing_mm)} mm, beyond {smallest:g} to {largest:g} mm; "
            "convert it again, with its spacing and the unit of its spacing (xyzt_units)."
        )
    if np.abs(grid.affine[:3, 3]).max() > _FARTHEST_MM:
        place = millimeters(grid.position_mm((0, 0, 0)))
        raise VolumeError(
            f"{path} begins at {place} mm, more than {_FARTHEST_MM / 1000:g} m from the scanner's origin (sform, "
            "qform); convert it again."
        )
    if grid.skew > _MOST_SKEW:
        raise VolumeError(
            f"{path} has axes that are {np.degrees(np.arcsin(min(grid.skew, 1.0))):.1f}° from square to each other, as "
            "with a tilted gantry, so that distances would be wrong; resample it to square axes (dcm2niix does, in the "
            "file that it calls _Tilt)."
        )
    return grid


def _image(path: Path) -> Any:
    """Return the image that the bytes before the voxels describe."""
    check_nifti(path)
    try:
        with open_bytes(path) as stream:
            start = stream.read(nib.Nifti2Header.sizeof_hdr)
            kind, fields = _fields(start, path)
            _check_fields(fields, path)
            begin = int(fields["vox_offset"])
            preamble = start[:begin] + stream.read(begin - len(start)) if begin > len(start) else start[:begin]
    except DAMAGED as error:
        raise VolumeError(f"{path} is damaged or not NIfTI ({reason(error)}); copy or convert it again.") from error
    if len(preamble) < begin:
        raise VolumeError(f"{path} is truncated (its voxels begin at byte {begin}, beyond its end); copy it again.")
    _check_extensions(preamble, fields, path)
    try:
        return kind.from_bytes(preamble)
    except Exception as error:  # whatever nibabel or a handler of extensions raises
        raise VolumeError(f"{path} is damaged or not NIfTI ({reason(error)}); copy or convert it again.") from error


def _fields(start: bytes, path: Path) -> tuple[Any, Any]:
    """Return the kind of image and the fields of its header, unchanged, by the size that the header states."""
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        header = kind.header_class
        for endianness in "<>":
            if len(start) >= header.sizeof_hdr and struct.unpack(f"{endianness}i", start[:4])[0] == header.sizeof_hdr:
                fields = header(start[: header.sizeof_hdr], endianness, check=False)
                if (magic := fields["magic"].item()) == header.single_magic:
                    return kind, fields
                what = "the header of a pair of files" if magic == header.pair_magic else "Analyze, or damaged"
                raise VolumeError(f"{path} is {what} (magic {magic!r}); convert it to one NIfTI file.")
    if start[:2] == b"\x1f\x8b":
        raise VolumeError(f"{path} is damaged or not NIfTI: it is compressed by gzip; name it .nii.gz.")
    raise VolumeError(f"{path} is damaged or not NIfTI (sizeof_hdr is not 348 or 540); copy or convert it again.")


def _check_fields(fields: Any, path: Path) -> None:
    """Refuse what nibabel would set to a value of its own."""
    if not 1 <= fields["dim"][0] <= 7:
        raise _damaged(path, f"it has {fields['dim'][0]} axes (dim[0])")
    try:
        known = fields.get_data_dtype().itemsize > 0
    except (HeaderDataError, KeyError):
        known = False
    if not known:
        raise _damaged(path, f"its type of values is unknown (datatype {fields['datatype']})")
    begin = float(fields["vox_offset"])
    if not begin.is_integer():
        raise _damaged(path, f"its voxels begin at byte {begin:g} (vox_offset)")
    if begin < fields.single_vox_offset:
        raise _damaged(path, f"its voxels begin at byte {begin:.0f}, in its header (vox_offset)")
    if begin > _MOST_PREAMBLE:
        raise _damaged(path, f"its voxels begin only at byte {begin:.0f} (vox_offset)")
    scaled = np.isfinite(fields["scl_slope"]) and fields["scl_slope"] != 0
    if np.isinf(fields["scl_slope"]) or np.isinf(fields["scl_inter"]):  # which nibabel takes for no scaling
        raise VolumeError(f"{path} scales its values by infinity (scl_slope, scl_inter); convert it again.")
    if scaled and np.isnan(fields["scl_inter"]):
        raise _damaged(path, "it adds to its values what is no number (scl_inter)")
    for name in ("sform_code", "qform_code"):
        if fields[name] not in _ALIGNMENTS:
            raise _damaged(path, f"{name} is {fields[name]}, not 0 to 5")
        if fields[name] != 0:
            break  # the next one does not count
    if fields["sform_code"] == 0:
        _check_spacing(fields, path)


def _check_spacing(fields: Any, path: Path) -> None:
    """Refuse the fields that state the geometry, where no sform does: nibabel takes 1 for 0, and drops signs."""
    stated, oriented = fields["pixdim"][1:4], fields["qform_code"] != 0
    listed = " x ".join(f"{value:g}" for value in stated)
    # With a qform nibabel drops the sign, but other programs take 1 mm instead.
    if not np.isfinite(stated).all() or (stated == 0).any() or (oriented and (stated < 0).any()):
        raise VolumeError(f"{path} states a voxel spacing of {listed} (pixdim); convert it again, with its spacing.")
    if not oriented:
        if (stated < 0).any():  # as older programs stated that x runs to the left
            warn([f"{path} states a voxel spacing of {listed} (pixdim) and no orientation: the signs are not used."])
        return
    if fields["pixdim"][0] not in (-1, 0, 1):
        raise _damaged(path, f"its handedness is {fields['pixdim'][0]:g} (pixdim[0], qfac), not 1 or -1")
    parts = np.array([fields[f"quatern_{axis}"] for axis in "bcd"], np.float64)
    if not (parts @ parts <= 1 + 3 * np.finfo(np.float32).eps):
        raise _damaged(path, "its rotation is none (quatern_b, quatern_c, quatern_d)")


def _check_extensions(preamble: bytes, fields: Any, path: Path) -> None:
    """Refuse extensions that do not end where the voxels begin."""
    try:
        end_of_extensions(preamble, fields)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def end_of_extensions(preamble: bytes, header: nib.nifti1.Nifti1Header) -> int:
    """Return where the extensions of a header end: behind the header and its flag, if there are none.

    Args:
        preamble: All bytes before the voxels.
        header: What was read from them.

    Raises:
        ValueError: One claims a size that it cannot have.
    """
    end = header.sizeof_hdr + 4
    # Without room for one there is none, whatever the flag says.
    while preamble[header.sizeof_hdr] != 0 and len(preamble) - end >= 16:
        size = struct.unpack(f"{header.endianness}i", preamble[end : end + 4])[0]
        if not 8 <= size <= len(preamble) - end:
            raise ValueError(f"an extension of its header claims {size} bytes (esize)")
        end += size
    return int(end)


def _damaged(path: Path, what: str) -> VolumeError:
    return VolumeError(f"{path} is damaged: {what}; convert it again.")


def reason(error: BaseException) -> str:
    """Return what an error of another library says, in one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
