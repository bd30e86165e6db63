"""Prediction comes back on the grid of the CT, whatever its orientation, and the organ filter drops what is far."""

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from difftumor.artifact_config import ArtifactConfig
from difftumor.artifacts import Artifact
from difftumor.errors import ArtifactError, ConfigError
from difftumor.inference import keep_inside_organ, predict_probabilities, predict_volume
from difftumor.volume import Volume, read_ct

PREPROCESSING = {"spacing_mm": [1.0, 1.0, 1.0], "window_hu": [-175.0, 250.0], "crop": [16, 16, 16]}


class Threshold(nn.Module):
    """A network whose right answer is known: tumor above 0.8, organ above 0.4, else background."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(40.0))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, unit: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(unit.shape))
        logits = [0.4 - unit, (unit - 0.4).minimum(0.8 - unit), unit - 0.8]
        return self.scale * torch.cat(logits, dim=1)


class Corner(nn.Module):
    """Finds organ in all of the window and tumor in its right anterior superior eighth, wherever the patient lies."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(40.0))

    def forward(self, unit: torch.Tensor) -> torch.Tensor:
        tumor = torch.zeros_like(unit)
        x, y, z = (size // 2 for size in unit.shape[2:])
        tumor[:, :, x:, y:, z:] = 1
        return self.scale * torch.cat([-torch.ones_like(unit), 1 - tumor, tumor], dim=1)


def segmenter(network: nn.Module) -> Artifact:
    config = ArtifactConfig("segmenter", {"name": "unet"}, PREPROCESSING, weights_sha256="")
    return Artifact(Path("segmenter"), config, network)


def write_scan(path: Path, axcodes: str, spacing_mm: tuple[float, float, float]) -> Volume:
    """Store in another orientation a scan with an organ and, towards right, anterior and superior, a tumor."""
    ct = np.full((30, 24, 20), -175, np.int16)
    ct[4:26, 4:20, 4:16] = 80
    ct[16:24, 12:18, 9:14] = 245
    image = nibabel.Nifti1Image(ct, np.diag([*spacing_mm, 1.0]))
    orientation = nibabel.orientations.axcodes2ornt(axcodes)
    nibabel.save(image.as_reoriented(nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], orientation)), path)
    return read_ct(path)


def expected(ct: Volume) -> np.ndarray:
    return np.select([ct.data > 165, ct.data > -5], [2, 1], 0).astype(np.uint8)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR", "AIL"])
def test_labels_come_back_on_the_native_grid(tmp_path, axcodes):
    ct = write_scan(tmp_path / "ct.nii.gz", axcodes, (1.0, 1.0, 1.0))
    before = ct.data.copy()
    labels = predict_volume(ct, segmenter(Threshold()), overlap=0.5)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected(ct))
    np.testing.assert_array_equal(ct.data, before)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR", "AIL"])
def test_networks_see_the_patient_from_right_anterior_superior(tmp_path, axcodes):
    ct = write_scan(tmp_path / "ct.nii.gz", axcodes, (1.0, 1.0, 1.0))
    labels = predict_volume(ct, segmenter(Corner()), roi=(32, 32, 32))
    voxels = np.moveaxis(np.indices(ct.grid.shape), 0, -1)
    right, anterior, superior = np.moveaxis(nibabel.affines.apply_affine(ct.grid.affine, voxels), -1, 0)
    # The middle of 30 x 24 x 20 voxels of 1 mm, of which the first lies at 0.
    np.testing.assert_array_equal(labels == 2, (right >= 15) & (anterior >= 12) & (superior >= 10))


def test_labels_of_an_oblique_scan_lie_where_its_voxels_lie(tmp_path):
    straight = nibabel.load(write_scan(tmp_path / "straight.nii.gz", "LPS", (1.0, 1.0, 1.0)).path)
    tilt = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.3, -0.2, 0.15), [5.0, -7.0, 11.0])
    nibabel.save(nibabel.Nifti1Image(straight.get_fdata(), tilt @ straight.affine), tmp_path / "oblique.nii.gz")
    ct = read_ct(tmp_path / "oblique.nii.gz")
    np.testing.assert_array_equal(predict_volume(ct, segmenter(Threshold()), overlap=0.25), expected(ct))


