import math

import cc3d
import numpy as np
import pytest

from difftumor.synthesis.shapes import ellipsoids as shapes
from difftumor.synthesis.shapes import reach_mm, tumor_shape
from difftumor.synthesis.sizes import SIZES
from tests.synthesis.makers import record


def drawn(size: str, seed: int, **changes):
    generator = np.random.default_rng(seed)
    rules = SIZES[size]
    axes = tuple(float(a) for a in rules.radius_mm * generator.uniform(*rules.half_axes, 3))
    sigma = rules.draw_deformation(generator)
    return record(half_axes_mm=axes, deformation_sigma_mm=sigma, shape_seed=seed, **changes)


def computed(tumor):
    """Return the shape of a tumor, computed anew."""
    shapes._shape.cache_clear()
    return tumor_shape(tumor)


def middle(mask):
    return tuple(n // 2 for n in mask.shape)


def test_without_deformation_it_is_the_ellipsoid():
    mask = tumor_shape(record(half_axes_mm=(10.3, 6.2, 8.4)))
    x, y, z = np.meshgrid(*[np.arange(n) - n // 2 for n in mask.shape], indexing="ij")
    inside = (x / 10.3) ** 2 + (y / 6.2) ** 2 + (z / 8.4) ** 2
    # Voxel counting and the analytic volume differ by a thin shell at most.
    assert mask[inside < 0.97].all()
    assert not mask[inside > 1.03].any()
    np.testing.assert_array_equal(mask, mask[::-1, ::-1, ::-1])


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
@pytest.mark.parametrize("seed", range(8))
def test_one_component_around_its_center_with_the_ellipsoids_volume(size, seed):
    tumor = drawn(size, seed)
    mask = tumor_shape(tumor)
    assert cc3d.connected_components(mask, connectivity=26).max() == 1
    assert all(n % 2 == 1 for n in mask.shape)
    assert mask[middle(mask)]
    assert mask.sum() == pytest.approx(4 / 3 * math.pi * math.prod(tumor.half_axes_mm), rel=0.05)


def test_deformation_depends_on_its_seed_alone_and_changes_the_shape():
    a = tumor_shape(drawn("small", 3))
    b = tumor_shape(drawn("small", 3, texture_seed=99, center_voxel=(7, 7, 7), blur_sigma_voxels=3.0))
    np.testing.assert_array_equal(a, b)
    plain = tumor_shape(record(half_axes_mm=(8.0, 8.0, 8.0)))
    bent = tumor_shape(record(half_axes_mm=(8.0, 8.0, 8.0), deformation_sigma_mm=2.0))
    other = tumor_shape(record(half_axes_mm=(8.0, 8.0, 8.0), deformation_sigma_mm=2.0, shape_seed=5))
    assert plain.shape != bent.shape or (plain != bent).any()
    assert other.shape != bent.shape or (other != bent).any()


def test_stronger_deformation_departs_further_from_the_ball():
    def asymmetry(sigma):
        shares = []
        for seed in range(10):
            mask = tumor_shape(record(half_axes_mm=(8.0,) * 3, deformation_sigma_mm=sigma, shape_seed=seed))
            shares.append((mask & ~mask[::-1, ::-1, ::-1]).sum() / mask.sum())
        return np.mean(shares)

    assert asymmetry(0.0) == 0 < asymmetry(0.5) < asymmetry(1.0) < asymmetry(2.0)


def test_size_in_mm_is_kept_at_any_spacing():
    tumor = drawn("small", 1)
    fine, coarse = tumor_shape(tumor), tumor_shape(drawn("small", 1, spacing_mm=(0.5, 1.0, 3.0)))
    assert coarse.sum() * 1.5 == pytest.approx(fine.sum(), rel=0.05)
    # The same tumor: every second voxel along x, every third along z.
    extent_fine = [np.ptp(axis) + 1 for axis in fine.nonzero()]
    extent_coarse = [(np.ptp(axis) + 1) * step for axis, step in zip(coarse.nonzero(), (0.5, 1, 3), strict=True)]
    np.testing.assert_allclose(extent_coarse, extent_fine, atol=4)


def test_smaller_than_a_voxel_is_one_voxel():
    assert tumor_shape(record(spacing_mm=(20.0, 20.0, 20.0))).tolist() == [[[True]]]


def test_even_strong_deformation_leaves_the_tumor_at_its_place():
    for seed in range(20):
        mask = tumor_shape(record(half_axes_mm=(12.0,) * 3, deformation_sigma_mm=6.0, shape_seed=seed))
        assert mask[middle(mask)]


def test_no_voxel_lies_beyond_the_reach():
    for seed in range(20):
        tumor = record(half_axes_mm=(4.0, 8.0, 12.0), deformation_sigma_mm=8.0, shape_seed=seed)
        for half_axis_mm, size in zip(tumor.half_axes_mm, tumor_shape(tumor).shape, strict=True):
            assert size // 2 <= reach_mm(half_axis_mm, 8.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.8, 2.5)])
def test_a_box_shrunk_to_what_the_deformation_reaches_gives_the_same_shape(seed, spacing_mm, monkeypatch):
    tumor = drawn("medium", seed, spacing_mm=spacing_mm)
    shrunk = tumor_shape(tumor)
    monkeypatch.setattr(shapes, "_AT_ONCE", 10**9)  # a smaller box is computed as a whole
    np.testing.assert_array_equal(shrunk, computed(tumor))
    monkeypatch.undo()
    monkeypatch.setattr(shapes, "_MARGIN", -0.5)  # all too small at first
    np.testing.assert_array_equal(shrunk, computed(tumor))


def test_a_shape_is_remembered_whatever_else_a_record_says_and_cannot_be_changed():
    tumor = drawn("small", 0)
    shape = tumor_shape(tumor)
    assert tumor_shape(tumor.moved((3, 4, 5))) is shape
    with pytest.raises(ValueError, match="read-only"):
        shape[0] = True


def test_each_plane_shifts_along_its_own_axes_and_together_they_have_sigma():
    shifts = []
    for seed in range(300):
        tumor = record(half_axes_mm=(10.0,) * 3, deformation_sigma_mm=2.0, shape_seed=seed)
        terms, middle = shapes._terms(tumor)
        assert [[term.shape.index(1) for term in pair] for pair in terms] == [[2, 1], [2, 0], [1, 0]]
        corners = [sum(float(term[0, 0, 0]) for term in pair) for pair in terms]
        shifts += [10 * corner + 16 for corner in corners]
        assert all(sum(term[_at(term, middle)] for term in pair) == 0 for pair in terms)
    # A corner and the middle are lattice points of their own, 2 mm each.
    assert np.std(shifts) == pytest.approx(2 * math.sqrt(2), rel=0.1)


def _at(term, index):
    return tuple(0 if n == 1 else i for n, i in zip(term.shape, index, strict=True))


def test_what_a_deformation_tears_off_is_left_out(monkeypatch):
    """As rarely as it happens: the piece around the middle remains."""
    tumor = record(half_axes_mm=(8.0,) * 3, deformation_sigma_mm=1.0)
    whole = tumor_shape(tumor)
    level = shapes._level

    def torn(terms, part):
        values = level(terms, part)
        values[values.shape[0] // 2 + 4] = 9.0
        return values

    monkeypatch.setattr(shapes, "_level", torn)
    mask = computed(tumor)
    shapes._shape.cache_clear()
    assert mask[middle(mask)]
    assert cc3d.connected_components(mask, connectivity=26).max() == 1
    assert 0.5 * whole.sum() < mask.sum() < whole.sum()
