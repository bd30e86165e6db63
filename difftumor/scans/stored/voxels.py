"""The voxels of a NIfTI file as they are stored: read whole, checked, scaled, and turned back into stored values."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difftumor.errors import VolumeError
from difftumor.files.memory import free_memory_bytes
from difftumor.scans.grid import Array
from difftumor.scans.stored.header import DAMAGED, open_bytes, reason

# Decompressed at a time, so that what decompresses to much takes no more memory than its voxels.
_CHUNK = 1 << 20
# Bytes that may follow the voxels, as some programs fill up blocks; those of a slice are of another header.
_MOST_BEHIND = 4096
# What needs less is read without asking how much memory there is.
_SMALL_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class StoredImage:
    """A file as it is on disk, decompressed.

    Attributes:
        preamble: All bytes before the voxels: header and extensions.
        values: Stored values before scaling, in the file's shape, type and byte order; read-only.
        slope: Factor from stored values to the file's unit.
        inter: Offset from stored values to the file's unit.
    """

    preamble: bytes
    values: Array
    slope: float
    inter: float


def read_stored(path: Path, image: Any, *, also_bytes: int = 0) -> StoredImage:
    """Read a whole file, so that the checksum of a compressed one is verified.

    Args:
        path: The file.
        image: What `read_header` returned of it.
        also_bytes: Memory per voxel that the caller takes besides.

    Raises:
        VolumeError: It is damaged, shorter or longer than its header states, or needs more memory than there is.
    """
    proxy = image.dataobj
    voxels = math.prod(map(int, proxy.shape))
    _check_memory(path, voxels * proxy.dtype.itemsize, voxels * also_bytes)
    buffer = np.empty(voxels * proxy.dtype.itemsize, np.uint8)
    view, filled = buffer.data, 0
    most_behind = min(_MOST_BEHIND, math.prod(map(int, proxy.shape[:2])) * proxy.dtype.itemsize - 1)
    try:
        with open_bytes(path) as stream:
            preamble = stream.read(proxy.offset)
            while filled < buffer.size and (count := stream.readinto(view[filled : filled + _CHUNK])):  # type: ignore[attr-defined]
                filled += count
            # To the end, where the checksum is.
            behind = len(stream.read(most_behind + 1)) if filled == buffer.size else 0
    except DAMAGED as error:
        raise VolumeError(f"{path} is damaged ({reason(error)}); copy it again from its source.") from error
    if filled < buffer.size:
        raise VolumeError(f"{path} is truncated ({filled} of {buffer.size} voxel bytes); copy it again.")
    if behind > most_behind:
        raise VolumeError(
            f"{path} holds more voxels than its header states (dim, datatype, vox_offset); convert it again."
        )
    values = buffer.view(proxy.dtype).reshape(proxy.shape, order="F")
    values.flags.writeable = False
    return StoredImage(preamble, values, float(proxy.slope), float(proxy.inter))


def _check_memory(path: Path, stored: int, also: int) -> None:
    if stored + also < _SMALL_BYTES or stored + also <= (free := free_memory_bytes()):
        return
    raise VolumeError(
        f"{path} needs {(stored + also) / 2**30:.1f} GiB of memory, of which {free / 2**30:.1f} GiB are free; crop it, "
        "or give the job more memory."
    )


def scaled(stored: StoredImage) -> NDArray[np.float32]:
    """Apply slope and intercept, in float64 for precision but slab by slab for memory."""
    data = np.empty(stored.values.shape, np.float32, order="F")
    for slab in range(stored.values.shape[2]):
        values = stored.values[:, :, slab]
        if stored.slope != 1 or stored.inter != 0:
            values = values.astype(np.float64) * stored.slope + stored.inter
        data[:, :, slab] = values
    return data


def stored_values(hu: NDArray[Any], stored: StoredImage) -> NDArray[np.float64]:
    """Return what stands for HU in a file, rounded and clipped where its type has whole numbers."""
    values: NDArray[np.float64] = (hu.astype(np.float64) - stored.inter) / stored.slope
    if np.issubdtype(stored.values.dtype, np.integer):
        limits = np.iinfo(stored.values.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values
