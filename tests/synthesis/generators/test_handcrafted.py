import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import skew

from difftumor.errors import SynthesisError
from difftumor.seeding import torch_generator
from difftumor.synthesis.generators.handcrafted import handcrafted_texture
from difftumor.synthesis.records import TextureRecord

EVEN = (1.0, 1.0, 1.0)


def texture(**changes):
    values = {"kind": "gaussian", "mean_hu": 60.0, "sd_hu": 20.0, "grain": 1.3, "blur_sigma_mm": 0.6}
    return TextureRecord(**{**values, **changes})


def make(shape=(64, 64, 64), spacing=EVEN, seed=1, **changes):
    return handcrafted_texture(texture(**changes), shape, spacing_mm=spacing, seed=seed).numpy()


def correlation(values, lag, axis=0):
    """Autocorrelation at a lag in voxels."""
    values = np.moveaxis(values - values.mean(), axis, 0)
    return float((values[lag:] * values[: len(values) - lag]).mean() / values.var())


def length_mm(values, spacing):
    """The distance at which the autocorrelation has fallen to one half, interpolated linearly."""
    curve = [correlation(values, lag) for lag in range(int(12 / spacing))]
    after = next(lag for lag, value in enumerate(curve) if value < 0.5)
    return spacing * (after - (0.5 - curve[after]) / (curve[after - 1] - curve[after]))


def test_without_grain_and_blur_it_is_the_noise():
    values = make(grain=1.0, blur_sigma_mm=0.0)
    assert values.dtype == np.float32
    assert values.mean() == pytest.approx(60, abs=5 * 20 / 512)
    assert values.std() == pytest.approx(20, rel=0.01)
    assert all(abs(correlation(values, 1, axis)) < 0.01 for axis in range(3))
    # The values are those drawn, interpolated at their own places.
    lattice = torch.randn([64 + 12] * 3, generator=torch_generator(1, "handcrafted"))[6:-6, 6:-6, 6:-6]
    np.testing.assert_allclose(values, 60 + 20 * lattice.numpy(), atol=1e-3)


@pytest.mark.parametrize("sigma", [0.6, 1.5])
def test_blur_lowers_the_deviation_of_white_noise_by_the_norm_of_its_kernel(sigma):
    offsets = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    values = make((90, 90, 90), grain=1.0, blur_sigma_mm=sigma)
    assert values.mean() == pytest.approx(60, abs=0.15)
    assert values.std() == pytest.approx(20 * (kernel**2).sum() ** 1.5, rel=0.02)


@pytest.mark.parametrize("kind", ["gaussian", "salt"])
@pytest.mark.parametrize("spacing", [EVEN, (0.7, 0.5, 1.2)])
def test_it_is_the_cubic_spline_of_the_lattice_then_blurred(kind, spacing):
    shape = (30, 24, 20)
    # The blur looks this many voxels beyond the border; the lattice goes on for six points more.
    radius = [int(4 * 0.6 / s + 0.5) for s in spacing]
    places = [
        math.ceil(r * s / 1.3) + 6 + np.arange(-r, n + r) * s / 1.3
        for n, s, r in zip(shape, spacing, radius, strict=True)
    ]
    sizes = [math.ceil(place[-1]) + 7 for place in places]
    generator = torch_generator(1, "handcrafted")
    draw = torch.randn if kind == "gaussian" else torch.rand
    lattice = draw(sizes, generator=generator).double().numpy()
    lattice = lattice if kind == "gaussian" else (lattice < 0.2).astype(float)
    scaled = map_coordinates(lattice, np.meshgrid(*places, indexing="ij"), order=3)
    expected = gaussian_filter(scaled, [0.6 / s for s in spacing], truncate=4.0)
    expected = expected[tuple(slice(r, n + r) for r, n in zip(radius, shape, strict=True))]
    ours = make(shape, spacing, kind=kind)
    if kind == "gaussian":
        np.testing.assert_allclose(ours, 60 + 20 * expected, atol=0.02)
        return
    # Salt is scaled to its deviation and clipped: the rest is on a line.
    free = np.abs(ours - 60) < 39.99
    assert np.corrcoef(ours[free], expected[free])[0, 1] > 1 - 1e-6


@pytest.mark.parametrize("spacing", [EVEN, (0.7, 0.7, 3.0)])
def test_eq_3_loses_most_of_the_deviation_and_scaling_brings_it_back(spacing):
    letter, scaled = make(sd_hu=15.0, spacing=spacing), make(sd_hu=15.0, spacing=spacing, scaled=True)
    assert letter.std() < 0.65 * 15
    assert scaled.std() == pytest.approx(15, rel=0.02)
    # The same texture, and the same grain.
    np.testing.assert_allclose((scaled - 60) / scaled.std(), (letter - 60) / letter.std(), atol=0.01)


