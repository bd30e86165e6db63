"""What levels are worth, and what a file may say about them."""

import math
from statistics import fmean

import numpy as np
import pytest

from difftumor.errors import ConfigError
from difftumor.evaluation.robustness.dimensions import DEFAULTS, LEVELS, level_name, read_dimensions, varied
from difftumor.synthesis.sizes import SIZES


def values(dimension):
    return [dimension.at(level)[0] for level in LEVELS]


def test_levels_by_hand():
    assert values(DEFAULTS["texture"]) == pytest.approx([1.0, 1.07, 1.185, 1.3, 1.415, 1.53, 1.645])
    assert [DEFAULTS["texture"].at(level)[1] for level in LEVELS] == [True] + 6 * [False]
    assert values(DEFAULTS["intensity"]) == [-105, -85, -65, -45, -25, -5, 15]
    assert values(DEFAULTS["location"]) == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1])
    assert not any(DEFAULTS["location"].at(level)[1] for level in LEVELS)


def test_sizes_reach_from_the_tiny_to_the_large_tumors_of_table_6():
    found = values(DEFAULTS["size"])
    assert found[0] == pytest.approx(2 * SIZES["tiny"].radius_mm, rel=0.01)
    assert found[2] == pytest.approx(2 * SIZES["small"].radius_mm, rel=0.01)
    assert found[-1] == pytest.approx(2 * SIZES["large"].radius_mm, rel=0.01)
    assert np.diff(np.log(found)) == pytest.approx(math.log(2) / 2)


def test_defaults_are_the_moments_of_the_papers_tables():
    """Table 1: η is U(1.1, 1.5), and μt − μp is U(30 − 110, −10). Table 6: σe / r, each size as often."""
    assert (DEFAULTS["texture"].mean, DEFAULTS["texture"].sd) == pytest.approx((1.3, 0.4 / math.sqrt(12)), rel=0.01)
    assert (DEFAULTS["intensity"].mean, DEFAULTS["intensity"].sd) == pytest.approx((-45, 70 / math.sqrt(12)), rel=0.02)
    shares = [[s / size.radius_mm for s in size.handcrafted.deformation_mm] for size in SIZES.values()]
    mean = fmean(fmean(share) for share in shares)
    square = fmean((high - low) ** 2 / 12 + fmean((low, high)) ** 2 for low, high in shares)
    sd = math.sqrt(square - mean**2)
    assert (DEFAULTS["shape"].mean, DEFAULTS["shape"].sd) == pytest.approx((mean, sd), abs=5e-3)


def test_a_file_changes_what_it_names(tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text("size: {mean: 12, factor: 1.3}\nshape: {mean: 0.1, sd: 0.05, max: 0.2}\n")
    found = read_dimensions(path)
    assert found["size"].at(2) == (pytest.approx(12 * 1.69), False)
    assert [found["shape"].at(level) for level in (-3, -2, 2, 3)] == [(0, True), (0, False), (0.2, False), (0.2, True)]
    assert found["texture"] == DEFAULTS["texture"]
    assert read_dimensions(None) == dict(DEFAULTS)


def test_only_some_are_varied():
    found = read_dimensions(None, ["size", "location"])
    assert varied(found) == ["size", "location"]
    assert values(found["intensity"]) == 7 * [-45]
    assert varied(read_dimensions(None)) == list(DEFAULTS)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("weight: {mean: 1}", "names 'weight': known are shape, size"),
        ("size: {mean: 12, sd: 2}", r"size is .* give some of mean, factor, min, max"),
        ("size: {factor: 0.9}", r"size\.factor is 0\.9: give a number above 1"),
        ("shape: {sd: 0}", r"shape\.sd is 0: give a number above 0"),
        ("shape: {mean: many}", r"shape\.mean is 'many': give a number"),
        ("shape: {mean: true}", r"shape\.mean is True: give a number"),
        ("shape: {mean: .nan}", r"shape\.mean is nan: give a number"),
        ("texture: {min: 0.5}", r"texture goes from 0\.5 to 20: give a min below the max, both within 1 and 20"),
        ("texture: {min: 3, max: 2}", "goes from 3 to 2"),
        ("intensity: {mean: -400}", r"intensity\.mean is -400: give one between -300 and 300"),
        ("shape: 3", "shape is 3: give some of"),
        ("[1]", "names no dimension"),
        ("{", "cannot be read"),
    ],
)
def test_what_a_file_must_not_say(tmp_path, text, match):
    path = tmp_path / "d.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        read_dimensions(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        read_dimensions(tmp_path / "nowhere.yaml")


def test_names_of_levels():
    assert [level_name(level) for level in (-3, -1, 0, 1, 2)] == ["μ − 3σ", "μ − σ", "μ", "μ + σ", "μ + 2σ"]
