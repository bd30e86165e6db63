"""Scores of random shapes, against MONAI and against the authors' own implementation of surface distances."""

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from scipy.ndimage import gaussian_filter
from surface_distance import (
    compute_average_surface_distance as average_distances,
)
from surface_distance import (
    compute_robust_hausdorff,
    compute_surface_dice_at_tolerance,
    compute_surface_distances,
)

from difftumor.evaluation.metrics.overlap import overlap_scores
from difftumor.evaluation.metrics.surfaces import hausdorff_mm, surface_distances

SPACINGS_MM = [(1.0, 1.0, 1.0), (0.7, 0.9, 5.0), (3.0, 1.3, 0.6)]
KINDS = ["blobs", "noise", "shifted", "inside", "border", "specks"]


def smooth(generator: np.random.Generator, quantile: float) -> np.ndarray:
    values = gaussian_filter(generator.normal(size=(24, 20, 16)), 2.0)
    return values > np.quantile(values, quantile)


def shapes(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return prediction and truth."""
    generator = np.random.default_rng([seed, KINDS.index(kind)])
    truth = smooth(generator, 0.8)
    if kind == "blobs":
        return smooth(generator, 0.7), truth
    if kind == "noise":
        return generator.random(truth.shape) < 0.3, generator.random(truth.shape) < 0.4
    if kind == "shifted":
        return np.roll(truth, (2, -1, 1), (0, 1, 2)), truth
    if kind == "inside":
        return truth & smooth(generator, 0.3), truth
    if kind == "border":
        wall = np.zeros_like(truth)
        wall[: generator.integers(1, 12)] = True
        return wall, truth
    specks = generator.random((2, *truth.shape)) < 2e-3
    specks[:, 3, 3, 3] = True
    return specks[0], specks[1]


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_authors_implementation_gives_the_same(kind, spacing_mm, seed):
    prediction, truth = shapes(kind, seed)
    theirs = compute_surface_distances(truth, prediction, spacing_mm)
    ours = surface_distances(prediction, truth, spacing_mm=spacing_mm)
    # Theirs are sorted by distance; areas of equal distances come in any order.
    np.testing.assert_allclose(np.sort(ours.truth_mm), np.sort(theirs["distances_gt_to_pred"]), rtol=1e-6)
    np.testing.assert_allclose(np.sort(ours.prediction_mm), np.sort(theirs["distances_pred_to_gt"]), rtol=1e-6)
    areas = np.sort(ours.truth_mm2), np.sort(theirs["surfel_areas_gt"])
    np.testing.assert_allclose(*areas, rtol=1e-6)
    for percent in (50, 90, 99, 100):
        assert hausdorff_mm(ours, percent=percent) == pytest.approx(compute_robust_hausdorff(theirs, percent), rel=1e-6)
    scores = overlap_scores(prediction, truth, spacing_mm=spacing_mm, tolerance_mm=1.5)
    assert scores.hd95_mm == pytest.approx(compute_robust_hausdorff(theirs, 95), rel=1e-6)
    assert scores.nsd == pytest.approx(compute_surface_dice_at_tolerance(theirs, 1.5), abs=1e-6)
    weights = [theirs[name].sum() for name in ("surfel_areas_gt", "surfel_areas_pred")]
    assert scores.assd_mm == pytest.approx(np.average(average_distances(theirs), weights=weights), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*get_mask_edges.*:FutureWarning")
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance_mm", [0.0, 1.0, 2.0])
def test_monai_gives_the_same_overlap(kind, spacing_mm, tolerance_mm):
    prediction, truth = shapes(kind, 7)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    nsd = compute_surface_dice(
        *tensors, [tolerance_mm], include_background=True, spacing=spacing_mm, use_subvoxels=True
    )
    scores = overlap_scores(prediction, truth, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    assert scores.nsd == pytest.approx(nsd.item(), abs=1e-5)
    assert scores.dsc == pytest.approx(compute_dice(*tensors).item(), abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*get_mask_edges.*:FutureWarning")
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
@pytest.mark.parametrize("kind", KINDS)
def test_monai_gives_distances_that_differ_by_less_than_a_voxel(kind, spacing_mm):
    """MONAI measures between centers of the voxels that have a neighbor outside, all of one weight.

    Each of our patches is the middle of eight voxel centers, of which one is such a voxel, and each such voxel is one
    of the eight of a patch: half a voxel's diagonal away. So a distance between both surfaces changes by at most the
    diagonal, and with it the largest. Percentiles and means also change with the weights; that their change is
    as small is not a law, but what these shapes have.
    """
    prediction, truth = shapes(kind, 8)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    diagonal_mm = float(np.linalg.norm(spacing_mm))
    distances = surface_distances(prediction, truth, spacing_mm=spacing_mm)
    whole = compute_hausdorff_distance(*tensors, include_background=True, spacing=spacing_mm)
    assert hausdorff_mm(distances, percent=100) == pytest.approx(whole.item(), abs=diagonal_mm)
    scores = overlap_scores(prediction, truth, spacing_mm=spacing_mm)
    robust = compute_hausdorff_distance(*tensors, include_background=True, spacing=spacing_mm, percentile=95)
    assert scores.hd95_mm == pytest.approx(robust.item(), abs=diagonal_mm)
    mean = compute_average_surface_distance(*tensors, include_background=True, symmetric=True, spacing=spacing_mm)
    assert scores.assd_mm == pytest.approx(mean.item(), abs=diagonal_mm)
