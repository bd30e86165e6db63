"""Prediction comes back on the grid of the CT, whatever its orientation, and slab by slab it is that of the whole."""

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from difftumor.errors import ArtifactError, ConfigError
from difftumor.models.artifact import Artifact
from difftumor.models.artifact_config import ArtifactConfig
from difftumor.scans.intensity import Normalization
from difftumor.scans.model_space import ModelSpace
from difftumor.scans.nifti import Volume, read_ct
from difftumor.segmentation.inference import check_together, predict_probabilities, predict_volume
from difftumor.segmentation.options import PredictionOptions

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


def segmenter(network: nn.Module, *, organ: str | None = None, name: str = "segmenter", **preprocessing) -> Artifact:
    config = ArtifactConfig("segmenter", {"name": "unet"}, {**PREPROCESSING, **preprocessing}, "", organ=organ)
    return Artifact(Path(name), config, network)


def predicted(ct: Volume, *artifacts: Artifact, overlap: float = 0.25, **options) -> np.ndarray:
    return predict_volume(ct, artifacts, PredictionOptions(overlap=overlap, **options)).labels


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
    labels = predicted(ct, segmenter(Threshold()), overlap=0.5)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected(ct))
    np.testing.assert_array_equal(ct.data, before)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR", "AIL"])
def test_networks_see_the_patient_from_right_anterior_superior(tmp_path, axcodes):
    ct = write_scan(tmp_path / "ct.nii.gz", axcodes, (1.0, 1.0, 1.0))
    labels = predicted(ct, segmenter(Corner(), crop=[32, 32, 32]))
    voxels = np.moveaxis(np.indices(ct.grid.shape), 0, -1)
    right, anterior, superior = np.moveaxis(nibabel.affines.apply_affine(ct.grid.affine, voxels), -1, 0)
    # The middle of 30 x 24 x 20 voxels of 1 mm, of which the first lies at 0.
    np.testing.assert_array_equal(labels == 2, (right >= 15) & (anterior >= 12) & (superior >= 10))


def test_labels_of_an_oblique_scan_lie_where_its_voxels_lie(tmp_path):
    straight = nibabel.load(write_scan(tmp_path / "straight.nii.gz", "LPS", (1.0, 1.0, 1.0)).path)
    tilt = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.3, -0.2, 0.15), [5.0, -7.0, 11.0])
    nibabel.save(nibabel.Nifti1Image(straight.get_fdata(), tilt @ straight.affine), tmp_path / "oblique.nii.gz")
    ct = read_ct(tmp_path / "oblique.nii.gz")
    np.testing.assert_array_equal(predicted(ct, segmenter(Threshold())), expected(ct))


def test_other_spacings_agree_up_to_the_borders(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "LPS", (1.3, 1.3, 2.0))
    labels = predicted(ct, segmenter(Threshold()))
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
    artifact = segmenter(Threshold(), spacing_mm=[4.0, 4.0, 4.0])
    artifact.network.scale.data.fill_(10)
    labels = predicted(read_ct(tmp_path / "ct.nii.gz"), artifact, overlap=0.75)
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


def test_small_scans_are_padded_with_what_is_asked():
    unit = torch.full((1, 1, 9, 16, 16), 0.2)
    probabilities = predict_probabilities(Brightest(), unit, roi=(16, 16, 16), padding=0.95)
    assert (probabilities[0, 2] > 0.9).all()


