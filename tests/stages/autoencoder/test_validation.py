"""Validation of stage 1 on whole scans: what is measured, over which scans, and what is drawn."""

import math
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from difftumor.models.artifact import load_artifact
from difftumor.models.artifact_config import read_config
from difftumor.models.autoencoder import Autoencoder
from difftumor.reporting.pictures import three_planes
from difftumor.scans.intensity import IntensityWindow
from difftumor.seeding import torch_generator
from stages.autoencoder.data import WholeScan
from stages.autoencoder.pictures import ScanPictures, labeled_center
from stages.autoencoder.train import build
from stages.autoencoder.validation import ScanMetrics, ScanValidation
from stages.run.run import run_stage
from tests.stages.builds import KINDS

CROP = (16, 16, 16)


def drawing(every, *cases):
    return ScanPictures(cases, every_n_epochs=every, window=IntensityWindow(), crop=CROP, spacing_mm=(1, 1, 1))


def validation():
    return ScanValidation(
        overlap=0.25,
        codes=16,
        window=IntensityWindow(),
        crop=CROP,
        windows_per_batch=2,
        pictures=drawing(0),
    )


def last_convolution(autoencoder):
    return [module for module in autoencoder.decoder.modules() if isinstance(module, torch.nn.Conv3d)][-1]


def make_constant(autoencoder, signed):
    """Let a reconstruction be one value, whatever the autoencoder sees."""
    with torch.no_grad():
        last_convolution(autoencoder).weight.zero_()
        last_convolution(autoencoder).bias.fill_(signed)
    return autoencoder


def constant_autoencoder(signed):
    return make_constant(Autoencoder(base_channels=2, norm_groups=2, codes=16), signed)


def scan(*, labelled=True, shape=(24, 20, 18), case="a"):
    """Everything at 37.5 HU, the middle of the window, and a labelled box 20 HU above it."""
    ct, labels = torch.full(shape, 37.5), torch.zeros(shape, dtype=torch.uint8)
    if labelled:
        labels[2:8, 4:10, 6:12] = 3
        ct[labels > 0] += 20
    return WholeScan(case, ct, labels)


def test_a_scan_is_measured_whole():
    values, counts, reconstruction = validation().measure(constant_autoencoder(0.0), scan())
    inside, total = 6**3, 24 * 20 * 18
    mse = 20**2 * inside / total
    assert values["psnr"] == pytest.approx(10 * math.log10(425**2 / mse), abs=1e-3)
    assert values["mae_hu"] == pytest.approx(20 * inside / total, rel=1e-4)
    assert values["l1"] == pytest.approx(20 / 212.5 * inside / total, rel=1e-4)
    assert values["organ_mae_hu"] == pytest.approx(20, rel=1e-5)
    assert values["organ_bias_hu"] == pytest.approx(-20, rel=1e-5)
    assert reconstruction.shape == (24, 20, 18)
    # Two windows along each axis of 24, 20 and 18 voxels, each of 4³ latent vectors.
    assert counts.sum() == 2**3 * 4**3


def test_windows_overlap_as_the_option_says():
    """Windows of 16 voxels, 12 apart, cover 32 voxels in three; without overlap, two would do."""
    _, counts, _ = validation().measure(constant_autoencoder(0.0), scan(shape=(32, 16, 16)))
    assert counts.sum() == 3 * 4**3


def test_a_scan_without_labels_has_no_organ():
    values, _, _ = validation().measure(constant_autoencoder(0.0), scan(labelled=False))
    assert not [name for name in values if name.startswith("organ")]


def test_means_are_over_the_scans_that_have_a_value():
    metrics = ScanMetrics(codes=4)
    metrics.update({"psnr": 30.0, "organ_mae_hu": 7.0}, torch.tensor([3, 0, 0, 1]))
    metrics.update({"psnr": 33.0}, torch.tensor([1, 4, 0, 3]))
    metrics.update({"psnr": 36.0}, torch.tensor([0, 0, 0, 0]))
    metrics.update({}, None)
    # 4, 4 and 4 of 12 vectors took the first, second and last code.
    expected = {"psnr": 33.0, "organ_mae_hu": 7.0, "perplexity": 3.0, "codes_used": 3.0}
    assert metrics.compute() == pytest.approx(expected)


def test_a_scan_that_is_no_number_is_not_left_out_of_the_mean():
    metrics = ScanMetrics(codes=4)
    metrics.update({"psnr": math.nan}, torch.ones(4, dtype=torch.int64))
    metrics.update({"psnr": 30.0}, torch.ones(4, dtype=torch.int64))
    assert math.isnan(metrics.compute()["psnr"])


def test_states_stay_out_of_checkpoints():
    assert not validation().state_dict()


