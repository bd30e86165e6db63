"""Early and late lesions of hand-made label maps."""

import math

import numpy as np
import pytest
from scipy import ndimage

from difftumor.datasets.tumor_stages import center_mm, keep_lesions, split_tumors
from difftumor.errors import ConfigError
from difftumor.scans.grid import Grid

ISOTROPIC = (1.0, 1.0, 1.0)


def ball(shape, center, radius_mm, spacing_mm=ISOTROPIC):
    axes = np.indices(shape).astype(float)
    squared = sum(((axis - c) * s) ** 2 for axis, c, s in zip(axes, center, spacing_mm, strict=True))
    return squared <= radius_mm**2


def labels_with(*tumors):
    labels = np.ones(tumors[0].shape, dtype=np.uint8)
    for tumor in tumors:
        labels[tumor] = 2
    return labels


def test_no_tumor_no_lesion():
    split = split_tumors(np.ones((4, 5, 6), dtype=np.uint8), ISOTROPIC)
    assert split.found == ()
    assert split.lesions.shape == (4, 5, 6)
    assert not split.lesions.any()


def test_balls_on_either_side_of_ten_millimeters():
    shape = (64, 32, 32)
    split = split_tumors(labels_with(ball(shape, (16, 16, 16), 9.5), ball(shape, (46, 16, 16), 11.0)), ISOTROPIC)
    assert [lesion.stage for lesion in split.found] == ["early", "late"]
    assert [lesion.center for lesion in split.found] == [(16, 16, 16), (46, 16, 16)]
    assert split.found[0].radius_mm == pytest.approx(9.5, abs=0.2)


def test_threshold_is_inclusive():
    labels = np.zeros((6, 6, 6), dtype=np.uint8)
    labels[1:5, 1:5, 1:5] = 2
    radius_mm = (3 * 64 / (4 * math.pi)) ** (1 / 3)
    assert split_tumors(labels, ISOTROPIC, early_radius_mm=radius_mm).found[0].stage == "early"
    assert split_tumors(labels, ISOTROPIC, early_radius_mm=radius_mm - 1e-6).found[0].stage == "late"


@pytest.mark.parametrize(("voxels", "stage"), [(7, None), (8, "early")])
def test_stray_voxels_are_no_lesion(voxels, stage):
    labels = np.ones((10, 3, 3), dtype=np.uint8)
    labels[:voxels, 1, 1] = 2
    (lesion,) = split_tumors(labels, ISOTROPIC).found
    assert (lesion.voxels, lesion.stage) == (voxels, stage)


def test_corner_contact_joins_but_a_gap_parts():
    joined = np.zeros((8, 8, 8), dtype=np.uint8)
    joined[0:2, 0:2, 0:2] = joined[2:4, 2:4, 2:4] = 2
    assert len(split_tumors(joined, ISOTROPIC).found) == 1
    parted = np.zeros((8, 8, 8), dtype=np.uint8)
    parted[0:2, 0:2, 0:2] = parted[3:5, 3:5, 3:5] = 2
    assert len(split_tumors(parted, ISOTROPIC).found) == 2


def test_anisotropic_spacing_decides():
    # The same voxels: 9.5 mm at 1 mm, but three times the volume and 13.7 mm with slices 3 mm apart.
    labels = labels_with(ball((24, 24, 24), (12, 12, 12), 9.5))
    assert split_tumors(labels, ISOTROPIC).found[0].stage == "early"
    assert split_tumors(labels, (1.0, 1.0, 3.0)).found[0].stage == "late"


def test_keeping_a_stage_makes_the_others_organ():
    shape = (64, 32, 32)
    early, late = ball(shape, (16, 16, 16), 6.0), ball(shape, (46, 16, 16), 12.0)
    labels = labels_with(early, late)
    labels[0, 0, 0] = 2
    labels[1, 1, 31] = 0
    before = labels.copy()
    split = split_tumors(labels, ISOTROPIC)
    kept_early, kept_late = (keep_lesions(labels, split, split.of_stage(stage)) for stage in ("early", "late"))
    assert np.array_equal(labels, before)
    assert np.array_equal(kept_early == 2, early)
    assert np.array_equal(kept_late == 2, late)
    for kept in (kept_early, kept_late):
        assert kept[0, 0, 0] == 1
        assert np.array_equal(kept == 0, before == 0)
        assert kept.dtype == np.uint8


def test_center_lies_in_the_lesion():
    labels = np.zeros((9, 9, 3), dtype=np.uint8)
    labels[:, 0], labels[:, 8], labels[0] = 2, 2, 2  # a U, whose centroid is outside
    (lesion,) = split_tumors(labels, ISOTROPIC).found
    assert labels[lesion.center] == 2


def test_the_center_in_space_is_that_of_its_voxel():
    labels = np.zeros((6, 5, 4), dtype=np.uint8)
    labels[1:4, 1:4, 1:4] = 2
    affine = np.array([[-2.0, 0, 0, 50], [0, 0, 3.0, -20], [0, 1.5, 0, 7], [0, 0, 0, 1]])
    (lesion,) = split_tumors(labels, (2.0, 1.5, 3.0)).found
    assert lesion.center == (2, 2, 2)
    assert center_mm(lesion, Grid((6, 5, 4), affine)) == (46.0, -14.0, 10.0)


def test_keeping_no_lesion_or_all():
    labels = labels_with(ball((12, 12, 12), (6, 6, 6), 3.0))
    split = split_tumors(labels, ISOTROPIC)
    assert not (keep_lesions(labels, split, ()) == 2).any()
    assert np.array_equal(keep_lesions(labels, split, split.found), labels)


def test_components_agree_with_scipy():
    labels = (np.random.default_rng(0).random((20, 20, 20)) > 0.93).astype(np.uint8) * 2
    ours = split_tumors(labels, ISOTROPIC)
    theirs, count = ndimage.label(labels == 2, structure=np.ones((3, 3, 3)))
    assert len(ours.found) == count
    sizes = np.bincount(theirs.ravel())[1:]
    assert sorted(lesion.voxels for lesion in ours.found) == sorted(sizes.tolist())


def test_bad_sizes_are_refused():
    labels = np.zeros((2, 2, 2), dtype=np.uint8)
    with pytest.raises(ConfigError, match="must be positive"):
        split_tumors(labels, (1.0, 0.0, 1.0))
    with pytest.raises(ConfigError, match="early_radius_mm"):
        split_tumors(labels, ISOTROPIC, early_radius_mm=-1.0)