class Random(nn.Module):
    """A network that sees a neighborhood, so that windows disagree at their borders."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Conv3d(1, 6, 5, padding=2), nn.ReLU(), nn.Conv3d(6, 3, 5, padding=2))
        self.layers[2].weight.data *= 20

    def forward(self, scaled: torch.Tensor) -> torch.Tensor:
        return self.layers(scaled)


def whole(ct: Volume, artifact: Artifact, overlap: float) -> np.ndarray:
    """Probabilities (classes, X, Y, Z) on the native grid, with all of the scan in memory at every step."""
    preprocessing = artifact.config.preprocessing
    space = ModelSpace(ct.grid, preprocessing["spacing_mm"])
    hu = space.to_model(ct.data, kind="image")
    scale = Normalization.of(preprocessing).scale(hu)
    scaled = torch.from_numpy(scale(hu).astype(np.float32))[None, None]
    crop = preprocessing["crop"]
    probabilities = predict_probabilities(artifact.network, scaled, roi=crop, overlap=overlap, padding=scale.lowest)
    return np.stack([space.to_native(one, kind="image") for one in probabilities[0].numpy()])


def watched(ct: Volume, *artifacts: Artifact, overlap: float = 0.25, **options) -> np.ndarray:
    """Probabilities as they come slab by slab."""
    seen = np.full((3, *ct.grid.shape), np.nan, np.float32)

    def watch(box, probabilities):
        assert np.isnan(seen[(slice(None), *box.slices)]).all()
        seen[(slice(None), *box.slices)] = probabilities

    predict_volume(ct, artifacts, PredictionOptions(overlap=overlap, **options), watch=watch)
    return seen


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR", "AIL"])
@pytest.mark.parametrize("normalization", ["unit", "zscore"])
@pytest.mark.parametrize(("spacing_mm", "crop"), [((1.0, 1.0, 1.0), [16, 12, 8]), ((0.7, 1.3, 2.6), [16, 48, 16])])
def test_slab_by_slab_is_the_same_as_all_at_once(tmp_path, axcodes, normalization, spacing_mm, crop):
    ct = write_scan(tmp_path / "ct.nii.gz", axcodes, spacing_mm)
    artifact = segmenter(Random(0), normalization=normalization, crop=crop)
    at_once = whole(ct, artifact, 0.5)
    np.testing.assert_allclose(watched(ct, artifact, overlap=0.5), at_once, atol=2e-5)
    labels = predicted(ct, artifact, overlap=0.5)
    assert set(np.unique(labels)) == {0, 1, 2}  # else this tests little
    first, second = np.sort(at_once, axis=0)[:-3:-1]
    sure = first - second > 1e-4
    np.testing.assert_array_equal(labels[sure], at_once.argmax(0)[sure])


def test_tumor_probability_is_kept_where_tumor_is_likeliest(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "LPS", (1.0, 1.0, 1.0))
    artifact = segmenter(Random(0))
    prediction = predict_volume(ct, [artifact], PredictionOptions(overlap=0.25))
    tumor = prediction.labels == 2
    assert tumor.any()
    np.testing.assert_allclose(prediction.tumor_probability[tumor], watched(ct, artifact)[2][tumor], atol=5e-4)
    assert not prediction.tumor_probability[~tumor].any()


def test_segmenters_are_averaged_whatever_their_windows_and_scales(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "AIL", (1.0, 1.0, 1.0))
    artifacts = [
        segmenter(Random(0)),
        segmenter(Random(1), crop=[12, 16, 24], normalization="zscore"),
        segmenter(Random(2), crop=[32, 32, 8], window_hu=[-100, 400]),
    ]
    mean = np.mean([whole(ct, artifact, 0.25) for artifact in artifacts], axis=0)
    np.testing.assert_allclose(watched(ct, *artifacts), mean, atol=2e-5)


def test_flips_average_all_mirror_images(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "RAS", (1.0, 1.0, 1.0))
    artifact = segmenter(Corner(), crop=[32, 32, 32])
    artifact.network.scale.data.fill_(2)
    probabilities = watched(ct, artifact, flips=True)
    # In the eight mirror images each eighth of the window is the tumor's corner once.
    mean = torch.tensor([-2.0, 2 * 7 / 8, 2 / 8]).softmax(0).numpy()[:, None, None, None]
    np.testing.assert_allclose(probabilities, np.broadcast_to(mean, probabilities.shape), rtol=1e-5)
    assert (predicted(ct, artifact) == 2).any()


def test_segmenters_that_do_not_fit_together_are_named():
    liver, kidney = segmenter(Threshold(), organ="liver", name="a"), segmenter(Threshold(), organ="kidney", name="b")
    with pytest.raises(ConfigError, match=r"a and b differ in organ \(liver and kidney\)"):
        check_together([liver, kidney])
    coarse = segmenter(Threshold(), organ="liver", name="c", spacing_mm=[1.0, 1.0, 2.0])
    with pytest.raises(ConfigError, match="a and c differ in spacing_mm"):
        check_together([liver, coarse])
    config = dataclasses.replace(liver.config, architecture={"name": "unet", "classes": 2})
    with pytest.raises(ConfigError, match="differ in classes"):
        check_together([liver, dataclasses.replace(liver, config=config)])
    with pytest.raises(ConfigError, match="No segmenter"):
        check_together([])


@pytest.mark.parametrize("name", ["closing_mm", "dilation_mm", "min_volume_mm3"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_options_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        PredictionOptions(**{name: value})


def test_organ_mask_must_fit(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "RAS", (1.0, 1.0, 1.0))
    options = PredictionOptions(organ_filter="mask")
    for mask, words in (
        (np.zeros(ct.grid.shape, bool), "empty"),
        (np.ones((3, 3, 3), bool), "shape"),
        (None, "no organ"),
    ):
        with pytest.raises(ConfigError, match=words):
            predict_volume(ct, [segmenter(Threshold())], options, organ_mask=mask)


def test_a_network_that_gives_no_numbers_is_refused(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "RAS", (1.0, 1.0, 1.0))
    network = Threshold()
    network.scale.data.fill_(float("nan"))
    with pytest.raises(ArtifactError, match="broken gives no finite values"):
        predicted(ct, segmenter(Threshold()), segmenter(network, name="broken"))


def test_organ_mask_filters_the_prediction(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "RAS", (1.0, 1.0, 1.0))
    mask = np.zeros(ct.grid.shape, bool)
    mask[4:14, 4:20, 4:16] = True  # the tumor begins at x = 16, so it may reach to x = 15 + 3
    options = PredictionOptions(organ_filter="mask", closing_mm=0, dilation_mm=5, overlap=0.25)
    prediction = predict_volume(ct, [segmenter(Threshold())], options, organ_mask=mask)
    found = np.argwhere(prediction.labels == 2)
    assert found[:, 0].min() == 16
    assert found[:, 0].max() == 18
    np.testing.assert_array_equal(prediction.labels == 1, expected(ct) == 1)
    assert prediction.outside_voxels == (expected(ct) == 2).sum() - len(found)
    assert prediction.small_voxels == 0


def test_far_and_small_tumors_are_dropped_and_counted(tmp_path):
    values = np.full((60, 24, 20), -175, np.int16)
    values[4:26, 4:20, 4:16] = 80
    values[10:14, 10:14, 8:12] = 245  # 64 mm³ in the organ
    values[20, 10, 10] = 245  # 1 mm³ in the organ
    values[50:54, 10:14, 8:12] = 245  # far from it
    values[40, 10, 10] = 245  # far and small: it lies outside first of all
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "ct.nii.gz")
    ct = read_ct(tmp_path / "ct.nii.gz")
    options = PredictionOptions(overlap=0.25, organ_filter="predicted", min_volume_mm3=10)
    prediction = predict_volume(ct, [segmenter(Threshold())], options)
    truth = expected(ct)
    truth[40:] = 0
    truth[20, 10, 10] = 1
    np.testing.assert_array_equal(prediction.labels, truth)
    assert (prediction.outside_voxels, prediction.small_voxels) == (65, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_scan_on_the_cpu_meets_a_network_on_the_gpu():
    unit = torch.rand(1, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    on_cpu = predict_probabilities(Threshold(), unit, roi=(16, 16, 16))
    on_gpu = predict_probabilities(Threshold().to("cuda"), unit, roi=(16, 16, 16))
    assert on_gpu.device.type == "cpu"
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_slabs_from_the_gpu_are_those_from_the_cpu(tmp_path):
    ct = write_scan(tmp_path / "ct.nii.gz", "LPS", (0.7, 1.3, 2.6))
    on_cpu, on_gpu = (
        segmenter(Random(0), normalization="zscore"),
        segmenter(Random(0).to("cuda"), normalization="zscore"),
    )
    np.testing.assert_allclose(watched(ct, on_gpu, flips=True), watched(ct, on_cpu, flips=True), atol=2e-3)