def drawn_epochs(*, every, interval, epochs):
    """Epochs, from 1, that are validated and drawn."""
    pictures = drawing(every, "a")
    found = []
    for epoch in range(1, epochs + 1):
        trainer = SimpleNamespace(current_epoch=epoch - 1, max_epochs=epochs, check_val_every_n_epoch=interval)
        if (epoch % interval == 0 or epoch == epochs) and pictures.due(trainer):
            found.append(epoch)
    return found


@pytest.mark.parametrize(
    ("every", "interval", "expected"),
    [
        (4, 1, [4, 8, 11]),
        (10, 10, [10, 11]),
        (4, 3, [6, 9, 11]),  # the first validations from 4 and 8 on
        (1, 5, [5, 10, 11]),
        (100, 1, [11]),
        (0, 1, []),
    ],
)
def test_pictures_come_with_the_first_validation_after_so_many_epochs_and_with_the_last(every, interval, expected):
    assert drawn_epochs(every=every, interval=interval, epochs=11) == expected


def test_the_picture_is_around_what_is_labelled():
    labels = torch.zeros(30, 20, 10, dtype=torch.uint8)
    assert labeled_center(labels) == (15, 10, 5)
    labels[20:25, 3:4, 0:3] = 2
    labels[20:25, 5:6, 0:3] = 1
    assert labeled_center(labels) == (22, 4, 1)


def test_a_picture_shows_where_the_reconstruction_is_too_bright(tmp_path, monkeypatch):
    """The voxel at the center of what is labelled, which is 20 HU above the rest, shown at the center of the crop."""
    shown = {}

    def capture(panels, *, center, **options):
        shown.update({panel.title: panel.image[tuple(center)] for panel in panels})
        return three_planes(panels, center=center, **options)

    monkeypatch.setattr("difftumor.reporting.pictures.three_planes", capture)
    ct = torch.full((40, 40, 40), 37.5)
    labels = torch.zeros(40, 40, 40, dtype=torch.uint8)
    labels[30, 28, 27], ct[30, 28, 27] = 1, 57.5
    module = SimpleNamespace(trainer=SimpleNamespace(default_root_dir=str(tmp_path)), steps_done=40)
    drawing(1, "a").plot(WholeScan("a", ct, labels), torch.full_like(ct, 60.0), module=module, psnr_db=30.0)
    assert shown == {"CT": 57.5, "Reconstruction": 60.0, "Reconstruction − CT": 2.5}


def test_pictures_of_cases_that_would_share_a_file_name_do_not(tmp_path):
    cases = ("a/b", "a b")
    pictures = drawing(1, *cases)
    module = SimpleNamespace(trainer=SimpleNamespace(default_root_dir=str(tmp_path)), steps_done=40)
    noise = torch.randn(24, 20, 18, generator=torch_generator(0))
    for case in cases:
        pictures.plot(scan(case=case), scan().ct_hu_XYZ + noise, module=module, psnr_db=30.0)
    names = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert names == ["01_a_b_step_0000040.png", "02_a_b_step_0000040.png"]
    picture = imread(tmp_path / "pictures" / names[0])
    assert np.ptp(picture[..., :3]) > 0.9


def test_the_best_artifact_is_that_of_the_best_validation_on_whole_scans(tiny_config, tmp_path):
    """The reconstruction is one value, which comes near the scan's 37.5 HU, the middle, in the second epoch alone."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        ct = np.full((20, 18, 22), 37.5, np.float32)
        ct[0, 0, 0] = -1000
        nib.save(nib.Nifti1Image(ct, np.diag([3.0, 3.0, 3.0, 1.0])), folder / f"ct{number}.nii.gz")
    values = [0.9, 0.1, -0.2, 0.5]

    def build_moving(settings):
        stage = build(settings)
        stage.module.training_step = lambda batch, batch_idx: None
        stage.module.on_train_epoch_start = lambda: make_constant(
            stage.module.autoencoder, values[stage.module.current_epoch]
        )
        return stage

    config = tiny_config(f"data.root={folder}", "data.validation_share=0.5", "trainer.validate_every_n_epochs=1")
    artifact = run_stage(config, KINDS["autoencoder"], build_moving)
    best = load_artifact(artifact.with_name("autoencoder_best"), kind="autoencoder")
    assert best.config.training["validation_epoch"] == 2
    assert float(last_convolution(best.network).bias) == pytest.approx(0.1)
    # An error of 0.1 of a window that is 2 wide, everywhere but at one voxel of air.
    assert best.config.metrics["validation/psnr"] == pytest.approx(20 * math.log10(2 / 0.1), abs=0.1)
    assert read_config(artifact).metrics["validation/psnr"] == pytest.approx(20 * math.log10(2 / 0.5), abs=0.1)
