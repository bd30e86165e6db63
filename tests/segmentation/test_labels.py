"""A segmenter as a function remembers windows, and gives what it gives without memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from difftumor.models.artifact import load_artifact
from difftumor.scans.nifti import read_ct
from difftumor.segmentation.inference import predict_volume
from difftumor.segmentation.labels import LabelPredictor, seen_around_mm
from difftumor.segmentation.options import PredictionOptions
from tests.segmentation.makers import make_segmenter, scan


class Counting(nn.Module):
    """Counts the windows that a network is given."""

    def __init__(self, network):
        super().__init__()
        self.network, self.windows = network, 0

    def forward(self, windows):
        self.windows += len(windows)
        return self.network(windows)


@pytest.fixture
def artifact(tmp_path):
    loaded = load_artifact(make_segmenter(tmp_path / "segmenter", spacing_mm=1.0, crop=8))
    return replace(loaded, network=Counting(loaded.network))


@pytest.fixture
def ct(tmp_path):
    return read_ct(scan(tmp_path / "a.nii.gz"))


OPTIONS = PredictionOptions(overlap=0.25)


@pytest.mark.parametrize("together", [1, 3])
def test_a_small_change_takes_few_windows_and_changes_no_label(artifact, ct, together):
    predict = LabelPredictor([artifact], OPTIONS, windows_per_batch=together)
    first = predict(ct)
    np.testing.assert_array_equal(first, predict_volume(ct, [artifact], OPTIONS).labels)
    everything = artifact.network.windows // 2
    changed = ct.data.copy()
    changed[10:12, 8:10, 6:8] -= 100
    other = replace(ct, data=changed)
    before = artifact.network.windows
    found = predict(other)
    assert 0 < artifact.network.windows - before < everything / 4
    expected = predict_volume(other, [artifact], OPTIONS).labels
    np.testing.assert_array_equal(found, expected)
    assert (found != first).any()
    # Only the first is remembered.
    before = artifact.network.windows
    np.testing.assert_array_equal(predict(ct), first)
    assert artifact.network.windows == before


def test_another_file_is_another_scan(artifact, ct, tmp_path):
    predict = LabelPredictor([artifact], OPTIONS)
    predict(ct)
    once = artifact.network.windows  # fewer than there are: those that hold air alone are all the same
    other = read_ct(scan(tmp_path / "b.nii.gz", seed=1))
    np.testing.assert_array_equal(predict(other), predict_volume(other, [artifact], OPTIONS).labels)
    before = artifact.network.windows
    predict(ct)
    assert artifact.network.windows - before == once


def test_memory_is_bounded(artifact, ct):
    window = 3 * 8**3 * 4  # logits of three classes, float32
    predict = LabelPredictor([artifact], OPTIONS, memory_bytes=5 * window + 1)
    predict(ct)
    everything = artifact.network.windows
    predict(ct)
    assert artifact.network.windows == 2 * everything - 5


def test_how_far_segmenters_see(artifact, tmp_path):
    assert seen_around_mm([artifact]) == 8
    other = load_artifact(make_segmenter(tmp_path / "other", spacing_mm=1.0, crop=16))
    assert seen_around_mm([artifact, other]) == 16
    scaled = {**artifact.config.preprocessing, "normalization": "zscore"}
    whole = replace(artifact, config=replace(artifact.config, preprocessing=scaled))
    assert seen_around_mm([whole]) is None


def test_the_network_stays_in_its_mode(artifact, ct):
    artifact.network.train()
    LabelPredictor([artifact], OPTIONS)(ct)
    assert artifact.network.training
    assert not torch.is_inference_mode_enabled()
