"""Class probabilities of a scan as a file, written slab by slab, so that they are never in memory together."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import VolumeError
from difftumor.files.writing import written_whole
from difftumor.scans.grid import Box, Grid
from difftumor.scans.nifti import Volume, nifti_stream
from difftumor.scans.organs import TUMOR
from difftumor.scans.stored.header import read_header
from difftumor.scans.stored.voxels import read_stored, scaled

# In a folder of their own beside the label maps, under the same names: a folder of label maps is to hold nothing else
# that looks like one.
PROBABILITIES = "probabilities"

# Stored as whole numbers; readers apply the header's slope and see 0 to 1.
_ONE = 65535
Watch = Callable[[Box, NDArray[np.float32]], None]


@contextmanager
def probability_file(path: Path, like: Volume) -> Iterator[Watch]:
    """Yield a function that takes slabs, and write the file when the block ends without error.

    The file is 4-D: (X, Y, Z, classes) on the grid of ``like``, uint16 with a slope of 1/65535. Until it is compressed
    the slabs lie in a temporary file beside it, of twice as many bytes as the scan has voxels and classes.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        like: The scan.

    Yields:
        Takes a box of the grid and its probabilities (classes, x, y, z).
    """
    dtype = np.dtype(np.uint16).newbyteorder(like.header.endianness)
    classes = 0
    with written_whole(path) as temporary:
        slabs = temporary.with_name(f"{temporary.name}.slabs")

        def write(box: Box, probabilities: NDArray[np.float32]) -> None:
            nonlocal classes
            classes = len(probabilities)
            # Reopened for each slab, so that written slabs do not stay in memory.
            mode: Any = "r+" if slabs.exists() else "w+"
            stored = np.memmap(slabs, dtype, mode, shape=(*like.grid.shape, classes), order="F")
            stored[box.slices] = np.moveaxis(np.rint(probabilities * _ONE), 0, -1)

        try:
            yield write
            with slabs.open("rb") as source, nifti_stream(temporary) as target:
                target.write(_preamble(like, dtype, classes))
                shutil.copyfileobj(source, target, 1 << 20)
        finally:
            slabs.unlink(missing_ok=True)


def read_tumor_probability(labels: Path) -> tuple[NDArray[np.float32], Grid, Path]:
    """Read the tumor's probability beside a predicted label map, in the folder ``probabilities``.

    Args:
        labels: The label map; only its name counts. A 3-D file holds the tumor's probability alone, a 4-D one those of
            background, organ and tumor.

    Returns:
        Probabilities (X, Y, Z), their grid, and their file.

    Raises:
        VolumeError: The file is missing, cannot be read, or does not hold numbers from 0 to 1.
    """
    name = labels.name.removesuffix(".gz").removesuffix(".nii")
    places = [labels.parent / PROBABILITIES / f"{name}{suffix}" for suffix in (".nii.gz", ".nii")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise VolumeError(
            f"There is no {places[0]}: predict with probabilities (--probabilities), or omit froc (--froc)."
        )
    try:
        image, grid = read_header(path, channels=True)
        stored = read_stored(path, image, also_bytes=4 if image.ndim == 3 else 2)
        if image.ndim == 4:
            stored = replace(stored, values=stored.values[..., TUMOR])
    except (VolumeError, IndexError) as error:
        raise VolumeError(
            f"{path} cannot be read ({error}): predict the case again with probabilities (--probabilities)."
        ) from error
    probability = scaled(stored)
    # Stored as whole numbers with a slope, 1 may come back as a little more.
    if probability.shape != grid.shape or not (probability.min() >= 0 and probability.max() <= 1.001):
        raise VolumeError(
            f"{path} has no probabilities from 0 to 1: predict the case again with probabilities (--probabilities)."
        )
    return probability, grid, path


def _preamble(like: Volume, dtype: np.dtype[Any], classes: int) -> bytes:
    """Return header and extensions of the scan, for probabilities."""
    header = like.header.copy()
    header.set_data_dtype(dtype)
    header.set_data_shape((*like.grid.shape, classes))
    header.set_slope_inter(1 / _ONE, 0)
    header["cal_min"], header["cal_max"] = 0, 1
    header["vox_offset"] = 0  # computed as it is written
    stream = io.BytesIO()
    header.write_to(stream)
    return stream.getvalue().ljust(int(header["vox_offset"]), b"\0")
