"""Lesions of hand-made label maps, and which of them are early."""

import math

import numpy as np
import pytest
from scipy import ndimage

from difftumor.scans.grid import Grid
from difftumor.scans.lesions import EARLY_DIAMETER_MM, SIZE_GROUPS, SizeRule, find_lesions, size_group

ISOTROPIC = (1.0, 1.0, 1.0)


def ball(shape, center, radius_mm):
    squared = sum((axis - c) ** 2 for axis, c in zip(np.indices(shape).astype(float), center, strict=True))
    return squared <= radius_mm**2


def lesions_of(tumor, spacing_mm=ISOTROPIC):
    return find_lesions(tumor, Grid(tumor.shape, np.diag([*spacing_mm, 1.0])))


def groups(tumor, spacing_mm=ISOTROPIC, **rule):
    return [SizeRule(**rule).group(lesion) for lesion in lesions_of(tumor, spacing_mm).lesions]


def test_early_is_below_two_centimeters():
    assert EARLY_DIAMETER_MM == 20
    assert [size_group(mm) for mm in (1, math.nextafter(20, 0), 20, 21)] == ["early", "early", "late", "late"]
    assert [size_group(mm, includes_limit=True) for mm in (20, math.nextafter(20, 30))] == ["early", "late"]
    assert [size_group(mm, early_diameter_mm=10) for mm in (9, 10)] == ["early", "late"]
    assert {size_group(1), size_group(99)} == set(SIZE_GROUPS)


def test_no_tumor_no_lesion():
    found = lesions_of(np.zeros((4, 5, 6), bool))
    assert found.lesions == ()
    assert found.indices.shape == (4, 5, 6)
    assert not found.indices.any()


def test_balls_on_either_side_of_ten_millimeters():
    shape = (64, 32, 32)
    tumor = ball(shape, (16, 16, 16), 9.5) | ball(shape, (46, 16, 16), 11.0)
    found = lesions_of(tumor)
    assert groups(tumor) == ["early", "late"]
    assert [found.middle_voxel(lesion) for lesion in found.lesions] == [(16, 16, 16), (46, 16, 16)]
    assert found.lesions[0].radius_mm == pytest.approx(9.5, abs=0.2)
    assert [lesion.index for lesion in SizeRule().choose(found, "late")] == [2]


def test_a_lesion_of_exactly_the_limit_is_early_only_if_the_rule_includes_it():
    cube = np.zeros((6, 6, 6), bool)
    cube[1:5, 1:5, 1:5] = True
    radius_mm = (3 * 64 / (4 * math.pi)) ** (1 / 3)
    assert groups(cube, early_radius_mm=radius_mm) == ["late"]
    assert groups(cube, early_radius_mm=radius_mm, early_includes_limit=True) == ["early"]
    assert groups(cube, early_radius_mm=radius_mm + 1e-6) == ["early"]
    assert groups(cube, early_radius_mm=radius_mm - 1e-6, early_includes_limit=True) == ["late"]


@pytest.mark.parametrize(("voxels", "group"), [(7, None), (8, "early")])
def test_stray_voxels_belong_to_no_group(voxels, group):
    row = np.zeros((10, 3, 3), bool)
    row[:voxels, 1, 1] = True
    assert groups(row) == [group]


def test_corner_contact_joins_but_a_gap_parts():
    joined, parted = np.zeros((2, 8, 8, 8), bool)
    joined[0:2, 0:2, 0:2] = joined[2:4, 2:4, 2:4] = True
    parted[0:2, 0:2, 0:2] = parted[3:5, 3:5, 3:5] = True
    assert [len(lesions_of(tumor).lesions) for tumor in (joined, parted)] == [1, 2]


def test_anisotropic_spacing_decides():
    # The same voxels: 9.5 mm at 1 mm, but three times the volume and 13.7 mm with slices 3 mm apart.
    tumor = ball((24, 24, 24), (12, 12, 12), 9.5)
    assert groups(tumor) == ["early"]
    assert groups(tumor, (1.0, 1.0, 3.0)) == ["late"]


def test_lesions_that_are_not_kept_count_as_organ():
    shape = (64, 32, 32)
    early, late = ball(shape, (16, 16, 16), 6.0), ball(shape, (46, 16, 16), 12.0)
    labels = np.ones(shape, np.uint8)
    labels[early | late] = 2
    labels[0, 0, 0], labels[1, 1, 31] = 2, 0
    before = labels.copy()
    found = lesions_of(labels == 2)
    chosen = [[lesion.index for lesion in SizeRule().choose(found, group)] for group in SIZE_GROUPS]
    for indices, tumor in zip(chosen, (early, late), strict=True):
        kept = found.keep(indices, labels)
        assert np.array_equal(kept == 2, tumor)
        assert kept[0, 0, 0] == 1
        assert np.array_equal(kept == 0, before == 0)
        assert kept.dtype == np.uint8
    assert np.array_equal(labels, before)
    assert not (found.keep((), labels) == 2).any()
    assert np.array_equal(found.keep(range(1, 4), labels), labels)


def test_the_middle_voxel_lies_in_the_lesion():
    tumor = np.zeros((9, 9, 3), bool)
    tumor[:, 0], tumor[:, 8], tumor[0] = True, True, True  # a U, whose centroid is outside
    found = lesions_of(tumor)
    assert tumor[found.middle_voxel(found.lesions[0])]


def test_places_are_those_of_the_patient():
    tumor = np.zeros((6, 5, 4), bool)
    tumor[1:4, 1:4, 1:4] = True
    affine = np.array([[-2.0, 0, 0, 50], [0, 0, 3.0, -20], [0, 1.5, 0, 7], [0, 0, 0, 1]])
    found = find_lesions(tumor, Grid((6, 5, 4), affine))
    (lesion,) = found.lesions
    assert found.middle_voxel(lesion) == (2, 2, 2)
    assert found.grid.position_mm((2, 2, 2)) == lesion.center_mm == (46.0, -14.0, 10.0)
    assert (lesion.voxels, lesion.volume_mm3) == (27, pytest.approx(27 * 9))


def test_components_agree_with_scipy():
    tumor = np.random.default_rng(0).random((20, 20, 20)) > 0.93
    theirs, count = ndimage.label(tumor, structure=np.ones((3, 3, 3)))
    ours = lesions_of(tumor).lesions
    assert len(ours) == count
    assert sorted(lesion.voxels for lesion in ours) == sorted(np.bincount(theirs.ravel())[1:].tolist())
