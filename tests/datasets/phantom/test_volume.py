"""Soft edges: a voxel at a surface shows as much of a solid as it holds, whatever its shape."""

import itertools

import numpy as np
import pytest

from difftumor.datasets.phantom.volume import coverage_of

THICK = (1.0, 1.0, 5.0)


def halfspace(normal, spacing, shape=(21, 21, 21), shift_mm=0.3, parts=1):
    """Distance to a plane at the voxels' centers; or, with parts, the true share of each voxel on the inner side."""
    normal = np.asarray(normal, float) / np.linalg.norm(normal)
    axes = [(np.arange(size) - size // 2) * step for size, step in zip(shape, spacing, strict=True)]
    distance = sum(n * a for n, a in zip(normal, np.meshgrid(*axes, indexing="ij"), strict=True)) - shift_mm
    if parts == 1:
        return distance.astype(np.float32)
    offsets = (np.arange(parts) + 0.5) / parts - 0.5
    moves = [np.dot(normal, np.multiply(offset, spacing)) for offset in itertools.product(offsets, repeat=3)]
    return np.mean([distance + move < 0 for move in moves], axis=0)


def test_edges_are_a_voxel_wide_along_each_axis():
    """Hand-derived: the plane lies 0.3 mm right of a center, so that share 0.5 + 0.3 / size of its voxel is inside."""
    across = coverage_of(halfspace((1, 0, 0), THICK), THICK)
    np.testing.assert_allclose(across[8:13, 10, 10], [1, 1, 0.8, 0, 0], atol=1e-3)
    along = coverage_of(halfspace((0, 0, 1), THICK), THICK)
    np.testing.assert_allclose(along[10, 10, 8:13], [1, 1, 0.56, 0, 0], atol=1e-3)


@pytest.mark.parametrize("normal", [(1, 1, 0), (1, 0, 1), (0.2, 0.1, 1), (1, 2, 3), (-3, 1, 1)])
@pytest.mark.parametrize("spacing", [THICK, (2.5, 0.8, 0.8), (2.0, 2.0, 2.0)])
def test_coverage_is_near_the_true_share_for_any_normal(normal, spacing):
    truth = halfspace(normal, spacing, parts=12)
    error = np.abs(coverage_of(halfspace(normal, spacing), spacing) - truth)[1:-1, 1:-1, 1:-1]
    assert error.max() < 0.12
    edge = (truth > 0) & (truth < 1)
    assert error[edge[1:-1, 1:-1, 1:-1]].mean() < 0.05


def test_softness_widens_the_edge():
    ramp = coverage_of(halfspace((1, 0, 0), THICK, shift_mm=0.0), THICK, softness_mm=3.0)[7:14, 10, 10]
    np.testing.assert_allclose(ramp, [1, 1, 0.75, 0.5, 0.25, 0, 0], atol=1e-3)


def test_a_layer_thinner_than_a_voxel_stays_faint():
    """In its middle the distance has no gradient; the voxel must not count as full."""
    distance = (np.abs(np.arange(11, dtype=np.float32) - 5) * 5 - 0.5)[None, None] * np.ones((3, 3, 1), np.float32)
    layer = coverage_of(distance, THICK)
    assert layer[1, 1, 5] < 0.75
    assert layer[1, 1, [4, 6]].max() == 0


def test_any_shape_and_memory_order():
    distance = halfspace((1, 2, 3), THICK)
    straight = coverage_of(distance, THICK)
    np.testing.assert_array_equal(coverage_of(np.asfortranarray(distance), THICK), straight)
    assert straight.dtype == np.float32
    for shape in ((0, 4, 4), (1, 1, 1), (4, 1, 3)):
        assert coverage_of(np.zeros(shape, np.float32), THICK).shape == shape
