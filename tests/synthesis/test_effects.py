import cc3d
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import brentq

from difftumor.errors import SynthesisError
from difftumor.synthesis.blending import blurred_weight
from difftumor.synthesis.effects import capsule, mass_effect_map, warp_image, warp_labels
from difftumor.synthesis.shapes import tumor_shape
from tests.synthesis.makers import ball, record

EVEN = (1.0, 1.0, 1.0)


def push(shape, *, center=None, half_axes=(10.0, 10.0, 10.0), spacing=EVEN, intensity=30.0):
    center = tuple(n // 2 for n in shape) if center is None else center
    return mass_effect_map(
        shape, center_voxel=center, half_axes_mm=half_axes, spacing_mm=spacing, intensity=intensity, device="cpu"
    )


def noise(shape, seed=0):
    return 100 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rho(shape, center, half_axes, spacing):
    """Distance from the center in half-axes, float64."""
    grid = np.meshgrid(
        *[(np.arange(n) - c) * s / h for n, c, s, h in zip(shape, center, spacing, half_axes, strict=True)],
        indexing="ij",
    )
    return np.sqrt(sum(axis**2 for axis in grid))


def bits(values):
    return values.view(torch.int32)


def test_no_intensity_is_the_identity_bit_for_bit():
    image = noise((30, 31, 32))
    image[15, 15, 15] = -0.0
    box, source = push(image.shape, intensity=0.0)
    assert bits(warp_image(image, box, source)).equal(bits(image[box.slices]))
    labels = torch.randint(0, 3, image.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert warp_labels(labels, box, source).equal(labels[box.slices])


CASES = [
    ((40, 38, 36), (20, 19, 18), (12.0, 12.0, 12.0), EVEN),
    ((40, 60, 16), (22, 28, 8), (10.0, 6.0, 16.0), (0.8, 0.7, 5.0)),
    ((30, 30, 30), (3, 28, 15), (9.0, 11.0, 8.0), (1.0, 1.5, 1.0)),
    ((20, 22, 3), (10, 11, 1), (7.0, 8.0, 3.0), (1.0, 1.0, 5.0)),
]


@pytest.mark.parametrize(("shape", "center", "half_axes", "spacing"), CASES)
@pytest.mark.parametrize("intensity", [30.0, 100.0])
def test_it_is_equation_5_and_the_identity_outside(shape, center, half_axes, spacing, intensity):
    share = rho(shape, center, half_axes, spacing) / 1.3
    factor = np.where(share < 1, 1 - (1 - share) ** 2 * intensity / 100, 1.0)
    index = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    places = np.stack([c + factor * (i - c) for c, i in zip(center, index, strict=True)])
    image = noise(shape)
    expected = map_coordinates(image.numpy().astype(np.float64), places, order=1, mode="nearest")
    box, source = push(shape, center=center, half_axes=half_axes, spacing=spacing, intensity=intensity)
    ours = image.clone()
    ours[box.slices] = warp_image(image, box, source)
    np.testing.assert_allclose(ours.numpy(), expected, atol=0.01)
    outside = torch.from_numpy(share >= 1)
    assert bits(ours)[outside].equal(bits(image)[outside])
    assert (ours != image)[~outside].float().mean() > 0.8

    labels = torch.arange(image.numel(), dtype=torch.int32).reshape(shape)
    ours_labels = labels.clone()
    ours_labels[box.slices] = warp_labels(labels, box, source)
    nearest = np.floor(places + 0.5).astype(int)
    clear = (np.abs(places + 0.5 - np.rint(places + 0.5)) > 1e-4).all(axis=0)
    np.testing.assert_array_equal(ours_labels.numpy()[clear], labels.numpy()[tuple(nearest)][clear])
    assert ours_labels.dtype == torch.int32


def test_hand_worked_radii():
    # γmax is 1.3 · half-axis = 20 voxels, also where neither voxels nor ellipsoid are even.
    for spacing in (EVEN, (0.5, 1.0, 4.0)):
        half_axes = tuple(20 * s / 1.3 for s in spacing)
        center = torch.tensor([25.0, 25.0, 25.0])
        for axis in range(3):
            box, source = push((51, 51, 51), half_axes=half_axes, spacing=spacing, intensity=30.0)
            image = (torch.arange(51.0) - 25).abs().view([-1 if i == axis else 1 for i in range(3)]).expand(51, 51, 51)
            warped = torch.zeros(51, 51, 51)
            warped[box.slices] = warp_image(image, box, source)
            line = warped.movedim(axis, 0)[:, 25, 25]
            # (1 − (1 − 1/2)² · 0.3) · 10 = 9.25 and (1 − (1 − 1/4)² · 0.3) · 5 = 4.15625, on both sides of the center.
            assert line[[35, 15]].tolist() == pytest.approx([9.25] * 2, abs=1e-4)
            assert line[[30, 20]].tolist() == pytest.approx([4.15625] * 2, abs=1e-4)
            assert line[[25, 45]].tolist() == pytest.approx([0.0, 20.0], abs=1e-4)
        # Off the axes too, a voxel moves on its ray: at (8, 6, 0) of γmax 20, 10 becomes 9.25.
        place = source[:, 33 - box.start[0], 31 - box.start[1], 25 - box.start[2]] + torch.tensor(box.start)
        torch.testing.assert_close(place - center, torch.tensor([7.4, 5.55, 0.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("intensity", [0.0, 10.0, 30.0, 60.0, 99.0, 100.0])
def test_the_order_along_a_ray_is_kept(intensity):
    box, source = push((61, 61, 61), half_axes=(20.0,) * 3, intensity=intensity)
    middle = box.shape[0] // 2
    ray = source[0, middle:, middle, middle] - middle
    assert ray[0] == 0
    assert (ray.diff() > 0).all()
    assert (ray <= torch.arange(len(ray))).all()


@pytest.mark.parametrize("center", [(0, 0, 0), (4, 39, 20), (39, 2, 0)])
def test_at_the_border_it_is_the_part_inside(center):
    box, source = push((40, 40, 40), center=center, intensity=60.0)
    margin = 20
    wide, whole = push((80, 80, 80), center=tuple(c + margin for c in center), intensity=60.0)
    inner = tuple(
        slice(a + margin - w, b + margin - w) for a, b, w in zip(box.start, box.stop, wide.start, strict=True)
    )
    offset = torch.tensor([i.start for i in inner]).view(3, 1, 1, 1)
    torch.testing.assert_close(source, whole[(slice(None), *inner)] - offset, atol=1e-5, rtol=0)
    last = torch.tensor(box.shape).view(3, 1, 1, 1) - 1
    assert (source >= 0).all()
    assert (source <= last).all()


def test_a_tumor_thinner_than_a_voxel_moves_nothing_along_it():
    image = noise((9, 9, 3))
    box, source = push(image.shape, half_axes=(4.0, 4.0, 1.0), spacing=(1.0, 1.0, 5.0), intensity=60.0)
    assert box.shape[2] == 1
    assert warp_image(image, box, source).isfinite().all()


def components(labels):
    tumor, background = labels == 2, labels != 2
    padded = np.pad(background, 1, constant_values=True)
    return (
        cc3d.connected_components(np.pad(tumor, 1), connectivity=26).max(),
        cc3d.connected_components(padded, connectivity=6).max(),
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("half_axes", "sigma"), [((4.0, 3.2, 4.6), 1.0), ((8.0, 9.5, 6.4), 2.0), ((15.0, 17.0, 13.0), 5.0)]
)
def test_a_pushed_tumor_grows_and_stays_one_piece(seed, half_axes, sigma):
    mask = tumor_shape(record(half_axes_mm=half_axes, deformation_sigma_mm=sigma, shape_seed=seed))
    labels = torch.from_numpy(np.pad(mask, 8).astype(np.uint8)) * 2
    for intensity in (10.0, 30.0, 60.0):
        box, source = push(labels.shape, half_axes=half_axes, intensity=intensity)
        warped = labels.clone()
        warped[box.slices] = warp_labels(labels, box, source)
        assert warped.dtype == torch.uint8
        assert components(warped.numpy()) == components(labels.numpy())
        assert (warped > 0).sum() >= (labels > 0).sum()


def test_a_ball_grows_as_equation_5_says():
    labels = torch.from_numpy(ball((61, 61, 61), 20)).to(torch.uint8)
    box, source = push(labels.shape, half_axes=(20.0,) * 3, intensity=100.0)
    labels[box.slices] = warp_labels(labels.clone(), box, source)
    # The new surface is where γ' = (1 − (1 − γ/26)²) γ = γ² (52 − γ) / 26² is 20.
    radius = brentq(lambda gamma: gamma**2 * (52 - gamma) / 26**2 - 20, 20, 26)
    assert radius > 20.8
    assert labels.sum().item() == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)


def test_the_organ_bulges_where_the_tumor_is_near_its_surface():
    labels = torch.zeros(50, 50, 50, dtype=torch.uint8)
    labels[:25] = 1
    box, source = push(labels.shape, center=(19, 25, 25), half_axes=(10.0,) * 3, intensity=60.0)
    warped = labels.clone()
    warped[box.slices] = warp_labels(labels, box, source)
    gained = ((warped == 1) & (labels == 0)).nonzero()
    assert len(gained) > 20
    assert (warped[:25] == 1).all()
    # It bulges right above the tumor, as far as 1.3 half-axes from its center.
    assert warped[25, 25, 25] == 1
    assert ((gained - torch.tensor([19, 25, 25])).square().sum(dim=1) < 13**2).all()


def test_it_computes_alike_under_autocast():
    image = noise((30, 30, 30))
    expected = warp_image(image, *push(image.shape))
    with torch.autocast("cpu", torch.bfloat16):
        ours = warp_image(image, *push(image.shape))
    assert ours.dtype == torch.float32
    assert ours.equal(expected)


def test_what_cannot_be_is_refused():
    for intensity in (-1.0, 100.5, float("nan")):
        with pytest.raises(SynthesisError, match=r"must lie in \[0, 100\]"):
            push((20, 20, 20), intensity=intensity)
    with pytest.raises(SynthesisError, match=r"center \(20, 3, 3\) lies outside the CT of shape \(20, 20, 20\)"):
        push((20, 20, 20), center=(20, 3, 3))


@pytest.mark.parametrize("spacing", [EVEN, (0.7, 0.8, 2.5)])
def test_the_capsule_is_the_blurred_edge(spacing):
    weight = blurred_weight(torch.from_numpy(ball((50, 48, 46), 12)), 1.5)
    edge = ((weight >= 0.4) & (weight <= 0.7)).numpy()
    assert edge.any()
    sigma = [0.8 / s for s in spacing]
    expected = 120 * gaussian_filter(edge.astype(np.float64), sigma, truncate=4.0)
    added = capsule(weight, hu=120.0, spacing_mm=spacing)
    np.testing.assert_allclose(added.numpy(), expected, atol=1e-3)
    # The Gaussian spreads the brightness, neither more nor less of it.
    assert added.double().sum().item() == pytest.approx(120 * edge.sum(), rel=1e-5)
    # Nothing is added beyond 4 σ (rounded to voxels) of the edge, so nothing at the tumor's center.
    reach = [int(4 * s + 0.5) for s in sigma]
    near = np.zeros_like(edge)
    for x, y, z in np.argwhere(edge):
        near[x - reach[0] : x + reach[0] + 1, y - reach[1] : y + reach[1] + 1, z - reach[2] : z + reach[2] + 1] = True
    assert (added.numpy()[~near] == 0).all()
    assert not near[25, 24, 23]


def test_the_bounds_belong_to_the_edge():
    weight = torch.zeros(9, 3, 3)
    weight[2, 1, 1], weight[4, 1, 1], weight[6, 1, 1], weight[7, 1, 1] = 0.5, 0.25, 0.75, 0.8
    added = capsule(weight, hu=10.0, spacing_mm=EVEN, lower=0.25, upper=0.75, blur_sigma_mm=0.0)
    assert added[:, 1, 1].tolist() == [0, 0, 10, 0, 10, 0, 10, 0, 0]
    assert added.sum() == 30


def test_no_capsule_without_brightness_or_without_an_edge():
    mask = torch.from_numpy(ball((20, 20, 20), 5))
    assert (capsule(blurred_weight(mask, 1.0), hu=0.0, spacing_mm=EVEN) == 0).all()
    assert (capsule(mask.float(), hu=120.0, spacing_mm=EVEN) == 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_labels_and_nearly_the_same_image():
    image, labels = noise((40, 40, 40)), torch.randint(0, 3, (40, 40, 40), dtype=torch.uint8)
    box, source = push(image.shape)
    there = mass_effect_map(
        image.shape, center_voxel=(20, 20, 20), half_axes_mm=(10.0,) * 3, spacing_mm=EVEN, intensity=30.0, device="cuda"
    )
    assert warp_labels(labels.to("cuda"), *there).cpu().equal(warp_labels(labels, box, source))
    torch.testing.assert_close(
        warp_image(image.to("cuda"), *there).cpu(), warp_image(image, box, source), atol=0.01, rtol=0
    )
    weight = blurred_weight(torch.from_numpy(ball((40, 40, 40), 8)), 1.5)
    ours = capsule(weight.to("cuda"), hu=120.0, spacing_mm=EVEN)
    assert ours.is_cuda
    torch.testing.assert_close(ours.cpu(), capsule(weight, hu=120.0, spacing_mm=EVEN), atol=1e-3, rtol=0)