def test_other_spacings_agree_up_to_the_borders(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "LPS", (1.3, 1.3, 2.0))
    labels = predict_volume(ct, segmenter(Threshold()), overlap=0.25)
    assert labels.shape == ct.grid.shape
    assert (labels != expected(ct)).mean() < 0.05
    assert (labels == 2).sum() == pytest.approx((expected(ct) == 2).sum(), rel=0.3)


def test_windows_have_the_crop_of_the_artifact_and_small_scans_are_padded():
    network = Threshold()
    unit = torch.rand(1, 1, 9, 20, 16, generator=torch.Generator().manual_seed(0))
    probabilities = predict_probabilities(network, unit, roi=(16, 16, 16), overlap=0.5, windows_per_batch=2)
    assert probabilities.shape == (1, 3, 9, 20, 16)
    assert {shape[2:] for shape in network.shapes} == {(16, 16, 16)}
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 9, 20, 16))
    # A pointwise network gives the same in every window, so the blend of windows is what it gives for the whole.
    torch.testing.assert_close(probabilities, network(unit).softmax(1), rtol=1e-4, atol=1e-5)


class Numbered(Threshold):
    """Says organ in all of its first window and tumor in all of its second."""

    def forward(self, unit: torch.Tensor) -> torch.Tensor:
        logits = super().forward(unit).zero_()
        logits[:, len(self.shapes)] = 40
        return logits


def test_windows_count_most_where_their_middle_is():
    probabilities = predict_probabilities(Numbered(), torch.zeros(1, 1, 24, 16, 16), roi=(16, 16, 16), overlap=0.5)
    # The windows begin at 0 and 8 and have their middles at 8 and 16; their corners weigh next to nothing.
    assert (probabilities[0, 1, :12, 8, 8] > 0.9).all()
    assert (probabilities[0, 2, 12:, 8, 8] > 0.9).all()


class Brightest(Threshold):
    """Judges the whole window by its brightest voxel."""

    def forward(self, unit: torch.Tensor) -> torch.Tensor:
        return super().forward(unit.amax().expand_as(unit))


def test_small_scans_are_padded_with_the_dark_end_of_the_window():
    probabilities = predict_probabilities(Brightest(), torch.full((1, 1, 9, 16, 16), 0.2), roi=(16, 16, 16))
    assert (probabilities[0, 0] > 0.9).all()


def test_borders_are_finer_than_the_voxels_of_model_space(tmp_path):
    """A ramp along x that crosses the organ's threshold at x = 16.5, seen by the network at x = 16 and 20 only."""
    ramp = np.broadcast_to((np.arange(30.0) + 3.5)[:, None, None] / 50, (30, 9, 9))
    nibabel.save(nibabel.Nifti1Image((ramp * 425 - 175).astype(np.float32), np.eye(4)), tmp_path / "ct.nii.gz")
    artifact = segmenter(Threshold())
    artifact.network.scale.data.fill_(10)
    coarse = dataclasses.replace(artifact.config, preprocessing={**PREPROCESSING, "spacing_mm": [4.0, 4.0, 4.0]})
    labels = predict_volume(read_ct(tmp_path / "ct.nii.gz"), dataclasses.replace(artifact, config=coarse))
    np.testing.assert_array_equal(labels, np.broadcast_to((np.arange(30) > 16.5)[:, None, None], labels.shape))


def test_prediction_leaves_no_trace_on_the_network():
    network = Threshold().train()
    unit = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    probabilities = predict_probabilities(network, unit, roi=(16, 16, 16))
    assert network.training
    assert not probabilities.requires_grad


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_bad_overlap_is_refused(overlap):
    with pytest.raises(ConfigError, match="overlap"):
        predict_probabilities(Threshold(), torch.zeros(1, 1, 16, 16, 16), roi=(16, 16, 16), overlap=overlap)


