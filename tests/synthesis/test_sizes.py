"""Size classes: Hu et al. 2023, section 3.1 and Table 6, and where DiffTumor's recipe departs from them."""

import numpy as np
import pytest

from difftumor.errors import ConfigError
from difftumor.synthesis.sizes import SIZE_CHOICES, SIZES, nearest_size, size_groups_of, sizes_of

# Radius, range or choices of σe, and number of tumors: Table 6 of Hu et al. 2023.
TABLE_6 = {
    "tiny": (4, (0.5, 1), (3, 10)),
    "small": (8, (1, 2), (3, 10)),
    "medium": (16, (3, 6), (2, 5)),
    "large": (32, (5, 10), (1, 3)),
}


@pytest.mark.parametrize("name", TABLE_6)
def test_hand_crafted_classes_are_those_of_the_paper(name):
    radius_mm, deformation_mm, counts = TABLE_6[name]
    size = SIZES[name].handcrafted
    assert (size.name, size.radius_mm, size.counts) == (name, radius_mm, counts)
    assert size.half_axes == (0.75, 1.25)
    assert (size.deformation_mm, size.continuous) == (deformation_mm, True)


def test_difftumor_draws_whole_deformations_and_longer_axes_of_large_tumors():
    assert [size.half_axes for size in SIZES.values()] == [(0.75, 1.25)] * 3 + [(0.75, 2.0)]
    assert [size.continuous for size in SIZES.values()] == [True, False, False, False]


@pytest.mark.parametrize("name", TABLE_6)
def test_deformations_cover_their_range(name):
    low, high = TABLE_6[name][1]
    generator = np.random.default_rng(0)
    for size in (SIZES[name], SIZES[name].handcrafted):
        values = [size.draw_deformation(generator) for _ in range(300)]
        assert low <= min(values) <= low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) <= max(values) <= high
        whole = {value for value in values if value.is_integer()}
        assert whole == (set() if size.continuous else {float(value) for value in range(int(low), int(high) + 1)})


def test_groups_hold_their_classes():
    assert SIZE_CHOICES["early"] == ("tiny", "small")
    assert SIZE_CHOICES["late"] == ("medium", "large")
    assert SIZE_CHOICES["mix"] == tuple(TABLE_6)
    assert sizes_of("medium") == ("medium",)
    with pytest.raises(
        ConfigError, match=r"'giant' is unknown: use one of tiny, small, medium, large, early, late, mix"
    ):
        sizes_of("giant")


def test_tiny_and_small_tumors_are_early():
    early, late = {"early"}, {"late"}
    assert {size: size_groups_of(size) for size in SIZE_CHOICES} == {
        "tiny": early, "small": early, "early": early, "medium": late, "large": late, "late": late, "mix": early | late,
    }  # fmt: skip


def test_the_nearest_class_is_so_by_ratio():
    # Between 4 and 8 the geometric mean, 5.66, divides, not the arithmetic one, 6.
    expected = {0.5: "tiny", 5.6: "tiny", 5.7: "small", 11.3: "small", 11.4: "medium", 22.6: "medium", 22.7: "large"}
    assert {radius: nearest_size(radius).name for radius in expected} == expected