@pytest.mark.parametrize("grain", [1.1, 1.3, 1.5])
def test_scaled_texture_is_as_published(grain):
    """Published tumors in a liver of 15 HU: a deviation of 15.1 to 15.3 and a lag-1 autocorrelation of 0.54 to 0.61."""
    values = make((80, 80, 80), sd_hu=15.0, grain=grain, scaled=True)
    assert values.std() == pytest.approx(15.2, abs=0.4)
    assert all(0.5 < correlation(values, 1, axis) < 0.75 for axis in range(3))


def test_the_border_is_like_the_middle():
    values = make((40, 160, 160), grain=1.0)
    inside = values[15:25].std()
    assert values[0].std() == pytest.approx(inside, rel=0.05)
    assert values[-1].std() == pytest.approx(inside, rel=0.05)


def test_the_grain_grows_with_eta():
    lengths = [length_mm(make(grain=grain), 1.0) for grain in (1.0, 1.5, 2.5, 5.0)]
    assert lengths == sorted(lengths)
    assert lengths[-1] > 2 * lengths[0]


@pytest.mark.parametrize("kind", ["gaussian", "salt"])
def test_the_grain_has_the_same_size_in_mm_at_any_spacing(kind):
    lengths = [length_mm(make(tuple([int(90 / s)] * 3), (s, s, s), kind=kind, grain=4.0), s) for s in (0.5, 1.0, 2.0)]
    assert lengths == pytest.approx([lengths[1]] * 3, rel=0.1)


def test_thick_slices_are_independent_and_keep_their_grain_in_the_plane():
    values = make((96, 96, 40), (0.7, 0.7, 5.0))
    assert abs(correlation(values, 1, axis=2)) < 0.02
    assert correlation(values, 1, axis=0) > 0.5
    coarse = make((40, 40, 40), (5.0, 5.0, 5.0))
    assert coarse.std() == pytest.approx(20, rel=0.02)
    assert all(abs(correlation(coarse, 1, axis)) < 0.02 for axis in range(3))


def test_one_voxel_is_enough():
    assert np.isfinite(make((1, 1, 1))).all()
    assert make((1, 5, 2), kind="salt").shape == (1, 5, 2)


@pytest.mark.parametrize("grain", [1.0, 1.3, 2.5])
def test_salt_is_skewed_and_bounded_around_its_mean_and_deviation(grain):
    values = make(kind="salt", grain=grain)
    assert values.min() >= 20
    assert values.max() == 100  # the limit is reached, by few
    assert (values == 100).mean() < 0.06
    assert values.mean() == pytest.approx(60, abs=0.05 * 20)
    assert values.std() == pytest.approx(20, rel=0.1)
    assert skew(values.ravel()) > 0.4
    assert abs(skew(make(grain=grain).ravel())) < 0.1


def test_salt_has_its_deviation_before_the_limit_cuts(monkeypatch):
    monkeypatch.setattr("difftumor.synthesis.generators.handcrafted._SALT_LIMIT", 99.0)
    values = make((90, 90, 90), kind="salt", blur_sigma_mm=1.5)
    assert values.mean() == pytest.approx(60, abs=0.5)
    assert values.std() == pytest.approx(20, rel=0.03)


def test_without_deviation_it_is_the_mean():
    for kind in ("gaussian", "salt"):
        assert (make((5, 6, 7), kind=kind, sd_hu=0.0) == 60).all()


@pytest.mark.parametrize("kind", ["gaussian", "salt"])
def test_the_seed_decides_whatever_autocast_and_global_state_are(kind):
    state = torch.get_rng_state()
    first = make((20, 30, 10), kind=kind)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(make((20, 30, 10), kind=kind), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert (make((20, 30, 10), kind=kind, seed=2) != first).mean() > 0.9


def test_a_record_survives_json():
    record = texture(sd_hu=0.1 + 0.2)
    assert TextureRecord(**json.loads(json.dumps(dataclasses.asdict(record)))) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "pepper"}, "kind must be gaussian or salt, not 'pepper': correct the record"),
        ({"mean_hu": math.nan}, "mean_hu must be a finite number"),
        ({"sd_hu": -1.0}, "sd_hu must be a number of at least 0"),
        ({"sd_hu": math.inf}, "sd_hu must be"),
        ({"grain": 0.99}, "grain must be a number of at least 1, not 0.99"),
        ({"blur_sigma_mm": math.nan}, "blur_sigma_mm must be"),
        ({"host_noise_mm": -1.0}, "host_noise_mm must be a number of at least 0"),
        ({"scaled": 1}, "scaled must be true or false, not 1"),
    ],
)
def test_a_bad_record_is_refused(change, message):
    with pytest.raises(SynthesisError, match=message):
        texture(**change)
