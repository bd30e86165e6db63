"""Tumors are alike but for what a dimension varies, lie in the organ, and do not depend on anything else."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import ndimage

from difftumor.errors import SynthesisError
from difftumor.evaluation.robustness.plan import (
    CandidateCenters,
    distinct,
    file_name,
    joined,
    plan_scan,
    tumor_spec,
    vary,
)
from difftumor.scans.organs import get_organ
from difftumor.seeding import numpy_generator
from difftumor.synthesis.host import Host
from difftumor.synthesis.scan.model_scan import ModelScan
from difftumor.synthesis.shapes import tumor_shape
from tests.evaluation.robustness.makers import dimensions, write_scan
from tests.synthesis.makers import ball, rough_organ

FIELDS = {
    "shape": {"deformation_sigma_mm"},
    "size": {"radius_mm", "half_axes_mm", "deformation_sigma_mm"},
    "texture": {"texture.grain"},
    "intensity": {"contrast_hu", "texture.mean_hu"},
    "location": {"center_voxel", "center_mm"},
}


def place(tmp_path, chosen, **options):
    scan = write_scan(tmp_path, **options).read(organ="liver")
    return ModelScan(scan, (1.0, 1.0, 1.0)).host([tumor_spec(chosen)], get_organ("liver"))


def flat(record):
    values = asdict(record)
    return {**values, **{f"texture.{name}": value for name, value in values.pop("texture").items()}} | {"texture": None}


def differing(a, b):
    return {name for name, value in flat(a).items() if value != flat(b)[name]}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return place(tmp_path_factory.mktemp("scan"), dimensions())


@pytest.fixture(scope="module")
def plan(host):
    return plan_scan(host, dimensions(), seed=3, repeats=2)


def test_only_the_varied_field_differs(plan):
    for name, fields in FIELDS.items():
        for repeat in (0, 1):
            own = [v for v in plan.variants if v.dimension == name and v.repeat == repeat]
            assert [v.level for v in own] == [-3, -2, -1, 0, 1, 2, 3]
            middle = own[3].record
            found = [differing(middle, v.record) for v in own if v.level]
            assert all(some <= fields for some in found)
            assert set().union(*found) == fields
            assert len({v.record for v in own}) == 7


def test_values_reach_the_records(plan):
    for v in plan.variants:
        expected = {
            "shape": v.record.deformation_sigma_mm / v.record.radius_mm,
            "size": 2 * v.record.equivalent_radius_mm,
            "texture": v.record.texture.grain,
            "intensity": v.record.contrast_hu,
        }
        if v.dimension in expected:
            assert v.value == pytest.approx(expected[v.dimension])
        assert v.record.deformation_sigma_mm / v.record.radius_mm == pytest.approx(
            v.value if v.dimension == "shape" else 0.22
        )
        assert v.record.texture.mean_hu - v.record.contrast_hu == pytest.approx(110, abs=0.5)


def test_the_mean_is_one_tumor_but_for_its_place(plan):
    groups = list(distinct(plan.variants))
    assert len(groups) == 2 * (1 + 4 * 6 + 7)
    (shared,) = [group for group in groups if len(group) > 1 and group[0].repeat == 0]
    assert [v.dimension for v in shared] == ["shape", "size", "texture", "intensity"]
    assert file_name(shared[0]) == "mean_0.json"


def test_repeats_are_other_tumors_elsewhere(plan):
    first, second = (next(v.record for v in plan.variants if v.repeat == repeat) for repeat in (0, 1))
    assert {"half_axes_mm", "shape_seed", "texture_seed", "center_voxel"} <= differing(first, second)


def test_no_tumor_is_cut(plan, host):
    organ = np.pad(host.mask, 60)
    for v in plan.variants:
        shape = tumor_shape(v.record)
        start = np.subtract(v.record.center_voxel, host.start) + 60 - np.array(shape.shape) // 2
        assert organ[tuple(slice(a, a + n) for a, n in zip(start, shape.shape, strict=True))][shape].all()


def test_location_goes_from_the_surface_to_the_middle(plan):
    for repeat in (0, 1):
        depths = [v.depth_mm for v in plan.variants if v.dimension == "location" and v.repeat == repeat]
        assert depths == sorted(depths)
        assert depths[0] < 8  # a ball of liver of 34 mm, a tumor of about 5 mm
        assert depths[-1] > 26


def test_seed_decides_everything(host, plan):
    assert plan_scan(host, dimensions(), seed=3, repeats=2) == plan
    assert plan_scan(host, dimensions(), seed=4, repeats=2) != plan
    # Fewer repeats or dimensions leave what is there as it is.
    first = plan_scan(host, dimensions(), seed=3, repeats=1).variants
    assert first == tuple(v for v in plan.variants if v.repeat == 0)
    alone = plan_scan(host, dimensions("location"), seed=3, repeats=1).variants
    assert alone == tuple(v for v in first if v.dimension == "location")


def test_limits_hold_values_back(host):
    chosen = dimensions("shape", shape={"mean": 0.05, "sd": 0.05})
    found = plan_scan(host, chosen, seed=0, repeats=1).variants
    assert [(v.value, v.clamped) for v in found[:3]] == [(0, True), (0, True), (0, False)]
    assert len(list(distinct(found))) == 5


def test_sizes_without_room_are_noted(tmp_path):
    chosen = dimensions("size", size={"mean": 36.0, "sd": 1.2})
    found = plan_scan(place(tmp_path, chosen), chosen, seed=0, repeats=1)
    diameters = [v.value for v in found.variants]
    assert diameters == pytest.approx([36 * 1.2**level for level in range(-3, -3 + len(diameters))])
    assert 4 <= len(diameters) < 7
    assert len(found.notes) == 7 - len(diameters)
    assert found.notes[-1] == "No room for tumor 1 at 62.2 mm (+3σ)."


def test_the_largest_sizes_are_dropped_and_all_others_stay(host):
    """The radius of the largest that has room is the last that has: the next one would have had none."""
    chosen = dimensions("size", size={"mean": 36.0, "sd": 1.2})
    found = plan_scan(host, chosen, seed=0, repeats=1).variants
    levels = [v.level for v in found]
    assert levels == list(range(-3, -3 + len(levels)))
    assert 4 <= len(levels) < 7
    shapes = [tumor_shape(v.record) for v in found]
    places = CandidateCenters(host)
    assert len(places.fitting(joined(shapes)))
    base = next(v.record for v in found if v.level == 0)
    following = vary(base, "size", chosen["size"].at(levels[-1] + 1)[0], host)
    assert not len(places.fitting(joined([*shapes, tumor_shape(following)])))


def test_tumors_may_not_leave_the_organ(plan):
    assert not any(v.record.may_leave_organ for v in plan.variants)


def test_an_organ_too_small_is_refused(tmp_path):
    chosen = dimensions(size={"mean": 60.0})
    with pytest.raises(SynthesisError, match=r"no room for a tumor of 60 mm .* --dimensions"):
        plan_scan(place(tmp_path, chosen), chosen, seed=0, repeats=1)


def test_places_are_those_of_an_erosion():
    organ = rough_organ((30, 26, 28), 1)
    shape = ball((7, 5, 9), 3.4)
    shape[6, 4, 8] = True  # not symmetric: a shape must not be mirrored
    places = CandidateCenters(Host(organ, organ=get_organ("liver"), spacing_mm=(1.0, 1.0, 1.0), open_border=False))
    expected = np.argwhere(ndimage.binary_erosion(organ, shape))
    np.testing.assert_array_equal(places.fitting(shape), expected)
    depth = ndimage.distance_transform_edt(np.pad(organ, 1))[1:-1, 1:-1, 1:-1]
    ordered = places.by_depth(shape, numpy_generator(0))
    assert sorted(ordered.tolist()) == expected.tolist()
    assert [places.depth_at(tuple(voxel)) for voxel in ordered] == pytest.approx(sorted(depth[tuple(expected.T)]))
    assert not np.array_equal(ordered, places.by_depth(shape, numpy_generator(1)))
    assert len(places.fitting(ball((41, 41, 41), 20))) == 0


def test_the_end_of_the_scan_is_a_surface():
    places = CandidateCenters(
        Host(np.ones((9, 9, 9), bool), organ=get_organ("liver"), spacing_mm=(1.0, 1.0, 1.0), open_border=False)
    )
    ordered = places.by_depth(np.ones((1, 1, 1), bool), numpy_generator(0))
    assert tuple(ordered[-1]) == (4, 4, 4)
    assert places.depth_at((4, 4, 4)) - places.depth_at((0, 4, 4)) == pytest.approx(4)


def test_joined_shapes_share_their_middle():
    wide, high = np.ones((5, 1, 1), bool), np.ones((1, 1, 3), bool)
    expected = np.zeros((5, 1, 3), bool)
    expected[:, 0, 1] = expected[2, 0, :] = True
    np.testing.assert_array_equal(joined([wide, high]), expected)


def test_a_ball_that_is_larger_holds_the_smaller(plan):
    own = [v.record for v in plan.variants if v.dimension == "size" and v.repeat == 0]
    small, large = tumor_shape(own[0]), tumor_shape(own[-1])
    grown = joined([small, large])
    assert grown.shape == large.shape
    assert np.count_nonzero(grown) == np.count_nonzero(large)
    assert replace(own[0], radius_mm=1, half_axes_mm=(1, 1, 1), deformation_sigma_mm=0) == replace(
        own[-1], radius_mm=1, half_axes_mm=(1, 1, 1), deformation_sigma_mm=0
    )


def test_places_are_all_over_the_organ(host):
    plans = [plan_scan(host, dimensions("texture"), seed=seed, repeats=1) for seed in range(6)]
    centers = np.array([plan.variants[0].record.center_mm for plan in plans])
    middle = np.array([40.0, 38.0, 36.0])  # of the ball
    assert ((centers < middle).any(axis=0) & (centers > middle).any(axis=0)).all()
