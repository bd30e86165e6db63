"""What a predicted label map says."""

import json

import numpy as np
import pytest

from difftumor.scans.grid import Grid
from difftumor.segmentation.cases import prediction_record


def test_prediction_record_lists_the_largest_lesion_first():
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[2:14, 2:14, 2:14] = 1
    labels[3:5, 4:6, 4:6] = 2
    labels[8:12, 8:12, 8:12] = 2
    record = prediction_record(labels, Grid(labels.shape, np.diag([1.0, 1.0, 2.0, 1.0])))
    assert record["organ_mm3"] == pytest.approx(12**3 * 2)
    assert record["tumor_mm3"] == pytest.approx((64 + 8) * 2)
    assert [lesion["voxels"] for lesion in record["lesions"]] == [64, 8]
    assert record["lesions"][0]["center_mm"] == pytest.approx([9.5, 9.5, 19.0])
    json.dumps(record)


def test_noise_is_described_too():
    """A poor segmenter must not stop a folder of scans; 41³ single voxels are more than uint16 can number."""
    labels = np.zeros((82, 82, 82), np.uint8)
    labels[::2, ::2, ::2] = 2
    record = prediction_record(labels, Grid(labels.shape, np.eye(4)))
    assert len(record["lesions"]) == 41**3
    assert record["tumor_mm3"] == pytest.approx(41**3)
