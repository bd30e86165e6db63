"""Connected components against hand-made masks and SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from difftumor.scans.components import equivalent_radius_mm, find_components, largest_component
from difftumor.scans.grid import Box

SHAPES = st.tuples(*[st.integers(1, 6)] * 3)
MASKS = SHAPES.flatmap(lambda shape: arrays(bool, shape))


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_agrees_with_scipy_on_any_mask(mask):
    theirs, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    ours = find_components(mask)
    assert ours.indices.dtype == np.uint32
    np.testing.assert_array_equal(ours.indices, theirs)
    assert [component.index for component in ours.found] == list(range(1, count + 1))
    for component in ours.found:
        own = ours.indices == component.index
        assert component.voxels == own.sum()
        assert component.box == Box.around(own)
        np.testing.assert_allclose(component.centroid, np.argwhere(own).mean(axis=0), atol=1e-5)


def test_order_in_memory_does_not_matter():
    mask = np.random.default_rng(0).random((7, 8, 9)) > 0.9
    np.testing.assert_array_equal(
        find_components(np.asfortranarray(mask)).indices, find_components(mask[:, ::-1][:, ::-1]).indices
    )


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3, 1), (3, 1, 1)])
def test_arrays_of_a_few_voxels(shape):
    assert len(find_components(np.array([1, 0, 1]).reshape(shape)).found) == 2


def test_noise_has_more_components_than_uint16_can_number():
    mask = np.zeros((82, 82, 82), bool)
    mask[::2, ::2, ::2] = True  # 41³ = 68 921 single voxels
    components = find_components(mask)
    assert [component.index for component in components.found] == list(range(1, 68_922))
    assert len(np.unique(components.indices[mask])) == 68_921
    last = components.found[-1]
    assert components.indices[80, 80, 80] == last.index == 68_921
    assert last.box == Box((80, 80, 80), (81, 81, 81))


def test_largest_component_drops_the_smaller_and_joins_diagonals():
    mask = np.zeros((9, 5, 5), bool)
    mask[0:2, 0, 0] = True
    mask[4, 1, 1] = mask[5, 2, 2] = mask[6, 3, 3] = True
    expected = mask.copy()
    expected[0:2] = False
    np.testing.assert_array_equal(largest_component(mask), expected)
    np.testing.assert_array_equal(largest_component(expected), expected)
    assert not largest_component(np.zeros((2, 2, 2), bool)).any()


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_largest_component_agrees_with_scipy_on_any_mask(mask):
    theirs, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    expected = theirs == 1 + np.argmax(np.bincount(theirs.ravel(), minlength=2)[1:]) if count else mask
    np.testing.assert_array_equal(largest_component(mask), expected)


def test_first_of_equals_is_the_largest():
    np.testing.assert_array_equal(largest_component(np.array([[[True, False, True]]])), [[[True, False, False]]])


def test_radius_by_hand():
    # 4/3 π r³ = 1 mm³
    assert equivalent_radius_mm(1.0) == pytest.approx(0.6203504908994)
    assert equivalent_radius_mm(8.0) == pytest.approx(2 * 0.6203504908994)


def test_the_box_of_all_components():
    mask = np.zeros((9, 8, 7), bool)
    mask[2:4, 1, 3] = mask[6, 5:7, 0] = True
    assert find_components(mask).box == Box((2, 1, 0), (7, 7, 4))
    assert find_components(np.zeros_like(mask)).box.empty
