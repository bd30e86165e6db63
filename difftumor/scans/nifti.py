"""Reading and writing CT and label maps as NIfTI, and what the rest of the library needs of their geometry.

Reading looks at the header first and refuses a file that cannot be used before its voxels are loaded. Writing keeps
everything of the original that was not meant to change: header bytes, extensions, byte order, stored type, scaling and
every stored value outside the change.
"""

import gzip
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from difftumor.errors import VolumeError, naming
from difftumor.files.writing import written_whole
from difftumor.scans.grid import Array, Box, Grid, compare_grids, triple
from difftumor.scans.hounsfield import ct_doubts, settle
from difftumor.scans.stored.header import compare_headers, is_nifti, read_header
from difftumor.scans.stored.mark import mark_header, mark_preamble, unmark_header
from difftumor.scans.stored.voxels import StoredImage, read_stored, scaled, stored_values


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume on its own grid.

    Attributes:
        data: (X, Y, Z) in the file's axis order: float32 HU for CT, unsigned integers for labels.
        grid: Shape and affine.
        path: The file it was read from.
        header: The file's NIfTI header.
        stored: What ``write_ct`` needs to write a file alike; None for labels.
        doubts: What speaks against a CT in HU, in sentences.
    """

    data: Array
    grid: Grid
    path: Path
    header: nib.nifti1.Nifti1Header
    stored: StoredImage | None = None
    doubts: tuple[str, ...] = ()

    def part(self, box: Box) -> "Volume":
        """Return the part in a box, at its place in the patient; its values are a copy."""
        affine = self.grid.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ box.start
        data = self.data[box.slices].copy(order="F")
        return replace(self, data=data, grid=Grid(box.shape, affine), stored=None)


def read_grid(path: Path) -> Grid:
    """Read shape and affine from a file's header, without its voxels.

    Raises:
        VolumeError: The file cannot be used: see `read_header`.
    """
    return read_header(Path(path))[1]


@naming
def read_ct(path: Path, *, beside: Iterable[Path] = (), accept_hu: bool = False) -> Volume:
    """Read a CT as float32 HU.

    Args:
        path: The file.
        beside: Files that must lie on its grid: compared with it by their headers before its voxels are read.
        accept_hu: Whether values that cannot be HU are only noted in ``doubts``.

    Raises:
        VolumeError: As ``read_grid``, or the voxels are incomplete, not finite, or cannot be in HU: see ``ct_doubts``.
        GridMismatchError: A file beside it lies on another grid.
    """
    path = Path(path)
    image, grid = read_header(path)
    compare_headers(path, grid, beside)
    stored = read_stored(path, image, also_bytes=4)
    data = scaled(stored).reshape(grid.shape, order="F")
    return Volume(data, grid, path, image.header, stored, _judged(data, path, accept_hu))


@naming
def read_labels(path: Path, *, beside: Iterable[Path] = ()) -> Volume:
    """Read a label map as uint8, or as uint16 or uint32 if its numbers need it.

    Args:
        path: The file.
        beside: Files that must lie on its grid: compared with it by their headers before its voxels are read.

    Raises:
        VolumeError: As ``read_grid``, or the voxels are incomplete, fractional (beyond what a slope does to whole
            numbers), negative or over 2**32 - 1.
        GridMismatchError: A file beside it lies on another grid.
    """
    path = Path(path)
    image, grid = read_header(path)
    compare_headers(path, grid, beside)
    stored = read_stored(path, image, also_bytes=1)
    values = stored.values
    if stored.slope != 1 or stored.inter != 0:
        values = values.astype(np.float64) * stored.slope + stored.inter
        # Whole numbers that were stored in steps of the slope come back within half a step.
        whole, tolerance = np.rint(values), min(max(abs(stored.slope) / 2, 1e-4), 0.05)
        values = np.where(np.abs(values - whole) <= tolerance, whole, values)
    low, high = values.min(), values.max()
    if not np.isfinite(low) or not np.isfinite(high) or low < 0 or high > np.iinfo(np.uint32).max:
        raise VolumeError(f"{path} is not a label map (values {low:g} to {high:g}); give whole numbers from 0 up.")
    labels = values.astype(np.min_scalar_type(int(high)))
    if not np.issubdtype(values.dtype, np.integer) and not np.array_equal(labels, values):
        raise VolumeError(f"{path} is not a label map: it holds fractions; resample labels with nearest neighbor.")
    return Volume(labels.reshape(grid.shape, order="F"), grid, path, image.header)


def volume_of(ct_hu: ArrayLike, affine: ArrayLike, *, name: str = "the CT", accept_hu: bool = False) -> Volume:
    """Return a CT in an array as a volume that ``write_ct`` stores in the array's own type.

    Args:
        ct_hu: (X, Y, Z) in HU, integers or floats.
        affine: (4, 4) from voxels to RAS millimeters.
        name: What errors call it; stands for the path of a file.
        accept_hu: As for ``read_ct``.

    Raises:
        VolumeError: The array is not 3-D, is empty, holds other values than finite HU, or the affine is not usable.
    """
    values, matrix = np.asarray(ct_hu), np.asarray(affine, np.float64)
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "iuf":
        raise VolumeError(f"{name} is {values.dtype} of shape {values.shape}: give numbers of shape (X, Y, Z).")
    # NIfTI has no half precision, and few programs read 64-bit integers.
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    elif values.dtype in (np.int64, np.uint64):
        values = values.astype(np.int32)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise VolumeError(f"The affine of {name} is not a 4 × 4 matrix of finite numbers: give one from voxels to mm.")
    try:
        grid = Grid(triple(values.shape), matrix)
    except ValueError as error:
        raise VolumeError(f"The affine of {name} is singular: give one from voxels to millimeters.") from error
    data = values.astype(np.float32)
    doubts = _judged(data, name, accept_hu)
    header = nib.Nifti1Image(np.broadcast_to(np.zeros((), values.dtype), values.shape), matrix).header
    header.set_xyzt_units("mm")
    # Where the voxels of a single file begin: after the header and four bytes that announce no extensions.
    header["vox_offset"] = 352
    stored = StoredImage(header.binaryblock + bytes(4), np.asfortranarray(values), 1.0, 0.0)
    return Volume(data, grid, Path(name), header, stored, doubts)


def check_same_grid(a: Volume, b: Volume) -> None:
    """Check that two volumes share a grid: one shape, and no voxel center more than 0.01 mm apart.

    Raises:
        GridMismatchError: They don't; the message names both files and what differs.
    """
    compare_grids(a.grid, b.grid, a.path, b.path)


def write_ct(
    path: Path,
    original: Volume,
    hu: NDArray[Any],
    changed: NDArray[np.bool_],
    *,
    box: Box | None = None,
    mark: Mapping[str, Any] | None = None,
) -> None:
    """Write a changed CT as a file like the original.

    Args:
        path: Where to write, ``.nii`` or ``.nii.gz``; never the original itself. Replaced as a whole.
        original: What ``read_ct`` returned.
        hu: (X, Y, Z) in HU on the original's grid; only its values in ``changed`` are used.
        changed: (X, Y, Z) boolean mask. Stored values outside it stay bit-identical, and so does all before
            the voxels, but for a mark.
            Inside, values are rounded to the stored type and clipped to its range.
        box: Part of the grid that ``hu`` and ``changed`` cover; the whole by default.
        mark: Which tumors were made, for the header: see `difftumor.scans.stored.mark`; None for none.

    Raises:
        VolumeError: The path is the original's or no NIfTI name, or a changed value is not finite.
        ValueError: The shapes differ, ``changed`` is not boolean, or the volume was not read by ``read_ct``.
    """
    path = Path(path)
    box = _checked_box(original, hu, changed, box)
    _check_output(path, original.path)
    stored = original.stored
    assert stored is not None
    new = stored_values(hu[changed], stored)
    if not np.isfinite(new).all():
        raise VolumeError(f"{path} was not written: the changed voxels hold NaN or infinite values.")
    values = stored.values.copy(order="F")
    values.reshape(original.grid.shape, order="F")[box.slices][changed] = new
    with written_whole(path) as temporary, nifti_stream(temporary) as stream:
        stream.write(_preamble(original, mark))
        # Transposed, Fortran order is C order: the bytes go out without another copy.
        stream.write(values.T.view(np.uint8).data)


def as_stored(original: Volume, hu: NDArray[Any]) -> NDArray[np.float32]:
    """Return finite HU of any shape as ``read_ct`` gives them back of a file that ``write_ct`` has written."""
    stored = original.stored
    assert stored is not None
    values = stored_values(hu, stored).astype(stored.values.dtype)
    read: NDArray[np.float32] = (values.astype(np.float64) * stored.slope + stored.inter).astype(np.float32)
    return read


def same_outside(
    original: Volume,
    path: Path,
    changed: NDArray[np.bool_],
    *,
    box: Box | None = None,
    mark: Mapping[str, Any] | None = None,
) -> bool:
    """Whether a file that ``write_ct`` wrote equals the original bit by bit outside the change, header included.

    Args:
        original: What ``read_ct`` returned.
        path: The file.
        changed: (X, Y, Z) boolean mask.
        box: Part of the grid that ``changed`` covers; the whole by default.
        mark: What the header says more than that of the original.

    Raises:
        VolumeError: The file cannot be read.
    """
    box = _checked_box(original, changed, changed, box)
    before, after = original.stored, read_stored(path, read_header(path)[0])
    assert before is not None
    if _preamble(original, mark) != after.preamble or before.values.dtype != after.values.dtype:
        return False
    bits = np.dtype(f"u{before.values.dtype.itemsize}")
    old, new = (stored.values.reshape(original.grid.shape, order="F").view(bits) for stored in (before, after))
    for z in range(old.shape[2]):  # slice by slice, for memory
        differs = old[:, :, z] != new[:, :, z]
        if box.start[2] <= z < box.stop[2]:
            differs[box.slices[:2]] &= ~changed[:, :, z - box.start[2]]
        if differs.any():
            return False
    return True


def write_labels(path: Path, labels: NDArray[Any], like: Volume, *, mark: Mapping[str, Any] | None = None) -> None:
    """Write a label map on the grid of ``like``, with its orientation codes and byte order.

    Args:
        path: Where to write, ``.nii`` or ``.nii.gz``; never the file of ``like``. Replaced as a whole.
        labels: (X, Y, Z) booleans or non-negative integers; 64-bit ones are stored in the least type that holds them.
        like: The volume the labels belong to.
        mark: As for ``write_ct``.

    Raises:
        VolumeError: The path is that of ``like`` or no NIfTI name.
        ValueError: The shape differs, or the labels are not whole numbers.
    """
    path = Path(path)
    if labels.shape != like.grid.shape or labels.dtype.kind not in "bui":
        raise ValueError(f"labels must be integers of shape {like.grid.shape}, got {labels.dtype} {labels.shape}")
    _check_output(path, like.path)
    if labels.dtype.kind == "b" or labels.dtype.itemsize == 8:
        labels = labels.astype(np.min_scalar_type(int(labels.max())) if labels.size else np.uint8)
    header = like.header.copy()
    header.set_data_dtype(labels.dtype.newbyteorder("="))
    header["cal_min"] = header["cal_max"] = 0  # the display range of a CT, meaningless for labels
    # A table of label names is that of the numbers of `like`.
    header.extensions[:] = [each for each in header.extensions if "<Label" not in str(each.get_content())]
    if mark is None:
        unmark_header(header)  # the marks are those of the CT
    else:
        mark_header(header, mark)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with written_whole(path) as temporary:
        image_class(labels, None, header).to_filename(temporary)


def _preamble(original: Volume, mark: Mapping[str, Any] | None) -> bytes:
    """Return all bytes before the voxels of a file like the original."""
    assert original.stored is not None
    preamble = original.stored.preamble
    return preamble if mark is None else mark_preamble(preamble, original.header, mark)


def _judged(data: NDArray[np.float32], name: Path | str, accept_hu: bool) -> tuple[str, ...]:
    low, high = float(data.min()), float(data.max())
    # A NaN makes both ends NaN.
    if not np.isfinite(low) or not np.isfinite(high):
        raise VolumeError(f"{name} holds NaN or infinite values; replace them, for instance by -1000 HU for air.")
    return settle(ct_doubts(data, str(name), ends=(low, high)), accept=accept_hu)


def _checked_box(original: Volume, hu: NDArray[Any], changed: NDArray[np.bool_], box: Box | None) -> Box:
    if original.stored is None:
        raise ValueError(f"{original.path} was read as labels; a CT as read_ct returned it is needed")
    box = Box.whole(original.grid.shape) if box is None else box
    if hu.shape != box.shape or changed.shape != box.shape or changed.dtype != np.bool_:
        raise ValueError(f"hu and the boolean mask `changed` must have the shape {box.shape} of the original or box")
    if not Box.whole(original.grid.shape).contains(box):
        raise ValueError(f"{box} leaves the original's grid of shape {original.grid.shape}")
    return box


def _check_output(path: Path, original: Path) -> None:
    if not is_nifti(path):
        raise VolumeError(f"{path} is no name for a NIfTI file; end it in .nii or .nii.gz.")
    if path.resolve() == original.resolve():
        raise VolumeError(f"{path} would overwrite its own input; give another output file.")


@contextmanager
def nifti_stream(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing the bytes of a NIfTI file, which are compressed where its name says so."""
    with path.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # Neither name nor time in the gzip header: the same volume gives the same bytes.
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as stream:
                yield stream  # type: ignore[misc]
        else:
            yield file
