"""Overlap and surface scores: answers by hand on masks of two voxels, the rules for empty masks, and MONAI."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_surface_dice
from scipy.ndimage import gaussian_filter

from difftumor.errors import ConfigError
from difftumor.evaluation.overlap import dice, overlap_scores
from difftumor.evaluation.surfaces import normalized_surface_distance, surface_distances


def voxel(*where: int, shape: tuple[int, int, int] = (9, 9, 9)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[where] = 1
    return mask


def blobs(seed: int, level: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(24, 20, 16))
    return gaussian_filter(noise, 1.5) > level


def test_equal_masks_score_one():
    mask = blobs(0, 0.05)
    scores = overlap_scores(mask, mask, spacing_mm=(1, 1, 1), tolerance_mm=0)
    assert scores.dsc == scores.nsd == 1.0


def test_dice_by_hand():
    assert dice(np.array([1, 1, 0]), np.array([0, 1, 1])) == pytest.approx(0.5)
    assert dice(np.array([1, 0]), np.array([0, 1])) == 0.0
    assert dice(np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0])) == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("prediction", "truth", "score"),
    [(False, False, 1.0), (True, False, 0.0), (False, True, 0.0)],
)
def test_empty_masks_follow_the_rule(prediction, truth, score):
    masks = [voxel(4, 4, 4) if filled else np.zeros((9, 9, 9), np.uint8) for filled in (prediction, truth)]
    scores = overlap_scores(*masks, spacing_mm=(1, 1, 1))
    assert scores.dsc == scores.nsd == score


@pytest.mark.parametrize(
    ("axis", "tolerance_mm", "nsd"),
    [
        # A voxel's surface is eight equal patches. Of two voxels side by side four patches coincide, and four lie one
        # voxel from the nearest of the other.
        (0, 0.9, 0.5),
        (0, 1.0, 1.0),
        (1, 1.9, 0.5),
        (1, 2.0, 1.0),
        (2, 4.9, 0.5),
        (2, 5.0, 1.0),
    ],
)
def test_two_voxels_with_anisotropic_spacing(axis, tolerance_mm, nsd):
    neighbor = [4, 4, 4]
    neighbor[axis] += 1
    scores = overlap_scores(voxel(4, 4, 4), voxel(*neighbor), spacing_mm=(1, 2, 5), tolerance_mm=tolerance_mm)
    assert scores.dsc == 0.0
    assert scores.nsd == pytest.approx(nsd)


def test_voxels_far_apart_agree_nowhere():
    scores = overlap_scores(voxel(1, 1, 1), voxel(7, 1, 1), spacing_mm=(1, 1, 1), tolerance_mm=2)
    assert scores.nsd == 0.0


def test_patches_are_weighed_by_their_area():
    """A flat plate of 20 x 20 voxels has about the surface of both its faces, whatever its spacing."""
    plate = np.zeros((24, 24, 5), bool)
    plate[2:22, 2:22, 2] = True
    area = surface_distances(plate, plate, spacing_mm=(1.0, 1.0, 0.01)).truth_mm2.sum()
    assert area == pytest.approx(2 * 20 * 20, rel=0.06)
    wide = surface_distances(plate, plate, spacing_mm=(2.0, 3.0, 0.01)).truth_mm2.sum()
    assert wide == pytest.approx(6 * area, rel=1e-2)


def test_ball_has_the_area_of_a_ball():
    x, y, z = (np.indices((32, 32, 22)) - np.array([16, 16, 11])[:, None, None, None]) * np.array([1, 1, 1.5])[
        :, None, None, None
    ]
    ball = x**2 + y**2 + z**2 <= 12**2
    area = surface_distances(ball, ball, spacing_mm=(1, 1, 1.5)).truth_mm2.sum()
    assert area == pytest.approx(4 * np.pi * 12**2, rel=0.1)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.9, 5.0)])
@pytest.mark.parametrize("tolerance_mm", [0.0, 1.0, 2.0])
def test_monai_gives_the_same(spacing_mm, tolerance_mm):
    prediction, truth = blobs(1, 0.05), blobs(2, 0.08)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    nsd = compute_surface_dice(
        *tensors, [tolerance_mm], include_background=True, spacing=spacing_mm, use_subvoxels=True
    )
    scores = overlap_scores(prediction, truth, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    assert 0 < scores.nsd < 1
    assert scores.nsd == pytest.approx(nsd.item(), abs=1e-5)
    assert scores.dsc == pytest.approx(compute_dice(*tensors).item(), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(0, 4)] * 3), st.permutations((0, 1, 2)))
def test_scores_do_not_depend_on_place_or_axis_order_and_are_symmetric(seed, margin, order):
    generator = np.random.default_rng(seed)
    masks = [generator.random((5, 4, 3)) < 0.4 for _ in range(2)]
    spacing_mm = (1.0, 1.5, 3.0)
    scores = overlap_scores(*masks, spacing_mm=spacing_mm)
    moved = [np.pad(mask, [(m, 4 - m) for m in margin]) for mask in masks]
    turned = [mask.transpose(order)[::-1] for mask in moved]
    again = overlap_scores(turned[1], turned[0], spacing_mm=[spacing_mm[axis] for axis in order])
    assert again.dsc == pytest.approx(scores.dsc)
    assert again.nsd == pytest.approx(scores.nsd, abs=1e-6)


def test_a_larger_tolerance_never_lowers_the_score():
    distances = surface_distances(blobs(3, 0.05), blobs(4, 0.05), spacing_mm=(1, 1, 3))
    scores = [normalized_surface_distance(distances, tolerance_mm=tolerance) for tolerance in np.arange(0, 20, 0.5)]
    assert all(later >= earlier for earlier, later in pairwise(scores))
    assert scores[-1] == 1.0


def test_bad_arguments_are_refused():
    mask = voxel(4, 4, 4)
    for tolerance_mm in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="tolerance"):
            overlap_scores(mask, mask, spacing_mm=(1, 1, 1), tolerance_mm=tolerance_mm)
    with pytest.raises(ValueError, match="one shape"):
        surface_distances(mask, mask[1:], spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match="spacing"):
        surface_distances(mask, mask, spacing_mm=(1, 0, 1))
    with pytest.raises(ValueError, match="differ"):
        dice(mask, mask[1:])
