"""Random fields and solids that the phantom is built from."""

import numpy as np
import pytest

from difftumor.datasets.phantom.solids import (
    SmoothField,
    Solid,
    Space,
    correlated_noise,
    ellipsoid,
    smooth_minimum,
    tube,
)
from difftumor.seeding import numpy_generator


def axis(count: int, spacing: float) -> np.ndarray:
    return ((np.arange(count) - (count - 1) / 2) * spacing).astype(np.float32)


def plain_space(count: int = 32, spacing: float = 2.0) -> Space:
    axes = (axis(count, spacing),) * 3
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return Space(axes, (spacing,) * 3, (1.0, 1.0, 1.0), (x, y, z))


def on_grid(space: Space, solid: Solid) -> np.ndarray:
    whole = np.zeros(space.shape, dtype=bool)
    whole[solid.box] = solid.distance < 0
    return whole


def test_field_does_not_depend_on_the_grid():
    field = SmoothField(wavelength_mm=30.0, generator=numpy_generator(0, "field"))
    fine, coarse = axis(41, 2.5), axis(41, 2.5)[::4]
    assert np.allclose(field.sample((fine, fine, fine))[::4, ::4, ::4], field.sample((coarse,) * 3), atol=1e-5)


def test_field_has_zero_mean_unit_variance_and_is_smooth():
    field = SmoothField(wavelength_mm=10.0, generator=numpy_generator(1, "field"))
    values = field.sample((axis(120, 4.0),) * 3)
    assert abs(values.mean()) < 0.05
    assert values.std() == pytest.approx(1.0, abs=0.05)
    near = field.sample((axis(50, 0.1),) * 3)
    assert np.abs(np.diff(near, axis=0)).max() < 0.1


def test_noise_has_unit_deviation_and_correlated_neighbors():
    noise = correlated_noise((40, 40, 40), sigma_voxels=(1.0, 1.0, 0.0), generator=numpy_generator(0, "noise"))
    assert noise.std() == pytest.approx(1.0, abs=1e-3)
    along = np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]
    across = np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]
    # White noise through a Gaussian of width sigma correlates as exp(-d² / 4 sigma²).
    assert along == pytest.approx(np.exp(-0.25), abs=0.03)
    assert abs(across) < 0.03


def test_ball_distances_are_exact():
    space = plain_space()
    ball = ellipsoid(space, (2.0, -3.0, 1.0), (12.0, 12.0, 12.0))
    x, y, z = space.at(ball.box)
    assert np.allclose(ball.distance, np.sqrt((x - 2) ** 2 + (y + 3) ** 2 + (z - 1) ** 2) - 12.0, atol=1e-2)


def test_rotated_ellipsoid_follows_its_axes():
    space = plain_space()
    turn = np.asarray([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], dtype=np.float32)
    turned = ellipsoid(space, (0, 0, 0), (20.0, 8.0, 12.0), turn)
    plain = ellipsoid(space, (0, 0, 0), (8.0, 20.0, 12.0))
    assert (on_grid(space, turned) == on_grid(space, plain)).all()
    assert on_grid(space, plain).any()


def test_tube_matches_a_dense_row_of_balls():
    space = plain_space()
    points, radii = [(-20.0, -5.0, 0.0), (10.0, 10.0, 8.0)], (4.0, 7.0)
    solid = tube(space, points, radii)
    coordinates = np.stack(space.at(solid.box), axis=-1)
    a, b = np.asarray(points)
    nearest = np.full(solid.distance.shape, np.inf)
    for t in np.linspace(0, 1, 200):
        nearest = np.minimum(nearest, np.linalg.norm(coordinates - (a + t * (b - a)), axis=-1) - 4.0 - 3.0 * t)
    # Distances to a cone are approximate (its slope is ignored), by at most its change of radius over the length.
    assert np.abs(solid.distance - nearest).max() < 0.5


def test_carving_joining_and_islands():
    space = plain_space()
    ball, bite = ellipsoid(space, (0, 0, 0), (16.0,) * 3), ellipsoid(space, (14, 0, 0), (9.0,) * 3)
    carved = on_grid(space, ball.without(bite))
    assert (carved == (on_grid(space, ball) & ~on_grid(space, bite))).all()
    # A slab through the middle leaves two caps, of which the larger stays.
    x, _, _ = space.at(ball.box)
    slab = Solid(ball.box, np.abs(x - 4.0) - 4.0)
    rest = on_grid(space, ball.without(slab).main_part())
    assert rest.any()
    assert np.argwhere(rest)[:, 0].max() < 16 + 2


def test_smooth_minimum_is_a_minimum_with_a_fillet():
    a, b = np.asarray([0.0, 5.0, 0.0]), np.asarray([9.0, -5.0, 0.0])
    assert smooth_minimum(a, b, 0.0).tolist() == [0.0, -5.0, 0.0]
    assert smooth_minimum(a, b, 4.0).tolist() == [0.0, -5.0, -1.0]


def test_a_solid_beyond_the_grid_is_empty():
    assert ellipsoid(plain_space(), (500.0, 0, 0), (10.0,) * 3).distance.size == 0
