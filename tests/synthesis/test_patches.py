import pytest
import torch

from difftumor.scans.grid import Box
from difftumor.synthesis.patches import PlacedTumor, plan_patches, take_patch
from tests.synthesis.makers import record

MULTIPLE = (8, 8, 4)


def placed(start, stop, *, element=0, instance=1, blur=0.5):
    return PlacedTumor(element, instance, record(blur_sigma_voxels=blur), Box(start, stop))


def plan(tumors, array, patch=(32, 32, 32), together=False):
    return plan_patches(tumors, array, patch, MULTIPLE, together=together)


def test_patch_is_centered_on_the_tumor():
    (patch,) = plan([placed((50, 40, 60), (54, 44, 64))], (100, 100, 100))
    assert patch.box == Box((36, 26, 46), (68, 58, 78))


@pytest.mark.parametrize("start", [(0, 0, 0), (95, 96, 97), (3, 50, 96)])
def test_patch_stays_inside_where_the_array_is_large_enough(start):
    (patch,) = plan([placed(start, tuple(a + 3 for a in start))], (100, 100, 100))
    assert patch.box.shape == (32, 32, 32)
    assert Box.whole((100, 100, 100)).contains(patch.box)
    assert patch.box.contains(Box(start, tuple(a + 3 for a in start)))


def test_patch_grows_with_tumor_and_halo_in_steps_the_networks_take():
    (patch,) = plan([placed((30, 30, 30), (70, 50, 65), blur=1.0)], (100, 100, 100))
    assert patch.box.shape == (48, 32, 44)
    assert patch.box.contains(Box((26, 26, 26), (74, 54, 69)))


def test_patch_surrounds_a_small_array():
    (patch,) = plan([placed((2, 2, 2), (4, 4, 4))], (10, 40, 31))
    assert patch.box == Box((-11, 0, 0), (21, 32, 32))


def test_one_patch_for_a_crop_else_one_per_tumor():
    tumors = [placed((5, 5, 5), (9, 9, 9)), placed((20, 20, 20), (22, 22, 22), instance=2)]
    tumors.append(placed((5, 5, 5), (9, 9, 9), element=2))
    crops = plan(tumors, (32, 32, 32), together=True)
    assert [(patch.element, len(patch.tumors), patch.whole) for patch in crops] == [(0, 2, True), (2, 1, True)]
    alone = plan(tumors, (32, 32, 32))
    assert [(patch.element, len(patch.tumors), patch.whole) for patch in alone] == [(0, 1, False)] * 2 + [(2, 1, False)]


def test_take_patch_repeats_the_border():
    array = torch.arange(24.0).reshape(2, 3, 4)
    patch = take_patch(array, Box((-1, 1, 2), (3, 4, 6)))
    assert patch.shape == (4, 3, 4)
    assert patch[1, 0].tolist() == [6, 7, 7, 7]
    assert patch[0].equal(patch[1])
    assert patch[3].equal(patch[2])
    assert patch[:, 1].equal(patch[:, 2])
    assert take_patch(array, Box.whole(array.shape)).equal(array)
