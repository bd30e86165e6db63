"""Probabilities as a file: read back as they are, in little memory."""

import tracemalloc

import numpy as np
import pytest

from difftumor.segmentation.probability_file import PROBABILITIES, read_tumor_probability
from tests.nifti import write_nifti

SHAPE = (40, 30, 50)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_reading_takes_what_is_stored_and_what_is_returned(tmp_path, channels):
    stored = np.random.default_rng(0).integers(0, 65536, (*SHAPE, *channels), np.uint16)
    file = write_nifti(tmp_path / PROBABILITIES / "a.nii", stored, np.eye(4), slope=1 / 65535)
    read_tumor_probability(tmp_path / "a.nii.gz")  # what is loaded once does not count
    tracemalloc.start()
    found, _, path = read_tumor_probability(tmp_path / "a.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path == file
    expected = stored[..., 2] if channels else stored
    np.testing.assert_array_equal(found, (expected * np.float64(np.float32(1 / 65535))).astype(np.float32))
    # Four bytes per voxel are returned; a slab is in float64, twice.
    assert peak < stored.nbytes + 4 * np.prod(SHAPE) * 1.15 + 2**16
