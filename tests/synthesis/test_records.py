import dataclasses
import json
import math

import numpy as np
import pytest

from difftumor.errors import ConfigError, SynthesisError
from difftumor.synthesis.records import TumorRecord
from difftumor.synthesis.sizes import SIZES, sizes_of
from tests.synthesis.makers import record


def test_json_round_trip_is_exact():
    drawn = record(half_axes_mm=(0.1 + 0.2, math.pi, 1 / 3), shape_seed=2**63 - 1, center_mm=(-1e-17, 1e300, 0.1))
    again = TumorRecord.from_json(drawn.to_json())
    assert again == drawn
    assert hash(again) == hash(drawn)
    assert again.to_json() == drawn.to_json()


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().radius_mm = 5.0  # type: ignore[misc]


def test_moved_changes_the_voxel_and_nothing_else():
    moved = record(center_voxel=(5, 6, 7), center_mm=(50.0, 60.0, 70.0)).moved((-5, 1, 0))
    assert moved == record(center_voxel=(0, 7, 7), center_mm=(50.0, 60.0, 70.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format_version 99"),
        ({"half_axes_mm": [1.0, 0.0, 1.0]}, "must be above 0"),
        ({"half_axes_mm": [1.0, 1.0]}, "half_axes_mm must be three finite numbers"),
        ({"half_axes_mm": ["a", 1.0, 1.0]}, "must be three finite numbers"),
        ({"blur_sigma_voxels": math.nan}, "blur_sigma_voxels must be"),
        ({"deformation_sigma_mm": -1.0}, "deformation_sigma_mm must be"),
        ({"color": "red"}, "color"),
    ],
)
def test_bad_record_is_refused(change, message):
    with pytest.raises(SynthesisError, match=message):
        TumorRecord.from_json(json.dumps({**record().to_dict(), **change}))


def test_missing_field_and_broken_text_are_refused():
    values = record().to_dict()
    del values["organ"]
    with pytest.raises(SynthesisError, match="organ"):
        TumorRecord.from_dict(values)
    for text in ("{", "[]"):
        with pytest.raises(SynthesisError, match="not"):
            TumorRecord.from_json(text)


def test_sizes_are_the_published_ones():
    assert {name: size.radius_mm for name, size in SIZES.items()} == {
        "tiny": 4,
        "small": 8,
        "medium": 16,
        "large": 32,
    }
    assert sizes_of("early") == ("tiny", "small")
    with pytest.raises(ConfigError, match="'huge' is unknown"):
        sizes_of("huge")


@pytest.mark.parametrize(
    ("name", "values"), [("small", {1, 2}), ("medium", {3, 4, 5, 6}), ("large", {5, 6, 7, 8, 9, 10})]
)
def test_deformation_takes_every_published_choice(name, values):
    generator = np.random.default_rng(0)
    assert {SIZES[name].draw_deformation(generator) for _ in range(200)} == values


def test_deformation_of_tiny_tumors_fills_its_range():
    generator = np.random.default_rng(0)
    drawn = [SIZES["tiny"].draw_deformation(generator) for _ in range(200)]
    assert 0.5 <= min(drawn) < 0.55
    assert 0.95 < max(drawn) <= 1
