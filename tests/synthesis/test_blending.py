import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.ndimage import gaussian_filter

from difftumor.scans.grid import Box
from difftumor.synthesis.blending import (
    TRUNCATE,
    PlacedTumor,
    add_change,
    blend_change,
    blur_radius,
    blurred_weight,
    plan_patches,
    smoothed_tissue,
    take_patch,
)
from tests.reference import load_reference, relative_error
from tests.synthesis.makers import ball, record

MULTIPLE = (8, 8, 4)


def placed(start, stop, *, element=0, instance=1, blur=0.5):
    return PlacedTumor(element, instance, record(blur_sigma_voxels=blur), Box(start, stop), Box(start, stop).shape)


def plan(tumors, array, patch=(32, 32, 32), together=False):
    return plan_patches(tumors, array, patch, MULTIPLE, together=together)


def test_reference_blending():
    stored = load_reference("early_tumor")
    # The stored patch is as the decoder gives it, depth first.
    decoded = torch.from_numpy(stored["decoded"][0, 0].transpose(1, 2, 0)).clamp(-1, 1)
    healthy = torch.from_numpy(stored["ct"][0, 0])
    weight = blurred_weight(torch.from_numpy(stored["tumor_mask"][0, 0]), float(stored["blur_sigma"]))
    blended = healthy + blend_change(healthy, (decoded + 1) / 2, weight)
    assert relative_error(blended, stored["synthetic_ct"][0, 0]) < 1e-6


@pytest.mark.parametrize("sigma", [0.0, 0.12, 0.13, 0.5, 1.5, 4.0])
@pytest.mark.parametrize(
    "place", [(slice(12, 15), slice(10, 20), slice(9, 12)), (slice(0, 4), slice(26, 30), slice(0, 2))]
)
def test_weight_is_the_truncated_gaussian_and_exactly_zero_beyond(sigma, place):
    mask = np.zeros((31, 30, 25))
    mask[place] = 1
    weight = blurred_weight(torch.from_numpy(mask), sigma).numpy()
    expected = gaussian_filter(mask, sigma, truncate=TRUNCATE) if sigma else mask
    np.testing.assert_allclose(weight, expected, atol=1e-6)
    assert ((weight > 0) == (expected > 0)).all()
    far = np.ones(mask.shape, bool)
    far[tuple(slice(max(0, s.start - blur_radius(sigma)), s.stop + blur_radius(sigma)) for s in place)] = False
    assert (weight[far] == 0).all()


def test_every_axis_may_have_its_own_blur():
    mask = ball((31, 30, 25), 6)
    sigma = (2.0, 0.1, 0.8)
    weight = blurred_weight(torch.from_numpy(mask), sigma).numpy()
    np.testing.assert_allclose(weight, gaussian_filter(mask.astype(float), sigma, truncate=TRUNCATE), atol=1e-6)


def test_weight_of_an_empty_mask_is_zero():
    assert blurred_weight(torch.zeros(4, 5, 6), 2.0).abs().sum() == 0


def test_a_full_mask_keeps_its_weight():
    torch.testing.assert_close(blurred_weight(torch.ones(6, 6, 6), 3.0), torch.ones(6, 6, 6))


@pytest.mark.parametrize("sigma", [(1.5, 1.5, 1.5), (2.0, 1.0, 0.5)])
def test_tissue_is_smoothed_by_the_organs_voxels_alone(sigma):
    generator = np.random.default_rng(0)
    organ = ndimage.gaussian_filter(generator.normal(size=(20, 18, 16)), 2) > 0
    ct = np.where(organ, generator.normal(50, 10, organ.shape), -1000).astype(np.float32)
    smooth = smoothed_tissue(torch.from_numpy(ct), torch.from_numpy(organ), sigma).numpy()
    assert (smooth[~organ] == -1000).all()
    # One voxel by hand: the mean of the organ's voxels, weighted by their distance; far from the border.
    x, y, z = center = tuple(np.argwhere(ndimage.binary_erosion(organ))[0])
    reach = [int(4 * s + 0.5) for s in sigma]
    offsets = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"))
    weights = np.exp(-0.5 * sum((o / s) ** 2 for o, s in zip(offsets, sigma, strict=True)))
    padding = [(r, r) for r in reach]
    near = tuple(slice(c, c + 2 * r + 1) for c, r in zip((x, y, z), reach, strict=True))
    weights = weights * np.pad(organ, padding, "symmetric")[near]
    assert smooth[center] == pytest.approx((weights * np.pad(ct, padding, "symmetric")[near]).sum() / weights.sum())


def test_tissue_without_noise_stays_as_it_is():
    organ = torch.from_numpy(ball((20, 20, 20), 8))
    ct = torch.where(organ, 60.0, -100.0)
    torch.testing.assert_close(smoothed_tissue(ct, organ, (2.0, 2.0, 2.0)), ct)


def test_blending_leaves_everything_but_the_halo_bit_identical():
    healthy = torch.linspace(-1000, 3000, 21**3).reshape(21, 21, 21)
    healthy[0, 0, 0] = -0.0
    inside = healthy.clamp(-175, 250)
    weight = blurred_weight(torch.from_numpy(ball((21, 21, 21), 3)), 1.0)
    blended = add_change(healthy, blend_change(inside, torch.full_like(healthy, 40.0), weight), weight > 0)
    outside = weight == 0
    assert outside.any()
    assert blended[outside].view(torch.int32).equal(healthy[outside].view(torch.int32))


def test_a_constant_tumor_is_reached_where_the_weight_is_one_and_bone_keeps_its_contrast():
    healthy = torch.tensor([100.0, 1000.0, -900.0])
    change = blend_change(healthy.clamp(-175, 250), torch.full((3,), 40.0), torch.ones(3))
    # In the window the tumor replaces the tissue; outside, only the part within the window is moved.
    assert add_change(healthy, change, torch.ones(3, dtype=torch.bool)).tolist() == [40.0, 790.0, -685.0]


def test_unknown_texture_outside_the_weight_does_not_matter():
    change = blend_change(torch.zeros(2), torch.tensor([torch.nan, 5.0]), torch.tensor([0.0, 0.5]))
    assert change.tolist() == [0.0, 2.5]


# Patches


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
