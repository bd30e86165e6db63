"""Small NIfTI files for tests."""

from pathlib import Path

import nibabel as nib
import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_nifti(path, data, affine=None, *, slope=None, inter=0.0, endianness="<", codes=(2, 1), cls=nib.Nifti1Image):
    """Write stored values, with a slope and intercept that apply when they are read."""
    header = cls.header_class(endianness=endianness)
    header.set_data_dtype(data.dtype)
    header["descrip"] = b"made for a test"
    image = cls(data, np.eye(4) if affine is None else affine, header)
    image.set_sform(image.affine, codes[0])
    image.set_qform(image.affine, codes[1])
    if slope is not None:
        # Set last: nibabel then writes the stored values as they are.
        image.header.set_slope_inter(slope, inter)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


def ct_values(shape=(5, 6, 4), dtype=np.int16, seed=0):
    """Stored values that look like a CT in HU."""
    values = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(dtype)
    values.flat[0] = -1000
    return values


def voxels(path):
    """Return the values that a file holds."""
    return np.asarray(nib.load(path).dataobj)