def test_organ_mask_must_fit(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "RAS", (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="empty"):
        predict_volume(ct, segmenter(Threshold()), organ_mask=np.zeros(ct.grid.shape, bool))
    with pytest.raises(ConfigError, match="shape"):
        predict_volume(ct, segmenter(Threshold()), organ_mask=np.ones((3, 3, 3), bool))


def test_a_network_that_gives_no_numbers_is_refused(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "RAS", (1.0, 1.0, 1.0))
    network = Threshold()
    network.scale.data.fill_(float("nan"))
    with pytest.raises(ArtifactError, match="no numbers"):
        predict_volume(ct, segmenter(network), overlap=0.25)


def test_organ_mask_filters_the_prediction(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "RAS", (1.0, 1.0, 1.0))
    mask = np.zeros(ct.grid.shape, bool)
    mask[4:14, 4:20, 4:16] = True  # the tumor begins at x = 16, so it may reach to x = 15 + 3
    labels = predict_volume(ct, segmenter(Threshold()), organ_mask=mask, closing_mm=0, dilation_mm=5, overlap=0.25)
    found = np.argwhere(labels == 2)
    assert found[:, 0].min() == 16
    assert found[:, 0].max() == 18
    np.testing.assert_array_equal(labels == 1, expected(ct) == 1)


def test_filter_measures_in_millimeters():
    labels = np.full((21, 21, 21), 2, np.uint8)
    organ = np.zeros(labels.shape, bool)
    organ[10, 10, 10] = True
    kept = keep_inside_organ(labels, organ, spacing_mm=(1.0, 2.0, 5.0), closing_mm=0, dilation_mm=5.0) == 2
    reach = [int((np.argwhere(kept)[:, axis] - 10).max()) for axis in range(3)]
    assert reach == [5, 2, 1]
    x, y, z = np.indices(labels.shape) - 10
    np.testing.assert_array_equal(kept, x**2 + (2 * y) ** 2 + (5 * z) ** 2 <= 25)


def test_closing_fills_a_hole_where_the_tumor_was_left_out():
    x, y, z = np.indices((31, 31, 31)) - 15
    organ = (np.abs(x) <= 12) & (np.abs(y) <= 12) & (np.abs(z) <= 12)
    tumor = x**2 + y**2 + z**2 <= 36
    labels = np.where(tumor, 2, organ).astype(np.uint8)
    mask = organ & ~tumor
    kept = {
        closing_mm: keep_inside_organ(labels, mask, spacing_mm=(1, 1, 1), closing_mm=closing_mm, dilation_mm=0) == 2
        for closing_mm in (0.0, 8.0)
    }
    assert not kept[0.0].any()
    np.testing.assert_array_equal(kept[8.0], tumor)


def test_organs_at_the_border_are_not_eroded_by_closing():
    organ = np.ones((6, 6, 6), bool)
    organ[3:, 3:, 3:] = False
    labels = np.where(organ, 2, 0).astype(np.uint8)
    np.testing.assert_array_equal(
        keep_inside_organ(labels, organ, spacing_mm=(1, 1, 1), closing_mm=2, dilation_mm=0), labels
    )


def test_filter_without_organ_drops_all_tumor_and_keeps_its_input():
    labels = np.array([[[0, 1, 2]]], np.uint8)
    copy = labels.copy()
    kept = keep_inside_organ(labels, np.zeros(labels.shape, bool), spacing_mm=(1, 1, 1))
    np.testing.assert_array_equal(kept, [[[0, 1, 0]]])
    np.testing.assert_array_equal(labels, copy)
    with pytest.raises(ValueError, match="differ in shape"):
        keep_inside_organ(labels, np.zeros((2, 2, 2)), spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match="negative"):
        keep_inside_organ(labels, labels, spacing_mm=(1, 1, 1), closing_mm=-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_scan_on_the_cpu_meets_a_network_on_the_gpu():
    unit = torch.rand(1, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    on_cpu = predict_probabilities(Threshold(), unit, roi=(16, 16, 16))
    on_gpu = predict_probabilities(Threshold().to("cuda"), unit, roi=(16, 16, 16))
    assert on_gpu.device.type == "cpu"
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)
